"""The memory that a way is said to need is what its tensors take."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from MAISILib.bundles.networks import build_network
from MAISILib.codec.layers import decoder_layers, encoder_layers
from MAISILib.codec.strategies import Strategy, Walk, candidates
from MAISILib.codec.streaming import stream
from Testing.tiny_bundle import tiny_definitions

WAYS = [
    Strategy(),
    Strategy("layers", (8, 99, 99)),
    Strategy("layers", (16, 16, 16)),
    Strategy("recompute", (8, 99, 99)),
    Strategy("recompute", (16, 16, 16)),
]


class LiveTensors(TorchDispatchMode):
    """Follows how many bytes of tensors are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return result

    def _watch(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak_of(layers: Any, volume: torch.Tensor, way: Strategy) -> int:
    """The most bytes of tensors alive during a walk, the volume included."""
    with LiveTensors() as live:
        stream(layers, volume.clone(), way)
    return live.peak


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("read", [decoder_layers, encoder_layers])
def test_the_tensors_of_a_walk_take_what_was_counted(autoencoder: Any, read: Any, way: Strategy) -> None:
    layers = read(autoencoder)
    edge = 24 if read is decoder_layers else 48
    volume = torch.randn(1, layers[0].in_channels, edge, edge, edge)
    counted = Walk(layers, volume.shape[2:], way).cost().bytes
    assert peak_of(layers, volume, way) == pytest.approx(counted, rel=0.08)


def test_computing_upsampled_values_again_saves_memory_where_they_are_widest() -> None:
    levels = {"num_channels": [8, 32, 64], "num_res_blocks": [1, 1, 1], "attention_levels": [False] * 3}
    layers = decoder_layers(build_network({**tiny_definitions()["autoencoder"], **levels}).requires_grad_(False))
    latent = torch.randn(1, 4, 16, 16, 16)
    plain = Strategy("recompute", (8, 8, 8))
    leaner = Strategy("recompute", (8, 8, 8), recomputes_upsampled=True)
    peaks = {way: peak_of(layers, latent, way) for way in (plain, leaner)}
    assert peaks[leaner] < 0.8 * peaks[plain]
    assert peaks[leaner] == pytest.approx(Walk(layers, latent.shape[2:], leaner).cost().bytes, rel=0.08)
    assert any(way.recomputes_upsampled for way in candidates(layers, latent.shape[2:], "device"))
