"""2.5D Fréchet inception distance: features of all slices of three planes, one distance for each, and their mean.

FID (Heusel et al., arXiv:1706.08500) compares two sets of images by the mean and covariance of their features; 2.5D is
how MAISI (arXiv:2409.11169) applies a network for flat images to volumes. Where the features come from is not decided
here: see :mod:`MAISILib.quality.slice_features`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from MAISILib.errors import RequestError

#: Plane → voxel axis (0 right, 1 anterior, 2 superior) that its slices are counted along.
PLANES = {"xy": 2, "yz": 0, "zx": 1}


class FidStatistics:
    """Count, mean and covariance of feature vectors that come in one batch after another.

    Memory is that of one covariance matrix, however many vectors there are. Batches are joined by the update of
    Chan, Golub and LeVeque (The American Statistician 37, 1983), which keeps the scatter about the mean and so does not
    lose digits where the mean is large; the outcome does not depend on order or batches but for rounding.

    Attributes:
        count: Number of vectors so far.
        mean: ``(F,)`` float64.
        scatter: ``(F, F)`` float64, the sum of outer products of deviations from the mean.
    """

    def __init__(self, features: int) -> None:
        self.count = 0
        self.mean = np.zeros(features)
        self.scatter = np.zeros((features, features))

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance ``(F, F)``.

        Raises:
            RequestError: Fewer than two vectors.
        """
        if self.count < 2:
            raise RequestError(f"A covariance needs at least two feature vectors; there is {self.count}. Add images.")
        return self.scatter / (self.count - 1)

    def add(self, features: np.ndarray) -> None:
        """Takes in a batch ``(N, F)``; N may be 0.

        Raises:
            RequestError: Another number of features, or a value that is not finite.
        """
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or features.shape[1] != self.mean.size:
            raise RequestError(f"Features (N, {self.mean.size}) are needed; got {features.shape}.")
        if not np.isfinite(features).all():
            raise RequestError("Features hold NaN or infinity: one of the images does. Leave that image out.")
        if len(features):
            batch = FidStatistics(self.mean.size)
            batch.count, batch.mean = len(features), features.mean(axis=0)
            deviations = features - batch.mean
            batch.scatter = deviations.T @ deviations
            self.merge(batch)

    def merge(self, other: FidStatistics, times: int = 1) -> None:
        """Takes in all vectors that ``other`` has seen, for example in another process.

        Args:
            other: Is not changed.
            times: As if it had seen each of them so often.

        Raises:
            RequestError: Another number of features.
        """
        if other.mean.size != self.mean.size:
            raise RequestError(f"Statistics of {self.mean.size} and of {other.mean.size} features cannot be joined.")
        added = other.count * times
        count = self.count + added
        if added:
            difference = other.mean - self.mean
            between = np.outer(difference, difference) * (self.count * added / count)
            self.scatter = self.scatter + other.scatter * times + between
            self.mean = self.mean + difference * (added / count)
            self.count = count


def frechet_distance(first: FidStatistics, second: FidStatistics) -> float:
    """|μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁Σ₂)^½ (Heusel et al., arXiv:1706.08500, equation 6).

    The last trace is the sum of singular values of Σ₁^½ Σ₂^½. Unlike the square root of Σ₁Σ₂ that MONAI takes (with an
    argument that SciPy drops in 1.18), it is real also where a covariance is singular: with fewer slices than features.

    Raises:
        RequestError: Different numbers of features, or fewer than two vectors in one of them.
    """
    if first.mean.size != second.mean.size:
        raise RequestError(f"Sets of {first.mean.size} and of {second.mean.size} features cannot be compared.")
    one, two = first.covariance, second.covariance
    roots = np.linalg.svd(_square_root(one) @ _square_root(two), compute_uv=False).sum()
    difference = first.mean - second.mean
    return float(max(0.0, difference @ difference + np.trace(one) + np.trace(two) - 2 * roots))


class SliceStatistics:
    """Statistics of a set of volumes: one :class:`FidStatistics` for each plane.

    Args:
        features_name: What the features are; sets of differently named features cannot be compared.

    Attributes:
        features_name: As given.
        volumes: Number of volumes so far.
        planes: Plane → statistics; empty before the first volume.
    """

    def __init__(self, features_name: str) -> None:
        self.features_name = features_name
        self.volumes = 0
        self.planes: dict[str, FidStatistics] = {}

    def add(self, features: Mapping[str, np.ndarray]) -> None:
        """Takes in one volume: plane → features of its slices ``(S, F)``.

        Raises:
            RequestError: As :meth:`FidStatistics.add`, or a plane is missing.
        """
        if set(features) != set(PLANES):
            raise RequestError(f"Features of the planes {', '.join(PLANES)} are needed; got {', '.join(features)}.")
        for plane, vectors in features.items():
            self.planes.setdefault(plane, FidStatistics(np.shape(vectors)[-1])).add(vectors)
        self.volumes += 1

    def merge(self, other: SliceStatistics, times: int = 1) -> None:
        """Takes in all volumes that ``other`` has seen, as if it had seen each of them so many times.

        Raises:
            RequestError: Features of another name or number.
        """
        self._check_same_features(other)
        for plane, statistics in other.planes.items():
            self.planes.setdefault(plane, FidStatistics(statistics.mean.size)).merge(statistics, times)
        self.volumes += other.volumes * times

    def distance(self, other: SliceStatistics) -> dict[str, float]:
        """2.5D FID between two sets: ``xy``, ``yz``, ``zx`` and their ``mean``.

        Raises:
            RequestError: Features of another name, or a set without slices.
        """
        self._check_same_features(other)
        if not (self.planes and other.planes):
            raise RequestError("A set without volumes has no FID. Add images to both sets.")
        distances = {plane: frechet_distance(self.planes[plane], other.planes[plane]) for plane in PLANES}
        return distances | {"mean": float(np.mean(list(distances.values())))}

    def _check_same_features(self, other: SliceStatistics) -> None:
        if other.features_name != self.features_name:
            raise RequestError(
                f"Features differ: {self.features_name!r} and {other.features_name!r}. Compute both sets with the same "
                "network."
            )


def _square_root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semidefinite matrix; eigenvalues that rounding made negative are 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T
