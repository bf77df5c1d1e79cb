"""Reads the segments of a Slicer segmentation file (``.seg.nrrd``) as labels of a table.

The header's keys are Slicer's: ``Segment0_Name``, ``Segment0_LabelValue``, ``Segment0_Layer``, ``Segment0_Tags``, …
(https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html). Label values in such a file may
have been renumbered by Slicer; what a segment means stands in its tags and its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MAISILib.errors import FileFormatError, MaskError, RequestError, did_you_mean
from MAISILib.volumes import LabelMap

if TYPE_CHECKING:
    from MAISILib.anatomy.labels import LabelTable

#: The segment tag that keeps a segment's label value.
LABEL_TAG = "MAISI.Label"
TERMINOLOGY_TAG = "TerminologyEntry"
#: SNOMED CT "Tissue", the type in vtkSegment's default terminology.
_UNSPECIFIED_TYPE = "SCT^85756007"


def has_segments(header: dict[str, Any]) -> bool:
    """Whether a NRRD header describes Slicer segments."""
    return "Segment0_ID" in header or "Segment0_LabelValue" in header


def labels_of_segments(
    array: np.ndarray,
    affine: np.ndarray,
    header: dict[str, Any],
    table: LabelTable,
    path: Path,
    source: str | None = None,
) -> LabelMap:
    """The label map of the segments in a segmentation file; where segments overlap, the later one wins.

    Args:
        array: ``(X, Y, Z)`` or, with overlapping segments, ``(X, Y, Z, L)``.
        affine: ``(4, 4)``, voxel index to RAS+ mm.
        header: The NRRD header.
        table: What labels mean.
        path: For messages.
        source: Where the mask came from, in words; the file's name where not given.

    Raises:
        FileFormatError: A segment points to a layer that the file does not have.
        MaskError: Segments that are not in ``table``.
    """
    layers = array.reshape(*array.shape[:3], -1)
    ranks = np.zeros(layers.shape[:3], np.uint16)
    label_of_rank, unknown = [0], []
    number = 0
    while f"Segment{number}_ID" in header or f"Segment{number}_LabelValue" in header:
        prefix = f"Segment{number}_"
        layer, value = int(header.get(f"{prefix}Layer", 0)), int(header.get(f"{prefix}LabelValue", 1))
        name = str(header.get(f"{prefix}Name", f"segment {number}"))
        if not 0 <= layer < layers.shape[3]:
            raise FileFormatError(
                f"{path}: segment '{name}' lies in layer {layer} of {layers.shape[3]}. Save it again in Slicer."
            )
        tags = _tags(str(header.get(f"{prefix}Tags", "")))
        label = label_of_segment(name, tags.get(LABEL_TAG, ""), tags.get(TERMINOLOGY_TAG, ""), table)
        number += 1
        if label is None:
            unknown.append(name)
            continue
        label_of_rank.append(label)
        ranks[layers[..., layer] == value] = len(label_of_rank) - 1
    if unknown:
        raise unknown_segments(unknown, table, str(path))
    labels = np.asarray(label_of_rank, np.uint8)[ranks]
    return LabelMap(labels, affine, table, source or path.name)


def label_of_segment(name: str, tag: str, terminology: str, table: LabelTable) -> int | None:
    """The label value of a segment, by its `LABEL_TAG`, else its terminology, else its name; None where unknown."""
    if tag.strip().isdigit() and int(tag) in table:
        return int(tag)
    codes = _codes(terminology)
    if codes:
        matches = [label.value for label in table if _codes(label.terminology()) == codes]
        if len(matches) == 1:
            return matches[0]
    try:
        return table.find(name).value
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


def _codes(terminology: str) -> tuple[str, ...]:
    """Category, type, type modifier, region and region modifier as ``scheme^code``; empty where they say nothing.

    Names of contexts and meanings are left out: they differ between lists and languages. "Tissue" says nothing,
    although it is the body's code: Slicer gives it to every segment that nobody has named yet.
    """
    fields = terminology.split("~")
    if len(fields) != 7:
        return ()
    codes = tuple("^".join(field.split("^")[:2]).strip("^") for field in (*fields[1:4], *fields[5:7]))
    return () if codes[1] in ("", _UNSPECIFIED_TYPE) else codes
