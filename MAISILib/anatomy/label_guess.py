"""Which program's numbers a label map without names uses: the one that puts the organs where organs are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from MAISILib.anatomy.anatomical_order import relations
from MAISILib.anatomy.label_sets import LABEL_SETS, label_set
from MAISILib.anatomy.labels import LabelTable
from MAISILib.errors import MaskError

#: What a user writes for the bundle's own numbers.
OWN = "bundle"
#: Fewer orders than this say nothing.
_LEAST = 3
#: A guess must have this share of them right, and be better than the next by this much.
_SHARE, _LEAD = 0.8, 0.05


@dataclass(frozen=True)
class Guess:
    """How well a list of labels suits a label map.

    Args:
        name: One of ``LABEL_SETS``, or ``OWN``.
        right: Orders of two structures that are as in patients.
        judged: Orders that could be judged.
        known: Share of the numbers that are in the list.
    """

    name: str
    right: int
    judged: int
    known: float

    @property
    def score(self) -> float:
        """Between 0 and 1."""
        return self.right / self.judged * self.known if self.judged else 0.0

    def __str__(self) -> str:
        return f"{self.name} ({self.right} of {self.judged} structures in place, {self.known:.0%} of the numbers known)"


def guess_numbers(centers: Mapping[int, np.ndarray], table: LabelTable, where: str) -> Guess:
    """Finds the list that explains best where the structures of a label map lie.

    Args:
        centers: Number → center of gravity in RAS+ mm.
        table: The bundle's labels, which are one of the lists.
        where: For messages.

    Raises:
        MaskError: None explains it, or two do equally well.
    """
    lists = {OWN: {label.value: label.name for label in table if not label.is_unused}}
    for name in LABEL_SETS:
        lists[name] = {n: s.label or s.name for n, s in label_set(name).by_number.items()}
    meanings, guesses = {}, []
    for name, names in lists.items():
        meaning = {number: names.get(number) for number in centers}
        judged = relations(names, centers)
        known = sum(value is not None for value in meaning.values()) / max(1, len(meaning))
        if meaning not in meanings.values():  # two lists that say the same are no conflict
            guesses.append(Guess(name, sum(r.holds for r in judged), len(judged), known))
        meanings[name] = meaning
    guesses.sort(key=lambda guess: -guess.score)
    best, second = guesses[0], guesses[1]
    if best.judged >= _LEAST and best.right >= _SHARE * best.judged and best.score >= second.score + _LEAD:
        return best
    raise MaskError(
        f"{where}: what its numbers mean cannot be told from where they lie. Best: {best}; {second}. "
        f"Say it: --from {', '.join(LABEL_SETS)}, or a csv file with number, name and label."
    )
