"""Reads an image or a mask, whatever format its name says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from MAISILib.errors import FileFormatError
from MAISILib.files import nifti, nrrd
from MAISILib.files.checks import check_is_file, spatial_shape
from MAISILib.files.dicom_geometry import is_dicom
from MAISILib.files.dicom_segmentation import read_dicom_segmentation
from MAISILib.files.labels import as_labels
from MAISILib.files.segmentations import Segment, Segmentation, has_segments, segmentation_of
from MAISILib.files.straightening import straightened
from MAISILib.volumes import Grid, LabelMap, Volume

if TYPE_CHECKING:
    from MAISILib.anatomy.labels import LabelTable


def read_image(path: Path | str, units: str = "HU", channel: int | None = None, *, may_lean: bool = False) -> Volume:
    """Reads a 3D image from NIfTI (``.nii``, ``.nii.gz``) or NRRD (``.nrrd``, ``.nhdr``), in the file's voxel order.

    Args:
        path: The file.
        units: What its values are: ``"HU"`` or ``"arbitrary"``.
        channel: Which channel to take of an image with several, from 0; ``None`` refuses such images.
        may_lean: Straighten a sheared image, to lie beside its mask; else it is refused.

    Raises:
        FileFormatError: The file is missing, of another format, damaged, no 3D scalar image, without usable geometry,
            or has NaN voxels.
    """
    return _reader(Path(path)).read_volume(path, units, channel, may_lean=may_lean)


def read_grid(path: Path | str, *, may_lean: bool = False) -> Grid:
    """Where the voxels of an image or mask lie, from the file's header alone.

    Args:
        path: The file.
        may_lean: Give the straight grid of a sheared image; else it is refused.

    Raises:
        FileFormatError: The file is missing, of another format, no 3D image, or without usable geometry.
    """
    return _reader(Path(path)).read_grid(path, may_lean=may_lean)


def read_mask(path: Path | str, table: LabelTable, source: str | None = None) -> LabelMap:
    """Reads a label map from NIfTI or NRRD, or a Slicer segmentation (``.seg.nrrd``).

    A sheared one is straightened, with a note, see `MAISILib.files.straightening`.

    Args:
        path: The file.
        table: What the labels mean.
        source: Where the mask came from, in words; the file's name where not given.

    Raises:
        FileFormatError: As for `read_image`.
        MaskError: Voxels that are no labels, or segments that are not in ``table``.
    """
    return _reader(Path(path)).read_labels(path, table, source)


def read_segments(path: Path | str, names: Mapping[int, str] | None = None, *, largest: int = 255) -> Segmentation:
    """Reads which structures a segmentation file holds, without a label table.

    Segments of a Slicer or DICOM segmentation have names of their own. The numbers of a label map are named by
    ``names``, else by the label names in a NIfTI header, as TotalSegmentator writes them; others are unnamed segments.
    Sheared voxels are straightened, with a note, see `MAISILib.files.straightening`.

    Args:
        path: A label map in NIfTI or NRRD, a Slicer segmentation (``.seg.nrrd``) or a DICOM-SEG file of any name.
        names: Names of the numbers of a label map.
        largest: The largest number allowed in a label map, at most 65535.

    Raises:
        FileFormatError: As for `read_image`.
        MaskError: Voxels of a label map that are no whole numbers from 0 to ``largest``.
    """
    path = Path(path)
    if is_dicom(path):
        return read_dicom_segmentation(path)
    if _reader(path) is nrrd:
        array, affine, header = nrrd.read_array(path, layers=True, may_lean=True)
        if has_segments(header):
            return segmentation_of(straightened(array, affine, path), header, path)
        array = array.reshape(spatial_shape(array.shape, path))
        known: dict[int, str] = {}
    else:
        array, affine = nifti.read_array(path, may_lean=True)
        known = nifti.read_label_names(path)
    known |= names or {}
    voxels = straightened(array, affine, path)
    advice = "Renumber them, or give a segmentation with names (.seg.nrrd)."
    labels, notes = as_labels(voxels.array, path, advice, largest)
    values = [int(value) for value in _values(labels)]
    segments = tuple(Segment(known.get(v, str(v)), v, is_named=v in known, number=v) for v in values)
    return Segmentation(labels[..., None], voxels.affine, segments, (*voxels.notes, *notes))


def _values(labels: np.ndarray) -> np.ndarray:
    """The numbers of a label map, ascending, without 0, in little memory."""
    seen = np.zeros(int(labels.max(initial=0)) + 1, bool)
    seen[labels.ravel(order="K")] = True
    return np.flatnonzero(seen[1:]) + 1


def _reader(path: Path) -> ModuleType:
    check_is_file(path)
    name = path.name.lower()
    for module in (nifti, nrrd):
        if name.endswith(module.SUFFIXES):
            return module
    if is_dicom(path):
        raise FileFormatError(
            f"{path} is a DICOM file. If it is a segmentation, make a mask of it with maisi mask convert; load images "
            "in Slicer and save them as .nii.gz."
        )
    raise FileFormatError(
        f"{path} is of a format that is not read here. Give {', '.join((*nifti.SUFFIXES, *nrrd.SUFFIXES))}; "
        "load anything else (MetaImage, Analyze, DICOM images) in Slicer and save it as .nii.gz."
    )
