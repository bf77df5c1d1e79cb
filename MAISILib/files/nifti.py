"""NIfTI-1 in and out.

Voxels keep the order that they have in the file; affines are RAS+ mm, as NIfTI defines them
(https://nifti.nimh.nih.gov/nifti-1, "3D image orientation and location in space": the sform where its code is above 0,
else the qform).
"""

from __future__ import annotations

import gzip
import math
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MAISILib.errors import FileFormatError, OutputError
from MAISILib.files.atomic import atomic_path
from MAISILib.files.checks import check_finite, check_is_file, check_size, one_channel, spatial_shape, unreadable
from MAISILib.files.labels import label_map
from MAISILib.files.straightening import straight_grid, straightened, straightened_volume
from MAISILib.volumes import Grid, LabelMap, Volume, check_affine

if TYPE_CHECKING:
    from MAISILib.anatomy.labels import LabelTable

SUFFIXES = (".nii", ".nii.gz")
#: Stands in the header of every file that this module writes.
SYNTHETIC = "MAISI synthetic, not a patient"

#: nibabel's own 1 leaves label maps half as large again; 9 gains little and takes long.
_GZIP_LEVEL = 6
_LABEL_ENTRY = re.compile(r'<Label\b[^>]*?\bKey="(\d{1,9})"[^>]*>(.*?)</Label>', re.DOTALL)
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
_PARSER_ERRORS = (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, OverflowError, ArithmeticError)


def read_volume(path: Path | str, units: str = "HU", channel: int | None = None, *, may_lean: bool = False) -> Volume:
    """Reads a 3D image.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file. An image with one frame (``(X, Y, Z, 1)``) counts as 3D.
        units: What its values are: ``"HU"`` or ``"arbitrary"``.
        channel: Which channel of an image with several (``(X, Y, Z, C)``) to take; ``None`` refuses such images.
        may_lean: Straighten a sheared image, as its mask is; else it is refused.

    Returns:
        The image in the file's voxel order: integers where the file holds integers (also with whole-number scaling),
        float32 otherwise.

    Raises:
        FileFormatError: The file is missing, damaged, no 3D scalar image, has no usable geometry, or has NaN voxels.
    """
    path = Path(path)
    array, affine = read_array(path, channels=channel is not None, may_lean=may_lean)
    array = one_channel(array, channel, path)
    check_finite(array, path)
    return straightened_volume(array, affine, units, path)


def read_grid(path: Path | str, *, may_lean: bool = False) -> Grid:
    """Where the voxels of an image lie, one channel or several, from its header alone.

    Args:
        path: The file.
        may_lean: Give the straight grid of a sheared image; else it is refused.

    Raises:
        FileFormatError: As for `read_volume`, apart from what only the voxels show.
    """
    with _opened(Path(path)) as (image, _):
        affine = check_affine(_affine_in_mm(image), str(path), may_lean=may_lean)
        return straight_grid(Grid(tuple(image.shape[:3]), affine))


def read_labels(path: Path | str, table: LabelTable, source: str | None = None) -> LabelMap:
    """Reads a label map; values keep their meaning in ``table``. Notes say what was not as it should be.

    A sheared one is straightened, see `MAISILib.files.straightening`.

    Raises:
        FileFormatError: As for `read_volume`.
        MaskError: A voxel is not a whole number from 0 to 255.
    """
    path = Path(path)
    return label_map(straightened(*read_array(path, may_lean=True), path), table, path, source)


