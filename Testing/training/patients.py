"""A patient of 32³ voxels of 4 mm: a column of soft tissue with a spine, an airway off the middle, and drawn organs."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

SOFT, BONE, GAS, OUTSIDE = 40, 700, -900, -1000


def make_patient(brightness: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """CT in HU (int16) and OpenKBP structure numbers (uint8), ``(32, 32, 32)`` in RAS order.

    The right parotid (3) lies at low x, the left (4) at high x; the target (8) surrounds the airway.
    """
    x, y, z = np.meshgrid(*[np.arange(32)] * 3, indexing="ij")
    ct = np.full((32, 32, 32), OUTSIDE, np.int16)
    ct[((x - 15.5) / 14) ** 2 + ((y - 15.5) / 13) ** 2 < 1] = SOFT + brightness
    ct[..., :2] = OUTSIDE
    spine = (x - 15.5) ** 2 + (y - 8) ** 2 < 9
    airway = (x - 14) ** 2 + (y - 20) ** 2 < 9
    inside = z >= 2
    ct[spine & inside], ct[airway & inside] = BONE, GAS
    structures = np.zeros(ct.shape, np.uint8)
    structures[((x - 15.5) ** 2 + (y - 20) ** 2 < 36) & (z > 8) & (z < 24)] = 8
    structures[((x - 15.5) ** 2 + (y - 8) ** 2 < 2) & inside] = 2
    structures[(abs(x - 6) < 3) & (abs(y - 15) < 3) & (abs(z - 20) < 4)] = 3
    structures[(abs(x - 25) < 2) & (abs(y - 15) < 3) & (abs(z - 20) < 4)] = 4
    return ct, structures


def write_patient(
    folder: Path, name: str, brightness: float = 0.0, affine: np.ndarray | None = None, axes: str = "RAS"
) -> None:
    """Writes ``<name>_ct.nii.gz`` and ``<name>_seg.nii.gz``; ``axes`` may be ``LPS``: counted from the other side."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0]) if affine is None else affine
    for kind, array in zip(("ct", "seg"), make_patient(brightness), strict=True):
        stored, stored_affine = array, affine
        if axes == "LPS":
            flip = np.diag([-1.0, -1.0, 1.0, 1.0])
            flip[:2, 3] = 31
            stored, stored_affine = array[::-1, ::-1], affine @ flip
        image = nib.Nifti1Image(stored, stored_affine)  # type: ignore[attr-defined]
        nib.save(image, folder / f"{name}_{kind}.nii.gz")  # type: ignore[attr-defined]


def write_openkbp(folder: Path) -> Path:
    """A folder in the layout of OpenKBP with ``train`` (three patients) and ``validation`` (one)."""
    for split, numbers in (("train", (1, 2, 10)), ("validation", (201,))):
        (folder / split).mkdir(parents=True)
        for number in numbers:
            write_patient(folder / split, f"pt_{number}", brightness=float(number % 30))
    return folder
