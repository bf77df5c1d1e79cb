"""Finds the label that an anatomy's name means, where others call it something else.

Names are compared without case, punctuation and the place of the side: ``kidney_left``, ``Kidney, L`` and
``LeftKidney`` are the left kidney. ``Resources/label_synonyms.csv`` holds other names: those of TotalSegmentator and of
radiotherapy (AAPM TG-263), as far as they differ. In its column ``name``, ``*`` stands for a word and ``#`` for a
number; in ``label``, ``*`` is that word and ``{side}`` is left or right. Of several rows for a name, the first whose
label is in the table counts.
"""

from __future__ import annotations

import csv
import re
from functools import lru_cache

from MAISILib.anatomy.labels import LabelTable
from MAISILib.errors import RequestError
from MAISILib.resources import resource

_SIDES = {"left": "left", "l": "left", "lt": "left", "right": "right", "r": "right", "rt": "right"}


def find_synonym(name: str, table: LabelTable) -> int | None:
    """The value of the label of ``table`` that ``name`` means; ``None`` where it means none of them.

    Example:
        >>> from MAISILib.anatomy.labels import default_table
        >>> find_synonym("Kidney_L", default_table())
        14
    """
    side, words = _side_and_words(name)
    for label in table:
        if not label.is_unused and _side_and_words(label.name) == (side, words):
            return label.value
    for pattern, meaning in _synonyms():
        match = pattern.fullmatch(words)
        if match is None or ("{side}" in meaning and not side):
            continue
        try:
            return table.find(meaning.format(side=side).replace("*", "".join(match.groups()))).value
        except RequestError:
            continue
    return None


def synonyms_of(name: str) -> list[str]:
    """Other names that a label goes by, for searching; those with a place holder are left out.

    Example:
        >>> synonyms_of("esophagus")
        ['oesophagus']
    """
    side, words = _side_and_words(name)
    with_side = f"{{side}} {words}" if side else words
    return [
        f"{side} {other}".strip()
        for other, label in _rows()
        if label in (with_side, name) and not {"*", "#"} & set(other)
    ]


def _side_and_words(name: str) -> tuple[str, str]:
    """``("left", "kidney")`` of ``Kidney_L``; no side where there is none, or more than one."""
    words = re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold())
    sides = [_SIDES[word] for word in words if word in _SIDES]
    if len(sides) != 1 or len(words) == 1:
        return "", " ".join(words)
    return sides[0], " ".join(word for word in words if word not in _SIDES)


@lru_cache(maxsize=1)
def _rows() -> list[tuple[str, str]]:
    with resource("label_synonyms.csv").open(encoding="utf-8", newline="") as file:
        return [(row["name"], row["label"]) for row in csv.DictReader(file)]


@lru_cache(maxsize=1)
def _synonyms() -> list[tuple[re.Pattern[str], str]]:
    return [
        (re.compile(re.escape(name).replace(r"\*", r"(\w+)").replace(r"\#", r" ?\d+")), label)
        for name, label in _rows()
    ]
