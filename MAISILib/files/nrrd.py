"""NRRD in (https://teem.sourceforge.net/nrrd/format.html): the format in which Slicer stores volumes and segmentations.

Only the header is parsed by pynrrd. The voxels are read here, never more of them than the header promises, so that a
small file cannot unpack into a full memory, and never from outside the header's folder.
"""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from MAISILib.errors import FileFormatError
from MAISILib.files.checks import check_finite, check_is_file, check_size, one_channel, spatial_shape, unreadable
from MAISILib.files.labels import label_map
from MAISILib.files.straightening import straight_grid, straightened, straightened_volume
from MAISILib.volumes import Grid, LabelMap, Volume, check_affine

if TYPE_CHECKING:
    from MAISILib.anatomy.labels import LabelTable

SUFFIXES = (".nrrd", ".nhdr")

#: Signs that take the first three coordinates of a NRRD space to RAS+.
_TO_RAS = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
#: NRRD's names of its types, shortened to one for each → numpy.
_TYPES = {
    "int8": "signed char,int8,int8_t",
    "uint8": "uchar,unsigned char,uint8,uint8_t",
    "int16": "short,short int,signed short,signed short int,int16,int16_t",
    "uint16": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
    "int32": "int,signed int,int32,int32_t",
    "uint32": "uint,unsigned int,uint32,uint32_t",
    "int64": "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t",
    "uint64": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
    "float32": "float",
    "float64": "double",
}
_OPENERS: dict[str, Any] = {"gzip": gzip.open, "gz": gzip.open, "bzip2": bz2.open, "bz2": bz2.open}


def read_volume(path: Path | str, units: str = "HU", channel: int | None = None, *, may_lean: bool = False) -> Volume:
    """Reads a 3D image from a ``.nrrd`` file or a ``.nhdr`` header with its data file in the same folder.

    Args:
        path: The file.
        units: What its values are: ``"HU"`` or ``"arbitrary"``.
        channel: Which entry of a list axis to take; ``None`` refuses images with such an axis.
        may_lean: Straighten a sheared image, as its mask is; else it is refused.

    Raises:
        FileFormatError: The file is missing, damaged, no 3D scalar image, says nothing usable about its geometry, has
            NaN voxels, or keeps its data outside its folder.
    """
    path = Path(path)
    array, affine, _ = read_array(path, layers=channel is not None, may_lean=may_lean)
    array = one_channel(array, channel, path)
    check_finite(array, path)
    return straightened_volume(array, affine, units, path)


def read_grid(path: Path | str, *, may_lean: bool = False) -> Grid:
    """Where the voxels of an image or segmentation lie, from its header alone.

    Args:
        path: The file.
        may_lean: Give the straight grid of a sheared image; else it is refused.

    Raises:
        FileFormatError: As for `read_volume`, apart from what only the voxels show.
    """
    path = Path(path)
    with _parsing(path), open(path, "rb") as file:
        header = _header(path, file)
        sizes = np.asarray([int(n) for n in header["sizes"]])
        directions, is_spatial = _axes(header, len(sizes), path)
        affine = check_affine(_affine(header, directions[is_spatial], path), str(path), may_lean=may_lean)
        return straight_grid(Grid(spatial_shape(tuple(sizes[is_spatial]), path), affine))


def read_labels(path: Path | str, table: LabelTable, source: str | None = None) -> LabelMap:
    """Reads a label map. A segmentation of Slicer's (``.seg.nrrd``) is read by its segments' MAISI labels or names.

    A sheared one is straightened, see `MAISILib.files.straightening`.

    Raises:
        FileFormatError: As for `read_volume`.
        MaskError: A voxel is not a whole number from 0 to 255, or a segment is unknown to ``table``.
    """
    from MAISILib.files.segmentations import has_segments, labels_of_segments

    path = Path(path)
    array, affine, header = read_array(path, layers=True, may_lean=True)
    if has_segments(header):
        return labels_of_segments(straightened(array, affine, path), header, table, path, source)
    array = array.reshape(spatial_shape(array.shape, path))
    return label_map(straightened(array, affine, path), table, path, source)


