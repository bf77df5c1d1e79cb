"""From noise to a clean latent: conditioning, guidance, and the loop over steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from MAISILib.diffusion.networks import Conditions, control_residuals, embed_mask, predict
from MAISILib.diffusion.schedules import Mode, Schedule
from MAISILib.diffusion.solvers import Solver, StepHook
from MAISILib.errors import means_out_of_memory


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: ``prediction = free + scale·(conditioned − free)``.

    Args:
        scale: 1 equals no guidance; 1–5 is useful. (A request's 0, "off", means no ``Guidance`` at all.)
        free_modality: Class code of the unconditional side.
        free_bits: Mask of the unconditional side (tumours replaced by their hosts), ``(1, 8, X, Y, Z)``, or ``None``
            for image-only generation.
    """

    scale: float
    free_modality: int
    free_bits: torch.Tensor | None = None


@dataclass(frozen=True)
class _Side:
    """What the networks are told on one side of guidance: rows of inputs, and the mask's embedding."""

    inputs: dict[str, torch.Tensor]
    embedding: torch.Tensor | None

    @staticmethod
    def joined(sides: Sequence[_Side]) -> _Side:
        """Several sides as the rows of one batch."""
        if len(sides) == 1:
            return sides[0]
        embeddings = [side.embedding for side in sides if side.embedding is not None]
        inputs = {name: torch.cat([side.inputs[name] for side in sides]) for name in sides[0].inputs}
        return _Side(inputs, torch.cat(embeddings) if embeddings else None)


class Denoiser:
    """UNet, ControlNet and everything they are told, as one function of latent and time.

    Masks are embedded once, here. Guidance of scale 1, or with two sides that these networks cannot tell apart (same
    mask; same modality, or networks without such an input), changes nothing and is left out.

    Args:
        unet: Diffusion UNet.
        controlnet: ``None`` for image-only generation.
        conditions: Modality, spacing, regions.
        bits: Mask as 8 binary channels ``(1, 8, X, Y, Z)``, or ``None``.
        guidance: ``None`` where it is off.
        device: Where the networks are.
        autocast: Reduced precision for the networks' arithmetic, or ``None``; the latent stays float32.
        batched: Whether both sides of guidance go through the networks in one call. ``None`` does so off the CPU, where
            it takes less time (on a CPU it only takes more memory). When memory runs out there, two calls are made.
    """

    def __init__(
        self,
        unet: nn.Module,
        controlnet: nn.Module | None,
        conditions: Conditions,
        bits: torch.Tensor | None = None,
        guidance: Guidance | None = None,
        *,
        device: str = "cpu",
        autocast: torch.dtype | None = None,
        batched: bool | None = None,
    ) -> None:
        self._unet, self._controlnet, self._autocast = unet, controlnet, autocast
        self._device = torch.device(device)
        self._is_batched = self._device.type != "cpu" if batched is None else batched
        self._told = _Side(conditions.tensors(self._device), self._embed(bits))
        self._scale: float | None = None  # not the guidance: its mask is large, and used here only
        if guidance is None:
            return
        free, free_bits = replace(conditions, modality=guidance.free_modality), guidance.free_bits
        is_same_mask = self._told.embedding is None or (
            bits is not None and free_bits is not None and torch.equal(bits, free_bits)
        )
        is_same_modality = free == conditions or getattr(unet, "num_class_embeds", None) is None
        if guidance.scale == 1 or (is_same_mask and is_same_modality):
            return
        self._scale = guidance.scale
        embedding = self._told.embedding if is_same_mask else self._embed(free_bits)
        self._free = _Side(free.tensors(self._device), embedding)

    @property
    def sides(self) -> int:
        """How often the networks are evaluated at each time: twice where guidance matters."""
        return 1 if self._scale is None else 2

    def _embed(self, bits: torch.Tensor | None) -> torch.Tensor | None:
        if bits is None or self._controlnet is None:
            return None
        with self._precision():
            return embed_mask(self._controlnet, bits.to(self._device, torch.float32))

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, self._autocast or torch.bfloat16, enabled=self._autocast is not None)

    def __call__(self, x: torch.Tensor, time: float) -> torch.Tensor:
        """Velocity or noise for ``x`` ``(1, C, X, Y, Z)`` float32 at ``time`` (training timesteps)."""
        with self._precision():
            if self._scale is None:
                return self._predict(x, time, self._told)
            told, free = self._both_sides(x, time)
        return free + self._scale * (told - free)

    def _both_sides(self, x: torch.Tensor, time: float) -> tuple[torch.Tensor, ...]:
        if self._is_batched:
            try:
                return self._predict(x, time, self._told, self._free).chunk(2)
            except (MemoryError, RuntimeError) as error:
                if not means_out_of_memory(error):
                    raise
                self._is_batched = False
        return self._predict(x, time, self._told), self._predict(x, time, self._free)

    def _predict(self, x: torch.Tensor, time: float, *sides: _Side) -> torch.Tensor:
        """One call of the networks: predictions ``(N, C, X, Y, Z)`` for N sides."""
        side = _Side.joined(sides)
        x = x.expand(len(sides), *x.shape[1:])
        times = torch.full((len(sides),), time, dtype=torch.float32, device=self._device)
        residuals = None
        if side.embedding is not None:
            residuals = control_residuals(self._controlnet, x, times, side.embedding, side.inputs["class_labels"])
        return predict(self._unet, x, times, side.inputs, residuals).float()


@torch.inference_mode()
def sample_latent(
    denoiser: Callable[[torch.Tensor, float], torch.Tensor],
    schedule: Schedule,
    solver: Solver,
    shape: tuple[int, int, int, int],
    *,
    steps: int,
    seed: int,
    mode: Mode = "exact",
    device: str = "cpu",
    on_step: StepHook = lambda done, state, clean: None,
) -> torch.Tensor:
    """Draws noise and walks it to a latent.

    All noise comes from one CPU generator in float32, so a seed means the same noise on every device.

    Args:
        denoiser: ``(x, time) → prediction``.
        schedule: Which times there are.
        solver: How to step.
        shape: Latent shape ``(C, X, Y, Z)``.
        steps: Number of steps.
        seed: Of this sample.
        mode: ``exact`` or ``upstream``.
        device: Where the latent lives.
        on_step: Called after each step; raise in it to cancel.

    Returns:
        Latent ``(1, C, X, Y, Z)`` float32, still multiplied by the scale factor.
    """
    generator = torch.Generator("cpu").manual_seed(seed)

    def draw_noise() -> torch.Tensor:
        return torch.randn((1, *shape), generator=generator, dtype=torch.float32).to(device)

    planned = schedule.steps(steps, math.prod(shape[1:]), mode)
    return solver.solve(denoiser, draw_noise(), planned, draw_noise, on_step)
