"""Which program's numbers a label map without names uses: the one that puts the organs where organs are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from MAISILib.anatomy.anatomical_order import relations
from MAISILib.anatomy.label_sets import LABEL_SETS, label_set
from MAISILib.anatomy.labels import LabelTable
from MAISILib.errors import MaskError

#: What a user writes for the bundle's own numbers.
OWN = "bundle"
#: How likely it is that two structures lie in order: in a patient, and where the numbers mean something else.
_IN_PATIENTS, _BY_CHANCE = 0.95, 0.5
#: How likely a number that the list does not have is, compared with one that it has.
_STRANGER = 0.1
#: How likely it is that a file has left and right swapped.
_MIRRORED = 0.01
#: A guess must be this much likelier than chance and than the next one.
_LEAD = math.log(20)


@dataclass(frozen=True)
class Guess:
    """How well a list of labels suits a label map.

    Args:
        name: One of ``LABEL_SETS``, or ``OWN``.
        right: Orders of two structures that are as in patients.
        judged: Orders that could be judged.
        strangers: Numbers that are not in the list.
        is_mirrored: Whether more sides are swapped than not; then those that are count as right.
    """

    name: str
    right: int
    judged: int
    strangers: int
    is_mirrored: bool

    @property
    def evidence(self) -> float:
        """Logarithm of how much likelier than chance the list explains where the structures lie."""
        wrong = self.judged - self.right
        in_order = self.right * math.log(_IN_PATIENTS / _BY_CHANCE) + wrong * math.log((1 - _IN_PATIENTS) / _BY_CHANCE)
        return in_order + self.strangers * math.log(_STRANGER) + self.is_mirrored * math.log(_MIRRORED)

    def __str__(self) -> str:
        strangers = f", {self.strangers} numbers unknown" if self.strangers else ""
        mirrored = ", left and right swapped" if self.is_mirrored else ""
        return f"{self.name} ({self.right} of {self.judged} structures in place{strangers}{mirrored})"


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
        strangers = sum(value is None for value in meaning.values())
        if meaning not in meanings.values():  # two lists that say the same are no conflict
            sides = [relation.holds for relation in judged if relation.kind == "side"]
            mirrored = 2 * sum(sides) < len(sides)
            right = sum(r.holds != (mirrored and r.kind == "side") for r in judged)
            guesses.append(Guess(name, right, len(judged), strangers, mirrored))
        meanings[name] = meaning
    guesses.sort(key=lambda guess: -guess.evidence)
    best, others = guesses[0], guesses[1:]
    if best.evidence >= max([0.0, *(other.evidence for other in others)]) + _LEAD:
        return best
    raise MaskError(
        f"{where}: what its numbers mean cannot be told from where they lie. Best: {'; '.join(map(str, guesses[:2]))}. "
        f"Say it: --from {', '.join((*LABEL_SETS, OWN))} (the bundle's own numbers), or a csv file "
        "with number, name and label."
    )
