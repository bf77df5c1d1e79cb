"""Made-up patients in the layout of OpenKBP, and tiny recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from MAISILib.bundles.networks import build_network
from MAISILib.training.autoencoder import start_with_small_deviation
from MAISILib.training.crops import Crop, prepare_crops
from MAISILib.training.diffusion import LatentSet, encode_crops
from Testing.random_numbers import own_random_numbers
from Testing.tiny_bundle import tiny_definitions
from Testing.training.patients import write_patient

__all__ = ["own_random_numbers"]  # a fixture: pytest finds it here

SHAPE, SPACING = (16, 16, 16), (7.0, 7.0, 7.0)


@pytest.fixture(scope="session")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients; the tenth is there to be sorted behind the second."""
    folder = tmp_path_factory.mktemp("patients")
    for number in (1, 2, 10):
        write_patient(folder, f"pt_{number}", brightness=10.0 * number)
    return folder


@pytest.fixture(scope="session")
def crops(patients: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Crop]:
    return prepare_crops(patients, tmp_path_factory.mktemp("crops"), SHAPE, [SPACING, SPACING], seed=4)


@pytest.fixture(scope="session")
def latents(crops: list[Crop], tmp_path_factory: pytest.TempPathFactory) -> LatentSet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = build_network(tiny_definitions()["autoencoder"])
    start_with_small_deviation(network)
    return encode_crops(network, crops, tmp_path_factory.mktemp("latents"), lambda message: None)


@pytest.fixture
def autoencoder_recipe() -> dict[str, Any]:
    return {
        "definition": tiny_definitions()["autoencoder"],
        "seed": 5,
        "steps": 4,
        "batch": 2,
        "rate": 0.001,
        "kl_weight": 1e-6,
        "squared_weight": 5.0,
        "bfloat16": False,
    }


@pytest.fixture
def flow_recipe() -> dict[str, Any]:
    definitions = tiny_definitions()
    return {
        "unet": definitions["diffusion"],
        "controlnet": definitions["controlnet"],
        "seed": 6,
        "steps": 4,
        "batch": 2,
        "rate": 0.001,
        "mask_dropout": 0.3,
        "label_dropout": 0.3,
        "modality": 1,
        "modality_dropout": 0.3,
        "air_weight": 0.25,
        "bfloat16": False,
    }
