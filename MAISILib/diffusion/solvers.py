"""How the sampler steps along a schedule; further solvers register here and in `solver_names`.

Order of convergence, evaluations per step and when they fit: docs/performance.md, *Steps and solvers*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from MAISILib.diffusion.schedules import DdpmStep, FlowStep
from MAISILib.diffusion.solver_names import SOLVER_NAMES, check_solver

#: ``model(x, time) → prediction`` for one sample ``(1, C, X, Y, Z)``; ``time`` in training timesteps.
Model = Callable[[torch.Tensor, float], torch.Tensor]
#: Draws standard normal noise of a latent's shape, on the latent's device.
NoiseSource = Callable[[], torch.Tensor]
#: Called after every step with (steps done, state, estimate of the clean latent); may raise to stop.
StepHook = Callable[[int, torch.Tensor, torch.Tensor], None]

_Step = TypeVar("_Step")


class Solver(Protocol):
    """Takes a latent from noise to image."""

    def solve(
        self, model: Model, x: torch.Tensor, steps: Sequence[Any], draw_noise: NoiseSource, on_step: StepHook
    ) -> torch.Tensor:
        """Walks all ``steps`` from ``x`` and returns the clean latent."""
        ...


def _with_next(steps: Sequence[_Step]) -> Iterator[tuple[int, _Step, _Step | None]]:
    """Number from 1, step, and the step after it (``None`` at the end, which is the clean latent)."""
    for number, step in enumerate(steps, start=1):
        yield number, step, steps[number] if number < len(steps) else None


class EulerSolver:
    """First-order steps along the flow: ``x ← x + v·Δ``."""

    def solve(
        self, model: Model, x: torch.Tensor, steps: Sequence[FlowStep], draw_noise: NoiseSource, on_step: StepHook
    ) -> torch.Tensor:
        """One evaluation per step. No noise is drawn."""
        for number, step in enumerate(steps, start=1):
            velocity = model(x, step.time)
            clean = step.clean(x, velocity)
            x = x + velocity * step.delta
            on_step(number, x, clean)
        return x


class HeunSolver:
    """Second-order steps along the flow: Euler's step, then again with the mean of the velocities at both ends."""

    def solve(
        self, model: Model, x: torch.Tensor, steps: Sequence[FlowStep], draw_noise: NoiseSource, on_step: StepHook
    ) -> torch.Tensor:
        """Two evaluations per step. No noise is drawn."""
        for number, step, after in _with_next(steps):
            velocity = model(x, step.time)
            clean = step.clean(x, velocity)
            end = model(x + velocity * step.delta, 0.0 if after is None else after.time)
            x = x + (velocity + end) * (step.delta / 2)
            on_step(number, x, clean)
        return x


class AdamsBashforthSolver:
    """Linear multistep along the flow: the polynomial through the last velocities, integrated over the step.

    For steps of any lengths (Hairer, Nørsett, Wanner: Solving Ordinary Differential Equations I, section III.5). The
    first steps know fewer velocities, so they have a lower order. For ``order`` 3 the first one, Euler's, is made good
    as soon as the velocity at its end is known: the mean of both ends, as Heun takes, costs no evaluation then.

    Args:
        order: Velocities that a step uses, 2 or 3.
    """

    def __init__(self, order: int) -> None:
        self._order = order

    def solve(
        self, model: Model, x: torch.Tensor, steps: Sequence[FlowStep], draw_noise: NoiseSource, on_step: StepHook
    ) -> torch.Tensor:
        """One evaluation per step. No noise is drawn."""
        past: list[tuple[float, torch.Tensor]] = []  # newest first
        for number, step in enumerate(steps, start=1):
            velocity = model(x, step.time)
            if number == 2 and self._order > 2:
                x = x + (velocity - past[0][1]) * (steps[0].delta / 2)
            clean = step.clean(x, velocity)
            past = [(step.sigma, velocity), *past][: self._order]
            weights = _polynomial_weights([step.sigma - sigma for sigma, _ in past], step.delta)
            x = x + sum(weight * v for weight, (_, v) in zip(weights, past, strict=True))
            on_step(number, x, clean)
        return x


