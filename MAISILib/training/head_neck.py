"""Prepares the OpenKBP head-and-neck CTs: conditioning labels, training grids, quality statistics.

Labels come from two places: the organs that OpenKBP's planners drew, and Hounsfield units. On the training grid, from
the bottom up (later wins): body, target (union of PTV56, PTV63 and PTV70), air cavity (inside the body below
``AIR_HU``), bone (inside the body above ``BONE_HU``), organs. OpenKBP's CTs are already blank outside the patient.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MAISILib.errors import TrainingError
from MAISILib.resampling import nearest, resample_volume, to_canonical
from MAISILib.volumes import Grid, Volume

#: OpenKBP structure number → label of ``Resources/bundles/head-neck-mini/labels.csv``, in drawing order.
STRUCTURES = {8: 140, 9: 140, 10: 140, 5: 11, 6: 136, 1: 133, 2: 121, 3: 134, 4: 135, 7: 137}
BODY, TARGET, BONE, AIR = 200, 140, 138, 139
#: Labels that end where the body of the CT ends. The organs end where the planners drew their ends.
FROM_HU = (BODY, TARGET, BONE, AIR)

#: Inside the body: below is gas, above is bone. At 6×6×4 mm partial volume mixes thin bone with soft tissue, so the
#: bone threshold is lower than the 250–300 HU usual at full resolution.
AIR_HU, BONE_HU = -300.0, 180.0


@dataclass(frozen=True)
class Case:
    """One patient in RAS+ order: CT in HU, ``(X, Y, Z)`` int16, and drawn structures, uint8, on one grid."""

    name: str
    ct: np.ndarray
    structures: np.ndarray
    affine: np.ndarray

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        return Grid(self.ct.shape, self.affine)  # type: ignore[arg-type]


def read_case(folder: Path, name: str) -> Case:
    """Reads ``<name>_ct.nii.gz`` and ``<name>_seg.nii.gz``.

    Raises:
        TrainingError: A file is missing or the two differ in shape.
    """
    import nibabel as nib

    paths = [folder / f"{name}_{kind}.nii.gz" for kind in ("ct", "seg")]
    for path in paths:
        if not path.is_file():
            raise TrainingError(f"{path} is missing. Give the folder that holds the OpenKBP cases (pt_*_ct.nii.gz).")
    ct_image, seg_image = (nib.load(path) for path in paths)  # type: ignore[attr-defined]
    ct, affine = to_canonical(np.asarray(ct_image.dataobj), ct_image.affine)  # type: ignore[attr-defined]
    structures, _ = to_canonical(np.asarray(seg_image.dataobj), seg_image.affine)  # type: ignore[attr-defined]
    if ct.shape != structures.shape:
        raise TrainingError(f"{name}: CT {ct.shape} and structures {structures.shape} differ in size.")
    return Case(name, ct.astype(np.int16), structures.astype(np.uint8), affine)


def case_names(folder: Path) -> list[str]:
    """Names of the cases in a folder, in numeric order."""
    names = [p.name.removesuffix("_ct.nii.gz") for p in folder.glob("*_ct.nii.gz")]
    if not names:
        raise TrainingError(f"{folder} holds no OpenKBP case (pt_*_ct.nii.gz).")
    return sorted(names, key=lambda n: int("".join(filter(str.isdigit, n)) or 0))


def body_bounds(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """First and last voxel index ``(3,)`` of tissue, ignoring specks."""
    from scipy import ndimage

    tissue = ndimage.binary_opening(case.ct > AIR_HU)
    if not tissue.any():
        raise TrainingError(f"{case.name}: no tissue in the CT.")
    spans = [np.flatnonzero(tissue.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return np.array([s[0] for s in spans]), np.array([s[-1] for s in spans])


def crop_grid(case: Case, shape: tuple[int, int, int], spacing: tuple[float, float, float], height: float) -> Grid:
    """A grid of the wanted size centred on the patient across, and at ``height`` (0 bottom, 1 top) along the body.

    Where the patient is shorter than the grid, the whole patient is inside it.
    """
    low, high = body_bounds(case)
    low_mm = (case.affine @ np.append(low - 0.5, 1))[:3]
    high_mm = (case.affine @ np.append(high + 0.5, 1))[:3]
    center = (low_mm + high_mm) / 2
    extent, window = high_mm[2] - low_mm[2], shape[2] * spacing[2]
    center[2] += (extent - window) * (height - 0.5)
    return Grid.axis_aligned(shape, spacing, tuple(center))


def sample_case(case: Case, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """CT in HU ``(X, Y, Z)`` float32 clipped to [−1000, 1000], and conditioning labels uint8, on ``grid``."""
    ct = resample_volume(Volume(case.ct, case.affine), grid, fill=-1000.0).array.clip(-1000, 1000)
    structures = nearest(case.structures, case.grid, grid)
    return ct, conditioning_labels(ct, structures)


def body_mask(ct: np.ndarray) -> np.ndarray:
    """Where the patient is: tissue and the gas that it encloses, ``(X, Y, Z)`` bool, from a CT in HU."""
    from scipy import ndimage

    tissue = ndimage.binary_closing(np.pad(ct > AIR_HU, 2), iterations=1)[2:-2, 2:-2, 2:-2] | (ct > AIR_HU)
    components, count = ndimage.label(tissue)  # type: ignore[misc]
    if count == 0:
        return np.zeros(ct.shape, bool)
    sizes = np.bincount(components.ravel())[1:]
    body = np.isin(components, 1 + np.flatnonzero(sizes >= 0.05 * sizes.max()))
    for z in range(body.shape[2]):  # gas that the skin encloses within a slice belongs to the body
        body[:, :, z] = ndimage.binary_fill_holes(body[:, :, z])
    return body


def conditioning_labels(ct: np.ndarray, structures: np.ndarray) -> np.ndarray:
    """Labels of the bundle from a CT (HU) and OpenKBP structures, both ``(X, Y, Z)`` on the same grid."""
    body = body_mask(ct)
    labels = np.where(body, BODY, 0).astype(np.uint8)
    if not body.any():
        return labels
    for structure in (8, 9, 10):
        labels[body & (structures == structure)] = TARGET
    labels[body & (ct < AIR_HU)] = AIR
    labels[body & (ct > BONE_HU)] = BONE
    for structure, label in STRUCTURES.items():
        if label != TARGET:
            labels[structures == structure] = label
    return labels
