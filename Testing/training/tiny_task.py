"""A training of milliseconds: two layers that learn to repeat their input, at wish before a second network as judge."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from MAISILib.generation.progress import CancelToken
from MAISILib.jobs.folder import Event
from MAISILib.training.recipes import Recipe
from MAISILib.training.task import Tensors, generator_of
from MAISILib.training.trainer import Trainer


class TinyTask:
    """Learns ``items`` vectors, each with fresh noise whenever it is loaded.

    Args:
        items: How many.
        judged: Train in two phases, the second with what the first has left in the batch.
        validation: How many held-out items.
        prefix: Of the items' names.
    """

    name = "tiny"
    judged_by: tuple[str, ...] = ("loss",)

    def __init__(self, items: int = 5, *, judged: bool = False, validation: int = 0, prefix: str = "pt") -> None:
        torch.manual_seed(1)
        self._items, self._validation, self._prefix = items, validation, prefix
        self.networks: dict[str, nn.Module] = {
            "unet": nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)),
        }
        self.phases: dict[str, tuple[str, ...]] = {"main": ("unet",)}
        if judged:
            self.networks["judge"] = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
            self.phases = {"generator": ("unet",), "judge": ("judge",)}
        self.facts: dict[str, str] = {}
        self.scripted: list[float] = []
        """Validation figures to give instead of measured ones."""

    def item_count(self) -> int:
        return self._items

    def item_name(self, index: int) -> str:
        return f"{self._prefix}_{index}"

    def load_item(self, index: int, rng: random.Random) -> Tensors:
        clean = torch.randn(4, generator=torch.Generator().manual_seed(index))
        noise = torch.randn(4, generator=generator_of(rng))
        return {"clean": clean, "noisy": clean + 0.1 * noise, "index": torch.tensor(index)}

    def losses(self, phase: str, batch: Tensors) -> Tensors:
        if phase == "judge":
            judge = self.networks["judge"]
            return {"loss": ((judge(batch["clean"]) - 1) ** 2 + judge(batch["said"]) ** 2).mean(1)}
        said = self.networks["unet"](batch["noisy"])
        error = ((said - batch["clean"]) ** 2).mean(1)
        loss = self.spoil(error, batch)
        if phase == "generator":
            batch["said"] = said.detach()
            loss = loss + 0.1 * ((self.networks["judge"](said) - 1) ** 2).mean(1)
        return {"loss": loss, "error": error}

    def spoil(self, loss: torch.Tensor, batch: Tensors) -> torch.Tensor:
        """For tests of what goes wrong."""
        return loss

    def validation_count(self) -> int:
        return self._validation

    def validation_name(self, index: int) -> str:
        return f"held_{self._prefix}_{index}"

    def validate_item(self, index: int, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        if self.scripted:
            return {"loss": self.scripted.pop(0)}
        clean = torch.randn(4, generator=torch.Generator().manual_seed(100 + index))
        figures = {"loss": float(((networks["unet"](clean) - clean) ** 2).mean())}
        return figures | ({"seen": float(index)} if index else {})


class PowerCut(Exception):
    pass


def train(folder: Path, task: Any = None, *, cancel_at: int = -1, cut_at: int = -1, **asked: Any) -> Trainer:
    """Trains in ``folder``, going on with what is there, and returns the trainer as it ended.

    Args:
        folder: The run.
        task: A fresh :class:`TinyTask` by default.
        cancel_at: The user cancels after this step; :class:`MAISILib.errors.Cancelled` is raised.
        cut_at: Power fails after this step; :class:`PowerCut` is raised and nothing is saved.
        **asked: Fields of the recipe.
    """
    token = CancelToken()

    def hear(event: Event) -> None:
        if event.stage == "tiny" and event.done == cancel_at:
            token.cancel()
        if event.stage == "tiny" and event.done == cut_at:
            raise PowerCut

    recipe = Recipe(**{"steps": 7, "seed": 3, "rate": 0.01, "save_minutes": 1000, **asked})
    trainer = Trainer(task or TinyTask(), recipe, folder, resume=True, device="cpu", cancel=token, on_event=hear)
    trainer.run()
    return trainer


def state_of(folder: Path) -> dict[str, Any]:
    """All that a checkpoint holds, but for the time that was spent."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    return {name: value for name, value in state.items() if name != "seconds"}


def same(one: Any, two: Any) -> bool:
    """Equal bit for bit, whatever it is made of."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(value, two[name]) for name, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def losses_of(folder: Path) -> dict[int, dict[str, float]]:
    """Metrics by step; of a step that was taken twice, the later ones."""
    lines = (json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines())
    return {line["done"]: line["metrics"] for line in lines if line["stage"] == "tiny" and "metrics" in line}