def read_array(
    path: Path, *, layers: bool = False, may_lean: bool = False
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Voxels ``(X, Y, Z)``, affine ``(4, 4)`` to RAS+ mm, and the header.

    Args:
        path: The file.
        layers: Allow a list axis, as in Slicer's segmentations with overlaps; it comes last: ``(X, Y, Z, L)``.
        may_lean: Allow a sheared affine, for whoever straightens it.

    Raises:
        FileFormatError: As for `read_volume`, apart from NaN voxels.
    """
    with _parsing(path), open(path, "rb") as file:
        header = _header(path, file)
        array = _read_voxels(path, file, header)
        directions, is_spatial = _axes(header, array.ndim, path)
        array = np.moveaxis(array, np.flatnonzero(~is_spatial), np.arange(is_spatial.sum(), array.ndim))
        if not (layers and is_spatial.sum() == 3 and array.ndim == 4):
            array = array.reshape(spatial_shape(array.shape, path))
        affine = check_affine(_affine(header, directions[is_spatial], path), str(path), may_lean=may_lean)
    return array, affine, header


@contextmanager
def _parsing(path: Path) -> Iterator[None]:
    """Whatever a parser stumbles over in the block becomes a FileFormatError that names the file."""
    import nrrd

    check_is_file(path)
    try:
        yield
    except (nrrd.NRRDError, OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, OverflowError) as error:
        raise unreadable(path, error) from error


def _header(path: Path, file: BinaryIO) -> dict[str, Any]:
    """The header's fields; ``file`` stands behind them afterwards."""
    import nrrd

    if not file.read(4).startswith(b"NRRD"):
        raise FileFormatError(f"{path} is not a NRRD file: it does not begin with 'NRRD'.")
    file.seek(0)
    line = ""

    def lines() -> Iterator[str]:
        # Line by line, so that the file then stands behind the header. Slicer writes names of segments in UTF-8; pynrrd
        # would drop what is not ASCII.
        nonlocal line
        for content in iter(file.readline, b""):
            line = content.decode("utf-8", "replace")
            yield line

    try:
        return dict(nrrd.read_header(lines()))
    except (nrrd.NRRDError, ValueError, TypeError, IndexError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise FileFormatError(
            f"{path}: the line {line.strip()[:80]!r} of its header cannot be read ({reason}). Copy or export it again."
        ) from error


def _axes(header: dict[str, Any], count: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The direction of each of ``count`` axes, and which of them lie in space."""
    directions = np.atleast_2d(np.asarray(header.get("space directions", [[]]), dtype=float))
    is_spatial = np.atleast_1d(~np.isnan(directions).all(axis=1))
    if len(is_spatial) != count or not directions.size:
        raise FileFormatError(f"{path}: its 'space directions' do not fit its {count} axes. Export it again.")
    return directions, is_spatial


def _affine(header: dict[str, Any], directions: np.ndarray, path: Path) -> np.ndarray:
    space = str(header.get("space", "")).lower()
    if space not in _TO_RAS or directions.shape != (3, 3):
        raise FileFormatError(
            f"{path} does not say where left and right are (space: {space or 'none'}). Load it in Slicer, check its "
            "orientation and save it again."
        )
    units = [str(unit).strip('"') for unit in header.get("space units", [])]
    if any(unit not in ("mm", "millimeter", "millimeters", "???", "") for unit in units):
        raise FileFormatError(f"{path} measures space in {', '.join(units)}; millimetres are needed.")
    origin = np.asarray(header.get("space origin", np.zeros(3)), dtype=float)
    if origin.shape != (3,):
        raise FileFormatError(f"{path}: its 'space origin' has {origin.size} numbers, not three. Export it again.")
    affine = np.eye(4)
    affine[:3, :3] = directions.T
    affine[:3, 3] = origin
    affine[:3] *= np.asarray(_TO_RAS[space])[:, None]
    return affine


def _read_voxels(path: Path, file: BinaryIO, header: dict[str, Any]) -> np.ndarray:
    """The voxels in the header's axis order, first axis fastest; ``file`` stands behind the header."""
    sizes = [int(n) for n in header["sizes"]]
    if len(sizes) < 3 or min(sizes) < 1:
        spatial_shape(tuple(sizes), path)
    dtype = _voxel_type(header, path)
    count = 1
    for n in sizes:
        count *= n
    encoding = str(header.get("encoding", "")).lower()
    if encoding != "raw" and encoding not in _OPENERS:
        raise FileFormatError(f"{path} has the encoding '{encoding}', which is not read. Save it again in Slicer.")
    detached = header.get("data file", header.get("datafile"))
    source = _detached_file(path, str(detached)) if detached is not None else path
    with open(source, "rb") as data:
        if detached is None:
            data.seek(file.tell())
        skip = int(header.get("byte skip", header.get("byteskip", 0)))
        lines = int(header.get("line skip", header.get("lineskip", 0)))
        if lines or skip < -1 or (skip and encoding != "raw"):
            raise FileFormatError(f"{path} skips a part of its data in a way that is not read. Save it in Slicer.")
        stored = source.stat().st_size - data.tell()
        check_size((count, 1, 1), dtype.itemsize, path, stored=stored, compressed=encoding != "raw")
        data.seek(*((-count * dtype.itemsize, 2) if skip == -1 else (skip, 1)))
        stream = data if encoding == "raw" else _OPENERS[encoding](data)
        content = stream.read(count * dtype.itemsize)
        while encoding != "raw" and stream.read(2**20):
            pass  # the checksum is compared only at the end of the stream
    if len(content) < count * dtype.itemsize:
        raise FileFormatError(
            f"{path} is cut short: {len(content):,} of {count * dtype.itemsize:,} bytes. Copy or export it again."
        )
    array = np.frombuffer(content, dtype).reshape(sizes, order="F")
    return array.astype(dtype.newbyteorder("="))  # a copy, which can be written to


def _voxel_type(header: dict[str, Any], path: Path) -> np.dtype:
    name = str(header.get("type", "")).lower()
    for numpy_name, names in _TYPES.items():
        if name in names.split(","):
            dtype = np.dtype(numpy_name)
            return dtype.newbyteorder(">" if str(header.get("endian", "little")).lower() == "big" else "<")
    raise FileFormatError(f"{path} has voxels of type '{name}'; an image of numbers is needed.")


def _detached_file(path: Path, name: str) -> Path:
    """The data file that a header names, which must lie in the header's folder or below it."""
    folder = path.parent.resolve()
    data = (folder / name).resolve()
    if not data.is_relative_to(folder):
        raise FileFormatError(f"{path} points to a data file outside its folder ({name}). Put both into one folder.")
    if not data.is_file():
        raise FileFormatError(f"{path} needs the data file '{name}' beside it, and it is not there. Copy both files.")
    return data
