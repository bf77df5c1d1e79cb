"""A segmentation of the scene → the files that the engine makes an image from, on the grid of the user's volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from MAISILib.anatomy.labels import LabelTable
from MAISILib.errors import MaskError
from MAISILib.scene.geometry import array_of
from MAISILib.scene.mrml import slicer
from MAISILib.scene.segments import read_mask
from MAISILib.scene.storage import write_volume_file
from MAISILib.volumes import Grid, LabelMap

MASK_NAME, CT_NAME = "mask.nrrd", "ct.nrrd"
#: A volume with values below this is a CT in HU: the air around a patient has −1000 HU.
_AIR_HU = -500
#: An axis that is turned by more than this (cosine) from R, A or S counts as oblique.
_ALIGNED_COSINE = 0.9999


class UsersMask(NamedTuple):
    """What was written.

    Args:
        mask: The label map.
        ct: The reference volume, where it shows the body that the segmentation lacks; else None.
        grid: Where the voxels lie, in the coordinates of ``place``.
        place: The node that gave the grid: the reference volume, or the segmentation. What transforms it transforms the
            image, too.
        notes: What was changed, and what is unusual, in words.
    """

    mask: Path
    ct: Path | None
    grid: Grid
    place: Any
    notes: tuple[str, ...]


def write_users_mask(segmentation: Any, table: LabelTable, folder: Path, reference: Any = None) -> UsersMask:
    """Writes a segmentation as a label map with the values of a label table.

    The files are ``.nrrd``, which keeps geometry as the scene has it (NIfTI rounds to 32 bits), so that the image comes
    back on exactly this grid.

    Args:
        segmentation: A vtkMRMLSegmentationNode.
        table: The labels of the bundle.
        folder: Where ``mask.nrrd`` and, if needed, ``ct.nrrd`` are written.
        reference: Volume node whose grid the mask shall have; the volume that the segmentation was drawn on where not
            given, else the segmentation's own geometry.

    Raises:
        MaskError: Nothing was drawn, a segment has no label in the table, all lies outside the reference, or a
            non-linear transform is in the way.
        OutputError: The files cannot be written.
    """
    reference = reference if reference is not None else _drawn_on(segmentation)
    mask = read_mask(segmentation, table, reference)
    if not mask.array.any():
        inside = f" lies inside the volume '{reference.GetName()}'" if reference is not None else " was drawn"
        raise MaskError(
            f"Nothing of the segmentation '{segmentation.GetName()}'{inside}. Draw something first, or choose the "
            "volume that it was drawn on."
        )
    notes = [*mask.notes, *(["The grid is oblique; the image comes back on it."] if _is_oblique(mask) else [])]
    write_volume_file(mask.array, mask.affine, folder / MASK_NAME, is_compressed=False)
    ct: Path | None = None
    if LabelTable.BODY in table and LabelTable.BODY not in mask.labels:
        if reference is not None and _is_ct(reference):
            ct = folder / CT_NAME
            write_volume_file(array_of(reference.GetImageData()), mask.affine, ct, is_compressed=False)
            notes.append(f"There is no body segment; the body is taken from '{reference.GetName()}'.")
        else:
            notes.append("There is no body segment; the body is guessed around the segments.")
    return UsersMask(folder / MASK_NAME, ct, mask.grid, reference or segmentation, tuple(dict.fromkeys(notes)))


def _drawn_on(segmentation: Any) -> Any:
    """The volume that gave the segmentation its geometry, if it is still there and still has that geometry."""
    node = segmentation.GetNodeReference(slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole())
    return node if node is not None and node.GetImageData() is not None else None


def _is_oblique(mask: LabelMap) -> bool:
    directions = mask.affine[:3, :3] / np.asarray(mask.spacing)
    return bool(np.abs(directions).max(axis=0).min() < _ALIGNED_COSINE)


def _is_ct(volume: Any) -> bool:
    image = volume.GetImageData()
    return image.GetNumberOfScalarComponents() == 1 and bool(array_of(image).min() < _AIR_HU)
