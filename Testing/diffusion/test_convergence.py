"""Solvers against paths that are known exactly: data with an analytic score, and where each start is carried to."""

from __future__ import annotations

import pytest
import torch

from MAISILib.diffusion.schedules import DdpmSchedule, FlowSchedule
from MAISILib.diffusion.solver_names import SOLVER_NAMES, Sampling
from MAISILib.diffusion.solvers import make_solver
from Testing.diffusion.known_data import GAUSSIAN, MIXTURE, Mixture

#: Quantiles of the noise from 1 % to 99 %.
START = torch.special.ndtri(torch.linspace(0.01, 0.99, 40, dtype=torch.float64)).view(1, 1, 1, 1, -1)
ORDERS = {"euler": 1, "heun": 2, "ab2": 2, "ab3": 3, "dpm++": 2}


def no_noise() -> torch.Tensor:
    raise AssertionError("this solver draws no noise after the start")


def flow_error(solver: str, data: Mixture, steps: int, bend: float = 1.0) -> float:
    """Root mean square distance from the exact end of the path."""
    planned = FlowSchedule(base_latent_voxels=1000).steps(steps, round(1000 * bend**3))
    end = make_solver(solver, "rflow").solve(data.velocity, START, planned, no_noise, lambda *_: None)
    return float((end - data.carried(START, (0.0, 1.0))).square().mean().sqrt())


def ddpm_error(solver: str, data: Mixture, steps: int) -> float:
    """The same for a DDPM: along the path to its first training time, from which the last step points to the image."""
    schedule = DdpmSchedule()
    signal, planned = schedule.signal().double(), schedule.steps(steps, 1)
    end = make_solver(solver, "ddpm").solve(data.noise(signal), START, planned, no_noise, lambda *_: None)
    first, last = ((step.alpha, step.sigma) for step in (planned[0], planned[-1]))
    exact = data.clean(data.carried(START, first, last), *last)
    return float((end - exact).square().mean().sqrt())


def test_the_best_network_of_a_gaussian_is_what_theory_says() -> None:
    """A sanity check of the judge: a Gaussian's path is ``alpha·m + √(alpha²s² + sigma²)·z``, a mixture's moves on."""
    torch.testing.assert_close(GAUSSIAN.carried(START, (0.0, 1.0)), 0.4 + 0.3 * START)
    for data in (GAUSSIAN, MIXTURE):
        here, there = data.carried(START, (0.0, 1.0), (0.4, 0.6)), data.carried(START, (0.0, 1.0), (0.4001, 0.5999))
        torch.testing.assert_close((there - here) / 1e-4, data.velocity(here, 600.0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bend", [1.0, 4.0])
@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("solver", SOLVER_NAMES["rflow"])
def test_twice_the_steps_of_a_flow_err_less_by_the_solvers_order(solver: str, data: Mixture, bend: float) -> None:
    coarse, fine = (flow_error(solver, data, steps, bend) for steps in (320, 640))
    assert coarse / fine == pytest.approx(2 ** ORDERS[solver], rel=0.2)


@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpm++", 2)])
def test_twice_the_steps_of_a_ddpm_err_less_by_the_solvers_order(solver: str, order: int, data: Mixture) -> None:
    coarse, fine = (ddpm_error(solver, data, steps) for steps in (100, 200))
    assert coarse / fine == pytest.approx(2**order, rel=0.2)


@pytest.mark.parametrize("solver", ["ab2", "ab3", "dpm++"])
def test_ten_evaluations_of_a_multistep_come_nearer_than_thirty_of_euler(solver: str) -> None:
    assert Sampling(solver, 10).evaluations == 10
    assert flow_error(solver, MIXTURE, 10) < flow_error("euler", MIXTURE, 30)


def test_dpm_comes_nearer_than_ddim_with_as_many_evaluations() -> None:
    for steps in (6, 10, 20, 50):
        assert ddpm_error("dpm++", MIXTURE, steps) < 0.8 * ddpm_error("ddim", MIXTURE, steps)


@pytest.mark.parametrize(("kind", "solver"), [(kind, name) for kind, names in SOLVER_NAMES.items() for name in names])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_networks_are_evaluated_as_often_as_the_plan_counts(kind: str, solver: str, steps: int) -> None:
    seen: list[float] = []

    def model(x: torch.Tensor, time: float) -> torch.Tensor:
        seen.append(time)
        return 0.1 * x

    schedule = FlowSchedule() if kind == "rflow" else DdpmSchedule()
    done: list[int] = []
    planned = schedule.steps(steps, 1)
    make_solver(solver, kind).solve(model, START, planned, lambda: START, lambda number, *_: done.append(number))
    assert len(seen) == Sampling(solver, steps).evaluations
    assert done == list(range(1, steps + 1))


@pytest.mark.parametrize(("kind", "solver"), [(kind, name) for kind, names in SOLVER_NAMES.items() for name in names])
def test_one_step_already_points_to_the_mean(kind: str, solver: str) -> None:
    """From pure noise, one step of any solver ends at what the network points to, or between that and its end."""
    schedule = FlowSchedule() if kind == "rflow" else DdpmSchedule()
    network = GAUSSIAN.velocity if kind == "rflow" else GAUSSIAN.noise(schedule.signal().double())  # type: ignore[union-attr]
    end = make_solver(solver, kind).solve(network, START, schedule.steps(1, 1), lambda: START, lambda *_: None)
    assert torch.isfinite(end).all()
    assert float(end.mean()) == pytest.approx(0.4, abs=0.05)
