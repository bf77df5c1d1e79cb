"""Tiny networks, and random numbers that no test leaves behind."""

from __future__ import annotations

import pytest

from Testing.diffusion.tiny_networks import TinyNetworks
from Testing.random_numbers import own_random_numbers

__all__ = ["own_random_numbers"]  # a fixture: pytest finds it here


@pytest.fixture(scope="session")
def rflow() -> TinyNetworks:
    return TinyNetworks.build("rflow")


@pytest.fixture(scope="session", params=["rflow", "ddpm"])
def tiny(request: pytest.FixtureRequest) -> TinyNetworks:
    """Once with a modality input, once with body regions."""
    return TinyNetworks.build(request.param)
