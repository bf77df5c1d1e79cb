"""From noise to a clean latent: conditioning, guidance, and the loop over steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from MAISILib.diffusion.networks import Conditions, control_residuals, embed_mask, predict
from MAISILib.diffusion.schedules import Mode, Schedule
from MAISILib.diffusion.solvers import Solver, StepHook


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


class Denoiser:
    """UNet, ControlNet and everything they are told, as one function of latent and time.

    Args:
        unet: Diffusion UNet.
        controlnet: ``None`` for image-only generation.
        conditions: Modality, spacing, regions.
        bits: Mask as 8 binary channels ``(1, 8, X, Y, Z)``, or ``None``.
        guidance: ``None`` where it is off.
        device: Where the networks are.
        autocast: Reduced precision for the networks' arithmetic, or ``None``; the latent stays float32.
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
    ) -> None:
        self._unet, self._controlnet, self._autocast = unet, controlnet, autocast
        self._device = torch.device(device)
        self._guidance = guidance
        self._inputs = conditions.tensors(self._device)
        self._embedding = self._embed(bits)
        if guidance is not None:
            self._free_inputs = replace(conditions, modality=guidance.free_modality).tensors(self._device)
            self._free_embedding = self._embed(guidance.free_bits)

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
            conditioned = self._one_side(x, time, self._inputs, self._embedding)
            if self._guidance is None:
                return conditioned
            free = self._one_side(x, time, self._free_inputs, self._free_embedding)
        return free + self._guidance.scale * (conditioned - free)

    def _one_side(
        self, x: torch.Tensor, time: float, inputs: dict[str, torch.Tensor], embedding: torch.Tensor | None
    ) -> torch.Tensor:
        times = torch.full((x.shape[0],), time, dtype=torch.float32, device=self._device)
        residuals = None
        if embedding is not None:
            residuals = control_residuals(self._controlnet, x, times, embedding, inputs["class_labels"])
        return predict(self._unet, x, times, inputs, residuals).float()


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
