from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from MAISILib.bundles.networks import build_network
from Testing.tiny_bundle import tiny_definitions, tiny_states


@pytest.fixture(autouse=True)
def own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield


@pytest.fixture(scope="session")
def autoencoder() -> Any:
    """Random weights; compression 2, 4 latent channels."""
    definitions = tiny_definitions()
    network = build_network(definitions["autoencoder"])
    network.load_state_dict(tiny_states(definitions, seed=7)["autoencoder"])
    return network.requires_grad_(False)