def _polynomial_weights(nodes: Sequence[float], length: float) -> list[float]:
    """Weights of values at ``nodes`` (≤ 0) in the integral from 0 to ``length`` of the polynomial through them."""
    powers = np.vander(np.asarray(nodes) / length, increasing=True)
    return (np.linalg.solve(powers.T, 1.0 / np.arange(1, len(nodes) + 1)) * length).tolist()


class AncestralSolver:
    """DDPM's own sampler: one posterior step with fresh noise per evaluation (arXiv:2006.11239, algorithm 2)."""

    def solve(
        self, model: Model, x: torch.Tensor, steps: Sequence[DdpmStep], draw_noise: NoiseSource, on_step: StepHook
    ) -> torch.Tensor:
        """One evaluation per step; noise is drawn at every step but the last."""
        for number, step in enumerate(steps, start=1):
            clean = step.clean(x, model(x, step.time))
            x = step.from_clean * clean + step.from_noisy * x
            if step.deviation:
                x = x + step.deviation * draw_noise()
            on_step(number, x, clean)
        return x


class DdimSolver:
    """DDIM without fresh noise (Song et al. 2021, arXiv:2010.02502, equation 12 with σ = 0), for few steps.

    ``x ← alpha'·x₀ + sigma'·ε`` with the alpha and sigma of the next visited time; the last step ends at ``x₀``.
    """

    def solve(
        self, model: Model, x: torch.Tensor, steps: Sequence[DdpmStep], draw_noise: NoiseSource, on_step: StepHook
    ) -> torch.Tensor:
        """One evaluation per step. No noise is drawn."""
        for number, step, after in _with_next(steps):
            predicted = model(x, step.time)
            clean = step.clean(x, predicted)
            x = clean if after is None else after.alpha * clean + after.sigma * step.noise(x, predicted)
            on_step(number, x, clean)
        return x


class DpmSolver:
    """A multistep of second order after DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095), for flows and DDPM.

    As there, ``x/sigma`` moves by the image ``x₀`` that the network points to, integrated over ``d(alpha/sigma)``, and
    ``x₀`` is continued linearly from the last two evaluations. It is so in the noise's share of the power,
    ``θ = sigma²/(alpha² + sigma²)``, not in ``log(alpha/sigma)``: that is infinite at pure noise and at the image, and
    our times are even in time. Along a path ``x₀`` is smooth in θ, and the mean of θ has the closed form
    ``∫θ d(alpha/sigma) = −Δ atan(sigma/alpha)``. The last step ends at ``x₀``, which costs no order.
    """

    def solve(
        self,
        model: Model,
        x: torch.Tensor,
        steps: Sequence[FlowStep | DdpmStep],
        draw_noise: NoiseSource,
        on_step: StepHook,
    ) -> torch.Tensor:
        """One evaluation per step. No noise is drawn."""
        before: tuple[float, torch.Tensor] | None = None
        for number, step, after in _with_next(steps):
            clean = step.clean(x, model(x, step.time))
            if after is None:
                x = clean
            else:
                share = step.sigma**2 / (step.alpha**2 + step.sigma**2)
                pointed = clean
                if before is not None:
                    turn = math.atan2(step.sigma, step.alpha) - math.atan2(after.sigma, after.alpha)
                    mean = turn / (after.alpha / after.sigma - step.alpha / step.sigma)
                    pointed = clean + (mean - share) / (share - before[0]) * (clean - before[1])
                shrink = after.sigma / step.sigma
                x = shrink * x + (after.alpha - shrink * step.alpha) * pointed
                before = share, clean
            on_step(number, x, clean)
        return x


SOLVERS: dict[str, Callable[[], Solver]] = {
    "euler": EulerSolver,
    "heun": HeunSolver,
    "ab2": lambda: AdamsBashforthSolver(2),
    "ab3": lambda: AdamsBashforthSolver(3),
    "ancestral": AncestralSolver,
    "ddim": DdimSolver,
    "dpm++": DpmSolver,
}


def make_solver(name: str | None, kind: str) -> Solver:
    """The solver of that name, or the default of the schedule kind (``rflow`` or ``ddpm``).

    Raises:
        RequestError: Unknown name, or a solver for the other kind of model.
    """
    name = name or SOLVER_NAMES[kind][0]
    check_solver(name, kind)
    return SOLVERS[name]()
