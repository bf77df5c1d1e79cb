"""The fastest strategy that fits into the memory at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from MAISILib.codec.layers import Layer
from MAISILib.codec.strategies import Cost, Strategy, Walk, candidates

#: A number that is normalised, interpolated or summed takes as long as so many operations of a convolution (measured).
ELEMENT_FLOPS = 25
#: Convolutions hold buffers of their own, and freed memory returns to the system late: part of the tensors' bytes.
_ALLOCATOR = 1.1
#: What a file costs in time: a byte that is written and read again, in operations of a convolution.
_FILE_FLOPS_PER_BYTE = 500.0


@dataclass(frozen=True)
class Choice:
    """A strategy with its cost.

    Args:
        strategy: The way.
        cost: As counted.
    """

    strategy: Strategy
    cost: Cost

    @property
    def bytes(self) -> int:
        """Memory beside the weights, on the device and (``host``) beside it."""
        return round(self.cost.bytes * _ALLOCATOR)

    @property
    def work(self) -> float:
        """Time, in operations of a convolution."""
        file = self.cost.stored_bytes * _FILE_FLOPS_PER_BYTE if self.strategy.storage == "file" else 0.0
        return self.cost.flops + ELEMENT_FLOPS * self.cost.elements + file


def counted(layers: Sequence[Layer], shape: Sequence[int], strategy: Strategy) -> Choice:
    """A strategy with its cost for an input of ``shape`` voxels."""
    return Choice(strategy, Walk(layers, shape, strategy).cost())


def choose(
    layers: Sequence[Layer], shape: Sequence[int], budget: float, *, host: float | None = None, disk: float = 0.0
) -> Choice:
    """The fastest way whose memory stays below ``budget``, or else the leanest of all.

    Ways that hold everything in memory come first: a file is used only where none of them fits.

    Args:
        layers: Of an encoder or a decoder.
        shape: Voxels ``(x, y, z)`` of its input.
        budget: Bytes at hand on the device, without those of weights.
        host: Bytes at hand in host memory, where the device has its own.
        disk: Bytes at hand for temporary files.
    """
    weighed: list[Choice] = []
    for storage, room in (("device", None), ("host", host), ("file", disk)):
        if storage != "device" and not room:
            continue
        found = [counted(layers, shape, s) for s in candidates(layers, shape, storage)]
        found = [choice for choice in found if room is None or choice.cost.stored_bytes <= room]
        fitting = [choice for choice in found if choice.bytes <= budget]
        if fitting:
            return min(fitting, key=lambda choice: choice.work)
        weighed += found
    return min(weighed, key=lambda choice: choice.bytes)
