"""Are generated patients new? The nearest training patients of each, in latent space and in image space.

How near is too near is not a matter of taste: the distances of each training patient from the nearest *other* one say
what to expect between different patients. A copy lies far below them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from MAISILib.errors import RequestError
from MAISILib.files.images import read_image
from MAISILib.memory import give_back
from MAISILib.quality.counting import counted
from MAISILib.quality.image_sets import ImageFile
from MAISILib.quality.slice_features import body_of
from MAISILib.resampling import resample_volume, to_canonical
from MAISILib.volumes import Grid, Volume

#: Called with (what, done, total, name); may raise to stop.
OnDone = Callable[[str, int, int, str], None]
#: Image → its latent ``(C, x, y, z)``.
Encode = Callable[[np.ndarray], np.ndarray]

#: Values outside these HU are clipped before images are compared.
_CLIPPED = (-1000.0, 1000.0)
#: A distance so many deviations below those between different patients (of their logarithms) is a copy's.
_COPY = 4.0
#: A deviation of logarithms is at least so much: a handful of patients may lie equally far apart by chance.
_LEAST_DEVIATION = 0.1
#: Distances between different patients are measured on at most so many of them.
_EXPECTED_FROM = 200
#: Fewer training patients say nothing about how far apart patients are.
LEAST_TRAINING = 4
SPACES = ("latent", "image")
_ABOUT_MASKS = (
    "A mask alone brings an image this near to the patient whose mask it is, trained on or not. For new patients vary "
    "the masks (--vary), or make them to order (--generate-mask)."
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
    """The nearest training volumes of one generated volume in each space, the nearest first."""

    name: str
    latent: tuple[Neighbour, ...]
    image: tuple[Neighbour, ...]
    copied_in: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """``copy`` where it is nearer to a training volume, in either space, than patients are; else ``new``."""
        return "copy" if self.copied_in else "new"


@dataclass(frozen=True)
class NoveltyReport:
    """What was found.

    Attributes:
        cases: The generated volumes, those nearest to a training volume first.
        expected: Space → distances between different patients.
        training: Number of training volumes.
    """

    cases: tuple[NoveltyOfCase, ...]
    expected: dict[str, Expected]
    training: int

    @property
    def copies(self) -> list[NoveltyOfCase]:
        """The generated volumes that are training volumes again."""
        return [case for case in self.cases if case.verdict == "copy"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        cases = [{**asdict(case), "verdict": case.verdict} for case in self.cases]
        expected = {space: asdict(found) for space, found in self.expected.items()}
        return {"training": self.training, "copies": len(self.copies), "expected": expected, "cases": cases}

    def __str__(self) -> str:
        sets = f"{counted(len(self.cases), 'volume')} against {counted(self.training, 'training volume')}"
        lines = [f"{sets}: {counted(len(self.copies), 'copy', 'copies')}"]
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
        return "\n".join(lines)


class Signature:
    """A volume reduced to what it is compared by, whatever its place: spectra of its latent and of its image.

    Args:
        image: In HU, on any grid.
        grid: Voxels and spacing that all volumes are brought to, about the middle of the body.
        encode: Gives the latent of an image on this grid.

    Attributes:
        coarse: ``(X/2, Y/2, Z/2)`` float32, the image in half the resolution, clipped to ±1000 HU.
        spectra: Space → spectrum of the array without its mean, of length 1.

    Raises:
        RequestError: Nothing in the image is brighter than −300 HU.
    """

    def __init__(self, image: Volume, grid: Grid, encode: Encode) -> None:
        centred = _centred(image, grid)
        x, y, z = (n // 2 for n in grid.shape)
        self.coarse = centred[: 2 * x, : 2 * y, : 2 * z].reshape(x, 2, y, 2, z, 2).mean((1, 3, 5), dtype=np.float32)
        self.spectra = {"latent": _spectrum(encode(centred)), "image": _spectrum(self.coarse[None])}

    def distance(self, other: Signature, space: str) -> float:
        """1 − the largest correlation coefficient over all shifts: 0 for the same, about 1 for what has no relation."""
        product = (self.spectra[space].conj() * other.spectra[space]).sum(axis=0)
        last = self._lengths(space)
        correlations = np.fft.irfftn(product, last, axes=(0, 1, 2))
        return max(0.0, 1.0 - float(correlations.max()))

    def _lengths(self, space: str) -> tuple[int, int, int]:
        """Of the padded array: an even number along each axis."""
        _, x, y, half = self.spectra[space].shape
        return x, y, 2 * (half - 1)


def _centred(image: Volume, grid: Grid) -> np.ndarray:
    """The image on a grid of this size whose middle is the body's centre of gravity, clipped to ±1000 HU."""
    image = Volume(*to_canonical(image.array, image.affine), image.units)
    body = body_of(image.array)
    if not body.any():
        raise RequestError("The image is blank: nothing is brighter than -300 HU. Leave it out.")
    counts = [body.sum(axis=tuple({0, 1, 2} - {axis}), dtype=np.int64) for axis in range(3)]
    index = [float(count @ np.arange(count.size)) / int(count.sum()) for count in counts]
    center = (image.affine @ np.append(index, 1.0))[:3]
    target = Grid.axis_aligned(grid.shape, grid.spacing, tuple(center))
    return resample_volume(image, target, fill=_CLIPPED[0]).array.astype(np.float32).clip(*_CLIPPED)


