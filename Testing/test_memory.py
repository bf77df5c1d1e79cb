"""Freed memory goes back to the operating system."""

from __future__ import annotations

import sys

import psutil
import pytest
import torch

from MAISILib.memory import give_back

_TENSORS, _NUMBERS = 4000, 20_000  # 320 MB, in pieces that the C library keeps in its heap


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have other heaps")
def test_freed_tensors_leave_the_process() -> None:
    give_back("cpu")
    process = psutil.Process()
    before = process.memory_info().rss
    tensors = [torch.ones(_NUMBERS) for _ in range(_TENSORS)]
    top = torch.ones(_NUMBERS)  # above the others, so that the heap cannot shrink by itself
    full = process.memory_info().rss
    del tensors
    give_back("cpu")
    left = process.memory_info().rss - before
    assert full - before > 0.9 * 4 * _TENSORS * _NUMBERS, "nothing was there to give back"
    assert left < 0.2 * (full - before)
    assert float(top.sum()) == _NUMBERS
