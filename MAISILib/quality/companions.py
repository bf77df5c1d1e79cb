"""The processes of an evaluation that ``torchrun`` started, which share its volumes out among them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Companions:
    """This process among its companions; alone, every question is answered at once.

    Args:
        index: Which one this is, from 0.
        count: How many there are.
    """

    def __init__(self, index: int = 0, count: int = 1) -> None:
        self.index, self.count = index, count

    @property
    def is_first(self) -> bool:
        """Whether this is the one that tells."""
        return self.index == 0

    def share_of(self, things: Sequence[T]) -> list[T]:
        """The part of the things that this process works on: every ``count``-th one."""
        return list(things[self.index :: self.count])

    def everyones(self, things: list[T]) -> list[T]:
        """The things of all processes; waits until all of them have come here."""
        if self.count == 1:
            return things
        from torch import distributed

        gathered: list[Any] = [None] * self.count
        distributed.all_gather_object(gathered, things)
        return [thing for part in gathered for thing in part]

    def firsts(self, thing: T) -> T:
        """What the first process has."""
        if self.count == 1:
            return thing
        from torch import distributed

        told: list[Any] = [thing]
        distributed.broadcast_object_list(told, src=0)
        return told[0]


@contextmanager
def companions(device: str) -> Iterator[tuple[Companions, str]]:
    """Finds the companions of this process, for the length of the block.

    Args:
        device: ``cpu``, ``mps``, or ``cuda``, of which every process takes its own: they talk through NCCL, on other
            devices through gloo.

    Yields:
        The companions, and the device of this process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Companions(), device
        return
    import torch
    from torch import distributed

    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Companions(distributed.get_rank(), distributed.get_world_size()), device
    finally:
        distributed.destroy_process_group()
