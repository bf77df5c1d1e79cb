"""The processes of a training run and what they tell one another. Alone, every question is answered at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from MAISILib.errors import RequestError

_PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


class Processes:
    """Accelerate's view of this process: device, precision, and its companions where ``torchrun`` started several.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``float32``, ``bfloat16`` or ``float16``.
        in_phases: Some parameters get no gradient in some forward passes.

    Raises:
        RequestError: Accelerate is not installed, or the device or precision is not there.
    """

    def __init__(self, device: str, precision: str, *, in_phases: bool) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.state import AcceleratorState
            from accelerate.utils import DistributedDataParallelKwargs
        except ImportError:
            raise RequestError(
                "Training needs accelerate, which is not installed. Install it: pip install 'slicer-maisi[train]'."
            ) from None
        _check_device(device)
        # Accelerate keeps the precision of the first run for the whole process; a later run may want another.
        AcceleratorState._reset_state()
        try:
            self.accelerator = Accelerator(
                cpu=device == "cpu",
                mixed_precision=_PRECISIONS[precision],
                kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=in_phases)],
            )
        except ValueError as error:
            raise RequestError(f"Precision {precision} does not work here: {error} Ask for float32.") from error

    @property
    def count(self) -> int:
        """How many there are."""
        return self.accelerator.num_processes

    @property
    def index(self) -> int:
        """Which one this is, from 0."""
        return self.accelerator.process_index

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.accelerator.device

    def mean(self, metrics: dict[str, torch.Tensor]) -> dict[str, float]:
        """The mean of each scalar over all processes."""
        if self.count == 1:
            return {name: float(value) for name, value in metrics.items()}
        stacked = torch.stack([value.float() for value in metrics.values()])
        return dict(zip(metrics, self.accelerator.reduce(stacked, "mean").tolist(), strict=True))  # type: ignore[union-attr]

    def means_of(self, figures: Iterable[dict[str, float]]) -> dict[str, float]:
        """The mean of each figure over all items of all processes; an item may lack a figure."""
        rows = self.everyone(list(figures))
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: _mean([row[name] for row in rows if name in row]) for name in names}

    def everyone(self, things: list[Any]) -> list[Any]:
        """The things of all processes in one list."""
        if self.count == 1:
            return things
        from accelerate.utils import gather_object

        return gather_object(things)

    def means_lost(self, error: Exception) -> bool:
        """Whether an error says that another process of the run is gone."""
        if self.count == 1:
            return False
        return isinstance(error, torch.distributed.DistError) or "peer" in str(error) or "gloo" in str(error)

    def anyone(self, claim: bool) -> bool:
        """Whether any process says so: all of them must take the same way."""
        if self.count == 1:
            return claim
        told = torch.tensor([float(claim)], device=self.device)
        return float(self.accelerator.reduce(told, "sum")) > 0  # type: ignore[arg-type]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _check_device(device: str) -> None:
    there = {"auto": True, "cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device, False):
        usable = ", ".join(name for name, is_there in there.items() if is_there)
        raise RequestError(f"Device {device!r} is not there. Usable on this machine: {usable}.")
