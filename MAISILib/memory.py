"""Gives freed memory back, so that a stage does not carry what the stage before has used."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

import torch


def give_back(device: str) -> None:
    """Returns memory that nothing uses any more to the GPU, or to the operating system.

    The C library of Linux keeps freed weights in its heap, where nothing but this process can use them.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
    """
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()
    if trim := _trim():
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """The ``malloc_trim`` of glibc; ``None`` where the C library is another one."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
