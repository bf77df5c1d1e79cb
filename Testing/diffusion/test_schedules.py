from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from monai.networks.schedulers.ddpm import DDPMScheduler
from monai.networks.schedulers.rectified_flow import RFlowScheduler

from MAISILib.bundles.manifest import PredictionType
from MAISILib.diffusion.schedules import DdpmSchedule, FlowSchedule, Mode
from MAISILib.diffusion.solvers import AncestralSolver, EulerSolver
from MAISILib.errors import RequestError

#: Latents of 256×256×128, 512×512×128, 512³, 512×512×768 and the small head and neck bundle.
SHAPES = [(64, 64, 32), (128, 128, 32), (128, 128, 128), (128, 128, 192), (40, 28, 32)]
COUNTS = [30, 10, 7]


def published_flow() -> RFlowScheduler:
    return RFlowScheduler(
        num_train_timesteps=1000,
        use_discrete_timesteps=False,
        sample_method="uniform",
        scale=1.4,
        use_timestep_transform=True,
    )


def published_ddpm(prediction_type: str = "epsilon") -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=1000,
        schedule="scaled_linear_beta",
        beta_start=0.0015,
        beta_end=0.0195,
        clip_sample=False,
        prediction_type=prediction_type,
    )


def ignore(*_: object) -> None:
    pass


def no_noise() -> torch.Tensor:
    raise AssertionError("the flow draws no noise after the start")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("voxels_are_a_tensor", [False, True])
def test_upstream_flow_is_monai_bit_for_bit(shape: tuple[int, int, int], count: int, voxels_are_a_tensor: bool) -> None:
    """The published scripts give the number of voxels as a tensor, so that MONAI computes in float32."""
    theirs = published_flow()
    voxels = math.prod(shape)
    theirs.set_timesteps(
        count,
        input_img_size_numel=torch.prod(torch.tensor(shape)) if voxels_are_a_tensor else voxels,  # type: ignore[arg-type]
    )
    following = torch.cat((theirs.timesteps[1:], torch.zeros(1, dtype=theirs.timesteps.dtype)))
    steps = FlowSchedule().steps(count, voxels, "upstream")
    assert [step.time for step in steps] == [float(t) for t in theirs.timesteps]

    def velocity(x: torch.Tensor, time: float) -> torch.Tensor:
        return torch.sin(3 * x) + time / 1000

    x = torch.randn(1, 4, 4, 4, 4)
    states: list[torch.Tensor] = []
    EulerSolver().solve(velocity, x, steps, no_noise, lambda done, state, clean: states.append(state))
    for t, after, state in zip(theirs.timesteps, following, states, strict=True):
        x, _ = theirs.step(velocity(x, float(t)), t, x, after)  # type: ignore[arg-type]
        assert torch.equal(x, state)


@pytest.mark.parametrize("shape", [(32, 32, 32), *SHAPES])
@pytest.mark.parametrize("count", [1, 2, 7, 30, 1000])
def test_exact_flow_goes_the_whole_way_and_no_further(shape: tuple[int, int, int], count: int) -> None:
    steps = FlowSchedule().steps(count, math.prod(shape))
    assert len(steps) == count
    assert steps[0].time == pytest.approx(1000)
    assert sum(step.delta for step in steps) == pytest.approx(1.0, abs=1e-12)
    assert all(step.delta > 0 for step in steps)
    arrived = np.cumsum([step.delta for step in steps[:-1]])
    np.testing.assert_allclose([step.time / 1000 for step in steps[1:]], 1 - arrived, atol=1e-12)


def test_30_published_steps_overshoot_by_9_per_mille() -> None:
    whole = [step.delta for step in FlowSchedule().steps(30, 128**3, "upstream")]
    assert sum(whole) == pytest.approx(1.0087, abs=5e-5)
    assert sum(step.delta for step in FlowSchedule().steps(30, 64 * 64 * 32, "upstream")) == pytest.approx(
        1.0098, abs=5e-5
    )


