"""Cases as users have them: a small patient written as NIfTI or NRRD, in any orientation, with lists of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np

from MAISILib.volumes import LabelMap, Volume
from Testing.tiny_bundle import BODY, LIVER, LUNG, LUNG_TUMOR, tiny_patient

LESION = 150
#: What the CT shows for each label (HU); 0 is air.
HU = {0: -1000, BODY: 40, LIVER: 60, LUNG: -800, LUNG_TUMOR: 30, LESION: 300}
#: A turned and tilted frame: the voxel axes run to L, P and S, 20° about the left–right axis, 4 mm.
OBLIQUE_LPS = np.array(
    [
        [-4.0, 0.0, 0.0, 35.0],
        [0.0, -4 * np.cos(0.35), -4 * np.sin(0.35), 20.0],
        [0.0, -4 * np.sin(0.35), 4 * np.cos(0.35), -90.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


def patient(lesion: bool = True, shape: tuple[int, int, int] = (16, 16, 16), **options: Any) -> tuple[Volume, LabelMap]:
    """CT and labels of a patient, at wish with a lesion of 4×4×4 voxels in the liver."""
    mask = tiny_patient(shape=shape, **options)
    array = mask.array.copy()
    if lesion:
        x, y = shape[0] // 2, shape[1] // 2
        array[x - 2 : x + 2, y - 2 : y + 2, 2:6] = LESION
    lookup = np.zeros(256, np.int16)
    for label, value in HU.items():
        lookup[label] = value
    return Volume(lookup[array], mask.affine), mask.with_array(array)


def moved(array: np.ndarray, affine: np.ndarray, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same patient as if it had lain in another frame: axes that run to L and P are stored reversed."""
    flips = [slice(None, None, -1) if frame[axis, axis] < 0 else slice(None) for axis in range(3)]
    return array[tuple(flips)], frame


def write_image(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """Writes NIfTI or NRRD, as the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(np.ascontiguousarray(array), affine), path)  # type: ignore[attr-defined]
        return path
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    directions: Any = lps[:3, :3].T
    if array.ndim == 4:  # layers first, as Slicer writes them
        directions = np.vstack([np.full(3, np.nan), directions])
    space = {"space": "left-posterior-superior", "space directions": directions, "space origin": lps[:3, 3]}
    nrrd.write(str(path), np.ascontiguousarray(array), space)
    return path


def write_segments(path: Path, array: np.ndarray, affine: np.ndarray, segments: list[dict[str, Any]]) -> Path:
    """Writes a Slicer segmentation; ``array`` may have layers first: ``(L, X, Y, Z)``."""
    lines = ""
    for number, segment in enumerate(segments):
        lines += "".join(f"Segment{number}_{key}:={value}\n" for key, value in {"ID": f"S{number}", **segment}.items())
    write_image(path, array, affine)
    magic, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(magic + b"\n" + lines.encode() + rest)  # pynrrd would not write the UTF-8 that Slicer writes
    return path


def write_list(folder: Path, cases: Any) -> Path:
    """Writes ``cases.json``."""
    path = folder / "cases.json"
    path.write_text(json.dumps(cases), encoding="utf-8")
    return path


def write_case(
    folder: Path, name: str, *, suffix: str = ".nii.gz", lesion: bool = True, **options: Any
) -> dict[str, Any]:
    """Writes a patient's CT and labels, and gives its entry for the list."""
    ct, mask = patient(lesion, **options)
    write_image(folder / f"{name}_ct{suffix}", ct.array, ct.affine)
    write_image(folder / f"{name}_seg{suffix}", mask.array, mask.affine)
    return {"image": f"{name}_ct{suffix}", "segmentation": f"{name}_seg{suffix}"}
