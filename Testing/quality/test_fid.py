from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from monai.metrics.fid import get_fid_score

from MAISILib.errors import RequestError
from MAISILib.quality.fid import PLANES, FidStatistics, SliceStatistics, frechet_distance


def statistics(*batches: np.ndarray) -> FidStatistics:
    found = FidStatistics(batches[0].shape[1])
    for batch in batches:
        found.add(batch)
    return found


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> FidStatistics:
    """Statistics that are exactly these."""
    known = FidStatistics(len(mean))
    known.count, known.mean, known.scatter = 1001, mean, covariance * 1000
    return known


def cloud(seed: int, count: int = 300, features: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, features)) @ rng.normal(size=(features, features)) + rng.normal(size=features)


def volume(seed: int, slices: int = 40) -> dict[str, np.ndarray]:
    return {plane: cloud(seed + axis, slices) for plane, axis in PLANES.items()}


def test_distance_of_known_gaussians() -> None:
    """Of independent features it is Σ (μ₁ − μ₂)² + (σ₁ − σ₂)², and turning space does not change it."""
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    means = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 0.0, 3.0, 7.0])
    deviations = np.array([1.0, 2.0, 3.0, 0.5]), np.array([4.0, 2.0, 1.0, 0.0])
    expected = (0 + 4 + 0 + 9) + (9 + 0 + 4 + 0.25)
    plain = [gaussian(m, np.diag(d**2)) for m, d in zip(means, deviations, strict=True)]
    turned = [gaussian(turn @ m, turn @ np.diag(d**2) @ turn.T) for m, d in zip(means, deviations, strict=True)]
    assert frechet_distance(*plain) == pytest.approx(expected)
    assert frechet_distance(*turned) == pytest.approx(expected)


@pytest.mark.parametrize("count", [300, 5])
def test_distance_is_monais_also_with_fewer_slices_than_features(count: int) -> None:
    first, second = cloud(1, count), cloud(2, count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's square root warns where a covariance is singular
        theirs = float(get_fid_score(torch.from_numpy(first), torch.from_numpy(second)))
    assert frechet_distance(statistics(first), statistics(second)) == pytest.approx(theirs, rel=1e-5)


def test_a_set_has_no_distance_from_itself_and_distance_has_no_direction() -> None:
    first, second = statistics(cloud(1)), statistics(cloud(2))
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first))


def test_order_and_batches_do_not_matter() -> None:
    data = cloud(3)
    whole, backwards = statistics(data), statistics(*np.array_split(data[::-1], 7), np.empty((0, 6)))
    assert whole.count == backwards.count == 300
    np.testing.assert_allclose(whole.mean, data.mean(axis=0))
    np.testing.assert_allclose(whole.covariance, np.cov(data.T))
    np.testing.assert_allclose(backwards.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(backwards.covariance, whole.covariance, rtol=1e-10)


def test_parts_joined_are_the_whole() -> None:
    data = cloud(3)
    joined = FidStatistics(6)
    for part in np.array_split(data, 3):
        joined.merge(statistics(part))
    assert joined.count == 300
    np.testing.assert_allclose(joined.covariance, np.cov(data.T), rtol=1e-10)


def test_large_means_cost_no_digits() -> None:
    data = cloud(4)
    far = statistics(*np.array_split(data + 1e7, 5))
    np.testing.assert_allclose(far.covariance, np.cov(data.T), rtol=1e-6)


def test_mean_of_three_planes() -> None:
    first, second = SliceStatistics("a network"), SliceStatistics("a network")
    for seed in (10, 20):
        first.add(volume(seed))
        second.add(volume(seed + 5))
    distances = first.distance(second)
    assert list(distances) == ["xy", "yz", "zx", "mean"]
    assert distances["mean"] == pytest.approx(sum(distances[plane] for plane in PLANES) / 3)
    expected = statistics(volume(10)["yz"], volume(20)["yz"]), statistics(volume(15)["yz"], volume(25)["yz"])
    assert distances["yz"] == pytest.approx(frechet_distance(*expected))


def test_volumes_of_two_processes_are_joined() -> None:
    whole, one, two = (SliceStatistics("a network") for _ in range(3))
    for seed in (10, 20, 30, 40):
        whole.add(volume(seed))
        (one if seed < 30 else two).add(volume(seed))
    joined = SliceStatistics("a network")
    joined.merge(two)
    joined.merge(one)
    assert joined.volumes == 4
    assert joined.distance(whole)["mean"] == pytest.approx(0, abs=1e-9)


def test_features_of_two_networks_are_not_compared() -> None:
    first, second = SliceStatistics("one network"), SliceStatistics("another network")
    first.add(volume(10))
    second.add(volume(10))
    for work in (first.distance, first.merge):
        with pytest.raises(RequestError, match=r"'one network' and 'another network'.*the same network"):
            work(second)


def test_what_cannot_be_measured_is_said() -> None:
    some = SliceStatistics("a network")
    some.add(volume(10))
    with pytest.raises(RequestError, match="without volumes"):
        some.distance(SliceStatistics("a network"))
    with pytest.raises(RequestError, match="planes xy, yz, zx are needed; got xy"):
        some.add({"xy": cloud(1)})
    with pytest.raises(RequestError, match=r"\(N, 6\) are needed; got \(3, 5\)"):
        some.add(volume(10) | {"yz": np.zeros((3, 5))})
    with pytest.raises(RequestError, match="NaN"):
        statistics(np.full((3, 6), np.nan))
    with pytest.raises(RequestError, match="at least two feature vectors; there is 1"):
        frechet_distance(statistics(cloud(1)), statistics(cloud(1, count=1)))
    with pytest.raises(RequestError, match="6 and of 5 features"):
        frechet_distance(statistics(cloud(1)), statistics(cloud(1, features=5)))
