"""Where DICOM slices lie (PS3.3, C.7.6.2 Image Plane): from positions and directions to one grid in RAS+ mm."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MAISILib.errors import FileFormatError
from MAISILib.files.checks import unreadable
from MAISILib.files.straightening import straight_grid
from MAISILib.volumes import Grid, check_affine

#: No stack of slices is longer (mm): whole bodies are scanned over two meters.
_LONGEST_MM = 3000.0
#: Positions are written with few digits: gaps may differ by this part of a slice, and slices may be shifted so far.
_UNEVEN = 0.05
_PARSER_ERRORS = (
    OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError, RecursionError,
    NotImplementedError, struct.error,
)  # fmt: skip


@dataclass(frozen=True)
class DicomFrame:
    """Where a scan lies, as far as its headers tell.

    Args:
        grid: Its voxels; columns run along the first axis, rows along the second. Straightened where it was sheared.
        frame_of_reference: UID of the coordinate system; empty where the file names none.
    """

    grid: Grid
    frame_of_reference: str


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do (PS3.10, 7.1)."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


@contextmanager
def parsing(path: Path) -> Iterator[None]:
    """Whatever pydicom stumbles over in the block becomes a FileFormatError that names the file."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that break a rule and are not needed here
            yield
    except (InvalidDicomError, BytesLengthException, *_PARSER_ERRORS) as error:
        raise unreadable(path, error) from error


def needed(dataset: Any, keyword: str, path: Path) -> Any:
    """The value of an attribute that must be there.

    Raises:
        FileFormatError: It is missing or empty.
    """
    value = dataset.get(keyword)
    if value is None or (hasattr(value, "__len__") and not len(value)):
        raise FileFormatError(f"{path} has no {keyword}, without which it cannot be read. Export it again.")
    return value


def affine_of_planes(
    orientation: Sequence[float],
    pixel_spacing: Sequence[float],
    positions: np.ndarray,
    between: float | None,
    thickness: float,
    path: Path,
) -> tuple[np.ndarray, np.ndarray]:
    """The grid of parallel slices, with empty ones where some are missing; sheared where the gantry was tilted.

    Args:
        orientation: ImageOrientationPatient: directions of rows and columns, LPS.
        pixel_spacing: Between rows, and between columns, in mm.
        positions: ``(n, 3)`` ImagePositionPatient of each slice, LPS mm; slices may occur several times.
        between: Distance of neighboring slices in mm where the file tells it.
        thickness: Of a slice in mm, for a single one.
        path: For messages.

    Returns:
        The affine ``(4, 4)`` from column, row and slice to RAS+ mm, and ``(n,)`` the slice of each position.

    Raises:
        FileFormatError: The slices are uneven, lean by more than 45°, or lie too far apart, or values make no sense.
    """
    directions = np.asarray(orientation, float).reshape(2, 3)
    steps = np.asarray(pixel_spacing, float)
    if not (np.isfinite(directions).all() and np.isfinite(positions).all() and np.isfinite(steps).all()):
        raise FileFormatError(f"{path} has positions or directions that are no numbers. Export it again.")
    normal = np.cross(directions[0], directions[1])
    if steps.shape != (2,) or not (steps > 0).all() or abs(np.linalg.norm(normal) - 1) > 0.01:
        raise FileFormatError(f"{path}: pixels of {steps} mm in directions {directions.ravel()} are no slice of space.")
    along = positions @ normal
    places = np.sort(along)
    if places[-1] - places[0] > _LONGEST_MM:
        raise FileFormatError(f"{path}: its slices lie {places[-1] - places[0]:.0f} mm apart. The header is damaged.")
    gaps = np.diff(places)
    gaps = gaps[gaps > 1e-3]
    if between and between > 1e-3:
        step = between
    else:  # gaps of one slice are averaged: each alone has few digits
        step = float(gaps[gaps < 1.5 * gaps.min()].mean()) if len(gaps) else thickness
    heights = along - places[0]
    shifted = positions - positions[np.argmin(along)] - np.outer(heights, normal)
    lean = np.zeros(3)  # by how many mm slices are shifted in their plane for each mm along their normal
    if np.abs(shifted).max() > _UNEVEN * max(step, *steps):
        lean = heights @ shifted / max(heights @ heights, 1e-6)
        shifted = shifted - np.outer(heights, lean)

    def unevenness(step: float) -> float:
        return float(np.abs(heights / step - np.rint(heights / step)).max())

    # Where the gantry was tilted, some scanners tell the distance along the table rather than along the normal.
    step = min((step, step / float(np.sqrt(1 + lean @ lean))), key=unevenness)
    if unevenness(step) > _UNEVEN or np.abs(shifted).max() > _UNEVEN * max(step, *steps):
        raise FileFormatError(
            f"{path}: its slices are not evenly spaced in one direction. Load it in Slicer, resample it and save it as "
            ".nii.gz or .seg.nrrd."
        )
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = directions[0] * steps[1], directions[1] * steps[0]
    affine[:3, 2], affine[:3, 3] = (normal + lean) * step, positions[np.argmin(along)]
    affine = check_affine(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, str(path), may_lean=True)
    return affine, np.rint(heights / step).astype(int)


def read_dicom_series(folder: Path) -> DicomFrame:
    """Where the slices of a series lie, from their headers alone.

    Args:
        folder: Holds the files of one series, a slice each; files that are not DICOM are passed over.

    Raises:
        FileFormatError: There is no series, or more than one, or its slices make no grid.
    """
    from pydicom import dcmread

    tags = ["SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns", "PixelSpacing", "SliceThickness"]
    tags += ["ImageOrientationPatient", "ImagePositionPatient", "NumberOfFrames"]
    headers: list[Any] = []
    for path in sorted(p for p in folder.iterdir() if p.is_file() and is_dicom(p)):
        with parsing(path):
            header = dcmread(path, stop_before_pixels=True, specific_tags=tags)
            if "ImagePositionPatient" in header:
                headers.append(header)
    if not headers:
        raise FileFormatError(f"{folder} holds no DICOM series with a slice in each file. Give a NIfTI or NRRD file.")
    first = headers[0]
    if len({str(header.get("SeriesInstanceUID")) for header in headers}) > 1:
        raise FileFormatError(f"{folder} holds several DICOM series. Give a folder with one.")
    with parsing(folder):
        alike = ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient")
        if any(str(header.get(key)) != str(first.get(key)) for key in alike for header in headers):
            raise FileFormatError(f"{folder}: the slices of the series differ in size or direction. Give one stack.")
        affine, numbers = affine_of_planes(
            needed(first, "ImageOrientationPatient", folder),
            needed(first, "PixelSpacing", folder),
            np.array([[float(v) for v in header.ImagePositionPatient] for header in headers]),
            None,
            float(first.get("SliceThickness") or 1.0),
            folder,
        )
        shape = (int(first.Columns), int(first.Rows), int(numbers.max()) + 1)
    return DicomFrame(straight_grid(Grid(shape, affine)), str(first.get("FrameOfReferenceUID") or ""))
