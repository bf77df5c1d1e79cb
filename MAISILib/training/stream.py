"""Which items a step learns from. The position in the run decides, so that the order is the same on any machine."""

from __future__ import annotations

import random
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from MAISILib.errors import TrainingError
from MAISILib.training.task import Task, Tensors


@dataclass(frozen=True)
class Batch:
    """Items of one forward pass.

    Args:
        names: Of the items, for messages.
        tensors: Each with a leading batch axis.
    """

    names: list[str]
    tensors: Tensors


class ItemStream:
    """The endless sequence of training items, each exactly once an epoch, in an order of its own in every epoch.

    Position k of the run is item k mod n of epoch k div n, with random numbers of its own. A step takes the next
    ``batch · accumulate · processes`` positions; each process takes its share of each forward pass.

    Args:
        task: Whose items.
        seed: Of order and items.
        batch: Items per process and forward pass.
        accumulate: Forward passes per step.
        process: Which process this is.
        processes: How many there are.
    """

    def __init__(
        self, task: Task, seed: int, batch: int, accumulate: int = 1, process: int = 0, processes: int = 1
    ) -> None:
        self._task, self._seed, self._share, self._accumulate = task, seed, batch, accumulate
        self._process, self._processes = process, processes
        self._epoch, self._order = -1, []

    @property
    def positions_per_step(self) -> int:
        """How far a step goes, all processes together."""
        return self._share * self._accumulate * self._processes

    def batches(self, position: int) -> Generator[list[Batch], None, None]:
        """This process's batches, step after step from ``position`` on; a thread loads the next step's meanwhile."""
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(self.load, position)
            while True:
                ready = waiting.result()
                position += self.positions_per_step
                waiting = pool.submit(self.load, position)
                try:
                    yield ready
                except GeneratorExit:
                    waiting.cancel()
                    raise

    def load(self, position: int) -> list[Batch]:
        """This process's share of the step that begins at a position: one batch per forward pass."""
        round_ = self._share * self._processes
        starts = (position + a * round_ + self._process * self._share for a in range(self._accumulate))
        return [self._one_batch(range(s, s + self._share)) for s in starts]

    def _one_batch(self, positions: range) -> Batch:
        indices = [self._item_at(p) for p in positions]
        items = [
            self._task.load_item(i, random.Random(f"{self._seed}/{p}")) for i, p in zip(indices, positions, strict=True)
        ]
        names = [self._task.item_name(i) for i in indices]
        shapes = [{key: tuple(tensor.shape) for key, tensor in item.items()} for item in items]
        for name, shape in zip(names, shapes, strict=True):
            unlike = [key for key in shape.keys() | shapes[0].keys() if shape.get(key) != shapes[0].get(key)]
            if unlike:
                key = sorted(unlike)[0]
                raise TrainingError(
                    f"{names[0]} and {name} cannot share a batch: {key} is {shapes[0].get(key)} and {shape.get(key)}. "
                    "Bring all items to one size, or set batch to 1 in the recipe (accumulate makes up for it)."
                )
        return Batch(names, {key: torch.stack([item[key] for item in items]) for key in items[0]})

    def _item_at(self, position: int) -> int:
        epoch, place = divmod(position, self._task.item_count())
        if self._epoch != epoch:
            self._order = list(range(self._task.item_count()))
            random.Random(f"{self._seed}/epoch {epoch}").shuffle(self._order)
            self._epoch = epoch
        return self._order[place]