def read_array(path: Path, *, channels: bool = False, may_lean: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Voxels with the header's scaling applied, and the affine ``(4, 4)`` to RAS+ mm.

    Args:
        path: The file.
        channels: Allow an image with several channels: ``(X, Y, Z, C)``. Else voxels are ``(X, Y, Z)``.
        may_lean: Allow a sheared affine, for whoever straightens it.

    Raises:
        FileFormatError: As for `read_volume`, apart from NaN voxels.
    """
    with _opened(path) as (image, file):
        if len(image.shape) == 4 and channels:
            shape: tuple[int, ...] = tuple(int(n) for n in image.shape)
        else:
            shape = spatial_shape(image.shape, path)
        stored_type, compressed = image.get_data_dtype(), isinstance(file, gzip.GzipFile)
        if stored_type.kind not in "iuf":
            what = "colour" if stored_type.fields else "complex"
            raise FileFormatError(f"{path} is a {what} image ({stored_type}); a grey-value image is needed.")
        stored = path.stat().st_size - (0 if compressed else int(image.dataobj.offset))
        voxel_bytes = stored_type.itemsize * math.prod(shape[3:])
        check_size(shape[:3], voxel_bytes, path, stored=stored, compressed=compressed)  # type: ignore[arg-type]
        affine = check_affine(_affine_in_mm(image), str(path), may_lean=may_lean)
        array = _scaled(image.dataobj)
        while compressed and file.read(2**20):
            pass  # gzip compares its checksum only at the end of the file
    return array.reshape(shape), affine


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """An image of which only the header has been read, and its file; whatever is wrong with it is told."""
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError
    from nibabel.fileholders import FileHolder
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    check_is_file(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise FileFormatError(f"{path} is not named like a NIfTI file (.nii or .nii.gz).")
    compressed = path.name.lower().endswith(".gz")
    try:
        with warnings.catch_warnings(), gzip.open(path) if compressed else open(path, "rb") as file:
            warnings.simplefilter("ignore")  # nibabel warns about headers that are judged by whoever reads on
            image: Any = nib.Nifti1Image.from_file_map({"image": FileHolder(fileobj=file)}, mmap=False)
            spatial_shape(image.shape[:3], path)
            yield image, file
    except (ImageFileError, HeaderDataError, WrapStructError, *_PARSER_ERRORS) as error:
        raise unreadable(path, error) from error


def read_label_names(path: Path | str) -> dict[int, str]:
    """The names of a label map's numbers, where its header holds the label table of Connectome Workbench.

    TotalSegmentator writes this table, too (as XML in a header extension). Empty where there is none.

    Raises:
        FileFormatError: As for `read_volume`, apart from what only the voxels show.
    """
    names: dict[int, str] = {}
    with _opened(Path(path)) as (image, _):
        for extension in image.header.extensions:
            content = extension.get_content()
            if not isinstance(content, bytes) or b"<CaretExtension" not in content:
                continue
            # Read as text rather than as XML: a file from outside could make a parser expand its entities.
            for key, text in _LABEL_ENTRY.findall(content.decode("utf-8", "replace")):
                name = text.strip().removeprefix("<![CDATA[").removesuffix("]]>").strip()
                if name and 0 < int(key) < 65536:
                    names[int(key)] = name
    return names


def write_volume(volume: Volume, path: Path | str, description: str = "", *, synthetic: bool = True) -> None:
    """Writes an image: HU as int16 (rounded, clipped to its range), other integers as they are, the rest as float32.

    Args:
        volume: The image.
        path: ``.nii`` or ``.nii.gz``; missing folders are made.
        description: Goes into the header, as far as 80 bytes allow.
        synthetic: Note in the header that it is synthetic; not for images of patients, as in a training set.

    Raises:
        OutputError: The file cannot be written, or its name has another suffix.
    """
    array = volume.array
    if volume.units == "HU":
        limits = np.iinfo(np.int16)
        if array.dtype != np.int16:
            rounded = np.rint(array) if array.dtype.kind == "f" else array
            array = np.clip(np.nan_to_num(rounded, nan=-1000.0), limits.min, limits.max).astype(np.int16)
    elif array.dtype not in (np.uint8, np.int16, np.uint16, np.int32):
        array = array.astype(np.float32)
    note = header_description(description) if synthetic else _ascii(description)
    _write(array, volume.affine, Path(path), note, intent="none")


def write_labels(mask: LabelMap, path: Path | str, description: str = "", *, synthetic: bool = True) -> None:
    """Writes a label map as uint8, with the intent "label".

    Args:
        mask: The label map.
        path: ``.nii`` or ``.nii.gz``; missing folders are made.
        description: Goes into the header.
        synthetic: Note in the header that it is synthetic; not for segmentations of patients, as in a mask library.

    Raises:
        OutputError: The file cannot be written, or its name has another suffix.
    """
    note = header_description(description) if synthetic else _ascii(description)
    _write(mask.array, mask.affine, Path(path), note, intent="label")


def header_description(description: str) -> str:
    """The ``descrip`` of a file of ours: that it is synthetic, then ``description``; ASCII, at most 79 characters."""
    return _ascii(f"{SYNTHETIC}; {description}" if description else SYNTHETIC)


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode("ascii")[:79]


def _write(array: np.ndarray, affine: np.ndarray, path: Path, description: str, intent: str) -> None:
    import nibabel as nib

    if not path.name.lower().endswith(SUFFIXES):
        raise OutputError(f"Cannot write {path}: the name must end in .nii or .nii.gz.")
    image: Any = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)  # 1 = scanner coordinates
    image.set_sform(affine, code=1)
    image.header.set_slope_inter(1.0, 0.0)
    image.header.set_intent(intent)
    image.header["descrip"] = description
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            # No name and no time in the header: the same voxels give the same bytes.
            with gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)


def _affine_in_mm(image: Any) -> np.ndarray:
    affine = np.array(image.affine, dtype=float)
    affine[:3] *= _MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
    return affine


def _scaled(data: Any) -> np.ndarray:
    """The voxels with slope and intercept applied; whole numbers stay whole numbers."""
    stored = np.asarray(data.get_unscaled())
    slope, intercept = float(data.slope), float(data.inter)
    if stored.dtype.kind == "f" or not (slope.is_integer() and intercept.is_integer()):
        scaled = stored.astype(np.float32)
        return scaled if (slope, intercept) == (1.0, 0.0) else (scaled * np.float32(slope) + np.float32(intercept))
    if (slope, intercept) == (1.0, 0.0):
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)
    ends = [value * slope + intercept for value in (int(stored.min()), int(stored.max()))] + [slope, intercept]
    fitting = np.result_type(np.min_scalar_type(int(min(0, *ends))), np.min_scalar_type(int(max(0, *ends))), np.int16)
    if fitting.kind == "f":
        return stored.astype(np.float64) * slope + intercept
    return stored.astype(fitting) * fitting.type(slope) + fitting.type(intercept)
