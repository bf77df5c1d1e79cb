"""What a training run keeps on disk: one checkpoint that resumes it, replaced as a whole, and a log of metrics."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from MAISILib.errors import TrainingError


class MovingAverage:
    """Exponential moving average of a network's weights, warmed up so that early steps do not linger.

    The decay at step n is ``min(decay, (1 + n) / (10 + n))``.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.weights = {k: v.detach().clone().float() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes one step towards the network's present weights."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        for name, value in network.state_dict().items():
            self.weights[name].lerp_(value.detach().float(), 1 - decay)


class Run:
    """A folder with ``checkpoint.pt`` and ``metrics.jsonl``; saves every few minutes, resumes where it stopped.

    Args:
        folder: Made if missing.
        networks: Trained networks by name; each gets a moving average.
        optimizer: Its state is saved too.
        recipe: What the run was asked to do; a resumed run must have been asked the same.
        average_decay: Decay of the moving averages.
        minutes_between_saves: At least this long between two checkpoints.
    """

    def __init__(
        self,
        folder: Path,
        networks: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        recipe: dict[str, Any],
        *,
        average_decay: float = 0.999,
        minutes_between_saves: float = 2.0,
    ) -> None:
        self.folder, self.networks, self.optimizer, self.recipe = folder, networks, optimizer, recipe
        self.averages = {name: MovingAverage(network, average_decay) for name, network in networks.items()}
        self.step, self.seconds = 0, 0.0
        self._interval, self._saved = minutes_between_saves * 60, time.monotonic()
        self._ticked = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self._checkpoint = folder / "checkpoint.pt"
        if self._checkpoint.exists():
            self._load()

    def _load(self) -> None:
        state = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
        old = json.loads(state["recipe"])
        differing = sorted(k for k in old.keys() | self.recipe.keys() if old.get(k) != self.recipe.get(k))
        if differing:
            raise TrainingError(
                f"{self.folder} holds a run of another recipe (differing: {', '.join(differing)}). "
                "Give the same recipe to resume, or another --out to start anew."
            )
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
            self.averages[name].weights = state["averages"][name]
            self.averages[name].count = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self._forget_later_steps()
        torch.set_rng_state(state["torch_rng"])

    def _forget_later_steps(self) -> None:
        """Drops what was logged after the checkpoint: those steps are made again."""
        log = self.folder / "metrics.jsonl"
        if log.exists():
            lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
            log.write_text("".join(lines[: self.step]), encoding="utf-8")

    def random_for_step(self) -> random.Random:
        """Random numbers for choosing the data of the present step: the same after a resume."""
        return random.Random(f"{self.recipe.get('seed', 0)}/{self.step}")

    def advance(self, metrics: dict[str, float]) -> None:
        """Ends a step: updates averages, logs, and saves when it is time.

        Raises:
            TrainingError: A metric is NaN or infinite; the last checkpoint stays.
        """
        if not all(np.isfinite(v) for v in metrics.values()):
            raise TrainingError(
                f"Step {self.step} of {self.folder} gave {metrics}. The last checkpoint is kept; lower the rate."
            )
        for name, average in self.averages.items():
            average.update(self.networks[name])
        self.step += 1
        now = time.monotonic()
        self.seconds += now - self._ticked
        self._ticked = now
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": self.step, "seconds": round(self.seconds, 1), **metrics}) + "\n")
        if now - self._saved > self._interval:
            self.save()

    def save(self) -> None:
        """Writes the checkpoint beside the old one, then puts it in its place."""
        state = {
            "recipe": json.dumps(self.recipe, sort_keys=True),
            "networks": {n: network.state_dict() for n, network in self.networks.items()},
            "averages": {n: a.weights for n, a in self.averages.items()},
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "torch_rng": torch.get_rng_state(),
        }
        temporary = self._checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self._checkpoint)
        self._saved = time.monotonic()


def cosine_rate(step: int, steps: int, peak: float, warmup: int = 50) -> float:
    """Learning rate: linear warm-up, then a half cosine down to 2 % of the peak."""
    import math

    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def averaged_weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The moving-average weights of network ``name`` from a run's checkpoint."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        raise TrainingError(f"{path} does not exist. Train that network first.")
    return torch.load(path, map_location="cpu", weights_only=True)["averages"][name]
