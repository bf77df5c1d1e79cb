from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from MAISILib.diffusion.sampler import sample_latent
from MAISILib.diffusion.schedules import DdpmSchedule, FlowSchedule
from MAISILib.diffusion.solvers import AncestralSolver, DdimSolver, DpmSolver, EulerSolver, Solver, make_solver
from MAISILib.errors import Cancelled, RequestError

SHAPE = (4, 4, 4, 4)
FLOW = FlowSchedule(base_latent_voxels=4**3)


def test_euler_follows_a_straight_path_to_its_end() -> None:
    """All noise flows straight to one latent: ``v = (target − x) / u``, and the estimate is right from the start."""
    target = torch.randn(1, *SHAPE)
    estimates: list[torch.Tensor] = []
    latent = sample_latent(
        lambda x, time: (target - x) / (time / 1000),
        FLOW,
        EulerSolver(),
        SHAPE,
        steps=5,
        seed=3,
        on_step=lambda done, state, clean: estimates.append(clean),
    )
    torch.testing.assert_close(latent, target, rtol=1e-5, atol=1e-5)
    for clean in estimates:
        torch.testing.assert_close(clean, target, rtol=1e-4, atol=1e-4)


def test_euler_converges_to_the_solution_of_a_linear_field() -> None:
    """Along the way s from 0 to 1, ``dx/ds = a·x`` ends at ``x·e^a``; the error halves with the step."""
    start = sample_latent(lambda x, time: x * 0, FLOW, EulerSolver(), SHAPE, steps=1, seed=3)

    def error(steps: int) -> float:
        latent = sample_latent(lambda x, time: 0.5 * x, FLOW, EulerSolver(), SHAPE, steps=steps, seed=3)
        return float((latent / start - math.exp(0.5)).abs().max())

    assert error(200) < 2e-3
    assert error(100) / error(200) == pytest.approx(2, rel=0.05)


def test_constant_field_goes_as_far_as_the_mode_says() -> None:
    start = sample_latent(lambda x, time: x * 0, FLOW, EulerSolver(), SHAPE, steps=30, seed=3)
    ends = {
        mode: sample_latent(lambda x, time: torch.ones_like(x), FLOW, EulerSolver(), SHAPE, steps=30, seed=3, mode=mode)
        for mode in ("exact", "upstream")
    }
    torch.testing.assert_close(ends["exact"] - start, torch.ones_like(start), atol=1e-5, rtol=0)
    assert float((ends["upstream"] - start).mean()) == pytest.approx(1.0102, abs=1e-4)  # at the base size


def test_ancestral_with_a_perfect_network_finds_the_latent() -> None:
    schedule, target = DdpmSchedule(), torch.randn(1, *SHAPE)
    signal = schedule.signal()

    def noise(x: torch.Tensor, time: float) -> torch.Tensor:
        power = signal[int(time)]
        return (x - power**0.5 * target) / (1 - power) ** 0.5

    for mode in ("exact", "upstream"):
        latent = sample_latent(noise, schedule, AncestralSolver(), SHAPE, steps=25, seed=3, mode=mode)
        torch.testing.assert_close(latent, target, rtol=1e-3, atol=1e-3)
    latent = sample_latent(noise, schedule, DdimSolver(), SHAPE, steps=5, seed=3)
    torch.testing.assert_close(latent, target, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", [AncestralSolver(), DdimSolver(), DpmSolver()])
def test_velocity_and_noise_of_the_same_network_make_the_same_latent(solver: Solver) -> None:
    schedules = DdpmSchedule(), DdpmSchedule(prediction_type="v_prediction")
    noise, signal = gaussian_network(0.7), DdpmSchedule().signal()

    def velocity(x: torch.Tensor, time: float) -> torch.Tensor:
        power = signal[int(time)]
        found = noise(x, time)
        return power**0.5 * found - (1 - power) ** 0.5 * (x - (1 - power) ** 0.5 * found) / power**0.5

    ends = [
        sample_latent(model, schedule, solver, SHAPE, steps=12, seed=3)
        for model, schedule in zip((noise, velocity), schedules, strict=True)
    ]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-3)


