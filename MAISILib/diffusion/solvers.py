"""How the sampler steps along a schedule. Each solver handles one kind of step; further ones register here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from MAISILib.diffusion.schedules import DdpmStep, FlowStep
from MAISILib.diffusion.solver_names import SOLVER_NAMES
from MAISILib.errors import RequestError, did_you_mean

#: ``model(x, time) → prediction`` for one sample ``(1, C, X, Y, Z)``; ``time`` in training timesteps.
Model = Callable[[torch.Tensor, float], torch.Tensor]
#: Draws standard normal noise of a latent's shape, on the latent's device.
NoiseSource = Callable[[], torch.Tensor]
#: Called after every step with (steps done, state, estimate of the clean latent); may raise to stop.
StepHook = Callable[[int, torch.Tensor, torch.Tensor], None]


class Solver(Protocol):
    """Takes a latent from noise to image."""

    #: The step type that it understands.
    step_type: type

    def solve(
        self, model: Model, x: torch.Tensor, steps: Sequence[Any], draw_noise: NoiseSource, on_step: StepHook
    ) -> torch.Tensor:
        """Walks all ``steps`` from ``x`` and returns the clean latent."""
        ...


class EulerSolver:
    """First-order steps along the flow: ``x ← x + v·Δ``."""

    step_type = FlowStep

    def solve(
        self, model: Model, x: torch.Tensor, steps: Sequence[FlowStep], draw_noise: NoiseSource, on_step: StepHook
    ) -> torch.Tensor:
        """One evaluation per step. No noise is drawn."""
        remaining = sum(step.delta for step in steps)
        for number, step in enumerate(steps, start=1):
            velocity = model(x, step.time)
            clean = x + velocity * remaining
            x = x + velocity * step.delta
            remaining -= step.delta
            on_step(number, x, clean)
        return x


class AncestralSolver:
    """DDPM's own sampler: one posterior step with fresh noise per evaluation (arXiv:2006.11239, algorithm 2)."""

    step_type = DdpmStep

    def solve(
        self, model: Model, x: torch.Tensor, steps: Sequence[DdpmStep], draw_noise: NoiseSource, on_step: StepHook
    ) -> torch.Tensor:
        """One evaluation per step; noise is drawn at every step but the last."""
        for number, step in enumerate(steps, start=1):
            clean = (x - step.sigma * model(x, step.time)) / step.alpha
            x = step.from_clean * clean + step.from_noisy * x
            if step.deviation:
                x = x + step.deviation * draw_noise()
            on_step(number, x, clean)
        return x


class DdimSolver:
    """DDIM without fresh noise (Song et al. 2021, arXiv:2010.02502, equation 12 with σ = 0), for few steps.

    ``x ← alpha'·x₀ + sigma'·ε`` with the alpha and sigma of the next visited time; the last step ends at ``x₀``.
    """

    step_type = DdpmStep

    def solve(
        self, model: Model, x: torch.Tensor, steps: Sequence[DdpmStep], draw_noise: NoiseSource, on_step: StepHook
    ) -> torch.Tensor:
        """One evaluation per step. No noise is drawn."""
        for number, (step, after) in enumerate(zip(steps, [*steps[1:], None], strict=True), start=1):
            noise = model(x, step.time)
            clean = (x - step.sigma * noise) / step.alpha
            x = clean if after is None else after.alpha * clean + after.sigma * noise
            on_step(number, x, clean)
        return x


SOLVERS: dict[str, Callable[[], Solver]] = {"euler": EulerSolver, "ancestral": AncestralSolver, "ddim": DdimSolver}


def make_solver(name: str | None, kind: str) -> Solver:
    """The solver of that name, or the default of the schedule kind (``rflow`` or ``ddpm``).

    Raises:
        RequestError: Unknown name, or a solver for the other kind of model.
    """
    name = name or SOLVER_NAMES[kind][0]
    if name not in SOLVERS:
        raise RequestError(f"Unknown solver {name!r}; known: {', '.join(SOLVERS)}.{did_you_mean(name, SOLVERS)}")
    solver = SOLVERS[name]()
    if solver.step_type is not (FlowStep if kind == "rflow" else DdpmStep):
        fitting = " or ".join(SOLVER_NAMES[kind])
        raise RequestError(f"Solver {name!r} does not fit a model of kind {kind!r}; use {fitting}.")
    return solver
