from __future__ import annotations

from typing import Any

import pytest

from MAISILib.bundles.networks import build_network
from Testing.random_numbers import own_random_numbers
from Testing.tiny_bundle import tiny_definitions, tiny_states

__all__ = ["own_random_numbers"]  # a fixture: pytest finds it here


@pytest.fixture(scope="session")
def autoencoder() -> Any:
    """Random weights; compression 2, 4 latent channels."""
    definitions = tiny_definitions()
    network = build_network(definitions["autoencoder"])
    network.load_state_dict(tiny_states(definitions, seed=7)["autoencoder"])
    return network.requires_grad_(False)
