"""Puts a segmentation onto the grid of the CT that it belongs to, and refuses one of another scan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from MAISILib.errors import FileFormatError, MaskError
from MAISILib.files.dicom_geometry import DicomFrame, is_dicom, read_dicom_series
from MAISILib.files.images import read_grid
from MAISILib.files.segmentations import Segmentation
from MAISILib.resampling import nearest


def read_frame(path: Path) -> DicomFrame:
    """Where an image lies: a NIfTI or NRRD file, or the folder of a DICOM series. Only headers are read.

    Of a sheared image it is the grid that `MAISILib.files.straightening` puts it on.

    Raises:
        FileFormatError: There is no such image, or its geometry is not usable.
    """
    if path.is_dir():
        return read_dicom_series(path)
    if is_dicom(path):
        raise FileFormatError(f"{path} is one slice. Give the folder of its DICOM series ({path.parent}).")
    return DicomFrame(read_grid(path, may_lean=True), "")


def place_on_ct(segmentation: Segmentation, ct: Path, source: str) -> Segmentation:
    """The segmentation on the grid of a CT, by nearest neighbor.

    Args:
        segmentation: On its own grid.
        ct: A NIfTI or NRRD file, or the folder of a DICOM series.
        source: Where the segmentation came from, for messages.

    Returns:
        A segmentation whose notes say what lies outside of the CT.

    Raises:
        FileFormatError: The CT's geometry cannot be read.
        MaskError: It has another frame of reference, or no structure lies in it.
    """
    frame = read_frame(ct)
    own, other = segmentation.frame_of_reference, frame.frame_of_reference
    if own and other and own != other:
        raise MaskError(
            f"{source} belongs to another scan than {ct}: its frame of reference is {own}, that of the CT {other}. "
            "Give the CT that it was made from, or register it in Slicer first."
        )
    notes = list(segmentation.notes)
    if own and not other:
        notes.append(f"{ct.name} names no frame of reference: whether both belong together was not checked.")
    if segmentation.grid.same_as(frame.grid, tolerance=0.01):
        return replace(segmentation, affine=frame.grid.affine, notes=tuple(notes))
    layers = [nearest(layer, segmentation.grid, frame.grid) for layer in np.moveaxis(segmentation.layers, 3, 0)]
    placed = replace(segmentation, layers=np.stack(layers, axis=-1), affine=frame.grid.affine)
    before, after = segmentation.voxels(), placed.voxels()
    volumes = [abs(float(np.linalg.det(grid.affine[:3, :3]))) for grid in (segmentation.grid, frame.grid)]
    if not any(after.values()):
        raise MaskError(f"{source} lies outside of {ct}. Give the CT that it was made from.")
    notes.append(f"Put on the grid of {ct.name}.")
    gone = [segment.name for segment, voxels in after.items() if before[segment] and not voxels]
    cut = [s.name for s, voxels in after.items() if 0 < voxels * volumes[1] < 0.9 * before[s] * volumes[0]]
    notes += [f"Lost, outside of the CT or smaller than its voxels: {', '.join(gone)}."] if gone else []
    notes += [f"Cut off by more than a tenth: {', '.join(cut)}."] if cut else []
    return replace(placed, notes=tuple(notes))
