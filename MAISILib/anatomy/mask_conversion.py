"""Makes a mask in a bundle's labels of a segmentation from another program, and says what became of every structure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from MAISILib.anatomy.label_guess import OWN, guess_numbers
from MAISILib.anatomy.label_profiles import label_profiles
from MAISILib.anatomy.label_sets import IGNORE, LABEL_SETS, LabelSet, Structure, code_values, label_set, read_label_set
from MAISILib.anatomy.labels import LabelTable, plain_name
from MAISILib.anatomy.synonyms import find_synonym
from MAISILib.errors import MaskError
from MAISILib.files.segmentations import Segment, Segmentation, find_label
from MAISILib.volumes import LabelMap

AUTO = "auto"
_COUNTED_AT_ONCE = 2**20


@dataclass(frozen=True)
class ConvertedStructure:
    """What became of one structure.

    Args:
        name: As the file says; its number where the file names nothing.
        number: In the file; ``None`` where it has only a name.
        label: Of the bundle; ``None`` where it has none.
        label_name: Its name.
        found: What told it: tag, code, name, synonym or number; or that it is ignored, not in the user's list, or
            unknown.
        voxels: In the file.
        kept: Of these, how many have the label in the mask (body, where there is no label).
        lost_to: Label name → voxels that another structure took.
    """

    name: str
    number: int | None
    label: int | None
    label_name: str
    found: str
    voxels: int = 0
    kept: int = 0
    lost_to: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Args:
        source: The file.
        read_as: The list of labels that its numbers or names were looked up in.
        table: Name of the bundle's table.
        structures: In the file's order.
        notes: What else is worth knowing.
    """

    source: str
    read_as: str
    table: str
    structures: tuple[ConvertedStructure, ...]
    notes: tuple[str, ...] = ()

    @property
    def merges(self) -> dict[str, list[str]]:
        """Label name → the structures that became this label, where there are several."""
        names: dict[str, list[str]] = {}
        for structure in self.structures:
            if structure.label is not None and structure.voxels:
                names.setdefault(structure.label_name, []).append(structure.name)
        return {label: merged for label, merged in names.items() if len(merged) > 1}

    @property
    def left_out(self) -> list[ConvertedStructure]:
        """Structures without a label."""
        return [s for s in self.structures if s.label is None and s.voxels]

    @property
    def conflicts(self) -> list[ConvertedStructure]:
        """Structures that lost voxels to others that overlap them."""
        return [s for s in self.structures if s.label is not None and s.kept < s.voxels]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        structures = [{**asdict(s), "lost_to": dict(s.lost_to)} for s in self.structures]
        return {**asdict(self), "structures": structures, "merges": self.merges}

    def __str__(self) -> str:
        found = [s for s in self.structures if s.label is not None and s.voxels]
        labels = len({s.label for s in found})
        total = sum(bool(s.voxels) for s in self.structures)
        lines = [f"{self.source}, read as {self.read_as}: {len(found)} of {total} structures became {labels} labels."]
        lines += [f"  merged     {label} <- {', '.join(names)}" for label, names in self.merges.items()]
        reasons = {"unknown": f"{self.table!r} has no label for them", "ignored": "as you wish"}
        reasons["not listed"] = f"not in {self.read_as}"
        for why, reason in reasons.items():
            if names := [f"{s.name} ({s.voxels})" for s in self.left_out if s.found == why]:
                lines.append(f"  left out   {', '.join(names)}: {reason}")
        for s in self.conflicts:
            others = ", ".join(f"{name} ({voxels})" for name, voxels in s.lost_to)
            lines.append(f"  overlap    {s.name}: {s.voxels - s.kept} of {s.voxels} voxels went to {others}")
        whole = sum(s.kept == s.voxels for s in found)
        lines.append(f"  back-check {whole} of {len(found)} structures are voxel for voxel in the mask")
        return "\n".join([*lines, *(f"  note       {note}" for note in self.notes)])


