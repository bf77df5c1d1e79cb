"""What the trainer must be told about a network: its data, its losses, its validation."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

import torch
from torch import nn

#: Tensors of one training item (no batch axis), or of a batch (leading batch axis).
Tensors = dict[str, torch.Tensor]


class Task(Protocol):
    """One kind of training.

    Attributes:
        name: For messages and file names, for example ``autoencoder``.
        networks: Networks that learn. Each has an optimiser, a moving average and its place in the checkpoint.
        phases: Phase → networks whose weights its loss moves, in order; mostly ``{"main": (...)}``. In adversarial
            training there are two.
        judged_by: Figures of :meth:`validate_item` that a recipe may name as ``best_metric``; smaller is better.
        facts: What else a resumed run must have in common with the broken one, by what messages call it: the latents'
            scale factor, the SHA-256 of the weights of networks that are used and not trained.
    """

    name: str
    judged_by: tuple[str, ...]
    facts: dict[str, str]
    networks: dict[str, nn.Module]
    phases: dict[str, tuple[str, ...]]

    def item_count(self) -> int:
        """Number of training items."""
        ...

    def item_name(self, index: int) -> str:
        """What an item is called in messages."""
        ...

    def load_item(self, index: int, rng: random.Random) -> Tensors:
        """One item.

        All chance (augmentation, noise, timestep, dropout) comes from ``rng``, so that an item is the same on any
        number of processes and after a resume. Items of a batch have equal shapes.
        """
        ...

    def losses(self, phase: str, batch: Tensors) -> Tensors:
        """Losses per sample, ``(N,)``: ``loss`` is minimised, the others are reported.

        A sample's loss does not depend on the other samples: two processes do what one does with the doubled batch.
        """
        ...

    def validation_count(self) -> int:
        """Number of held-out items; may be 0."""
        ...

    def validation_name(self, index: int) -> str:
        """What a held-out item is called in messages."""
        ...

    def validate_item(self, index: int, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """Figures of one held-out item, computed with the averaged weights."""
        ...


class Items(Protocol):
    """What a task reads: a number of items, each with a name."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def name(self, index: int) -> str:
        """What an item is called in messages."""
        ...


AnyItems = TypeVar("AnyItems", bound=Items)


class DatasetTask(Generic[AnyItems]):
    """The part of a :class:`Task` that is the same for all that read their items from two data sets.

    Args:
        training: Items to learn from.
        validation: Held-out items.
    """

    def __init__(self, training: AnyItems, validation: AnyItems) -> None:
        self._training, self._validation = training, validation
        self.facts: dict[str, str] = {}

    def item_count(self) -> int:
        """Number of training items."""
        return len(self._training)

    def item_name(self, index: int) -> str:
        """Name of a training item."""
        return self._training.name(index)

    def validation_count(self) -> int:
        """Number of held-out items."""
        return len(self._validation)

    def validation_name(self, index: int) -> str:
        """Name of a held-out item."""
        return self._validation.name(index)


def generator_of(rng: random.Random) -> torch.Generator:
    """A CPU generator for tensors of noise, seeded from an item's random numbers."""
    return torch.Generator("cpu").manual_seed(rng.getrandbits(63))
