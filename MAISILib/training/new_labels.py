"""New labels that a fine-tuning teaches: read from what the user typed, and added to a bundle's label table."""

from __future__ import annotations

import colorsys
import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from MAISILib.anatomy.labels import TUMOR_GROUP, Label, LabelTable, default_table
from MAISILib.errors import RequestError, did_you_mean

#: The public table ends before these values, so that numbers from here on mean nothing elsewhere.
_FREE_FROM = 133
#: Letters, digits and what stands between words: a name travels through csv, JSON and Slicer's terminology strings.
_NAME = re.compile(r"\w[\w .,()/+'-]*")


@dataclass(frozen=True)
class NewLabel:
    """A class that the bundle does not know yet.

    Args:
        name: The name that users type and see.
        value: Its integer, 1–255.
        host: Label of the tissue that is there when the new thing is not.
        group: Where it is listed. Masks of a library with a label of ``tumors`` are used only when it is asked for.
    """

    name: str
    value: int
    host: int
    group: str = TUMOR_GROUP


def parse_new_label(text: str, table: LabelTable) -> NewLabel:
    """Reads ``name=value:host``, or ``name:host`` for the next free value.

    Args:
        text: What the user typed, as ``lesion=150:target``; the host is a name or a value of ``table``.
        table: The labels so far.

    Raises:
        RequestError: Not of this form, a name or value that is taken, or an unknown host.
    """
    left, colon, host = (part.strip() for part in text.rpartition(":"))
    name, equals, value = (part.strip() for part in left.partition("="))
    if not colon or not host or not name or (equals and not value):
        raise RequestError(
            f"{text!r} is no new label. Write name=value:host, or name:host for the next free value "
            f"({_shown(next_free_value(table))}); the host is the tissue that is there when the new thing is not: "
            f"lesion:{table[table.BODY].name if table.BODY in table else next(iter(table)).name}."
        )
    if not value:
        number = next_free_value(table)
        if number is None:
            raise RequestError(f"The label table {table.name!r} is full: it has no free value for {name!r}.")
    elif value.isascii() and value.isdecimal():
        number = int(value)
    else:
        raise RequestError(f"{text!r}: the value {value!r} is not a whole number from 1 to 255.")
    label = NewLabel(name, number, _find_host(host, text, table))
    check_new_label(label, table)
    return label


def parse_new_labels(texts: Iterable[str], table: LabelTable) -> tuple[NewLabel, ...]:
    """Reads several new labels; each may be hosted by an earlier one.

    Raises:
        RequestError: As :func:`parse_new_label`, also where two of them share a name or a value.
    """
    labels: list[NewLabel] = []
    for text in texts:
        labels.append(parse_new_label(text, extended_table(table, labels)))
    return tuple(labels)


def check_new_label(label: NewLabel, table: LabelTable) -> None:
    """Says no to a label that cannot be added to a table.

    Raises:
        RequestError: The name or the value is taken or not allowed, or the host is not in the table.
    """
    free = _shown(next_free_value(table))
    if not _NAME.fullmatch(label.name) or label.name.isdecimal():
        raise RequestError(
            f"{label.name!r} is no name for a label: use letters, digits, spaces and - _ . , ( ) / + ', no mere number."
        )
    known = _label_named(label.name, table)
    if known is not None:
        raise RequestError(
            f"{known.name!r} is label {known.value} of {table.name!r} already. Use it as it is, or choose another name."
        )
    if not 1 <= label.value <= 255:
        raise RequestError(f"{label.name!r}: the value {label.value} is outside 1–255. The next free one is {free}.")
    if label.value == LabelTable.BODY:
        raise RequestError(
            f"{label.name!r}: the value {label.value} always means the body. The next free one is {free}."
        )
    if label.value in table and not table[label.value].is_unused:
        raise RequestError(
            f"{label.name!r}: the value {table.describe(label.value)} is taken in {table.name!r}. "
            f"The next free one is {free}."
        )
    if label.host not in table or table[label.host].is_unused:
        raise RequestError(f"{label.name!r}: its host {label.host} is no label of {table.name!r}.")
    if label.host == label.value:
        raise RequestError(f"{label.name!r} cannot be its own host.")


def next_free_value(table: LabelTable) -> int | None:
    """The value that a new label gets: the first from 133 that is free here and in the public table, else any.

    ``None`` where the table is full.
    """
    public = default_table()
    wanted = [v for v in range(_FREE_FROM, 256) if v not in table and v not in public]
    free = [v for v in range(1, 256) if v != LabelTable.BODY and (v not in table or table[v].is_unused)]
    return next(iter((*wanted, *free)), None)


def extended_table(table: LabelTable, new_labels: Iterable[NewLabel]) -> LabelTable:
    """A bundle's label table with new labels, in a colour each that stands out; a place holder gives way.

    Raises:
        RequestError: A label cannot be added.
    """
    for new in new_labels:
        check_new_label(new, table)
        rest = [label for label in table if label.value != new.value]
        row = Label(new.value, new.name, new.group, _color_apart(rest), new.host)
        table = LabelTable(table.name, [*rest, row])
    return table


def _find_host(host: str, text: str, table: LabelTable) -> int:
    try:
        found = table.find(host)
    except RequestError:
        hint = did_you_mean(host.replace("_", " "), table.names()) or f" It has: {', '.join(table.names()[:8])}."
        raise RequestError(f"{text!r}: {table.name!r} has no label {host!r} to be the host.{hint}") from None
    return found.value


def _label_named(name: str, table: LabelTable) -> Label | None:
    try:
        return table.find(name)
    except RequestError:
        return None


def _shown(value: int | None) -> str:
    return "none" if value is None else str(value)


def _color_apart(labels: Iterable[Label]) -> tuple[int, int, int]:
    """The strong colour that lies farthest from those in use (distance in red, green and blue)."""
    used = [label.color for label in labels]
    candidates = [
        tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue / 24, saturation, value))
        for hue, saturation, value in itertools.product(range(24), (1.0, 0.7), (1.0, 0.75))
    ]
    return max(candidates, key=lambda c: min((math.dist(c, other) for other in used), default=0.0))  # type: ignore[return-value]