def test_large_latents_spend_more_steps_on_noise() -> None:
    small = [step.time for step in FlowSchedule().steps(10, 32**3)]
    large = [step.time for step in FlowSchedule().steps(10, 128**3)]
    straight = [step.time for step in FlowSchedule(use_timestep_transform=False).steps(10, 128**3)]
    np.testing.assert_allclose(small, np.arange(1000, 0, -100))  # no bend at the base size
    np.testing.assert_allclose(straight, np.arange(1000, 0, -100))
    assert all(a > b for a, b in zip(large[1:], small[1:], strict=True))
    assert large[5] == pytest.approx(800)  # r = 4, u = 1/2: 4·½ / (1 + 3·½)


def test_base_size_moves_with_the_schedule() -> None:
    schedule = FlowSchedule(base_latent_voxels=8**3)
    assert schedule.bend(500, 8**3) == pytest.approx(500)
    assert schedule.bend(500, 16**3) == pytest.approx(1000 * 2 * 0.5 / 1.5)


@pytest.mark.parametrize("schedule", [FlowSchedule(), DdpmSchedule()])
@pytest.mark.parametrize("mode", ["exact", "upstream"])
@pytest.mark.parametrize("count", [0, -3, 1001])
def test_impossible_step_counts_are_refused_with_the_range(
    schedule: FlowSchedule | DdpmSchedule, mode: Mode, count: int
) -> None:
    with pytest.raises(RequestError, match=rf"{count} steps.*1 to 1000"):
        schedule.steps(count, 32**3, mode)


def test_noisy_flow_lies_on_the_line_from_clean_to_noise() -> None:
    clean, noise = torch.randn(3, 4, 2, 2, 2), torch.randn(3, 4, 2, 2, 2)
    times = torch.tensor([0.0, 250.0, 1000.0])
    noisy = FlowSchedule().noisy(clean, noise, times)
    assert torch.equal(noisy[0], clean[0])
    torch.testing.assert_close(noisy[1], 0.75 * clean[1] + 0.25 * noise[1])
    assert torch.equal(noisy[2], noise[2])
    torch.testing.assert_close(noisy, published_flow().add_noise(clean, noise, times))


def test_noisy_ddpm_has_the_signal_of_its_time() -> None:
    clean, noise = torch.randn(3, 4, 2, 2, 2), torch.randn(3, 4, 2, 2, 2)
    times = torch.tensor([0, 400, 999])
    noisy = DdpmSchedule().noisy(clean, noise, times)
    assert torch.equal(noisy, published_ddpm().add_noise(clean, noise, times))
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    signal = np.prod(1 - betas[:401])
    torch.testing.assert_close(noisy[1], float(signal**0.5) * clean[1] + float((1 - signal) ** 0.5) * noise[1])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_what_ddpm_predicts_leads_back_to_image_and_noise(prediction: PredictionType) -> None:
    clean, noise = torch.randn(3, 4, 2, 2, 2), torch.randn(3, 4, 2, 2, 2)
    schedule, times = DdpmSchedule(prediction_type=prediction), torch.tensor([999, 500, 0])
    noisy, target = schedule.noisy(clean, noise, times), schedule.target(clean, noise, times)
    if prediction == "v_prediction":
        torch.testing.assert_close(target, published_ddpm().get_velocity(clean, noise, times))
    for number, step in enumerate(schedule.steps(3, 1)):
        tolerance = 1e-6 / step.alpha
        found = step.clean(noisy[number], target[number]), step.noise(noisy[number], target[number])
        torch.testing.assert_close(found[0], clean[number], rtol=1e-4, atol=tolerance + 1e-4)
        torch.testing.assert_close(found[1], noise[number], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("count", [1000, 50, 7])
def test_upstream_ddpm_is_monai(count: int, prediction: PredictionType) -> None:
    theirs = published_ddpm(prediction_type=prediction)
    theirs.set_timesteps(count)
    steps = DdpmSchedule(prediction_type=prediction).steps(count, 1, "upstream")
    assert [step.time for step in steps] == theirs.timesteps.tolist()
    start = torch.randn(1, 4, 2, 2, 2)
    ours_generator, their_generator = (torch.Generator().manual_seed(5) for _ in range(2))

    def noise(x: torch.Tensor, time: float) -> torch.Tensor:
        return torch.tanh(x) * (0.5 + time / 2000)

    states: list[torch.Tensor] = []
    cleans: list[torch.Tensor] = []

    def remember(done: int, state: torch.Tensor, clean: torch.Tensor) -> None:
        states.append(state)
        cleans.append(clean)

    AncestralSolver().solve(noise, start, steps, lambda: torch.randn(start.shape, generator=ours_generator), remember)
    before = start
    for t, state, clean in zip(theirs.timesteps.tolist(), states, cleans, strict=True):
        x, their_clean = theirs.step(noise(before, t), t, before, generator=their_generator)
        torch.testing.assert_close(state, x, rtol=1e-6, atol=1e-6 * float(x.abs().max()))
        torch.testing.assert_close(clean, their_clean, rtol=1e-6, atol=1e-6 * float(their_clean.abs().max()))
        before = state


@pytest.mark.parametrize("name", ["linear_beta", "scaled_linear_beta"])
def test_noise_variances_are_monais(name: str) -> None:
    theirs = DDPMScheduler(num_train_timesteps=1000, schedule=name, beta_start=0.001, beta_end=0.02)
    assert torch.equal(DdpmSchedule(beta_start=0.001, beta_end=0.02, beta_schedule=name).betas(), theirs.betas)


def test_unknown_noise_schedule_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match=r"'cosine'.*scaled_linear_beta"):
        DdpmSchedule(beta_schedule="cosine").steps(10, 1)


