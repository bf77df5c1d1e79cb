"""What the integers of a label map mean: names, groups, colors, hosts of tumors and SNOMED CT codes.

A label table is a csv file with the columns of ``COLUMNS``. ``Resources/labels.csv`` holds every label that the
public models know; a bundle may bring a table of its own, in which a row with only ``label`` filled takes the rest from
there. This module imports neither numpy nor torch, so that the doors can list anatomies at once.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from MAISILib.errors import FileFormatError, RequestError, did_you_mean
from MAISILib.resources import resource

CODE_COLUMNS = ("category", "type", "type_modifier", "region", "region_modifier")
COLUMNS = ("label", "name", "group", "red", "green", "blue", "host", *CODE_COLUMNS)

#: Names of the two terminology contexts that Slicer ships and that our codes belong to.
TYPE_CONTEXT = "Segmentation category and type - 3D Slicer General Anatomy list"
REGION_CONTEXT = "Anatomic codes - DICOM master list"

TUMOR_GROUP = "tumors"
UNUSED_GROUP = "unused"


@dataclass(frozen=True)
class Code:
    """One coded concept, as DICOM writes them (PS3.3, section 8).

    Args:
        scheme: Coding scheme designator, ``"SCT"`` for SNOMED CT, ``"DCM"`` for DICOM.
        value: Code value.
        meaning: The words a reader sees.
    """

    scheme: str
    value: str
    meaning: str

    @staticmethod
    def parse(text: str) -> Code | None:
        """The code in a cell like ``SCT:10200004:Liver``; ``None`` for an empty cell.

        Raises:
            ValueError: The cell is not three parts with colons between them, or holds a character that Slicer's
                terminology strings use as separator.
        """
        if not text:
            return None
        parts = [part.strip() for part in text.split(":", 2)]
        if len(parts) != 3 or not all(parts) or any(mark in text for mark in "~^|"):
            raise ValueError(f"{text!r} is not a code; write scheme:value:meaning, for example SCT:10200004:Liver")
        return Code(*parts)


@dataclass(frozen=True)
class Label:
    """One row of a label table.

    Args:
        value: The integer in the label map, 1–255.
        name: The name that users type and see.
        group: Where the label is listed.
        color: Red, green, blue, 0–255.
        host: For a lesion, the label of the organ that is there when the lesion is not.
        category: DICOM segmented property category; ``None`` where the label has no codes.
        type: Segmented property type.
        type_modifier: Laterality of the type.
        region: Anatomic region (the organ of a tumor).
        region_modifier: Laterality of the region.
    """

    value: int
    name: str
    group: str
    color: tuple[int, int, int]
    host: int | None = None
    category: Code | None = None
    type: Code | None = None
    type_modifier: Code | None = None
    region: Code | None = None
    region_modifier: Code | None = None

    @property
    def is_tumor(self) -> bool:
        """Whether the label is a tumor: masks with one are used only when it is asked for."""
        return self.group == TUMOR_GROUP

    @property
    def is_unused(self) -> bool:
        """Whether the label is a place holder (``dummy1`` …) that no model has learned."""
        return self.group == UNUSED_GROUP

    def terminology(self) -> str:
        """The label as a Slicer terminology string of seven ``~`` fields; empty where the label has no code.

        Example:
            >>> default_table().find("right kidney").terminology().split("~")[2:4]
            ['SCT^64033007^Kidney', 'SCT^24028007^Right']
        """
        if self.category is None or self.type is None:
            return ""
        fields = [TYPE_CONTEXT, *map(_triplet, (self.category, self.type, self.type_modifier))]
        fields += [REGION_CONTEXT, *map(_triplet, (self.region, self.region_modifier))]
        return "~".join(fields)


def _triplet(code: Code | None) -> str:
    return f"{code.scheme}^{code.value}^{code.meaning}" if code else "^^"


class LabelTable:
    """The labels that a bundle knows, in the order of its file. Immutable.

    Args:
        name: Shown in messages.
        labels: The rows.

    Raises:
        ValueError: Two labels share a value or a name, a value is outside 1–255, a host is not in the table, or labels
            host one another in a circle. A host may have a host itself: a lesion in a target volume in the body.
    """

    BODY = 200

    def __init__(self, name: str, labels: Iterable[Label]) -> None:
        self.name = name
        by_value: dict[int, Label] = {}
        self._by_name: dict[str, Label] = {}
        for label in labels:
            if not 1 <= label.value <= 255:
                raise ValueError(f"label {label.value} is outside 1–255")
            if label.value in by_value:
                raise ValueError(f"label {label.value} occurs twice")
            if plain_name(label.name) in self._by_name:
                raise ValueError(f"the name {label.name!r} occurs twice")
            by_value[label.value] = self._by_name[plain_name(label.name)] = label
        for label in by_value.values():
            if label.host is not None and label.host not in by_value:
                raise ValueError(f"label {label.value} ({label.name}) has host {label.host}, which is not in the table")
            visited, value = [label.value], label.host
            while value is not None and value in by_value:
                if value in visited:
                    raise ValueError(f"labels host one another in a circle: {' in '.join(map(str, [*visited, value]))}")
                visited.append(value)
                value = by_value[value].host
        self._by_value: Mapping[int, Label] = by_value

    def __getitem__(self, value: int) -> Label:
        return self._by_value[value]

    def __contains__(self, value: object) -> bool:
        return value in self._by_value

    def __iter__(self) -> Iterator[Label]:
        return iter(self._by_value.values())

    def __len__(self) -> int:
        return len(self._by_value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelTable) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"LabelTable({self.name!r}, {len(self)} labels)"

    def names(self) -> list[str]:
        """The names, in table order."""
        return [label.name for label in self]

    def hosts(self) -> dict[int, int]:
        """Lesion label → label of the tissue that hosts it, which may be a lesion with a host itself."""
        return {label.value: label.host for label in self if label.host is not None}

    def describe(self, value: int) -> str:
        """``"1 (liver)"``, or ``"77 (not in the table)"``: a label as messages name it."""
        return f"{value} ({self[value].name if value in self else 'not in the table'})"

    def find(self, name_or_value: str | int) -> Label:
        """The label with this name (upper and lower case alike, ``_`` as a space) or this value.

        Raises:
            RequestError: There is none; the message lists the nearest names.
        """
        text = str(name_or_value)
        label = self._by_name.get(plain_name(text))
        if label is None and text.strip().isdecimal():
            label = self._by_value.get(int(text))
        if label is None:
            hint = did_you_mean(text.replace("_", " "), self.names()) or (
                f" It has, for example: {', '.join(self.names()[:5])}." if len(self) else ""
            )
            raise RequestError(f"The label table {self.name!r} has no anatomy {name_or_value!r}.{hint}")
        return label

    @classmethod
    def read(cls, path: Path, base: LabelTable | None = None) -> LabelTable:
        """Reads a label table.

        Args:
            path: A csv file in UTF-8 with the columns of ``COLUMNS`` (a missing column reads as empty).
            base: Where rows with only ``label`` filled take the rest from.

        Raises:
            FileFormatError: The file is missing or a row is wrong; the message names the row and the cell.
        """
        path = Path(path)
        labels: dict[int, Label] = {}
        for number, row in _rows(path):
            where = f"{path}, row {number}"
            label = _label(row, where, base)
            if label.value in labels:
                raise FileFormatError(f"{where}: label {label.value} occurs twice. Give each label one row.")
            labels[label.value] = label
        if not labels:
            raise FileFormatError(f"{path} holds no labels. Add at least one row under the header.")
        try:
            return cls("MAISI" if path.parent.name == "Resources" else path.parent.name, labels.values())
        except ValueError as problem:
            raise FileFormatError(f"{path}: {problem}. Correct the table.") from None

    def write(self, path: Path) -> None:
        """Writes the table with all its cells, so that it can be read without a base.

        Raises:
            OutputError: The file cannot be written.
        """
        from MAISILib.files.atomic import atomic_path

        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for label in self:
                codes = (getattr(label, column) for column in CODE_COLUMNS)
                cells = [f"{code.scheme}:{code.value}:{code.meaning}" if code else "" for code in codes]
                host = "" if label.host is None else label.host
                writer.writerow([label.value, label.name, label.group, *label.color, host, *cells])


@lru_cache(maxsize=1)
def default_table() -> LabelTable:
    """The labels of the public models: ``Resources/labels.csv``, read once."""
    return LabelTable.read(resource("labels.csv"))


def plain_name(name: str) -> str:
    """A name as names are compared: in lower case, ``_`` as a space, single spaces."""
    return " ".join(name.replace("_", " ").casefold().split())


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells of each row that is not blank."""
    if not path.is_file():
        raise FileFormatError(f"{path} is missing. Give the path of a label table (csv).")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise FileFormatError(f"{path} is not UTF-8 text. Save the label table as csv in UTF-8.") from None
    except OSError as problem:
        raise FileFormatError(f"{path} cannot be read: {problem.strerror}.") from None
    reader = csv.reader(text.splitlines())
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        if "label" not in header:
            raise FileFormatError(f"{path}: the first row must name the columns: {','.join(COLUMNS)}.")
        for column in header:
            if column not in COLUMNS:
                hint = did_you_mean(column, COLUMNS) or f" The columns are {','.join(COLUMNS)}."
                raise FileFormatError(f"{path}: unknown column {column!r}.{hint}")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise FileFormatError(
                    f"{path}, row {reader.line_num}: {len(cells)} cells where the header has {len(header)}. "
                    "Put text with a comma in double quotes."
                )
            yield reader.line_num, dict(zip(header, (cell.strip() for cell in cells), strict=True))
    except csv.Error as problem:
        raise FileFormatError(f"{path}, row {reader.line_num}: {problem}.") from None


