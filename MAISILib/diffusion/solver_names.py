"""Which solvers there are, how many steps they take and what a step costs: known without loading PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from MAISILib.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    from MAISILib.bundles.manifest import ScheduleEntry

#: Schedule kind → its solvers, as :mod:`MAISILib.diffusion.solvers` makes them; the first is the default.
SOLVER_NAMES: dict[str, tuple[str, ...]] = {
    "rflow": ("euler", "heun", "ab2", "ab3", "dpm++"),
    "ddpm": ("ancestral", "ddim", "dpm++"),
}

Preset = Literal["standard", "draft"]
#: Evaluations of the networks that a draft takes.
DRAFT_EVALUATIONS = 6
#: What makes a draft where no solver is asked for: so few steps of DDPM's own sampler show noise only.
_DRAFT_SOLVERS = {"ddpm": "dpm++"}


@dataclass(frozen=True)
class Sampling:
    """How a sample is drawn.

    Args:
        solver: Name of the solver.
        steps: Steps that it takes.
    """

    solver: str
    steps: int

    @property
    def evaluations(self) -> int:
        """How often the networks are evaluated for one sample (each time twice where guidance is on).

        Heun evaluates both ends of each step, every other solver one.
        """
        return self.steps * (2 if self.solver == "heun" else 1)


def choose_sampling(
    schedule: ScheduleEntry, *, solver: str | None = None, steps: int | None = None, preset: Preset = "standard"
) -> Sampling:
    """The solver and the steps that are asked for, or else those that the schedule and the preset recommend.

    Args:
        schedule: Of the bundle, or of its mask generator.
        solver: A name; the default of the schedule's kind where it is ``None``.
        steps: Their number; ``None`` for that of the preset.
        preset: ``standard``: as many steps as the schedule has, whatever one costs. ``draft``: as many as
            :data:`DRAFT_EVALUATIONS` pay for.

    Raises:
        RequestError: An unknown solver, one for the other kind of model, or more steps than the training schedule has.
    """
    name = solver or (_DRAFT_SOLVERS.get(schedule.kind) if preset == "draft" else None)
    name = name or SOLVER_NAMES[schedule.kind][0]
    check_solver(name, schedule.kind)
    if steps is None and preset == "draft":
        most = min(DRAFT_EVALUATIONS, schedule.train_timesteps)
        steps = max((n for n in range(1, most + 1) if Sampling(name, n).evaluations <= DRAFT_EVALUATIONS), default=1)
    steps = steps or schedule.steps
    if steps > schedule.train_timesteps:
        raise RequestError(f"{steps} steps are too many: this model was trained with {schedule.train_timesteps}.")
    return Sampling(name, steps)


def check_solver(name: str, kind: str) -> None:
    """Raises RequestError for an unknown solver, or one that is not for models of this kind (``rflow``, ``ddpm``)."""
    known = list(dict.fromkeys(solver for names in SOLVER_NAMES.values() for solver in names))
    if name not in known:
        raise RequestError(f"Unknown solver {name!r}; known: {', '.join(known)}.{did_you_mean(name, known)}")
    if name not in SOLVER_NAMES[kind]:
        fitting = " or ".join(SOLVER_NAMES[kind])
        raise RequestError(f"Solver {name!r} does not fit a model of kind {kind!r}; use {fitting}.")