def _spectrum(channels: np.ndarray) -> np.ndarray:
    """Of ``(C, x, y, z)``, each channel less its mean, all of them together of length 1; padded, lest ends meet."""
    channels = channels - channels.mean(axis=(1, 2, 3), keepdims=True)
    channels = channels / max(float(np.sqrt((channels**2).sum())), 1e-12)
    lengths = [n + n // 4 + (n + n // 4) % 2 for n in channels.shape[1:]]
    # A transform of one length 1 array and of another: the inverse of their product is their correlation.
    return np.fft.rfftn(channels, lengths, axes=(1, 2, 3)).astype(np.complex64)


def read_signatures(
    images: Sequence[ImageFile], grid: Grid, encode: Encode, what: str, on_done: OnDone = lambda *news: None
) -> dict[str, Signature]:
    """Name → signature of each image.

    Raises:
        FileFormatError: An image cannot be read.
        RequestError: An image is blank; the message names it.
    """
    found = {}
    for number, image in enumerate(images, 1):
        try:
            found[image.name] = Signature(read_image(image.path), grid, encode)
        except RequestError as error:
            raise RequestError(f"{image.path}: {error}") from None
        give_back("cpu")  # what an image took lies around its small signature
        on_done(what, number, len(images), image.name)
    return found


def check_enough(training: int) -> None:
    """Makes sure that there are patients to learn from how far apart patients are.

    Raises:
        RequestError: There are fewer than :data:`LEAST_TRAINING`.
    """
    if training < LEAST_TRAINING:
        raise RequestError(
            f"{training} training volumes do not tell how far apart patients are. Give {LEAST_TRAINING} at least, "
            "and better all that the model was trained on."
        )


def find_copies(
    generated: dict[str, Signature],
    training: dict[str, Signature],
    *,
    neighbours: int = 3,
    on_done: OnDone = lambda *news: None,
) -> NoveltyReport:
    """Compares every generated volume with every training volume.

    Args:
        generated: Name → signature.
        training: Name → signature, on the same grid.
        neighbours: How many of the nearest are told.
        on_done: Called after each volume.

    Raises:
        RequestError: Fewer than :data:`LEAST_TRAINING` training volumes.
    """
    check_enough(len(training))
    expected = {space: _expected(list(training.values()), space, on_done) for space in SPACES}
    cases = []
    for number, (name, signature) in enumerate(generated.items(), 1):
        nearest = {}
        for space in SPACES:
            distances = [Neighbour(other, signature.distance(theirs, space)) for other, theirs in training.items()]
            nearest[space] = tuple(sorted(distances, key=lambda n: n.distance)[:neighbours])
        copied = tuple(space for space in SPACES if nearest[space][0].distance < expected[space].copy_below)
        cases.append(NoveltyOfCase(name, nearest["latent"], nearest["image"], copied))
        on_done("comparing", number, len(generated), name)
    cases.sort(key=lambda case: min(getattr(case, s)[0].distance / expected[s].median for s in SPACES))
    return NoveltyReport(tuple(cases), expected, len(training))


def _expected(training: list[Signature], space: str, on_done: OnDone) -> Expected:
    """The distance of each from its nearest other one; the same patient twice in the set does not count as two."""
    chosen = training[:: -(-len(training) // _EXPECTED_FROM)]
    distances = np.full((len(chosen), len(chosen)), np.inf)
    for row, one in enumerate(chosen):
        for column in range(row):
            distances[row, column] = distances[column, row] = one.distance(chosen[column], space)
        on_done(f"distances between patients, {space}", row + 1, len(chosen), "")
    nearest = np.maximum(distances.min(axis=1), 1e-6)
    logarithms = np.log(nearest).tolist()
    middle = statistics.median(logarithms)
    deviation = 1.4826 * statistics.median(abs(value - middle) for value in logarithms)
    copy_below = float(np.exp(middle - _COPY * max(deviation, _LEAST_DEVIATION)))
    return Expected(float(nearest.min()), float(np.exp(middle)), float(nearest.max()), copy_below)
