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
#: A strategy that ran out of memory is followed by the fastest one that needs at most this part of it.
_LEANER = 0.7


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


class Ways:
    """All ways through an encoder or a decoder for one volume, each counted once.

    Args:
        layers: Of an encoder or a decoder.
        shape: Voxels ``(x, y, z)`` of its input.
        host: Bytes at hand in host memory, where the device has its own.
        disk: Bytes at hand for temporary files.
    """

    def __init__(
        self, layers: Sequence[Layer], shape: Sequence[int], *, host: float | None = None, disk: float = 0.0
    ) -> None:
        self._layers, self._shape = layers, shape
        self._rooms = {"device": None, **({"host": host} if host else {}), **({"file": disk} if disk else {})}
        self._counted: dict[str, list[Choice]] = {}

    def within(self, budget: float) -> Choice:
        """The fastest way whose memory stays below ``budget`` bytes (without weights), or else the leanest of all.

        Ways that hold everything in memory come first: a file is used only where none of them fits.
        """
        for storage in self._rooms:
            fitting = [choice for choice in self._of(storage) if choice.bytes <= budget]
            if fitting:
                return min(fitting, key=lambda choice: choice.work)
        return self.leanest

    @property
    def leanest(self) -> Choice:
        """The way that needs the least memory."""
        return min((c for storage in self._rooms for c in self._of(storage)), key=lambda choice: choice.bytes)

    def front(self) -> list[Choice]:
        """Ways of which each is the fastest within its memory, the leanest first."""
        found: list[Choice] = []
        every = (choice for storage in self._rooms for choice in self._of(storage))
        for choice in sorted(every, key=lambda choice: choice.bytes):
            if (best := self.within(choice.bytes)) not in found:
                found.append(best)
        return found

    def after(self, strategy: Strategy) -> Choice | None:
        """What to try where a strategy ran out of memory all the same; ``None`` after the leanest."""
        failed = counted(self._layers, self._shape, strategy).bytes
        choice = self.within(failed * _LEANER)
        return choice if choice.bytes < failed else None

    def _of(self, storage: str) -> list[Choice]:
        if storage not in self._counted:
            found = [counted(self._layers, self._shape, s) for s in candidates(self._layers, self._shape, storage)]
            room = self._rooms[storage]
            self._counted[storage] = [c for c in found if room is None or c.cost.stored_bytes <= room]
        return self._counted[storage]


def choose(
    layers: Sequence[Layer], shape: Sequence[int], budget: float, *, host: float | None = None, disk: float = 0.0
) -> Choice:
    """The fastest way within a budget, or else the leanest; see :class:`Ways`."""
    return Ways(layers, shape, host=host, disk=disk).within(budget)
