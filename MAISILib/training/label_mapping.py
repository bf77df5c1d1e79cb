"""Which label each segment of a user's cases becomes, and how that was found out.

Nothing here reads voxels or needs PyTorch, so that the Slicer panel can show a mapping and let the user edit it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from MAISILib.anatomy.labels import LabelTable
from MAISILib.anatomy.synonyms import find_synonym
from MAISILib.errors import FileFormatError, MaskError, RequestError, did_you_mean, nearest_names
from MAISILib.files.segmentations import Segment, find_label
from MAISILib.training.new_labels import NewLabel, extended_table, next_free_value

if TYPE_CHECKING:
    from MAISILib.training.cases import Case

#: How a label was found: the segment's MAISI tag, its terminology codes, its name, another name of the same anatomy,
#: the number in a label map without names; it is a new label; the user chose it; it is left out; or nothing was found.
Found = Literal["tag", "code", "name", "synonym", "number", "new", "user", "ignored", "unknown"]
#: What a user writes for a segment that is to be left out.
IGNORE = "ignore"


class Decision(BaseModel):
    """What becomes of one segment.

    Attributes:
        segment: Its name, or its number where the file names nothing.
        label: The label's value; ``None`` where the segment is ignored or unknown.
        label_name: The label's name, for people.
        found: How it was found.
        cases: Where the segment occurs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    segment: str
    label: int | None = None
    label_name: str = ""
    found: Found
    cases: tuple[str, ...] = ()

    @property
    def is_unknown(self) -> bool:
        """Whether nothing was found, and nobody has filled in a label since."""
        return self.found == "unknown" and self.label is None


class LabelMapping(BaseModel):
    """The decisions for all segments of all cases.

    Attributes:
        segments: For what the user has labelled.
        body_segments: For the segmentations of other organs underneath.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    segments: tuple[Decision, ...] = ()
    body_segments: tuple[Decision, ...] = ()

    def label_of(self, segment: Segment, *, body: bool = False) -> int | None:
        """The label of a segment; ``None`` where it is ignored.

        Raises:
            MaskError: The mapping does not know the segment.
        """
        for decision in self.body_segments if body else self.segments:
            if decision.segment == segment.name and not decision.is_unknown:
                return decision.label
        raise MaskError(f"The mapping of labels says nothing about the segment '{segment.name}'. Add it.")

    def edited(self, edits: Mapping[str, str | int | None], table: LabelTable) -> LabelMapping:
        """The mapping with the user's own decisions.

        Args:
            edits: Segment → name or value of a label in ``table``; ``None`` or ``"ignore"`` leaves the segment out.
            table: The extended table.

        Raises:
            RequestError: There is no such segment or label.
        """
        known = [d.segment for d in (*self.segments, *self.body_segments)]
        for segment in edits:
            if segment not in known:
                hint = did_you_mean(segment, known) or f" There are: {', '.join(map(repr, known))}."
                raise RequestError(f"No case has a segment {segment!r}.{hint}")

        def decided(decision: Decision) -> Decision:
            if decision.segment not in edits:
                return decision
            wish = edits[decision.segment]
            if wish is None or (isinstance(wish, str) and wish.strip().lower() == IGNORE):
                return decision.model_copy(update={"label": None, "label_name": "", "found": "ignored"})
            label = table.find(wish)
            return decision.model_copy(update={"label": label.value, "label_name": label.name, "found": "user"})

        return LabelMapping(
            segments=tuple(map(decided, self.segments)), body_segments=tuple(map(decided, self.body_segments))
        )

    def check(self, table: LabelTable) -> None:
        """Makes sure that each segment has a label, or is ignored on purpose.

        Args:
            table: The extended table.

        Raises:
            MaskError: Unknown segments: all are named, with what to do about them; or labels that are not in the table.
        """
        decisions = (*self.segments, *self.body_segments)
        strangers = [d for d in decisions if d.label is not None and d.label not in table]
        if strangers:
            named = ", ".join(f"'{d.segment}' → {d.label}" for d in strangers)
            raise MaskError(f"The mapping names labels that {table.name!r} does not have: {named}. Correct it.")
        unknown = [d for d in decisions if d.is_unknown]
        if not unknown:
            return
        lines = []
        for decision in unknown:
            near = nearest_names(decision.segment, table.names())
            hint = f"; nearest labels: {', '.join(near)}" if near and not decision.segment.isdecimal() else ""
            lines.append(f"  '{decision.segment}' (in {_listed(decision.cases)}){hint}")
        example, name = unknown[0].segment, "lesion" if unknown[0].segment.isdecimal() else unknown[0].segment
        host = table[table.BODY].name if table.BODY in table else next(iter(table)).name
        numbers = any(d.segment.isdecimal() for d in unknown)
        raise MaskError(
            f"{len(unknown)} segment{'s have' if len(unknown) > 1 else ' has'} no label in {table.name!r}:\n"
            + "\n".join(lines)
            + f"\nTeach it as a new label (--new-label '{name}={next_free_value(table)}:{host}', its host behind), "
            f"map it to a label or leave it out (--map '{example}=LABEL', --map '{example}={IGNORE}'), or rename it."
            + (' Name numbers in the file of cases: "names": {"1": "lesion"}.' if numbers else "")
        )

    def notes(self) -> list[str]:
        """One line for each segment whose label is not simply its name."""
        how = {
            "tag": "by its MAISI tag",
            "code": "by its terminology",
            "synonym": "by another name of it",
            "number": "by its number",
            "new": "which is new",
            "user": "as you chose",
        }
        lines = []
        for decision in (*self.segments, *self.body_segments):
            if decision.found in how:
                label = f"{decision.label} ({decision.label_name})"
                lines.append(f"Segment '{decision.segment}' is label {label}, {how[decision.found]}.")
            elif decision.found == "ignored":
                lines.append(f"Segment '{decision.segment}' is left out.")
        return list(dict.fromkeys(lines))  # one and the same may stand in both kinds of segmentations

    def to_json(self) -> str:
        """The mapping as JSON, which :meth:`from_json` reads back."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str, where: str = "label mapping") -> LabelMapping:
        """Reads a mapping that was saved, and perhaps edited.

        Raises:
            FileFormatError: Not JSON, or not a mapping.
        """
        try:
            return cls.model_validate(json.loads(text))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise FileFormatError(
                f"{where}: field '{field}' is {str(first['input'])[:60]!r}: {first['msg']}."
            ) from None
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"{where} is not JSON: {error}.") from None


