"""How far a FID would move with other patients: the bootstrap over volumes (Efron, Annals of Statistics 7(1), 1979)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from MAISILib.quality.feature_store import FeatureSet
from MAISILib.quality.fid import PLANES, SliceStatistics

#: Statistics of resampled sets that are held at once; more of them take another pass over the stored features.
_BYTES_AT_ONCE = 400_000_000


@dataclass(frozen=True)
class Confidence:
    """The spread of a distance.

    Attributes:
        low: Lower end of the 95 % interval.
        high: Upper end.
        deviation: Standard deviation.
        bias: By how much resampled sets are farther apart than the sets themselves, on average: a hint at the part of
            the distance that comes from the small number of volumes.
    """

    low: float
    high: float
    deviation: float
    bias: float


def bootstrap(
    first: FeatureSet,
    second: FeatureSet,
    distance: dict[str, float],
    replicates: int,
    seed: int = 0,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Confidence]:
    """Draws volumes of both sets with replacement and measures the distance anew, again and again.

    Volumes are drawn, not slices: slices of one patient are alike. Resampled sets have fewer different volumes and
    therefore larger distances; the interval holds the percentiles 2.5 and 97.5 of the resampled distances, moved so
    that their mean is the distance itself, and does not go below 0.

    Args:
        first: One set.
        second: The other.
        distance: What :meth:`SliceStatistics.distance` gave for them.
        replicates: How often.
        seed: Of the draws.
        on_done: Called with (replicates done, replicates in all); may raise to stop.

    Returns:
        Plane, and ``mean`` → its spread.
    """
    rng = np.random.default_rng(seed)
    weights = [rng.multinomial(len(one), np.full(len(one), 1 / len(one)), replicates) for one in (first, second)]
    features = next(iter(first))["xy"].shape[1]
    together = max(1, int(_BYTES_AT_ONCE / (2 * len(PLANES) * 8 * features**2)))
    found: list[dict[str, float]] = []
    for start in range(0, replicates, together):
        end = min(start + together, replicates)
        ones, twos = (_resampled(s, w[start:end]) for s, w in zip((first, second), weights, strict=True))
        for one, two in zip(ones, twos, strict=True):
            found.append(one.distance(two))
            on_done(len(found), replicates)
    return {key: _confidence(np.array([row[key] for row in found]), value) for key, value in distance.items()}


def _resampled(volumes: FeatureSet, weights: np.ndarray) -> list[SliceStatistics]:
    """The statistics of resampled sets: ``weights[r, v]`` says how often set r holds volume v."""
    sets = [SliceStatistics(volumes.features_name) for _ in weights]
    for volume, features in enumerate(volumes):
        alone = SliceStatistics(volumes.features_name)
        alone.add(features)
        for one, times in zip(sets, weights[:, volume], strict=True):
            if times:
                one.merge(alone, int(times))
    return sets


def _confidence(values: np.ndarray, distance: float) -> Confidence:
    bias = float(values.mean()) - distance
    low, high = np.percentile(values, (2.5, 97.5)) - bias
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Confidence(max(0.0, float(low)), float(high), deviation, bias)
