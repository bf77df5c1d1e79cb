"""The way that is chosen: the fastest that fits; and what is counted beforehand is what happens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from MAISILib.bundles.networks import build_network
from MAISILib.codec import strategies
from MAISILib.codec.choosing import Ways, choose, counted
from MAISILib.codec.layers import decoder_layers, encoder_layers
from MAISILib.codec.strategies import Strategy, Walk
from Testing.tiny_bundle import tiny_definitions

SHAPE = (32, 32, 32)


@pytest.fixture(scope="module")
def layers(autoencoder: Any) -> Any:
    return decoder_layers(autoencoder)


def test_a_larger_budget_is_never_slower_and_never_exceeded(layers: Any) -> None:
    leanest, whole = choose(layers, SHAPE, 0).bytes, counted(layers, SHAPE, Strategy()).bytes
    assert leanest < whole / 3
    budgets = [leanest, leanest * 1.3, leanest * 2, whole * 0.8, whole, whole * 3]
    chosen = [choose(layers, SHAPE, budget) for budget in budgets]
    assert all(choice.bytes <= budget for choice, budget in zip(chosen, budgets, strict=True))
    assert [c.work for c in chosen] == sorted((c.work for c in chosen), reverse=True)
    assert chosen[0].strategy.name == "recompute"


def test_a_file_is_the_last_resort(layers: Any) -> None:
    leanest = choose(layers, SHAPE, 0)
    assert leanest.strategy.storage == "device"
    budget = leanest.bytes * 0.9
    assert choose(layers, SHAPE, budget).bytes > budget  # the refusal then names what is needed at least
    with_disk = choose(layers, SHAPE, budget, disk=1e12)
    assert with_disk.strategy.storage == "file"
    assert with_disk.bytes <= budget
    assert choose(layers, SHAPE, budget, disk=1000).strategy.storage == "device"
    assert choose(layers, SHAPE, leanest.bytes, disk=1e12).strategy.storage == "device"


def test_host_memory_helps_a_device_with_little(layers: Any) -> None:
    budget = choose(layers, SHAPE, 0).bytes * 0.9
    choice = choose(layers, SHAPE, budget, host=1e12, disk=1e12)
    assert choice.strategy.storage == "host"
    assert choice.bytes <= budget


@pytest.mark.parametrize("way", [Strategy(), Strategy("layers", (8, 99, 99)), Strategy("recompute", (8, 99, 99))])
@pytest.mark.parametrize("read", [decoder_layers, encoder_layers])
@pytest.mark.parametrize("transposed", [False, True])
def test_operations_of_each_width_are_those_that_are_done(
    autoencoder: Any, read: Any, way: Strategy, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from MAISILib.codec import convolutions, streaming

    done: dict[float, float] = {}
    original = convolutions.convolved

    def watched(layer: Any, tile: torch.Tensor, *arguments: Any) -> torch.Tensor:
        result = original(layer, tile, *arguments)
        ends = tile if layer.kind == "transposed" else result
        operations = 2.0 * ends.numel() * layer.module.weight[0].numel()
        if layer.shortcut is not None:
            operations += 2.0 * result.numel() * layer.shortcut.in_channels
        width = (layer.in_channels * layer.out_channels) ** 0.5
        done[width] = done.get(width, 0.0) + operations
        return result

    monkeypatch.setattr(streaming, "convolved", watched)
    definition = tiny_definitions()["autoencoder"]
    network = build_network({**definition, "use_convtranspose": True}) if transposed else autoencoder
    layers = read(network.requires_grad_(False))
    volume = torch.randn(1, layers[0].in_channels, 12, 8, 8)
    streaming.stream(layers, volume, way)
    assert Walk(layers, (12, 8, 8), way).cost().products == pytest.approx(done)


def test_weighing_all_ways_takes_no_time_that_a_user_would_notice(layers: Any) -> None:
    assert len(list(strategies.candidates(layers, SHAPE, "device"))) < 200


def test_after_a_failure_come_leaner_ways_until_there_is_none(layers: Any) -> None:
    ways, strategy, needs = Ways(layers, SHAPE), Strategy(), []
    while (choice := ways.after(strategy)) is not None:
        needs.append(choice.bytes)
        strategy = choice.strategy
    assert len(needs) > 1
    assert needs == sorted(set(needs), reverse=True)
    assert needs[-1] == ways.leanest.bytes