def propose_mapping(cases: Iterable[Case], table: LabelTable, new_labels: Iterable[NewLabel] = ()) -> LabelMapping:
    """Finds a label for each segment of the cases.

    In this order: a new label of the same name; the tag that MAISI's own segments carry; terminology codes; the name;
    another name of the same anatomy (`find_synonym`). A number without a name is the label with this value. What is
    left is unknown, apart from segments of a body segmentation: organs that the bundle does not know are ignored there.

    Args:
        cases: As `read_cases` gave them.
        table: The bundle's labels.
        new_labels: Labels to add to them.

    Raises:
        MaskError: A segment's name means one label in one case and another one elsewhere.
        RequestError: A new label cannot be added to the table.
    """
    new_labels = tuple(new_labels)
    extended = extended_table(table, new_labels)
    values = {label.value for label in new_labels}
    own: dict[str, Decision] = {}
    body: dict[str, Decision] = {}
    for case in cases:
        for decisions, segments in ((own, case.segments), (body, case.body_segments)):
            for segment in segments:
                label, found = _find(segment, extended, values)
                if found == "unknown" and decisions is body:
                    found = "ignored"
                _add(decisions, segment, label, found, case.name, extended)
    return LabelMapping(segments=tuple(own.values()), body_segments=tuple(body.values()))


def parse_edit(text: str) -> tuple[str, str]:
    """Reads ``segment=label`` or ``segment=ignore`` as the user typed it.

    Raises:
        RequestError: Not of this form.
    """
    segment, equals, label = (part.strip() for part in text.rpartition("="))
    if not equals or not segment or not label:
        raise RequestError(f"{text!r} maps nothing. Write segment=label, or segment={IGNORE} to leave it out.")
    return segment, label


def _find(segment: Segment, table: LabelTable, new_values: set[int]) -> tuple[int | None, Found]:
    label: int | None
    found: Found
    if not segment.is_named:
        label, found = (segment.number, "number") if segment.number in table else (None, "unknown")
    elif (by_name := _named(segment.name, table)) in new_values:
        label, found = by_name, "new"
    elif told := find_label(segment, table):
        label, found = told
    else:
        label = find_synonym(segment.name, table)
        found = "unknown" if label is None else "synonym"
    if label is not None and table[label].is_unused:
        return None, "unknown"
    return label, "new" if label in new_values else found


def _named(name: str, table: LabelTable) -> int | None:
    try:
        return table.find(name).value
    except RequestError:
        return None


def _add(
    decisions: dict[str, Decision], segment: Segment, label: int | None, found: Found, case: str, table: LabelTable
) -> None:
    before = decisions.get(segment.name)
    if before is None:
        name = "" if label is None else table[label].name
        decisions[segment.name] = Decision(
            segment=segment.name, label=label, label_name=name, found=found, cases=(case,)
        )
        return
    if before.label != label:
        meanings = [f"{'unknown' if v is None else table.describe(v)} in {_listed(names)}"
                    for v, names in ((before.label, before.cases), (label, (case,)))]  # fmt: skip
        raise MaskError(
            f"Segments with the name '{segment.name}' mean different labels: {' and '.join(meanings)}. Rename them."
        )
    if case not in before.cases:
        decisions[segment.name] = before.model_copy(update={"cases": (*before.cases, case)})


def _listed(names: Iterable[str], limit: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
