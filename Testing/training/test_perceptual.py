"""The perceptual term, with random weights in the layout of MedicalNet's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets.resnet import resnet10

from MAISILib.bundles.weights import save_safetensors
from MAISILib.errors import TrainingError
from MAISILib.jobs.folder import read_events
from MAISILib.training.perceptual import PerceptualDistance
from MAISILib.training.start import start_training
from Testing.tiny_bundle import tiny_definitions


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return resnet10(n_input_channels=1, feed_forward=False, bias_downsample=False).state_dict()


@pytest.fixture(scope="module")
def weights(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("medicalnet") / "resnet_10_23dataset.pth"
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    return path


@pytest.fixture(scope="module")
def distance(weights: Path) -> PerceptualDistance:
    return PerceptualDistance(weights)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 1, 16, 16, 12, generator=torch.Generator().manual_seed(1))


def test_the_same_volumes_have_no_distance(distance: PerceptualDistance, images: torch.Tensor) -> None:
    assert distance(images, images).tolist() == [0.0, 0.0]


def test_what_differs_more_is_further_away(distance: PerceptualDistance, images: torch.Tensor) -> None:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    near, far = (distance(images + part * noise, images) for part in (0.02, 0.2))
    assert near.shape == (2,)
    assert (near > 0).all()
    assert (far > 5 * near).all()


def test_a_wrong_brightness_counts(distance: PerceptualDistance, images: torch.Tensor) -> None:
    assert (distance(images + 0.3, images) > distance(images + 0.03, images)).all()


def test_a_sample_does_not_depend_on_its_batch(distance: PerceptualDistance, images: torch.Tensor) -> None:
    made = images.flip(2)
    alone = torch.cat([distance(made[i : i + 1], images[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(distance(made, images), alone)


def test_gradients_reach_the_reconstruction_and_nothing_else(
    distance: PerceptualDistance, images: torch.Tensor
) -> None:
    made = images.flip(2).requires_grad_()
    wanted = images.clone().requires_grad_()
    distance(made, wanted)[0].backward()
    assert made.grad is not None
    assert made.grad[0].abs().sum() > 0
    assert not made.grad[1].any()
    assert wanted.grad is None
    assert not any(parameter.requires_grad for parameter in distance._network.parameters())


def test_a_patch_of_nothing_but_air_is_measured(distance: PerceptualDistance) -> None:
    air = torch.zeros(1, 1, 16, 16, 16)
    made = (air + 0.001).requires_grad_()
    distance(made, air).sum().backward()
    assert made.grad is not None
    assert torch.isfinite(made.grad).all()
    assert not distance(air, air).any()


def test_the_last_layers_look_far_on_an_unhalved_grid(distance: PerceptualDistance) -> None:
    """As MedicalNet was trained: one eighth of the grid after the second layer, and no less after that."""
    features = distance._features(torch.rand(1, 1, 32, 32, 32))
    assert [tuple(f.shape[1:]) for f in features] == [(64, 8, 8, 8), (128, 4, 4, 4), (256, 4, 4, 4), (512, 4, 4, 4)]


def test_safetensors_hold_the_same_weights(
    distance: PerceptualDistance, state: dict[str, torch.Tensor], images: torch.Tensor, tmp_path: Path
) -> None:
    kept = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    path = save_safetensors(kept, tmp_path / "medicalnet.safetensors", torch.float32)
    made = images.flip(2)
    torch.testing.assert_close(PerceptualDistance(path)(made, images), distance(made, images))


def test_other_weights_are_refused_and_the_right_ones_named(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": {**state, "fc.weight": torch.zeros(3)}}, tmp_path / "longer.pth")
    torch.save({"state_dict": dict(list(state.items())[:5])}, tmp_path / "shorter.pth")
    (tmp_path / "text.pth").write_text("no weights")
    said = {"longer": "1 unexpected: fc.weight", "shorter": "missing", "text": "not a complete", "gone": "are missing"}
    for name, words in said.items():
        with pytest.raises(TrainingError, match=words) as caught:
            PerceptualDistance(tmp_path / f"{name}.pth")
        assert "resnet_10_23dataset.pth" in str(caught.value)


@pytest.mark.parametrize("given", [True, False])
def test_an_autoencoder_learns_with_the_term_or_is_told_that_it_is_left_out(
    given: bool, patients: Path, weights: Path, tmp_path: Path
) -> None:
    recipe: dict[str, Any] = {
        "network": "autoencoder",
        "definition": tiny_definitions()["autoencoder"],
        "data": {"random_aug": False, "patch_size": [16, 16, 16]},
        "steps": 2,
        "adversarial_weight": 0.0,
        "perceptual_weights": str(weights) if given else None,
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    for resume in (False, True):
        start_training("autoencoder", tmp_path / "recipe.json", patients, tmp_path / "run", resume=resume, device="cpu")
    events = read_events(tmp_path / "run")
    last = [event.metrics for event in events if event.metrics][-1]
    remarks = [event.message for event in events if "perceptual" in event.message]
    if given:
        assert remarks == []
        assert last["perceptual"] > 0
        assert last["loss"] == pytest.approx(
            last["reconstruction"] + 1e-7 * last["kl"] + 0.3 * last["perceptual"], rel=1e-3
        )
    else:
        assert "perceptual" not in last
        assert len(remarks) == 1
        assert "MedicalNet-Resnet10" in remarks[0]