def test_exact_ddpm_with_all_steps_is_upstream_to_rounding() -> None:
    exact, upstream = (DdpmSchedule().steps(1000, 1, mode) for mode in ("exact", "upstream"))
    for a, b in zip(exact, upstream, strict=True):
        assert a.time == b.time
        for name in ("alpha", "sigma", "from_clean", "from_noisy", "deviation"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=2e-4, abs=1e-7), (a.time, name)


@pytest.mark.parametrize("count", [2, 10, 50, 999, 1000])
def test_exact_ddpm_with_fewer_steps_is_the_posterior_between_visited_times(count: int) -> None:
    """Given the clean latent, an earlier state is Gaussian; the later state is a noisy observation of it."""
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    power = np.cumprod(1 - betas)
    steps = DdpmSchedule().steps(count, 1)
    for step, following in pairwise(steps):
        now, after = power[int(step.time)], power[int(following.time)]
        gain = (now / after) ** 0.5  # x_now = gain·x_after + noise of variance 1 − gain²
        precision = 1 / (1 - after) + gain**2 / (1 - gain**2)
        assert step.from_clean == pytest.approx(after**0.5 / (1 - after) / precision, rel=5e-4)
        assert step.from_noisy == pytest.approx(gain / (1 - gain**2) / precision, rel=5e-4)
        assert step.deviation == pytest.approx(precision**-0.5, rel=5e-4)
    last = steps[-1]
    assert (last.time, last.deviation) == (0.0, 0.0)
    assert (last.from_clean, last.from_noisy) == pytest.approx((1.0, 0.0), abs=1e-6)


def test_few_exact_ddpm_steps_leave_the_right_amount_of_noise_where_upstream_does_not() -> None:
    """With a perfect network, the state at each visited time has the signal and the noise of that time."""

    def worst_error(mode: Mode) -> float:
        steps = DdpmSchedule().steps(20, 1, mode)
        signal, variance, worst = steps[0].alpha, steps[0].sigma ** 2, 0.0
        for step, following in pairwise(steps):
            signal = step.from_clean + step.from_noisy * signal
            variance = step.from_noisy**2 * variance + step.deviation**2
            worst = max(worst, abs(signal - following.alpha), abs(variance**0.5 - following.sigma))
        return worst

    assert worst_error("exact") < 1e-5
    assert worst_error("upstream") > 0.1
