"""One file that holds a training run as it stands, and the moving average of weights that is part of it."""

from __future__ import annotations

import errno
import json
import pickle
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from MAISILib.errors import TrainingError
from MAISILib.files.atomic import atomic_path

_FORMAT = 1
#: How PyTorch's writer of files reports a full disk.
_FULL_DISK = ("unexpected pos", "PytorchStreamWriter", "inline_container", "iostream")


class MovingAverage:
    """Exponential moving average of a network's weights in float32, warmed up so that early steps do not linger.

    The decay at step n is ``min(decay, (1 + n) / (10 + n))``.

    Args:
        network: Its present weights are where the average starts.
        decay: ``None`` follows the weights at once.
    """

    def __init__(self, network: nn.Module, decay: float | None) -> None:
        self._decay, self._count = decay, 0
        self.weights = {k: v.detach().clone().float() for k, v in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes one step towards the network's present weights."""
        self._count += 1
        decay = 0.0 if self._decay is None else min(self._decay, (1 + self._count) / (10 + self._count))
        for name, value in network.state_dict().items():
            self.weights[name].lerp_(value.detach().float(), 1 - decay)

    def restore(self, weights: dict[str, torch.Tensor], count: int) -> None:
        """Goes back to an earlier state, on the device of the present one."""
        self.weights = {name: value.to(self.weights[name].device) for name, value in weights.items()}
        self._count = count


@dataclass
class Checkpoint:
    """All of a run.

    Args:
        identity: What was asked for and on which items, see :func:`check_same_run`.
        networks: Weights by network.
        averages: Averaged weights by network, float32.
        optimizers: State by phase.
        step: Steps taken.
        position: Items taken by all processes together.
        seconds: Time spent.
        best: Best validation figure so far.
        since_best: Validations since then.
        first_losses: Losses of the first steps.
        scaler: State of the float16 gradient scaler.
        torch_rng: PyTorch's random state on the CPU.
        figures: Of the last validation.
    """

    identity: dict[str, Any]
    networks: dict[str, dict[str, torch.Tensor]]
    averages: dict[str, dict[str, torch.Tensor]]
    optimizers: dict[str, dict[str, Any]]
    step: int
    position: int
    seconds: float
    best: float | None
    since_best: int
    first_losses: list[float]
    scaler: dict[str, Any] | None
    torch_rng: torch.Tensor
    figures: dict[str, float] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Replaces the file as a whole.

        Raises:
            OutputError: It cannot be written; an older one stays as it was.
        """
        state = {f.name: getattr(self, f.name) for f in fields(self)}
        state |= {"format": _FORMAT, "identity": json.dumps(self.identity, sort_keys=True)}
        with atomic_path(path) as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:
                if not any(words in str(error) for words in _FULL_DISK):
                    raise
                raise OSError(errno.ENOSPC, str(error)) from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint onto the CPU; nothing in the file is executed.

    Raises:
        TrainingError: No such file, or not a checkpoint of ours.
    """
    if not path.is_file():
        raise TrainingError(f"{path} does not exist. Train that network first.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state.pop("format") != _FORMAT:
            raise ValueError("it has another format")
        return Checkpoint(**{**state, "identity": json.loads(state["identity"])})
    except OSError as error:
        raise TrainingError(f"{path} cannot be read ({error.strerror or error}).") from None
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        # PyTorch's own message advises to load the file unsafely.
        raise TrainingError(
            f"{path} is no checkpoint of this program, or a damaged one; nothing in it was executed. Start anew."
        ) from None


def check_same_run(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    """Refuses to go on with a run that was asked something else.

    Raises:
        TrainingError: Names every field that differs, with both values.
    """
    differing = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    if differing:
        told = "; ".join(f"{name} was {_shown(old.get(name))}, is {_shown(new.get(name))}" for name in differing)
        raise TrainingError(
            f"{folder} holds another run: {told}. Resume with the same recipe and data, or start anew in another --out."
        )


def _shown(value: Any) -> str:
    if isinstance(value, list) and len(value) > 6:
        return f"{len(value)} entries"
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
