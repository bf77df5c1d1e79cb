"""Memory that runs out although the plan fitted: decoding is tried again in smaller tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import MAISILib as maisi
from MAISILib.bundles.bundle import Bundle
from MAISILib.codec import codec
from MAISILib.codec.strategies import Strategy
from MAISILib.generation.pipeline import generate
from MAISILib.generation.request import GenerateRequest

REQUEST = GenerateRequest(mask="none", output_size=(32, 32, 32), steps=1, count=2)
CPU_ERROR = RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: not enough memory: you tried to")
ERRORS = [CPU_ERROR, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError()]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Strategy]]:
    """Makes decoding fail for the first attempts; gives the list of all that were made."""
    stream, attempts = codec.stream, []

    def install(error: BaseException, failures: int) -> list[Strategy]:
        def scarce(layers: Any, volume: Any, strategy: Strategy, **more: Any) -> Any:
            attempts.append(strategy)
            if len(attempts) <= failures:
                raise error
            return stream(layers, volume, strategy, **more)

        monkeypatch.setattr(codec, "stream", scarce)
        return attempts

    return install


@pytest.mark.parametrize("error", ERRORS, ids=["cpu", "cuda", "python"])
def test_decoding_goes_on_in_smaller_tiles(rflow: Bundle, full: Callable[..., list[Strategy]], error: Any) -> None:
    untroubled = generate(rflow, REQUEST)
    attempts = full(error, failures=2)
    news: list[maisi.Progress] = []
    result = generate(rflow, REQUEST, on_progress=news.append)
    assert attempts[0] == Strategy()
    assert len(set(attempts[:3])) == 3
    assert attempts[3] == attempts[2]  # the second sample begins where the first one succeeded
    for sample, expected in zip(result.samples, untroubled.samples, strict=True):
        assert sample.provenance["settings"]["decode"] == str(attempts[2])
        assert np.abs(sample.image.array.astype(int) - expected.image.array).max() <= 1
    assert any(p.stage == "decode" and "memory ran out" in p.message and "tiles" in p.message for p in news)


def test_what_never_fits_is_refused_in_the_end(rflow: Bundle, full: Callable[..., list[Strategy]]) -> None:
    attempts = full(CPU_ERROR, failures=1000)
    with pytest.raises(maisi.OutOfMemory, match="Not enough memory to decode"):
        generate(rflow, REQUEST)
    assert 2 < len(attempts) < 20


def test_whole_means_whole(rflow: Bundle, full: Callable[..., list[Strategy]]) -> None:
    attempts = full(CPU_ERROR, failures=1)
    with pytest.raises(maisi.OutOfMemory):
        generate(rflow, REQUEST.model_copy(update={"decode": "whole"}))
    assert attempts == [Strategy()]


def test_other_errors_are_not_taken_for_memory(rflow: Bundle, full: Callable[..., list[Strategy]]) -> None:
    attempts = full(RuntimeError("shapes do not match"), failures=1)
    with pytest.raises(RuntimeError, match="shapes"):
        generate(rflow, REQUEST)
    assert len(attempts) == 1