def _label(row: Mapping[str, str], where: str, base: LabelTable | None) -> Label:
    value = _integer(row, "label", where, 1, 255)
    if not any(cell for column, cell in row.items() if column != "label"):
        if base is None or value not in base:
            known = f"the table {base.name!r} has no label {value}" if base else "there is no table to take it from"
            raise FileFormatError(f"{where}: label {value} has no name, and {known}. Fill in the row.")
        return base[value]
    for column in ("name", "group"):
        if not row.get(column):
            raise FileFormatError(f"{where}: label {value} has no {column}. Fill in the cell, or only the label.")
    codes: dict[str, Code | None] = {}
    for column in CODE_COLUMNS:
        try:
            codes[column] = Code.parse(row.get(column, ""))
        except ValueError as problem:
            raise FileFormatError(f"{where}, column {column}: {problem}.") from None
    if (codes["category"] is None) != (codes["type"] is None):
        raise FileFormatError(f"{where}: category and type go together. Fill in both or neither.")
    return Label(
        value=value,
        name=row["name"],
        group=row["group"],
        color=tuple(_integer(row, column, where, 0, 255) for column in ("red", "green", "blue")),  # type: ignore[arg-type]
        host=_integer(row, "host", where, 1, 255) if row.get("host") else None,
        **codes,
    )


def _integer(row: Mapping[str, str], column: str, where: str, low: int, high: int) -> int:
    text = row.get(column, "")
    if not (text.isdecimal() and low <= int(text) <= high):
        raise FileFormatError(f"{where}, column {column}: {text!r} is not a whole number from {low} to {high}.")
    return int(text)
