"""The command ``map_segments``: segments of a scene, known by name and terminology only, mapped to labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MAISILib.anatomy.labels import LabelTable
from MAISILib.errors import RequestError, nearest_names
from MAISILib.files.segmentations import Segment
from MAISILib.training.cases import Case
from MAISILib.training.label_mapping import propose_mapping
from MAISILib.training.new_labels import extended_table, parse_new_labels

if TYPE_CHECKING:
    from MAISILib.training.label_mapping import Decision

#: How a label was found, in the words of the protocol.
_HOW = {"tag": "exact", "name": "exact", "number": "exact", "code": "terminology"}


def mapped(
    table: LabelTable, segments: Iterable[Any], new_labels: Iterable[Any], edits: Mapping[str, Any]
) -> dict[str, Any]:
    """A label for each segment, how it was found, and what to do where none was.

    Args:
        table: The bundle's labels.
        segments: Objects with ``name``, and where known ``terminology`` and ``tag`` (of the tag ``MAISI.Label``).
        new_labels: As for ``maisi finetune --new-label``.
        edits: Segment → label, or ``ignore``.

    Raises:
        RequestError: A segment without a name, a new label that cannot be added, an unknown segment or label.
        MaskError: Two segments of one name mean different labels.
    """
    asked = [_segment(number, segment) for number, segment in enumerate(segments, start=1)]
    labels = parse_new_labels(map(str, new_labels), table)
    extended = extended_table(table, labels)
    mapping = propose_mapping([Case("the scene", Path(), Path(), segments=tuple(asked))], table, labels)
    if edits:
        mapping = mapping.edited(edits, extended)
    decisions = {decision.segment: decision for decision in mapping.segments}
    return {"mapping": [_row(decisions[s.name], extended) for s in asked], "notes": mapping.notes()}


def _segment(number: int, fields: Any) -> Segment:
    if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
        raise RequestError(f"Segment {number} is no object with a 'name': {str(fields)[:60]!r}.")
    return Segment(fields["name"], number, 0, str(fields.get("tag") or ""), str(fields.get("terminology") or ""))


def _row(decision: Decision, table: LabelTable) -> dict[str, Any]:
    return {
        "segment": decision.segment,
        "label": None if decision.label is None else decision.label_name,
        "value": decision.label,
        "how": _HOW.get(decision.found, decision.found),
        "advice": _advice(decision, table) if decision.is_unknown else "",
    }


def _advice(decision: Decision, table: LabelTable) -> str:
    near = nearest_names(decision.segment, table.names())
    nearest = f" Nearest labels: {', '.join(near)}." if near else ""
    return f"No label is known for it. Choose one, make it a new label, or leave it out.{nearest}"
