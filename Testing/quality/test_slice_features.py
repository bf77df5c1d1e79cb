from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from MAISILib.bundles.networks import build_network
from MAISILib.errors import RequestError
from MAISILib.quality.fid import PLANES, SliceStatistics
from MAISILib.quality.slice_features import AutoencoderFeatures, body_of
from Testing.quality.image_folders import SHAPE, patient, volume
from Testing.tiny_bundle import tiny_definitions, tiny_states


@pytest.fixture(scope="module")
def features() -> AutoencoderFeatures:
    """Of an encoder with random weights: compression 2, 16 hidden channels."""
    definitions = tiny_definitions()
    network = build_network(definitions["autoencoder"])
    network.load_state_dict(tiny_states(definitions, seed=7)["autoencoder"])
    return AutoencoderFeatures(network, "tiny")


def of_set(features: AutoencoderFeatures, change: Callable[[np.ndarray, int], Any] | None = None) -> SliceStatistics:
    found = SliceStatistics(features.name)
    for seed in range(6):
        image = patient(seed)
        found.add(features(volume(image if change is None else change(image, seed).clip(-1000, 1000))))
    return found


def blurred(image: np.ndarray, seed: int, amount: float) -> np.ndarray:
    return ndimage.gaussian_filter(image, amount)


def noisy(image: np.ndarray, seed: int, amount: float) -> np.ndarray:
    return image + np.random.default_rng(seed).normal(0, amount, SHAPE)


def brighter(image: np.ndarray, seed: int, amount: float) -> np.ndarray:
    return np.where(image > -300, image + amount, image)


def filled(image: np.ndarray, seed: int, amount: float) -> np.ndarray:
    return np.where(body_of(image) & (image < -300), -900 + amount, image)


@pytest.mark.parametrize(
    ("change", "amounts"),
    [
        (blurred, (0.4, 0.7, 1.0, 1.5)),
        (noisy, (30, 60, 120, 240)),
        (brighter, (30, 60, 120, 240)),
        (filled, (200, 400, 800)),
    ],
)
def test_distance_grows_with_the_damage(
    features: AutoencoderFeatures, change: Callable[..., np.ndarray], amounts: tuple[float, ...]
) -> None:
    real = of_set(features)
    damaged = [of_set(features, lambda image, seed, a=a: change(image, seed, a)) for a in amounts]
    distances = [real.distance(d) for d in damaged]
    for plane in (*PLANES, "mean"):
        values = [0.0, *(d[plane] for d in distances)]
        assert values == sorted(values), plane
        assert values[1] > 0


def test_features_are_the_same_again(features: AutoencoderFeatures) -> None:
    first, second = features(volume(patient(0))), features(volume(patient(0)))
    for plane in PLANES:
        np.testing.assert_array_equal(first[plane], second[plane])


def test_there_are_three_numbers_per_channel_for_every_slice_with_body(features: AutoencoderFeatures) -> None:
    found = features(volume(patient(0)))
    assert list(found) == ["xy", "yz", "zx"]
    body = body_of(patient(0))
    layers = {"xy": body.any(axis=(0, 1)), "yz": body.any(axis=(1, 2)), "zx": body.any(axis=(0, 2))}
    for plane, vectors in found.items():
        with_body = layers[plane].reshape(-1, 2).any(axis=1)  # a layer of the encoder is two slices of the image
        assert vectors.shape == (with_body.sum(), 3 * 16)
        assert not with_body.all()
        assert np.isfinite(vectors).all()


def test_more_air_around_the_patient_adds_no_slices(features: AutoencoderFeatures) -> None:
    wide = np.pad(patient(0), ((4, 4), (4, 4), (4, 4)), constant_values=-1000)
    assert [len(v) for v in features(volume(wide)).values()] == [len(v) for v in features(volume(patient(0))).values()]


def test_enclosed_gas_belongs_to_the_body() -> None:
    image = patient(0)
    assert body_of(image)[11, 13, 8]
    assert image[11, 13, 8] == -900
    assert not body_of(image)[0, 0, 8]


def test_the_name_warns_and_tells_networks_apart(features: AutoencoderFeatures) -> None:
    assert "tiny" in features.name
    assert "not comparable with published numbers" in features.name


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.full(SHAPE, -1000.0), "blank.*-300 HU"),
        (np.full(SHAPE, np.nan), "NaN"),
        (np.zeros((24, 20, 15)), r"\(24, 20, 15\) does not divide.*multiple of the autoencoder's compression"),
    ],
)
def test_an_image_without_features_is_refused(features: AutoencoderFeatures, image: np.ndarray, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        features(volume(image))
