"""Turns the voxels of a file into labels 0–255, or says why they are none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from MAISILib.errors import MaskError
from MAISILib.volumes import LabelMap

if TYPE_CHECKING:
    from MAISILib.anatomy.labels import LabelTable
    from MAISILib.files.straightening import Straightened

#: A label map with more numbers than this outside of the allowed ones is none: no list of structures is so long.
_MOST_LABELS = 300


def label_map(voxels: Straightened, table: LabelTable, path: Path, source: str | None = None) -> LabelMap:
    """The label map of voxels read from ``path``.

    Args:
        voxels: ``(X, Y, Z)``, integers of any width, or floating point with whole numbers.
        table: What the labels mean. Labels that it does not list are kept: judging them is the mask check's task.
        path: For messages.
        source: Where the mask came from, in words; the file's name where not given.

    Raises:
        MaskError: A voxel is not a whole number from 0 to 255.
    """
    labels, notes = as_labels(voxels.array, path, f"Renumber them with the labels of table '{table.name}'.")
    return LabelMap(labels, voxels.affine, table, source or path.name, (*voxels.notes, *notes))


def as_labels(array: np.ndarray, path: Path, advice: str, largest: int = 255) -> tuple[np.ndarray, tuple[str, ...]]:
    """Voxels as uint8 (uint16 where there are numbers above 255), and notes.

    Args:
        array: ``(X, Y, Z)``, integers of any width, or floating point with whole numbers.
        path: For messages.
        advice: What to do about numbers above ``largest``, as a sentence.
        largest: The largest number allowed, at most 65535.

    Raises:
        MaskError: A voxel is not a whole number from 0 to ``largest``.
    """
    notes: tuple[str, ...] = ()
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise MaskError(f"{path} holds NaN or infinity; a label map holds whole numbers from 0 to {largest}.")
        broken = np.unique(array[array != np.rint(array)])
        if broken.size:
            raise MaskError(
                f"{path} holds {broken.size:,} values that are no whole numbers ({_listed(broken)}). It is an image or "
                "was resampled with interpolation; a label map needs nearest-neighbour interpolation."
            )
        notes = (f"{path.name}: labels are stored as {array.dtype}; read as whole numbers.",)
    if array.dtype != np.uint8:
        outside = np.unique(array[(array < 0) | (array > largest)])
        if outside.size > _MOST_LABELS:
            raise MaskError(
                f"{path} holds {outside.size:,} values outside 0–{largest}: {_listed(outside)}. It is an image, not a "
                "label map. Give the segmentation of it."
            )
        if outside.size:
            raise MaskError(f"{path} holds labels outside 0–{largest}: {_listed(outside)}. {advice}")
    wide = largest > 255 and array.max(initial=0) > 255
    return np.asarray(array, dtype=np.uint16 if wide else np.uint8), notes


def _listed(values: np.ndarray, limit: int = 8) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:limit])
    return shown + (f" and {values.size - limit:,} more" if values.size > limit else "")
