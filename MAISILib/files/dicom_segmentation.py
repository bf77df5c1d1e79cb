"""DICOM Segmentation objects in (PS3.3, A.51): binary ones, and those with a label map.

Geometry comes from the object's own functional groups, so it need not lie beside the images that it was made from.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from MAISILib.errors import FileFormatError
from MAISILib.files.checks import check_is_file, check_size
from MAISILib.files.dicom_geometry import affine_of_planes, needed, parsing
from MAISILib.files.segment_layers import SegmentLayers, box_around
from MAISILib.files.segmentations import Segment, Segmentation
from MAISILib.files.straightening import straightened

_SEGMENTATION, _LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
_IMPLICIT, _EXPLICIT, _DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
#: A deflated file that unpacks to more was made to harm; 100 structures in 1000 slices of 512 × 512 have 3.3 GB.
_MOST_INFLATED = 4 * 2**30


class _Frame(NamedTuple):
    segment: int  # 0 in label maps, whose frames hold all
    slice: int
    place: int  # in the pixel data


def read_dicom_segmentation(path: Path | str) -> Segmentation:
    """Reads the segments of a DICOM Segmentation object, with their codes as Slicer terminology.

    Args:
        path: The file.

    Returns:
        On the object's own grid, from its first slice to its last; slices without frames are empty.

    Raises:
        FileFormatError: The file is missing, damaged, no segmentation in slices of the patient, holds fractions, is
            compressed, gives several segments one number, or claims more than it holds or fits into the memory.
    """
    path = Path(path)
    check_is_file(path)
    with parsing(path):
        dataset = _read(path)
        kind = str(needed(dataset, "SOPClassUID", path))
        if kind not in (_SEGMENTATION, _LABEL_MAP):
            from pydicom.uid import UID

            raise FileFormatError(
                f"{path} is a DICOM file, but no segmentation ({UID(kind).name}). Give a DICOM-SEG file, or load the "
                "images in Slicer and save them as .nii.gz."
            )
        kind = str(needed(dataset, "SegmentationType", path))
        if kind not in ("BINARY", "LABELMAP"):
            raise FileFormatError(f"{path} holds fractions ({kind}). Threshold them in Slicer and save the segments.")
        frames, affine, shape = _placed_frames(dataset, kind == "LABELMAP", path)
        pixels = _pixels(dataset, len(frames), kind == "LABELMAP", path)
        described = _described(dataset, path)
        strangers = sorted({frame.segment for frame in frames} - set(described)) if kind == "BINARY" else []
        if strangers:
            raise FileFormatError(f"{path} has frames of segments that it does not describe: {strangers[:5]}.")
        frame_of_reference = str(dataset.get("FrameOfReferenceUID") or "")
        if kind == "LABELMAP":
            layers = np.zeros(shape, pixels.dtype)
            for frame in frames:
                layers[:, :, frame.slice] = pixels[frame.place].T
            segments = [_segment(item, number, number, 0) for number, item in described.items() if number]
            voxels = straightened(layers[..., None], affine, path)
            return Segmentation(voxels.array, voxels.affine, tuple(segments), voxels.notes, frame_of_reference)
        return _from_bits(pixels, frames, described, shape, affine, frame_of_reference, path)


def _from_bits(
    pixels: np.ndarray,
    frames: list[_Frame],
    described: dict[int, Any],
    shape: tuple[int, int, int],
    affine: np.ndarray,
    frame_of_reference: str,
    path: Path,
) -> Segmentation:
    """Unpacks the frames of one segment after the other."""
    layers = SegmentLayers(shape, path)
    size = shape[0] * shape[1]
    segments, empty = [], []
    for number, item in described.items():
        own = [frame for frame in frames if frame.segment == number]
        first = min((frame.slice for frame in own), default=0)
        last = max((frame.slice for frame in own), default=0)
        inside = np.zeros((shape[0], shape[1], last - first + 1), bool)
        for frame in own:
            start = frame.place * size
            bits = np.unpackbits(pixels[start // 8 : -(-(start + size) // 8)], bitorder="little")  # PS3.5, 8.1.1
            inside[:, :, frame.slice - first] |= bits[start % 8 :][:size].reshape(shape[1], shape[0]).T > 0
        box = box_around(inside)
        if box is None:
            empty.append(_name(item, number))
            continue
        place = (*box[:2], slice(box[2].start + first, box[2].stop + first))
        segments.append(_segment(item, number, *layers.add(inside[box], place)))
    voxels = straightened(layers.stacked(), affine, path)
    notes = (*voxels.notes, *((f"Empty structures were left out: {', '.join(empty)}.",) if empty else ()))
    return Segmentation(voxels.array, voxels.affine, tuple(segments), notes, frame_of_reference)


def _read(path: Path) -> Any:
    """The dataset, of which no more is unpacked than a segmentation can have."""
    from pydicom import dcmread
    from pydicom.filereader import read_dataset, read_file_meta_info

    meta = read_file_meta_info(path)
    syntax = str(needed(meta, "TransferSyntaxUID", path))
    if syntax in (_IMPLICIT, _EXPLICIT):
        return dcmread(path)
    if syntax != _DEFLATED:
        raise FileFormatError(
            f"{path} is compressed in a way that is not read ({meta.TransferSyntaxUID.name}). Load it in Slicer and "
            "save it as .seg.nrrd."
        )
    content = path.read_bytes()[132 + 12 + int(needed(meta, "FileMetaInformationGroupLength", path)) :]  # PS3.10, 7.1
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        unpacked = unpacker.decompress(content, _MOST_INFLATED)
    except zlib.error as error:
        raise FileFormatError(f"{path} cannot be unpacked ({error}). Copy or export it again.") from None
    if unpacker.unconsumed_tail:
        raise FileFormatError(f"{path} unpacks to more than {_MOST_INFLATED / 2**30:.0f} GiB. It was not opened.")
    return read_dataset(io.BytesIO(unpacked), is_implicit_VR=False, is_little_endian=True)


def _placed_frames(
    dataset: Any, is_label_map: bool, path: Path
) -> tuple[list[_Frame], np.ndarray, tuple[int, int, int]]:
    """Segment and slice of each frame, the affine, and voxels ``(X, Y, Z)``."""
    groups = needed(dataset, "PerFrameFunctionalGroupsSequence", path)
    count = int(needed(dataset, "NumberOfFrames", path))
    if len(groups) != count:
        raise FileFormatError(f"{path} claims {count} frames but places {len(groups)}. Export it again.")
    shared_groups = dataset.get("SharedFunctionalGroupsSequence") or [None]

    def item(group: Any, sequence: str, keyword: str, is_needed: bool = True) -> Any:
        """A value of a frame's functional groups, else of those that all frames share (PS3.3, C.7.6.16)."""
        for holder in (group, shared_groups[0]):
            if holder is not None and holder.get(sequence) and holder.get(sequence)[0].get(keyword) is not None:
                return holder.get(sequence)[0].get(keyword)
        if is_needed:
            raise FileFormatError(
                f"{path} does not say {keyword} of its frames: it has no place in the patient, as in microscopy."
            )
        return None

    positions, orientations, segments = [], set(), []
    for group in groups:
        positions.append([float(v) for v in item(group, "PlanePositionSequence", "ImagePositionPatient")])
        orientations.add(
            tuple(round(float(v), 4) for v in item(group, "PlaneOrientationSequence", "ImageOrientationPatient"))
        )
        number = 0 if is_label_map else item(group, "SegmentIdentificationSequence", "ReferencedSegmentNumber")
        segments.append(int(number))
    if len(orientations) > 1 or any(len(position) != 3 for position in positions):
        raise FileFormatError(f"{path} has slices in several directions. Export one segmentation for each stack.")
    between = item(groups[0], "PixelMeasuresSequence", "SpacingBetweenSlices", is_needed=False)
    thickness = item(groups[0], "PixelMeasuresSequence", "SliceThickness", is_needed=False)
    affine, slices = affine_of_planes(
        [float(v) for v in item(groups[0], "PlaneOrientationSequence", "ImageOrientationPatient")],
        [float(v) for v in item(groups[0], "PixelMeasuresSequence", "PixelSpacing")],
        np.array(positions),
        float(between) if between else None,
        float(thickness or 1.0),
        path,
    )
    shape = (int(needed(dataset, "Columns", path)), int(needed(dataset, "Rows", path)), int(slices.max()) + 1)
    frames = [_Frame(n, int(z), index) for index, (n, z) in enumerate(zip(segments, slices, strict=True))]
    return frames, affine, shape


