"""The processes of a training run and what they tell one another. Alone, every question is answered at once."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from typing import Any

import torch

from MAISILib.errors import RequestError
from MAISILib.generation.plan import choose_device

_PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


class Processes:
    """Accelerate's view of this process: device, precision, and its companions where ``torchrun`` started several.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` (one process only) or ``mps`` (the same).
        precision: ``float32``, ``bfloat16`` or ``float16``.
        in_phases: Some parameters get no gradient in some forward passes.

    Raises:
        RequestError: Accelerate is not installed, the device or precision is not there, or there is no device for each
            process.
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
        choose_device(device)
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if several:
            _check_devices_of_all(device)
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)
        # Accelerate keeps device and precision of the first run for the whole process; a later run may want others.
        AcceleratorState._reset_state(reset_partial_state=True)
        try:
            self.accelerator = Accelerator(
                # Processes on CPUs find one another only if the CPU is asked for; else each would train alone.
                cpu=device == "cpu" or (several and not torch.cuda.is_available()),
                mixed_precision=_PRECISIONS[precision],
                kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=in_phases)],
            )
        except ValueError as error:
            raise RequestError(f"Precision {precision} does not work here: {error} Ask for float32.") from error
        if several:
            atexit.register(_leave)

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


def _check_devices_of_all(device: str) -> None:
    """Makes sure that each process on this machine has a device of its own."""
    if device not in ("auto", "cpu", "cuda"):
        raise RequestError(f"Several processes cannot share the device {device!r}. Use --device auto, cuda or cpu.")
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if device != "cpu" and 0 < gpus < here:
        raise RequestError(
            f"This machine has GPUs for {gpus} of {here} processes. Start torchrun with --nproc_per_node={gpus}, or "
            "train with --device cpu."
        )


def _leave() -> None:
    """Ends the threads through which processes talk: one that is left when Python ends can abort the process."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
