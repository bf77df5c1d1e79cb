"""Patients in a mirror: left becomes right, in the image and in the names of what is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from MAISILib.errors import MaskError

if TYPE_CHECKING:
    from MAISILib.anatomy.labels import LabelTable

Pairs = tuple[tuple[int, int], ...]


def mirrored_pairs(table: LabelTable) -> Pairs:
    """Labels that change places in a mirror: those whose names are ``left …`` and ``right …`` of the same.

    What only one side has (the middle lobe of the right lung) has no partner and keeps its label.

    Example:
        >>> (5, 14) in mirrored_pairs(default_table())  # right kidney, left kidney
        True
    """
    sides: dict[tuple[str, str], int] = {}
    for label in table:
        side, _, rest = label.name.replace("_", " ").casefold().partition(" ")
        if side in ("left", "right"):
            sides[rest, side] = label.value
    pairs = ((value, sides.get((rest, "left"))) for (rest, side), value in sides.items() if side == "right")
    return tuple((right, left) for right, left in pairs if left is not None)


def exchange(pairs: Pairs) -> np.ndarray:
    """What each label 0–255 becomes in a mirror, ``(256,)`` uint8."""
    becomes = np.arange(256, dtype=np.uint8)
    for right, left in pairs:
        becomes[right], becomes[left] = left, right
    return becomes


def mirrored_image(array: np.ndarray) -> np.ndarray:
    """``(X, Y, Z)`` in RAS order, reflected at the middle of the right–left axis."""
    return array[::-1].copy()


def mirrored_labels(array: np.ndarray, table: LabelTable) -> np.ndarray:
    """Labels ``(X, Y, Z)`` in RAS order, reflected, left and right ones exchanged.

    Raises:
        MaskError: Labels that are not in the table, of which nobody knows a side.
    """
    unknown = [int(v) for v in np.flatnonzero(np.bincount(array.ravel(), minlength=256)) if v and int(v) not in table]
    if unknown:
        listed = ", ".join(map(str, unknown))
        raise MaskError(
            f"Labels {listed} are not in the table '{table.name}': nobody knows which change places in a mirror. "
            "Add them to the table, or do not mirror."
        )
    return exchange(mirrored_pairs(table))[array[::-1]]