def _pixels(dataset: Any, frames: int, is_label_map: bool, path: Path) -> np.ndarray:
    """The bytes of the bits of all frames, or of a label map ``(frames, rows, columns)``."""
    rows, columns, bits = int(dataset.Rows), int(dataset.Columns), int(needed(dataset, "BitsAllocated", path))
    if bits not in ((8, 16) if is_label_map else (1,)):
        raise FileFormatError(f"{path} has pixels of {bits} bits, which its kind of segmentation does not have.")
    data = needed(dataset, "PixelData", path)
    claimed = -(-rows * columns * frames * bits // 8)
    if min(rows, columns) < 1 or claimed > len(data):
        raise FileFormatError(
            f"{path} claims {frames} frames of {columns} × {rows} pixels ({claimed:,} bytes) but holds {len(data):,} "
            "bytes. It is damaged or cut short: copy or export it again."
        )
    if not is_label_map:
        return np.frombuffer(data, np.uint8)
    check_size((columns, rows, frames), bits // 8, path, stored=len(data), compressed=False)
    return np.frombuffer(data, f"<u{bits // 8}", rows * columns * frames).reshape(frames, rows, columns)


def _described(dataset: Any, path: Path) -> dict[int, Any]:
    """SegmentNumber → description."""
    described: dict[int, Any] = {}
    for item in needed(dataset, "SegmentSequence", path):
        number = int(item.SegmentNumber)
        if number in described:
            names = " and ".join(repr(_name(one, number)) for one in (described[number], item))
            raise FileFormatError(
                f"{path} describes several segments with the number {number} ({names}), so its frames cannot be told "
                "apart. Export it again, with a number for each segment."
            )
        described[number] = item
    return described


def _segment(item: Any, number: int, value: int, layer: int) -> Segment:
    return Segment(_name(item, number), value, layer, "", _terminology(item), number=number)


def _name(item: Any, number: int) -> str:
    return str(item.get("SegmentLabel") or item.get("SegmentDescription") or f"segment {number}")


def _terminology(item: Any) -> str:
    """The codes of a segment as a Slicer terminology string (PS3.3, C.8.20.4)."""
    category = _first(item, "SegmentedPropertyCategoryCodeSequence")
    kind = _first(item, "SegmentedPropertyTypeCodeSequence")
    region = _first(item, "AnatomicRegionSequence")
    fields = [category, kind, _first(kind, "SegmentedPropertyTypeModifierCodeSequence")]
    fields += [region, _first(region, "AnatomicRegionModifierSequence")]
    codes = [_code(field) for field in fields]
    return "~".join(["DICOM", *codes[:3], "DICOM", *codes[3:]])


def _first(item: Any, sequence: str) -> Any:
    found = item.get(sequence) if item is not None else None
    return found[0] if found else None


def _code(item: Any) -> str:
    if item is None:
        return "^^"
    value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue") or ""
    cells = (item.get("CodingSchemeDesignator") or "", value, item.get("CodeMeaning") or "")
    return "^".join(str(cell).translate(str.maketrans("~^|", "   ")) for cell in cells)
