from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from MAISILib.bundles.weights import save_safetensors
from MAISILib.errors import BundleError, DownloadError, RequestError
from MAISILib.quality.flat_features import FlatFeatures
from MAISILib.quality.flat_networks import RadImageNetResNet50, SqueezeNet, load_flat_network
from MAISILib.quality.slice_geometry import SliceGeometry
from MAISILib.volumes import Grid, Volume
from Testing.quality.image_folders import patient, volume


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SqueezeNet with random weights that let something through."""
    torch.manual_seed(0)
    network = SqueezeNet()
    for parameter in network.parameters():
        torch.nn.init.kaiming_normal_(parameter) if parameter.ndim > 1 else torch.nn.init.zeros_(parameter)
    path = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(network.state_dict(), path)
    return path


def test_networks_have_the_published_sizes() -> None:
    """Parameters as torchvision and Keras count them, without ResNet-50's last layer."""
    with torch.device("meta"):
        counts = [sum(p.numel() for p in net.parameters()) for net in (SqueezeNet(), RadImageNetResNet50())]
    assert counts == [1_235_496, 23_534_592]


def test_networks_have_the_published_names() -> None:
    with torch.device("meta"):
        squeezenet, resnet = SqueezeNet().state_dict(), RadImageNetResNet50().state_dict()
    assert {"features.0.weight", "features.12.expand3x3.bias", "classifier.1.weight"} <= squeezenet.keys()
    assert {"conv1.bias", "layer1.0.downsample.1.running_var", "layer4.2.conv3.bias"} <= resnet.keys()


def test_every_slice_of_three_planes_has_features(squeezenet: Path) -> None:
    features = FlatFeatures("squeezenet1_1", squeezenet, geometry=SliceGeometry(shape=(24, 20, 18)), at_once=7)
    found = features(volume(patient(0)))
    assert {plane: vectors.shape for plane, vectors in found.items()} == {
        "xy": (18, 1000),
        "yz": (24, 1000),
        "zx": (20, 1000),
    }
    again = FlatFeatures("squeezenet1_1", squeezenet, geometry=SliceGeometry(shape=(24, 20, 18)), at_once=100)
    np.testing.assert_allclose(again(volume(patient(0)))["zx"], found["zx"], rtol=1e-3, atol=1e-5)


def test_brightness_of_the_whole_plane_does_not_matter_but_of_its_parts_does(squeezenet: Path) -> None:
    """Slices of a plane are brought to 0–1 together, as published: half the contrast everywhere is the same."""
    features = FlatFeatures("squeezenet1_1", squeezenet, geometry=SliceGeometry(shape=(24, 20, 18), padding=True))
    image = np.random.default_rng(0).uniform(-1000, 1000, (24, 20, 18))
    plain, half = features(volume(image))["xy"], features(volume(image / 2))["xy"]
    np.testing.assert_allclose(half, plain, rtol=1e-2, atol=1e-3)
    image[:12] += 300
    assert np.abs(features(volume(image))["xy"] - plain).max() > 0.01


def test_name_tells_network_weights_and_preprocessing(squeezenet: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = save_safetensors(SqueezeNet().state_dict(), tmp_path / "other.safetensors")
    half = SliceGeometry(center_slices_ratio=0.5)
    names = {
        FlatFeatures("squeezenet1_1", weights, geometry=geometry).name
        for weights in (squeezenet, other)
        for geometry in (None, half)
    }
    assert len(names) == 4


def test_wrong_weights_and_small_slices_are_refused(squeezenet: Path) -> None:
    with pytest.raises(BundleError, match=r"squeezenet\.pth"):
        load_flat_network("radimagenet_resnet50", squeezenet)
    with pytest.raises(RequestError, match=r"\(24, 20, 16\) are too small.*17 voxels"):
        FlatFeatures("squeezenet1_1", squeezenet)(volume(patient(0)))


def test_what_cannot_be_fetched_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*arguments: Any, **options: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", nothing)
    monkeypatch.setattr(torch.hub, "load", nothing)
    with pytest.raises(DownloadError, match=r"squeezenet1_1.*no route to host.*--weights"):
        load_flat_network("squeezenet1_1")
    with pytest.raises(DownloadError, match="radimagenet_resnet50"):
        load_flat_network("radimagenet_resnet50")


def test_fetched_weights_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    fetched = RadImageNetResNet50()
    monkeypatch.setattr(torch.hub, "load", lambda *arguments, **options: fetched)
    loaded = load_flat_network("radimagenet_resnet50")
    images = torch.randn(1, 3, 40, 40)
    torch.testing.assert_close(loaded(images), fetched.eval()(images))
    assert loaded(images).shape == (1, 2048)


def test_geometry_resamples_then_pads_and_crops_about_the_middle() -> None:
    array = np.zeros((10, 10, 10), np.float32)
    array[5:] = 100
    image = Volume(array, Grid.axis_aligned(array.shape, (2.0, 2.0, 2.0)).affine)
    found = SliceGeometry(spacing=(1.0, 1.0, 4.0), shape=(12, 24, 5)).apply(image)
    assert found.shape == (12, 24, 5)
    assert (found[:, :2], found[:, -2:]) == (pytest.approx(-1000), pytest.approx(-1000))
    inner = found[:, 2:-2]
    assert inner[0].max() == 0
    assert inner[-1].min() == 100
    flipped = Volume(array[::-1], image.affine @ np.array([[-1, 0, 0, 9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    np.testing.assert_allclose(SliceGeometry(spacing=(1.0, 1.0, 4.0), shape=(12, 24, 5)).apply(flipped), found)


def test_geometry_leaves_alone_what_was_not_asked_for() -> None:
    image = volume(np.zeros((10, 12, 14)))
    assert SliceGeometry().apply(image).shape == (10, 12, 14)
    assert SliceGeometry(shape=(8, 16, 14), padding=False).apply(image).shape == (8, 12, 14)
    assert SliceGeometry(shape=(8, 16, 14), center_cropping=False).apply(image).shape == (10, 16, 14)
    assert SliceGeometry().apply(image, divisor=8).shape == (16, 16, 16)


@pytest.mark.parametrize(("ratio", "first", "last"), [(1.0, 0, 99), (0.4, 30, 69), (0.001, 49, 49)])
def test_slices_in_the_middle(ratio: float, first: int, last: int) -> None:
    chosen = np.arange(100)[SliceGeometry(center_slices_ratio=ratio).middle(100)]
    assert (chosen[0], chosen[-1]) == (first, last)


@pytest.mark.parametrize("options", [{"center_slices_ratio": 0.0}, {"spacing": (1, 0, 1)}, {"shape": (8, 8, -1)}])
def test_impossible_geometry_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        SliceGeometry(**options)
