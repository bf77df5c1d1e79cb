"""The segments of a segmentation file, and how they become labels of a table.

The keys of a Slicer segmentation (``.seg.nrrd``) are ``Segment0_Name``, ``Segment0_LabelValue``, ``Segment0_Layer``,
``Segment0_Tags``, … (https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html). Label values
in such a file may have been renumbered by Slicer; what a segment means stands in its tags and its name.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from MAISILib.errors import FileFormatError, MaskError, RequestError, did_you_mean
from MAISILib.volumes import Grid, LabelMap

if TYPE_CHECKING:
    from MAISILib.anatomy.labels import LabelTable
    from MAISILib.files.straightening import Straightened

#: The segment tag that keeps a segment's label value.
LABEL_TAG = "MAISI.Label"
TERMINOLOGY_TAG = "TerminologyEntry"
#: Slicer writes 8 or 16 bits.
_MAX_VALUE = 65535
#: SNOMED CT "Tissue", the type in vtkSegment's default terminology.
_UNSPECIFIED_TYPE = "SCT^85756007"


@dataclass(frozen=True)
class Segment:
    """One structure of a segmentation file.

    Args:
        name: As the file says; the number in words where the file names nothing.
        value: The number of its voxels, for this program alone: it may differ from what the user knows.
        layer: Which image of the file holds these voxels.
        tag: What stands in its tag `LABEL_TAG`.
        terminology: Its Slicer terminology string.
        is_named: Whether the name can say what it is; where not, only the number can.
        number: What users and other programs call it: the number in a label map, SegmentNumber in DICOM, the label
            value in a Slicer segmentation; ``None`` where it has only a name.
    """

    name: str
    value: int
    layer: int = 0
    tag: str = ""
    terminology: str = ""
    is_named: bool = True
    number: int | None = None


@dataclass(frozen=True)
class Segmentation:
    """A segmentation as its file has it, before anybody has said which labels its segments are.

    Args:
        layers: ``(X, Y, Z, L)`` whole numbers; segments of one layer do not overlap, those of several may.
        affine: ``(4, 4)``, voxel index to RAS+ mm.
        segments: In the file's order.
        notes: What the reader had to do.
        frame_of_reference: UID of the coordinate system, of a DICOM segmentation; empty where nothing names one.
    """

    layers: np.ndarray
    affine: np.ndarray
    segments: tuple[Segment, ...]
    notes: tuple[str, ...] = ()
    frame_of_reference: str = ""

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        return Grid(self.layers.shape[:3], self.affine)  # type: ignore[arg-type]

    def voxels(self) -> dict[Segment, int]:
        """How many voxels each segment has."""
        counts = [np.bincount(np.maximum(layer, 0).ravel()) for layer in np.moveaxis(self.layers, 3, 0)]
        return {s: int(counts[s.layer][s.value]) if 0 < s.value < len(counts[s.layer]) else 0 for s in self.segments}

    def painted(self, labels: Iterable[tuple[Segment, int]]) -> np.ndarray:
        """One label for each voxel. Where segments overlap, the later one wins; the body gives way to all others.

        Args:
            labels: Segments and their labels; segments that are not listed are left out.

        Returns:
            ``(X, Y, Z)``, uint8.
        """
        from MAISILib.anatomy.labels import LabelTable

        order = sorted(labels, key=lambda item: item[1] != LabelTable.BODY)  # stable: body first
        label_of_rank = np.array([0, *(label for _, label in order)], np.uint8)
        ranks = np.zeros(self.layers.shape[:3], np.uint16)
        for index, layer in enumerate(np.moveaxis(self.layers, 3, 0)):
            rank_of_value = np.zeros(int(layer.max(initial=0)) + 1, np.uint16)
            for rank, (segment, _) in enumerate(order, start=1):
                if segment.layer == index and 0 < segment.value < len(rank_of_value):
                    rank_of_value[segment.value] = rank
            np.maximum(ranks, np.take(rank_of_value, layer, mode="clip"), out=ranks)
        return label_of_rank[ranks]


def has_segments(header: dict[str, Any]) -> bool:
    """Whether a NRRD header describes Slicer segments."""
    return "Segment0_ID" in header or "Segment0_LabelValue" in header


def segmentation_of(voxels: Straightened, header: dict[str, Any], path: Path) -> Segmentation:
    """The segments that a NRRD header describes.

    Args:
        voxels: ``(X, Y, Z)`` or, with overlapping segments, ``(X, Y, Z, L)``.
        header: The NRRD header.
        path: For messages.

    Raises:
        FileFormatError: The voxels are no numbers of segments, a segment points to a layer that is not there, or
            its layer or label value is no whole number.
    """
    layers = voxels.array.reshape(*voxels.array.shape[:3], -1)
    whole = layers.dtype.kind in "iu" or bool((layers == np.rint(layers)).all())  # NaN is not equal to itself
    if not whole or layers.max(initial=0) > _MAX_VALUE:
        raise FileFormatError(
            f"{path}: the voxels are no numbers of segments from 0 to {_MAX_VALUE}. Save it in Slicer again."
        )
    if layers.dtype.kind == "f":
        layers = np.maximum(layers, 0).astype(np.uint16)
    segments: list[Segment] = []
    for number in itertools.count():
        prefix = f"Segment{number}_"
        if f"{prefix}ID" not in header and f"{prefix}LabelValue" not in header:
            break
        name = str(header.get(f"{prefix}Name", f"segment {number}"))
        layer = _whole(header, f"{prefix}Layer", 0, name, path)
        value = _whole(header, f"{prefix}LabelValue", 1, name, path)
        if not 0 <= layer < layers.shape[3]:
            raise FileFormatError(
                f"{path}: segment '{name}' lies in layer {layer} of {layers.shape[3]}. Save it again in Slicer."
            )
        tags = _tags(str(header.get(f"{prefix}Tags", "")))
        segments.append(Segment(name, value, layer, tags.get(LABEL_TAG, ""), tags.get(TERMINOLOGY_TAG, "")))
    return Segmentation(layers, voxels.affine, _numbered(segments), voxels.notes)


def _whole(header: dict[str, Any], field: str, default: int, name: str, path: Path) -> int:
    text = str(header.get(field, default))
    try:
        return int(text)
    except ValueError:
        raise FileFormatError(
            f"{path}: {field} of segment '{name}' is {text[:40]!r}, not a whole number. Save it again in Slicer."
        ) from None


def _numbered(segments: list[Segment]) -> tuple[Segment, ...]:
    """Their label values as numbers, but where several have the same: then Slicer has counted within each layer."""
    if len({segment.value for segment in segments}) < len(segments):
        return tuple(segments)
    return tuple(replace(segment, number=segment.value) for segment in segments)


def labels_of_segments(
    voxels: Straightened, header: dict[str, Any], table: LabelTable, path: Path, source: str | None = None
) -> LabelMap:
    """The label map of the segments in a segmentation file; overlaps are resolved as in `Segmentation.painted`.

    Args:
        voxels: ``(X, Y, Z)`` or, with overlapping segments, ``(X, Y, Z, L)``.
        header: The NRRD header.
        table: What labels mean.
        path: For messages.
        source: Where the mask came from, in words; the file's name where not given.

    Raises:
        FileFormatError: A segment points to a layer that the file does not have.
        MaskError: Segments that are not in ``table``.
    """
    segmentation = segmentation_of(voxels, header, path)
    found = [(s, label_of_segment(s.name, s.tag, s.terminology, table)) for s in segmentation.segments]
    if unknown := [segment.name for segment, label in found if label is None]:
        raise unknown_segments(unknown, table, str(path))
    labels = segmentation.painted((segment, label) for segment, label in found if label is not None)
    return LabelMap(labels, segmentation.affine, table, source or path.name, segmentation.notes)


def label_of_segment(name: str, tag: str, terminology: str, table: LabelTable) -> int | None:
    """The label value of a segment, by its `LABEL_TAG`, else its terminology, else its name; None where unknown."""
    found = find_label(Segment(name, 1, 0, tag, terminology), table)
    return found[0] if found else None


def find_label(segment: Segment, table: LabelTable) -> tuple[int, Literal["tag", "code", "name"]] | None:
    """The label value of a segment and what told it: its `LABEL_TAG`, else its terminology, else its name."""
    tag = segment.tag.strip()
    if tag.isdecimal() and len(tag) <= len(str(_MAX_VALUE)) and int(tag) in table:
        return int(tag), "tag"
    codes = terminology_codes(segment.terminology)
    of_labels = {label.value: terminology_codes(label.terminology()) for label in table} if codes else {}
    for first in (0, 1):  # without the category where no label has it: lists differ in what they call a structure
        matches = [value for value, known in of_labels.items() if known and known[first:] == codes[first:]]
        if len(matches) == 1:
            return matches[0], "code"
    try:
        return table.find(segment.name).value, "name"
    except RequestError:
        return None


def unknown_segments(names: list[str], table: LabelTable, where: str) -> MaskError:
    """The error to raise for segments that have no label."""
    hints = "".join(did_you_mean(name, table.names()) for name in names[:1])
    listed = ", ".join(f"'{name}'" for name in names)
    return MaskError(
        f"{where}: no label of table '{table.name}' for segment{'s' if len(names) > 1 else ''} {listed}.{hints} "
        "Rename the segment to a label's name, or delete it."
    )


def _tags(text: str) -> dict[str, str]:
    """Segment tags as Slicer writes them, ``name:value|name:value|``."""
    pairs = (tag.partition(":") for tag in text.split("|"))
    return {name: value for name, _, value in pairs}


def terminology_codes(terminology: str) -> tuple[str, ...]:
    """Category, type, type modifier, region and region modifier as ``scheme^code``; empty where they say nothing.

    Names of contexts and meanings are left out: they differ between lists and languages. "Tissue" says nothing,
    although it is the body's code: Slicer gives it to every segment that nobody has named yet.

    Args:
        terminology: A Slicer terminology string of seven ``~`` fields; any other text says nothing.
    """
    fields = terminology.split("~")
    if len(fields) != 7:
        return ()
    codes = tuple(_plain_code(field) for field in (*fields[1:4], *fields[5:7]))
    return () if codes[1] in ("", _UNSPECIFIED_TYPE) else codes


def _plain_code(field: str) -> str:
    """``scheme^code`` of ``scheme^code^meaning``; older SNOMED codes (``SRT``) as those of SNOMED CT."""
    scheme, _, rest = field.partition("^")
    value = rest.partition("^")[0]
    if scheme in ("SRT", "SNM3", "99SDM"):  # PS3.16, 8.1: other designators of the same older codes
        from pydicom.sr.coding import snomed_mapping  # pyright: ignore[reportPrivateImportUsage]

        scheme, value = "SCT", snomed_mapping["SRT"].get(value, value)
    return f"{scheme}^{value}".strip("^")
