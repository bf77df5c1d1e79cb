"""Are generated patients new? The nearest training patients of each, in latent space and in image space.

How near is too near is not a matter of taste: the distances of each training patient from the nearest *other* one say
what to expect between different patients. A copy lies far below them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import special

from MAISILib.errors import RequestError
from MAISILib.quality.counting import counted
from MAISILib.quality.signatures import SPACES, OnDone, Signature

#: A distance so many deviations below those between different patients (of their logarithms) is a copy's; with few
#: patients, as many of Student's distribution as are as improbable.
_COPY = 4.0
#: A deviation of logarithms is at least so much: a handful of patients may lie equally far apart by chance.
_LEAST_DEVIATION = 0.1
#: Smaller distances count as this: 0 has no logarithm.
_LEAST_DISTANCE = 1e-6
#: Whatever the deviation: a distance of less than this part of the middle one is a copy's (docs/evaluation.md).
_SURELY = 0.1
#: Two training volumes closer than all others by so many deviations, of at least so much, are one patient's.
_REPEATED, _LEAST_DEVIATION_OF_PAIRS = 5.0, 0.3
#: Two volumes so near (a correlation of 0.999) are one scan with some noise, whatever the others are.
_IDENTICAL = 0.001
#: Distances between different patients are measured on at most so many of them.
_EXPECTED_FROM = 200
#: Fewer training patients say nothing about how far apart patients are.
LEAST_TRAINING = 4
#: With fewer of them a copy may be missed (measured, docs/evaluation.md): what is not near is not called new.
DECIDES_FROM = 16
_ABOUT_MASKS = (
    "A mask alone brings an image this near to the patient whose mask it is, trained on or not. For new patients vary "
    "the masks (--vary), or make them to order (--generate-mask)."
)
_ABOUT_FEW = (
    f"Undecided: fewer than {DECIDES_FROM} training patients tell too little of how far apart patients are to call a "
    "volume new. Give all that the model was trained on."
)


@dataclass(frozen=True)
class Expected:
    """Distances of patients from the nearest other patient, in one space.

    Attributes:
        low: Smallest.
        median: Middle.
        high: Largest.
        copy_below: A distance below it is a copy's.
    """

    low: float
    median: float
    high: float
    copy_below: float


@dataclass(frozen=True)
class Neighbour:
    """A training volume and its distance."""

    name: str
    distance: float


@dataclass(frozen=True)
class NoveltyOfCase:
    """The nearest training volumes of one generated volume in each space, the nearest first.

    Attributes:
        verdict: ``copy`` where it is nearer to a training volume, in either space, than patients are; else ``new``, or
            ``undecided`` where there are fewer than :data:`DECIDES_FROM` training patients.
    """

    name: str
    latent: tuple[Neighbour, ...]
    image: tuple[Neighbour, ...]
    copied_in: tuple[str, ...]
    verdict: str


@dataclass(frozen=True)
class NoveltyReport:
    """What was found.

    Attributes:
        cases: The generated volumes, those nearest to a training volume first.
        expected: Space → distances between different patients.
        training: Number of training volumes.
        compared: How many of them were compared with one another.
        repeated: Training volume, of these → another one before it that is the same patient's.
        left_out: What is wrong with images that were left out.
    """

    cases: tuple[NoveltyOfCase, ...]
    expected: dict[str, Expected]
    training: int
    compared: int
    repeated: dict[str, str]
    left_out: tuple[str, ...] = ()

    @property
    def copies(self) -> list[NoveltyOfCase]:
        """The generated volumes that are training volumes again."""
        return [case for case in self.cases if case.verdict == "copy"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "copies": len(self.copies)}

    def __str__(self) -> str:
        sets = f"{counted(len(self.cases), 'volume')} against {counted(self.training, 'training volume')}"
        lines = [f"{sets}: {counted(len(self.copies), 'copy', 'copies')}"]
        if self.compared < self.training:
            lines.append(f"different patients, from {self.compared} of the training volumes:")
        if self.repeated:
            lines.append(_again(self.repeated))
        for space, found in self.expected.items():
            apart = f"{found.low:.3g} to {found.high:.3g} apart (median {found.median:.3g})"
            lines.append(f"{space}: different patients are {apart}; a copy is below {found.copy_below:.3g}")
        for case in self.cases:
            nearest = ", ".join(
                f"{space} {getattr(case, space)[0].distance:.3g} ({getattr(case, space)[0].name})" for space in SPACES
            )
            lines.append(f"{case.name}: {case.verdict}; nearest in {nearest}")
        if self.copies:
            lines.append(_ABOUT_MASKS)
        if any(case.verdict == "undecided" for case in self.cases):
            lines.append(_ABOUT_FEW)
        lines += [f"left out: {reason}" for reason in self.left_out]
        return "\n".join(lines)


def check_enough(training: int, why: str = "") -> None:
    """Makes sure that there are patients to learn from how far apart patients are.

    Args:
        training: Number of training volumes.
        why: Why there are no more, a sentence.

    Raises:
        RequestError: There are fewer than :data:`LEAST_TRAINING`.
    """
    if training < LEAST_TRAINING:
        given = counted(training, "training volume")
        raise RequestError(
            f"{given} of different patients {'does' if training == 1 else 'do'} not tell how far apart patients are. "
            f"{why}{' ' * bool(why)}Give {LEAST_TRAINING} at least, and better all that the model was trained on."
        )


def find_copies(
    generated: dict[str, Signature],
    training: dict[str, Signature],
    *,
    neighbours: int = 3,
    left_out: Sequence[str] = (),
    on_done: OnDone = lambda *news: None,
) -> NoveltyReport:
    """Compares every generated volume with every training volume.

    Args:
        generated: Name → signature.
        training: Name → signature, on the same grid.
        neighbours: How many of the nearest are told.
        left_out: What is wrong with images that are not among them, for the report.
        on_done: Called after each volume.

    Raises:
        RequestError: Fewer than :data:`LEAST_TRAINING` training volumes of different patients.
    """
    check_enough(len(training), _left_out(left_out))
    compared = list(training)[:: -(-len(training) // _EXPECTED_FROM)]
    apart = {space: _distances([training[name] for name in compared], space, on_done) for space in SPACES}
    first_of = _repeated(list(apart.values()))
    different = [number for number in range(len(compared)) if number not in first_of]
    repeated = {compared[number]: compared[first] for number, first in first_of.items()}
    check_enough(len(different), " ".join(filter(None, [_again(repeated), _left_out(left_out)])))
    expected = {space: expected_between(distances[np.ix_(different, different)]) for space, distances in apart.items()}
    otherwise = "new" if len(different) >= DECIDES_FROM else "undecided"
    cases = []
    for number, (name, signature) in enumerate(generated.items(), 1):
        nearest = {}
        for space in SPACES:
            distances = [Neighbour(other, signature.distance(theirs, space)) for other, theirs in training.items()]
            nearest[space] = tuple(sorted(distances, key=lambda n: n.distance)[:neighbours])
        copied = tuple(space for space in SPACES if nearest[space][0].distance < expected[space].copy_below)
        verdict = "copy" if copied else otherwise
        cases.append(NoveltyOfCase(name, nearest["latent"], nearest["image"], copied, verdict))
        on_done("comparing", number, len(generated), name)
    cases.sort(key=lambda case: min(getattr(case, s)[0].distance / expected[s].median for s in SPACES))
    return NoveltyReport(tuple(cases), expected, len(training), len(compared), repeated, tuple(left_out))


def _again(repeated: dict[str, str]) -> str:
    if not repeated:
        return ""
    listed = ", ".join(f"{name} = {first}" for name, first in repeated.items())
    return f"{counted(len(repeated), 'training volume')} of a patient who is there already: {listed}."


def _left_out(reasons: Sequence[str]) -> str:
    return f"Left out: {' '.join(reasons)}" if reasons else ""


def _distances(chosen: list[Signature], space: str, on_done: OnDone) -> np.ndarray:
    """Between all pairs, infinite on the diagonal."""
    distances = np.full((len(chosen), len(chosen)), np.inf)
    for row, one in enumerate(chosen):
        for column in range(row):
            distances[row, column] = distances[column, row] = one.distance(chosen[column], space)
        on_done(f"distances between patients, {space}", row + 1, len(chosen), "")
    return distances


def _repeated(apart: Sequence[np.ndarray]) -> dict[int, int]:
    """Number of a volume → number of the first one of the same patient, by the distances of pairs in every space.

    Pairs that are found do not tell how far apart different patients are: without them it is asked again, until no more
    are found.
    """
    rows, columns = np.tril_indices(len(apart[0]), -1)
    pairs = [np.log(np.maximum(distances[rows, columns], _LEAST_DISTANCE)) for distances in apart]
    same = np.all([logarithms < math.log(_IDENTICAL) for logarithms in pairs], axis=0)
    while not same.all():
        found = same.copy()
        bounds = []
        for logarithms in pairs:
            middle, deviation = _middle(logarithms[~same].tolist())
            bounds.append(middle - _REPEATED * max(deviation, _LEAST_DEVIATION_OF_PAIRS))
        found |= np.all([logarithms < bound for logarithms, bound in zip(pairs, bounds, strict=True)], axis=0)
        if (found == same).all():
            break
        same = found
    first_of: dict[int, int] = {}
    for row, column in ((int(row), int(column)) for row, column in zip(rows[same], columns[same], strict=True)):
        if row not in first_of:
            first_of[row] = first_of.get(column, column)
    return first_of


def expected_between(distances: np.ndarray) -> Expected:
    """What to expect of patients, from the distances of each from all others.

    Args:
        distances: ``(N, N)``, infinite on the diagonal.
    """
    nearest = np.maximum(distances.min(axis=1), _LEAST_DISTANCE)
    count = len(nearest)
    middle, deviation = _middle(np.log(nearest).tolist())
    # Of one more draw from a normal distribution whose mean and deviation are known from so many.
    factor = float(special.stdtrit(count - 1, special.ndtr(_COPY))) * math.sqrt(1 + 1 / count)
    below = max(math.exp(-factor * max(deviation, _LEAST_DEVIATION)), _SURELY)
    return Expected(float(nearest.min()), math.exp(middle), float(nearest.max()), below * math.exp(middle))


def _middle(values: Sequence[float]) -> tuple[float, float]:
    """Median and robust deviation."""
    middle = statistics.median(values)
    return middle, 1.4826 * statistics.median(abs(value - middle) for value in values)
