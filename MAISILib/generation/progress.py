"""What a run tells its caller, and how the caller stops it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from MAISILib.errors import Cancelled

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Progress:
    """One piece of news.

    Args:
        stage: ``mask``, ``load``, ``diffusion``, ``decode``, ``quality`` or ``done``.
        done: Units of the stage that are finished.
        total: Units that the stage has.
        message: One line for people.
        sample: Index of the sample in the request.
        preview: A coronal slice ``(X, Z)`` uint8, where the stage has one.
    """

    stage: str
    done: int
    total: int
    message: str = ""
    sample: int = 0
    preview: Any = None


OnProgress = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Ignores all news."""


class CancelToken:
    """Handed to a run; ``cancel()`` from any thread stops it at the next layer of the next network."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Asks the run to stop."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked."""
        return self._event.is_set()

    def check(self) -> None:
        """Raises :class:`Cancelled` if somebody asked."""
        if self._event.is_set():
            raise Cancelled("Cancelled. Nothing was left half-written.")


@contextmanager
def interruptible(network: nn.Module, cancel: CancelToken) -> Iterator[nn.Module]:
    """Makes a network check ``cancel`` before each of its leaf layers, so that no forward pass outlives a cancel."""
    handles = [
        module.register_forward_pre_hook(lambda module, inputs: cancel.check())
        for module in network.modules()
        if next(module.children(), None) is None
    ]
    try:
        yield network
    finally:
        for handle in handles:
            handle.remove()
