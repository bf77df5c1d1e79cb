"""The mask doctor: what a label map holds, and what about it will make a bad image."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from MAISILib.anatomy.anatomical_order import Relation, relations
from MAISILib.anatomy.envelope import hulls_of_slices
from MAISILib.anatomy.label_guess import OWN, Guess, guess_numbers
from MAISILib.anatomy.label_profiles import LabelProfiles, label_profiles
from MAISILib.anatomy.labels import LabelTable
from MAISILib.anatomy.mask_pieces import Pieces, pieces_of, surroundings
from MAISILib.anatomy.masks import BodyRegions, regions_of, tissues_around
from MAISILib.errors import MaskError
from MAISILib.volumes import LabelMap

Level = Literal["error", "warning", "note"]
_LEVELS = ("error", "warning", "note")
#: A piece smaller than this part of its structure is a speck rather than a part.
SPECK = 0.01
#: More of a structure than this part outside of the body is worth a warning; less is partial volume.
OUTSIDE = 0.01
#: A lesion that shares less than this part of its surface with its host lies somewhere else.
IN_HOST = 0.1
#: Axes that lean further than this from the patient's are called oblique (degrees).
OBLIQUE = 2.0
_NAMED = 8
#: Of a lesion in more pieces than this, only the largest are looked at: it is noise.
_LESION_PIECES = 200


@dataclass(frozen=True)
class Finding:
    """One thing that the user should know.

    Args:
        level: ``"error"`` (no image can be made), ``"warning"`` (the image will suffer) or ``"note"``.
        topic: What it is about: labels, body, fragments, orientation, spacing, size, field of view, lesions, sides.
        message: What is the matter, where, and what to do.
    """

    level: Level
    topic: str
    message: str


@dataclass(frozen=True)
class LabelEntry:
    """One label of a mask.

    Args:
        value: The label.
        name: From the label table; empty where it is not known.
        state: ``"known"``, ``"unknown"`` to the table, or ``"unused"`` (a place holder that no model has learned).
        voxels: How many it has.
        milliliters: Their volume.
        pieces: Connected pieces (voxels that share at least a corner).
    """

    value: int
    name: str
    state: Literal["known", "unknown", "unused"]
    voxels: int
    milliliters: float
    pieces: int


@dataclass(frozen=True)
class MaskReport:
    """What was found out about a mask.

    Args:
        source: Where the mask came from.
        table: Name of the label table.
        size: Voxels along the three axes of the file.
        spacing: Their size in mm.
        orientation: Where the three axes point to, as ``"LPS"``.
        field_of_view: Extent in mm along the three axes.
        regions: Top-most and bottom-most body region; empty where no label tells it.
        labels: The labels present.
        free: Numbers that new classes may use: place holders and numbers that the table leaves out.
        findings: The gravest first.
    """

    source: str
    table: str
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    field_of_view: tuple[float, float, float]
    regions: tuple[str, ...]
    labels: tuple[LabelEntry, ...]
    free: tuple[int, ...]
    findings: tuple[Finding, ...] = field(default=())

    @property
    def is_usable(self) -> bool:
        """Whether an image can be made of the mask."""
        return not any(finding.level == "error" for finding in self.findings)

    def with_findings(self, *more: Finding) -> MaskReport:
        """The report with further findings in their place."""
        findings = sorted((*self.findings, *more), key=lambda f: _LEVELS.index(f.level))
        return MaskReport(**{**self.__dict__, "findings": tuple(findings)})

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        return {**asdict(self), "is_usable": self.is_usable}

    def __str__(self) -> str:
        lines = [
            f"{self.source}: {_times(self.size)} voxels of {_times(self.spacing)} mm, axes {self.orientation}, "
            f"field of view {_times(self.field_of_view, '.0f')} mm"
            + (f", {' to '.join(dict.fromkeys(self.regions))}" if self.regions else ""),
            "",
            *(f"{finding.level:<8} {finding.topic}: {finding.message}" for finding in self.findings),
            "",
            f"{'label':>5}  {'name':<32} {'mL':>9}  pieces",
        ]
        for entry in self.labels:
            name = entry.name if entry.state == "known" else f"{entry.name} ({entry.state})".strip()
            lines.append(f"{entry.value:>5}  {name:<32} {entry.milliliters:>9.1f}  {entry.pieces}")
        lines += ["", f"Free for new classes in {self.table!r}: {_ranges(self.free)}."]
        return "\n".join(lines)


def examine(mask: LabelMap) -> MaskReport:
    """Looks a mask over against its own label table. It is not changed."""
    from nibabel.orientations import aff2axcodes

    profiles = label_profiles(mask.array)
    pieces = pieces_of(mask)
    entries = tuple(_entry(value, mask, profiles, pieces) for value in profiles.present)
    used = {label.value for label in mask.table if not label.is_unused}
    report = MaskReport(
        source=mask.source or "mask",
        table=mask.table.name,
        size=mask.grid.shape,
        spacing=mask.spacing,
        orientation="".join(map(str, aff2axcodes(mask.affine))),
        field_of_view=mask.grid.field_of_view,
        regions=tuple(_regions_shown(mask) or ()),
        labels=entries,
        free=tuple(value for value in range(1, 256) if value not in used),
    )
    found = [*(Finding("note", "file", note) for note in mask.notes), *_about_labels(entries, mask.table)]
    if foreign := _foreign_list(profiles.centers(mask.affine), mask.table):  # then the names below are all wrong
        text = f"The numbers are of another list, by where the structures lie: {foreign}. "
        found.append(Finding("error", "labels", f"{text}Convert it: maisi mask convert --from {foreign.name}."))
    elif entries:
        found += _about_body(mask, entries, profiles)
        found += _about_fragments(entries, pieces, mask)
        found += _about_lesions(mask, pieces)
        found += _about_order(mask, profiles)
    found += _about_orientation(mask)
    return report.with_findings(*found)


def _regions_shown(mask: LabelMap) -> BodyRegions | None:
    """The body regions of a mask, by the labels that its table knows; ``None`` also where it is upside down."""
    known = np.isin(np.arange(256), [0, *(label.value for label in mask.table)])
    strangers = not known[mask.labels].all()
    found = regions_of(mask.with_array(np.where(known[mask.array], mask.array, 0)) if strangers else mask)
    return found if found is not None and found.between() else None


def _entry(value: int, mask: LabelMap, profiles: LabelProfiles, pieces: Pieces) -> LabelEntry:
    label = next((label for label in mask.table if label.value == value), None)
    state = "unknown" if label is None else "unused" if label.is_unused else "known"
    voxels = int(profiles.counts[value])
    milliliters = voxels * float(np.prod(mask.spacing)) / 1000
    name = label.name if label else ""
    return LabelEntry(value, name, state, voxels, round(milliliters, 3), len(pieces.of(value)))


def _about_labels(entries: tuple[LabelEntry, ...], table: LabelTable) -> list[Finding]:
    if not entries:
        return [Finding("error", "labels", "The mask is empty: all voxels are 0. Segment at least one structure.")]
    found = []
    known = [e for e in entries if e.state == "known"]
    if unknown := [e for e in entries if e.state == "unknown"]:
        listed = _listed([f"{e.value} ({e.voxels} voxels)" for e in unknown])
        text = (
            f"{table.name!r} does not know {listed}. Rename or remove them, or convert the mask if its numbers come "
            "from another program (maisi mask convert)."
        )
        found.append(Finding("error", "labels", text))
    if unused := [e for e in entries if e.state == "unused"]:
        listed = ", ".join(f"{e.value} ({e.name})" for e in unused)
        text = f"Place holders that no published model has learned: {listed}. Use labels of real structures."
        found.append(Finding("warning" if known else "error", "labels", text))
    return found


def _about_body(mask: LabelMap, entries: tuple[LabelEntry, ...], profiles: LabelProfiles) -> list[Finding]:
    body = LabelTable.BODY
    if body not in mask.table:
        return [Finding("note", "body", f"{mask.table.name!r} has no body label, so none is needed.")]
    if body not in profiles.present:
        text = (
            f"There is no body (label {body}). A smooth hull around the labels will be used, which is a guess; with a "
            "CT of the patient it is measured: maisi mask envelope, or --mask-ct in generating."
        )
        return [Finding("warning", "body", text)]
    inside = mask.array == body
    found = [Finding("note", "body", f"Body (label {body}) is there.")]
    outside = mask.array != 0
    outside[hulls_of_slices(inside, mask)] = False
    counts = np.bincount(mask.array.T[outside.T], minlength=256)  # turned: files come in Fortran order
    names = [
        f"{e.name or e.value} ({counts[e.value] / e.voxels:.0%})"
        for e in entries
        if counts[e.value] > OUTSIDE * e.voxels
    ]
    if names:
        text = f"Outside of the body lie parts of {_listed(names)}. Extend the body, or remove what floats in the air."
        found.append(Finding("warning", "body", text))
    return found


def _about_fragments(entries: tuple[LabelEntry, ...], pieces: Pieces, mask: LabelMap) -> list[Finding]:
    specks, parts = [], []
    scattered = {LabelTable.BODY, *(label.value for label in mask.table if label.is_tumor or label.host is not None)}
    for entry in entries:
        if entry.pieces < 2 or entry.value in scattered:
            continue
        sizes = pieces.sizes[pieces.of(entry.value)]
        small = sizes[sizes < SPECK * entry.voxels]
        name = entry.name or str(entry.value)
        large = len(sizes) - len(small)
        if large > 1:  # of bones, vessels or bowel: small pieces are natural, too
            parts.append(f"{name} ({large}{f' and {len(small)} small ones' if len(small) else ''})")
        elif len(small):
            specks.append(f"{name} ({len(small)}, {int(small.sum())} voxels)")
    found = []
    if specks:
        text = f"Loose specks beside {_listed(specks)}. Remove small islands if they are noise."
        found.append(Finding("warning", "fragments", text))
    if parts:
        found.append(Finding("note", "fragments", f"In several large pieces: {_listed(parts)}."))
    return found


def _about_lesions(mask: LabelMap, pieces: Pieces) -> list[Finding]:
    hosts = mask.table.hosts()
    found = []
    around = surroundings(mask, pieces, [int(n) for lesion in hosts for n in pieces.of(lesion)[:_LESION_PIECES]])
    for lesion, host in hosts.items():
        at_home = [lesion, *tissues_around(lesion, mask.table)]
        for piece in pieces.of(lesion)[:_LESION_PIECES]:
            faces = around[int(piece)]
            if LabelTable.BODY in at_home:  # anywhere inside of the patient
                share = 1 - faces[0] / max(1, faces.sum())
            else:
                share = faces[at_home].sum() / max(1, faces.sum())
            if share >= IN_HOST or not faces.sum():
                continue
            place = (mask.affine @ np.append(pieces.centers[piece], 1.0))[:3]
            beside = [
                mask.table[v].name if v in mask.table else str(v) for v in np.argsort(-faces)[:2] if v and faces[v]
            ]
            text = (
                f"{mask.table[lesion].name} at R {place[0]:.0f}, A {place[1]:.0f}, S {place[2]:.0f} mm "
                f"({int(pieces.sizes[piece])} voxels) lies outside of its host {mask.table[host].name}, beside "
                f"{' and '.join(beside) or 'background'}. Move it, or label it as what it is."
            )
            found.append(Finding("warning", "lesions", text))
    more = len(found) - _NAMED
    return found[:_NAMED] + ([Finding("warning", "lesions", f"And {more} more of this kind.")] if more > 0 else [])


def _about_order(mask: LabelMap, profiles: LabelProfiles) -> list[Finding]:
    names = {label.value: label.name for label in mask.table}
    judged = relations(names, profiles.centers(mask.affine))
    found = []
    for kind, whole, word in (
        ("side", "The mask is mirrored", "lies on the right of"),
        ("height", "The mask is upside down", "lies below"),
    ):
        these = [relation for relation in judged if relation.kind == kind]
        wrong = [relation for relation in these if not relation.holds]
        if not wrong:
            continue
        listed = _listed([_order_in_words(relation, mask.table, word) for relation in wrong])
        if len(wrong) == len(these) and len(wrong) > 1:
            text = f"{whole}, or its labels are from another list: {listed}. Check the file's orientation and labels."
            found.append(Finding("error" if kind == "height" else "warning", "sides", text))
        else:
            text = f"{len(wrong)} of {len(these)} structures are out of place: {listed}. Are their labels right?"
            found.append(Finding("warning", "sides", text))
    return found


def _foreign_list(centers: dict[int, np.ndarray], table: LabelTable) -> Guess | None:
    """The list of another program that explains the mask much better than its own label table does."""
    try:
        guess = guess_numbers(centers, table, "mask")
    except MaskError:
        return None
    return None if guess.name == OWN else guess


def _order_in_words(relation: Relation, table: LabelTable, word: str) -> str:
    return f"{table[relation.first].name} {word} {table[relation.second].name}"


def _about_orientation(mask: LabelMap) -> list[Finding]:
    cosines = np.abs(mask.affine[:3, :3] / np.asarray(mask.spacing))
    angle = float(np.degrees(np.arccos(np.clip(cosines.max(axis=0).min(), 0, 1))))
    if angle <= OBLIQUE:
        return []
    text = f"The axes lean {angle:.0f}° from the patient's; the image will be made along them, as oblique as the mask."
    return [Finding("note", "orientation", text)]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _times(values: tuple[float, ...], form: str = ".4g") -> str:
    return " × ".join(format(value, form) for value in values)


def _ranges(values: tuple[int, ...]) -> str:
    """``2, 133–199`` for a sorted tuple of numbers."""
    if not values:
        return "none"
    array = np.asarray(values)
    starts = np.flatnonzero(np.diff(array, prepend=array[0] - 2) > 1)
    ends = [*(starts[1:] - 1), len(array) - 1]
    spans = ((int(array[a]), int(array[b])) for a, b in zip(starts, ends, strict=True))
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in spans)