def convert(
    segmentation: Segmentation, table: LabelTable, source: str, read_as: str = AUTO
) -> tuple[LabelMap, Conversion]:
    """A mask in the labels of ``table``, on the segmentation's grid.

    Where structures overlap, lesions win over their hosts, smaller structures over larger ones, and all over the body.
    A structure without a label becomes body where the segmentation has a body, else background.

    Args:
        segmentation: As `read_segments` or `read_segment_folder` gave it.
        table: The bundle's labels.
        source: The file, for messages and the report.
        read_as: One of ``LABEL_SETS``, ``"bundle"`` for the numbers of ``table``, a csv file (see `read_label_set`), or
            ``"auto"``: names and codes are looked up everywhere; numbers without names are told by where the structures
            lie.

    Raises:
        RequestError: No such list.
        FileFormatError: The csv file does not fit.
        MaskError: Nothing in the segmentation has a label, or ``auto`` cannot tell what its numbers mean.
    """
    ranks = [_ranks(segmentation, index) for index in range(segmentation.layers.shape[3])]
    title, decisions, told = _decide(segmentation, ranks, table, source, read_as)
    voxels = _joint_counts(ranks, None, len(decisions))[:, 0]
    if not any(d.label is not None and n for d, n in zip(decisions, voxels, strict=True)):
        names = ", ".join(d.name for d, n in zip(decisions, voxels, strict=True) if n)
        raise MaskError(
            f"{source}, read as {title}: no structure has a label in {table.name!r} ({names or 'it is empty'}). "
            f"{' '.join((*told, 'Choose another bundle, or say with --from what its labels are.'))}"
        )
    labels = segmentation.painted(_in_painting_order(segmentation, decisions, voxels, table))
    joint = _joint_counts(ranks, labels, len(decisions))
    structures = [_filled(d, int(n), row, table) for d, n, row in zip(decisions, voxels, joint, strict=True)]
    notes = [*segmentation.notes, *told]
    strays = int(np.count_nonzero(segmentation.layers)) - int(voxels.sum())
    if strays:
        notes.append(f"{strays} voxels belong to no segment that the file describes; they were left out.")
    if any(s.label is None and s.kept for s in structures):
        notes.append("Structures without a label became body.")
    mask = LabelMap(labels, segmentation.affine, table, source)
    return mask, Conversion(source, title, table.name, tuple(structures), tuple(notes))


def _decide(
    segmentation: Segmentation, ranks: list[np.ndarray], table: LabelTable, source: str, read_as: str
) -> tuple[str, list[ConvertedStructure], list[str]]:
    """What the segmentation was read as, the label of each segment, and notes."""
    numbers: LabelSet | None = None  # what numbers without names mean; the bundle's own labels where None
    if read_as.lower().endswith(".csv"):
        users = read_label_set(Path(read_as), table)
        return users.title, *_by_users_list(segmentation.segments, users, table)
    title, lists = "the names of its structures", [label_set(name) for name in LABEL_SETS]
    if read_as == OWN:
        title = f"{table.name}'s own numbers"
    elif read_as != AUTO:
        numbers = label_set(read_as)
        title, lists = numbers.title, [numbers, *(other for other in lists if other is not numbers)]
    elif not all(segment.is_named for segment in segmentation.segments):
        profiles = label_profiles(ranks[0], len(segmentation.segments) + 1)
        centers = profiles.centers(segmentation.affine)
        unnamed = {
            s.number: centers[i]
            for i, s in enumerate(segmentation.segments, 1)
            if not s.is_named and s.number is not None and i in centers
        }
        guess = guess_numbers(unnamed, table, source)
        numbers = None if guess.name == OWN else label_set(guess.name)
        title = f"{numbers.title if numbers else table.name}, guessed: {guess}"
    decided = []
    for segment in segmentation.segments:
        if segment.is_named:
            decided.append(_by_name(segment, lists, table, trusts_tags=read_as == AUTO))
        elif numbers is None:
            own = segment.number if segment.number in table else None
            decided.append(_structure(segment, segment.name, own, "number", table))
        else:
            found = numbers.numbered(segment.number)
            label = found.label_in(table) if found else None
            decided.append(_structure(segment, found.name if found else segment.name, label, "number", table))
    return title, decided, []


def _by_users_list(
    segments: tuple[Segment, ...], users: LabelSet, table: LabelTable
) -> tuple[list[ConvertedStructure], list[str]]:
    """By name, else by number; and a note of the rows that match nothing, which may be misspelt."""
    by_name = [users.named(segment.name) if segment.is_named else None for segment in segments]
    rows = []
    for segment, row in zip(segments, by_name, strict=True):
        numbered = users.numbered(segment.number)
        is_anothers = numbered in by_name  # a segment has the row's name, so the row means that one
        rows.append(row or (None if is_anothers else numbered))
    decided = [_by_row(segment, row, table) for segment, row in zip(segments, rows, strict=True)]
    missed = [row for row in users.structures if row not in rows]
    if not missed:
        return decided, []
    told = ", ".join(" ".join(str(v) for v in (row.number, row.name) if v not in (None, "")) for row in missed)
    notes = [f"Rows of {users.title} that match nothing: {told}."]
    if any(row.number is not None for row in missed) and all(segment.number is None for segment in segments):
        notes.append("The structures here have no numbers, so only names in the list can match them.")
    return decided, notes


