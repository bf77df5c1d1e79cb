"""A training that starts from a bundle's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from MAISILib.bundles.bundle import Bundle
from MAISILib.bundles.networks import build_network
from MAISILib.bundles.weights import read_state_dict
from MAISILib.diffusion.schedules import DdpmSchedule, FlowSchedule, Schedule
from MAISILib.errors import TrainingError
from MAISILib.training.initial_weights import start_from, start_unet_from
from MAISILib.training.start import start_training
from Testing.tiny_bundle import make_tiny_bundle, tiny_definitions


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", with_controlnet=False, seed=3))


def test_networks_take_the_weights_of_the_same_name(bundle: Bundle) -> None:
    networks = {name: build_network(tiny_definitions()[name]) for name in ("diffusion", "controlnet")}
    own = {name: value.clone() for name, value in networks["controlnet"].state_dict().items()}
    start_from(networks, str(bundle.folder))
    for name, value in bundle.load("diffusion").state_dict().items():
        assert torch.equal(networks["diffusion"].state_dict()[name], value)
    assert all(torch.equal(value, own[name]) for name, value in networks["controlnet"].state_dict().items())
    assert all(parameter.requires_grad for parameter in networks["diffusion"].parameters())


def test_without_a_bundle_nothing_changes() -> None:
    network = torch.nn.Linear(2, 2)
    before = network.weight.clone()
    start_from({"diffusion": network}, None)
    assert torch.equal(network.weight, before)


@torch.no_grad()
@pytest.mark.parametrize(("schedule", "sign"), [(FlowSchedule(), 1.0), (DdpmSchedule(), -1.0)])
def test_a_unet_that_predicted_velocity_starts_to_predict_noise_by_its_opposite(
    bundle: Bundle, schedule: Schedule, sign: float
) -> None:
    network = build_network(tiny_definitions()["diffusion"])
    start_unet_from({"diffusion": network}, "diffusion", str(bundle.folder), schedule)
    spacing = torch.ones(1, 3)
    inputs = {"x": torch.randn(1, 4, 8, 8, 8), "timesteps": torch.tensor([300.0]), "spacing_tensor": spacing}
    inputs["class_labels"] = torch.tensor([1])
    torch.testing.assert_close(network(**inputs), sign * bundle.load("diffusion")(**inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "said"), [("mask_diffusion", "has no mask_diffusion"), ("diffusion", "another network than the recipe")]
)
def test_a_bundle_without_these_networks_is_refused(name: str, said: str, bundle: Bundle) -> None:
    with pytest.raises(TrainingError, match=said):
        start_from({name: torch.nn.Linear(2, 2)}, str(bundle.folder))


def test_an_autoencoder_goes_on_from_a_bundles(bundle: Bundle, patients: Path, tmp_path: Path) -> None:
    recipe: dict[str, Any] = {
        "network": "autoencoder",
        "definition": bundle.entry("autoencoder").definition,
        "data": {"random_aug": False, "patch_size": [16, 16, 16]},
        "init_from": str(bundle.folder),
        "initial_log_variance": -3.0,
        "rate": 1e-12,
        "steps": 1,
        "perceptual_weight": 0.0,
        "adversarial_weight": 0.0,
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    outcome = start_training("autoencoder", tmp_path / "recipe.json", patients, tmp_path / "run", device="cpu")
    trained = read_state_dict(outcome.weights["autoencoder"], "safetensors")
    for name, value in bundle.load("autoencoder").state_dict().items():
        torch.testing.assert_close(trained[name].float(), value, atol=1e-3, rtol=1e-3)
