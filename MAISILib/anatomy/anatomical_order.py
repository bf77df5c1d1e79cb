"""Which structures lie left of, or above, which others: tells swapped sides, and what unnamed numbers mean.

Only what holds for nearly every patient is listed, judged by centers of gravity. Names are those of
``Resources/labels.csv``; every pair ``left …`` and ``right …`` counts as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

_SPINE = (
    *(f"vertebrae C{n}" for n in range(1, 8)),
    *(f"vertebrae T{n}" for n in range(1, 13)),
    *(f"vertebrae L{n}" for n in range(1, 6)),
    "sacrum",
)
#: From head to foot. The lowest ribs are left out: they overlap too much.
_FROM_THE_TOP = (
    _SPINE,
    *(tuple(f"{side} rib {n}" for n in range(1, 10)) for side in ("left", "right")),
    *((f"{side} lung upper lobe", f"{side} lung lower lobe") for side in ("left", "right")),
    *(("heart", f"{side} kidney", f"{side} hip", f"{side} femur") for side in ("left", "right")),
    ("brain", "brain stem", "larynx"),
    ("brain", "thyroid gland", "heart", "liver", "bladder"),
    ("brain", "trachea", "heart", "colon"),
    ("skull", "sternum", "sacrum"),
)
_FROM_THE_LEFT = (("spleen", "liver"), ("stomach", "liver"), ("left atrial appendage", "superior vena cava"))


@dataclass(frozen=True)
class Relation:
    """Two structures of a mask whose order is known.

    Args:
        first: Label that lies further left, or higher up, in patients.
        second: The other label.
        kind: ``"side"`` (left to right) or ``"height"`` (head to foot).
        holds: Whether it is so in the mask.
    """

    first: int
    second: int
    kind: Literal["side", "height"]
    holds: bool


def relations(names: Mapping[int, str], centers: Mapping[int, np.ndarray]) -> list[Relation]:
    """Judges every known order of two structures that a mask has.

    Args:
        names: Label → name as in ``Resources/labels.csv``.
        centers: Label → center of gravity in RAS+ mm (R grows towards the patient's right, S towards the head).
    """
    value_of = {name: value for value, name in names.items() if value in centers}
    sides = list(_FROM_THE_LEFT)
    sides += [(name, f"right {name[5:]}") for name in value_of if name.startswith("left ")]
    found = []
    for first, second in sides:
        if first in value_of and second in value_of:
            a, b = value_of[first], value_of[second]
            found.append(Relation(a, b, "side", bool(centers[a][0] <= centers[b][0])))
    for chain in _FROM_THE_TOP:
        for a, b in itertools.pairwise(value_of[name] for name in chain if name in value_of):
            found.append(Relation(a, b, "height", bool(centers[a][2] >= centers[b][2])))
    return found