def _by_row(segment: Segment, row: Structure | None, table: LabelTable) -> ConvertedStructure:
    if row is None:
        return _structure(segment, segment.name, None, "not listed", table)
    name = segment.name if segment.is_named else row.name or segment.name
    if row.label.casefold() == IGNORE:
        return _structure(segment, name, None, "ignored", table)
    is_named_so = segment.is_named and plain_name(segment.name) == plain_name(row.name)
    return _structure(segment, name, row.label_in(table), "name" if is_named_so else "number", table)


def _by_name(segment: Segment, lists: list[LabelSet], table: LabelTable, trusts_tags: bool) -> ConvertedStructure:
    """By codes, then by name; first as our own segments are labelled, then as in the lists."""
    told = find_label(segment, table) if trusts_tags and not segment.name.isdecimal() else None
    if told is not None and not table[told[0]].is_unused:
        return _structure(segment, segment.name, told[0], told[1], table)
    codes = code_values(segment.terminology)
    for by, look_up in (("code", lambda one: one.coded(codes)), ("name", lambda one: one.named(segment.name))):
        for one in lists:
            found = look_up(one)
            label = found.label_in(table) if found else None
            if label is not None:
                return _structure(segment, segment.name, label, by, table)
    return _structure(segment, segment.name, find_synonym(segment.name, table), "synonym", table)


def _structure(segment: Segment, name: str, label: int | None, found: str, table: LabelTable) -> ConvertedStructure:
    if label is not None and table[label].is_unused:
        label = None
    if label is None and found not in ("ignored", "not listed"):
        found = "unknown"
    return ConvertedStructure(name, segment.number, label, "" if label is None else table[label].name, found)


def _in_painting_order(
    segmentation: Segmentation, decisions: list[ConvertedStructure], voxels: np.ndarray, table: LabelTable
) -> list[tuple[Segment, int]]:
    """Segments and labels; of two that overlap, the later one wins."""
    hosts = table.hosts()
    has_body = any(d.label == LabelTable.BODY and n for d, n in zip(decisions, voxels, strict=True))

    def rank(item: tuple[Segment, int, int, bool]) -> tuple[bool, int, int]:
        _, label, size, is_known = item
        depth, value = 0, label
        while value in hosts:
            depth, value = depth + 1, hosts[value]
        return is_known and label != LabelTable.BODY, depth, -size

    items = []
    for segment, decision, size in zip(segmentation.segments, decisions, voxels, strict=True):
        if decision.label is not None:
            items.append((segment, decision.label, int(size), True))
        elif has_body:
            items.append((segment, LabelTable.BODY, int(size), False))
    return [(segment, label) for segment, label, *_ in sorted(items, key=rank)]


def _ranks(segmentation: Segmentation, layer: int) -> np.ndarray:
    """One layer with each segment as its position in the list, from 1; 0 where there is none."""
    voxels = segmentation.layers[..., layer]
    rank_of = np.zeros(int(voxels.max(initial=0)) + 1, np.uint16)
    for rank, segment in enumerate(segmentation.segments, start=1):
        if segment.layer == layer and 0 < segment.value < len(rank_of):
            rank_of[segment.value] = rank
    return np.take(rank_of, voxels, mode="clip")


def _joint_counts(ranks: list[np.ndarray], labels: np.ndarray | None, count: int) -> np.ndarray:
    """``(segments, 256)``: voxels of each segment with each label; all in the first column without labels."""
    counts = np.zeros((count + 1) * 256, np.int64)
    for layer in ranks:
        order = "F" if layer.flags.f_contiguous and not layer.flags.c_contiguous else "C"
        flat = layer.ravel(order)
        beside = None if labels is None else labels.ravel(order)
        for start in range(0, flat.size, _COUNTED_AT_ONCE):
            part = flat[start : start + _COUNTED_AT_ONCE].astype(np.int64) * 256
            if beside is not None:
                part += beside[start : start + _COUNTED_AT_ONCE]
            counts += np.bincount(part, minlength=counts.size)
    return counts.reshape(count + 1, 256)[1:]


def _filled(decision: ConvertedStructure, voxels: int, row: np.ndarray, table: LabelTable) -> ConvertedStructure:
    if decision.label is None:
        return replace(decision, voxels=voxels, kept=int(row[LabelTable.BODY]))
    others = row.copy()
    others[decision.label] = 0
    lost = tuple((table[int(v)].name, int(others[v])) for v in np.argsort(-others, kind="stable") if others[v])
    return replace(decision, voxels=voxels, kept=int(row[decision.label]), lost_to=lost)
