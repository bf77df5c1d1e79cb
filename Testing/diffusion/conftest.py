"""Tiny networks, and random numbers that no test leaves behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from Testing.diffusion.tiny_networks import TinyNetworks


@pytest.fixture(autouse=True)
def own_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        yield


@pytest.fixture(scope="session")
def rflow() -> TinyNetworks:
    return TinyNetworks.build("rflow")


@pytest.fixture(scope="session", params=["rflow", "ddpm"])
def tiny(request: pytest.FixtureRequest) -> TinyNetworks:
    """Once with a modality input, once with body regions."""
    return TinyNetworks.build(request.param)
