"""The labels of other programs, and which label of a bundle each of their structures is.

``Resources/label_sets`` holds a table for each list: ``number`` in a label map, ``name``, ``label`` (the name in
``Resources/labels.csv``; empty where there is no such label), and terminology codes where the program's differ from
ours. A user's own list is a csv file with some of these columns.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from MAISILib.anatomy.labels import CODE_COLUMNS, Code, LabelTable, default_table, plain_name
from MAISILib.anatomy.synonyms import find_synonym
from MAISILib.errors import FileFormatError, RequestError, did_you_mean
from MAISILib.files.segmentations import terminology_codes
from MAISILib.resources import resource

#: What a user writes → table and title.
LABEL_SETS = {
    "totalsegmentator": ("totalsegmentator_ct.csv", "TotalSegmentator 2, task total"),
    "totalsegmentator-mr": ("totalsegmentator_mr.csv", "TotalSegmentator 2, task total_mr"),
    "totalsegmentator-v1": ("totalsegmentator_v1.csv", "TotalSegmentator 1"),
    "vista3d": ("vista3d.csv", "VISTA3D"),
}
#: What a user writes for a structure that is to be left out.
IGNORE = "ignore"
#: Other headings of the columns of a user's list.
_HEADINGS = {"value": "number", "id": "number", "index": "number", "structure": "name", "segment": "name"}

Codes = tuple[str, ...]


@dataclass(frozen=True)
class Structure:
    """One row of a list.

    Args:
        number: In label maps; ``None`` where the list says only names.
        name: What the program calls it; empty where the list says only numbers.
        label: The name of our label; empty where there is none, or where the name says it all.
        codes: Code values of category, type, type modifier, region and region modifier; empty without codes.
    """

    number: int | None
    name: str
    label: str
    codes: Codes = ()

    def label_in(self, table: LabelTable) -> int | None:
        """The label of a bundle that this structure is; ``None`` where it has none."""
        for name in (self.label, self.name):
            value = find_synonym(name, table) if name else None
            if value is not None and not table[value].is_unused:
                return value
        return None


class LabelSet:
    """The structures of one program.

    Args:
        title: Shown in messages.
        structures: Its rows.
    """

    def __init__(self, title: str, structures: Iterable[Structure]) -> None:
        self.title = title
        self.structures = tuple(structures)
        self.by_number = {s.number: s for s in self.structures if s.number is not None}
        self.by_name = {plain_name(s.name): s for s in self.structures if s.name}
        codes = [s.codes for s in self.structures]
        self.by_codes = {s.codes: s for s in self.structures if s.codes and codes.count(s.codes) == 1}

    def coded(self, codes: Codes) -> Structure | None:
        """The structure with these codes; without the category where that tells none, as programs differ there."""
        if not any(codes):
            return None
        found = self.by_codes.get(codes)
        if found is None:
            alike = [structure for known, structure in self.by_codes.items() if known[1:] == codes[1:]]
            found = alike[0] if len(alike) == 1 else None
        return found

    def numbered(self, number: int | None) -> Structure | None:
        """The structure of this number."""
        return None if number is None else self.by_number.get(number)

    def named(self, name: str) -> Structure | None:
        """The structure of this name (upper and lower case alike, ``_`` as a space)."""
        return self.by_name.get(plain_name(name))


@cache
def label_set(name: str) -> LabelSet:
    """A list that comes with the engine.

    Args:
        name: One of ``LABEL_SETS``.

    Raises:
        RequestError: There is no such list; the message has the nearest.
    """
    if name not in LABEL_SETS:
        hint = did_you_mean(name, LABEL_SETS) or f" There are {', '.join(LABEL_SETS)}."
        raise RequestError(
            f"There is no list of labels {name!r}.{hint} Or give a csv file with number, name and label."
        )
    file, title = LABEL_SETS[name]
    ours = {label.name: code_values(label.terminology()) for label in default_table()}
    structures = []
    with resource("label_sets", file).open(encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table):
            codes = [Code.parse(row[column]) for column in CODE_COLUMNS]
            own = tuple(code.value if code else "" for code in codes)
            structures.append(
                Structure(
                    int(row["number"]), row["name"], row["label"], own if any(own) else ours.get(row["label"], ())
                )
            )
    return LabelSet(title, structures)


def code_values(terminology: str) -> Codes:
    """The five code values of a Slicer terminology string, without scheme and meaning; empty where it says nothing."""
    return tuple(code.rpartition("^")[2] for code in terminology_codes(terminology))


def read_label_set(path: Path, table: LabelTable) -> LabelSet:
    """Reads a user's list: a csv file with a heading, and a structure in each row.

    Columns are ``number`` (or value, id, index), ``name`` (or structure, segment) and ``label``; others are passed
    over. ``label`` is a name or number of the bundle's labels, or ``ignore``; without one, the name decides.

    Args:
        path: The file, UTF-8, with commas, semicolons or tabs between columns.
        table: The bundle's labels.

    Raises:
        FileFormatError: Not such a file; a number or name occurs twice, or a label is not in ``table``. The message
            names the row.
    """
    columns, rows = _columns_and_rows(Path(path))
    seen: dict[str, int] = {}
    structures = []
    for line, cells in rows:
        row = {column: cell.strip() for column, cell in zip(columns, cells, strict=False) if column}
        number, name = row.get("number", ""), row.get("name", "")
        where = f"{path}, row {line}"
        if number and not (number.isdecimal() and 0 <= int(number) <= 65535):
            raise FileFormatError(f"{where}: {number!r} is no number from 0 to 65535.")
        if not number and not name:
            raise FileFormatError(f"{where} has neither a number nor a name. Fill in one of them.")
        for cell in (number and f"number {int(number)}", name and f"name {plain_name(name)!r}"):
            if cell in seen:
                raise FileFormatError(f"{where}: the {cell} is in row {seen[cell]} already. Keep one of the two.")
            if cell:
                seen[cell] = line
        label = row.get("label", "")
        if label and label.casefold() != IGNORE:
            try:
                label = table.find(label).name
            except RequestError as error:
                raise FileFormatError(f"{where}: {error}") from None
        structures.append(Structure(int(number) if number else None, name, label))
    if not structures:
        raise FileFormatError(f"{path} holds no structures. Add a row for each under the heading.")
    return LabelSet(Path(path).name, structures)


def _columns_and_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist. Give a csv file, or one of {', '.join(LABEL_SETS)}, auto.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        separator = max(",;\t", key=lines[0].count) if lines else ","  # spreadsheets of many countries write semicolons
        reader = csv.reader(lines, delimiter=separator)
        heading = [cell.strip().lower() for cell in next(reader, [])]
        rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileFormatError(f"{path} cannot be read as csv in UTF-8: {error}. Save it as CSV UTF-8.") from None
    columns = [_HEADINGS.get(cell, cell if cell in ("number", "name", "label") else "") for cell in heading]
    if not {"number", "name"} & set(columns):
        raise FileFormatError(
            f"{path}: the first row must name the columns: number,name,label (label may be left out)."
        )
    for column in ("number", "name", "label"):
        if columns.count(column) > 1:
            raise FileFormatError(f"{path}: several columns are the {column} ({', '.join(heading)}). Keep one of them.")
    return columns, rows