def gaussian_network(deviation: float) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """The best noise prediction for latents that are N(0, deviation²)."""
    signal = DdpmSchedule().signal()

    def noise(x: torch.Tensor, time: float) -> torch.Tensor:
        power = signal[int(time)]
        return (1 - power) ** 0.5 * x / (power * deviation**2 + 1 - power)

    return noise


def test_ddim_follows_its_closed_form_for_gaussian_latents() -> None:
    """Every step multiplies by ``(α'·α·s² + σ'·σ) / (α²·s² + σ²)``; many steps end at ``x·s / √(α²·s² + σ²)``."""
    deviation, schedule = 0.7, DdpmSchedule()

    def factor(count: int) -> float:
        start = torch.ones(1, *SHAPE)
        steps = schedule.steps(count, 64)
        end = DdimSolver().solve(gaussian_network(deviation), start, steps, lambda: start, lambda *_: None)
        return float(end.mean())

    power = schedule.signal()[torch.linspace(999, 0, 8).round().long()].double()
    after = torch.cat([power[1:], torch.ones(1, dtype=torch.float64)])
    kept = (after * power) ** 0.5 * deviation**2 + ((1 - after) * (1 - power)) ** 0.5
    assert factor(8) == pytest.approx(float((kept / (power * deviation**2 + 1 - power)).prod()), rel=1e-4)
    limit = deviation / float(power[0] * deviation**2 + 1 - power[0]) ** 0.5
    assert factor(1000) == pytest.approx(limit, rel=2e-2)
    assert abs(factor(1000) - limit) < abs(factor(100) - limit) < abs(factor(8) - limit)


def test_ddim_needs_no_noise_but_its_start() -> None:
    def draw() -> torch.Tensor:
        raise AssertionError("DDIM drew noise")

    DdimSolver().solve(
        gaussian_network(1.0), torch.randn(1, *SHAPE), DdpmSchedule().steps(6, 64), draw, lambda *_: None
    )


def test_ancestral_draws_fresh_noise_at_every_step_but_the_last() -> None:
    drawn: list[int] = []

    def draw() -> torch.Tensor:
        drawn.append(1)
        return torch.randn(1, *SHAPE)

    steps = DdpmSchedule().steps(6, 64)
    AncestralSolver().solve(lambda x, time: x * 0, torch.randn(1, *SHAPE), steps, draw, lambda *_: None)
    assert len(drawn) == 5


@pytest.mark.parametrize(
    ("schedule", "solver"),
    [(FLOW, EulerSolver()), (DdpmSchedule(), AncestralSolver()), (DdpmSchedule(), DdimSolver())],
)
def test_cancel_stops_after_the_present_step(schedule: FlowSchedule | DdpmSchedule, solver: Solver) -> None:
    seen: list[float] = []

    def model(x: torch.Tensor, time: float) -> torch.Tensor:
        seen.append(time)
        return x * 0

    def cancel(done: int, state: torch.Tensor, clean: torch.Tensor) -> None:
        if done == 2:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        sample_latent(model, schedule, solver, SHAPE, steps=10, seed=1, on_step=cancel)
    assert len(seen) == 2


def test_defaults_fit_the_kind_of_model() -> None:
    assert isinstance(make_solver(None, "rflow"), EulerSolver)
    assert isinstance(make_solver(None, "ddpm"), AncestralSolver)


def test_misspelt_solver_is_refused_with_near_names() -> None:
    with pytest.raises(RequestError, match=r"Unknown solver 'eulr'.*known: euler, heun.*ddim\. Did you mean 'euler'"):
        make_solver("eulr", "rflow")


@pytest.mark.parametrize(("name", "kind", "fitting"), [("ancestral", "rflow", "euler"), ("euler", "ddpm", "ancestral")])
def test_solver_for_the_other_kind_is_refused_with_the_right_one(name: str, kind: str, fitting: str) -> None:
    with pytest.raises(RequestError, match=f"'{name}' does not fit.*'{kind}'; use {fitting}"):
        make_solver(name, kind)
