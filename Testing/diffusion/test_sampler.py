from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.schedulers.ddpm import DDPMScheduler
from monai.networks.schedulers.rectified_flow import RFlowScheduler

from MAISILib.diffusion import sampler
from MAISILib.diffusion.sampler import Denoiser, Guidance, sample_latent
from MAISILib.diffusion.schedules import DdpmSchedule, FlowSchedule, Schedule
from MAISILib.diffusion.solvers import Solver, make_solver
from Testing.diffusion.tiny_networks import LATENT, TinyNetworks, random_bits


def parts(tiny: TinyNetworks) -> tuple[Schedule, Solver]:
    return (FlowSchedule() if tiny.kind == "rflow" else DdpmSchedule()), make_solver(None, tiny.kind)


def draw(tiny: TinyNetworks, denoiser: Denoiser, seed: int = 11, **options: Any) -> torch.Tensor:
    schedule, solver = parts(tiny)
    return sample_latent(denoiser, schedule, solver, LATENT, **{"steps": 4, "seed": seed, **options})


def test_same_seed_gives_the_same_latent_and_another_seed_another(tiny: TinyNetworks) -> None:
    first, again, other = (
        draw(tiny, Denoiser(tiny.unet, tiny.controlnet, tiny.conditions(), random_bits()), seed)
        for seed in (11, 11, 12)
    )
    assert first.shape == (1, *LATENT)
    assert torch.equal(first, again)
    assert (first - other).abs().mean() > 0.1


def test_sampling_neither_reads_nor_moves_the_random_numbers_of_the_program(tiny: TinyNetworks) -> None:
    denoiser = Denoiser(tiny.unet, None, tiny.conditions())
    first = draw(tiny, denoiser)
    torch.manual_seed(77)
    before = torch.get_rng_state()
    assert torch.equal(draw(tiny, denoiser), first)
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
def test_upstream_rflow_sample_is_that_of_monais_plain_loop(rflow: TinyNetworks) -> None:
    """Scheduler, ControlNet and UNet called as in the published scripts, from the same noise."""
    theirs = RFlowScheduler(use_discrete_timesteps=False, use_timestep_transform=True)
    theirs.set_timesteps(4, input_img_size_numel=8**3)
    bits, inputs = random_bits(), rflow.conditions().tensors()
    x = torch.randn((1, *LATENT), generator=torch.Generator().manual_seed(11))
    following = torch.cat((theirs.timesteps[1:], torch.zeros(1, dtype=theirs.timesteps.dtype)))
    for t, after in zip(theirs.timesteps, following, strict=True):
        x, _ = theirs.step(rflow.plain_both(x, t[None].float(), inputs, bits), t, x, after)  # type: ignore[arg-type]
    ours = draw(rflow, Denoiser(rflow.unet, rflow.controlnet, rflow.conditions(), bits), mode="upstream")
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_upstream_ddpm_sample_is_that_of_monais_plain_loop() -> None:
    tiny = TinyNetworks.build("ddpm")
    theirs = DDPMScheduler(1000, "scaled_linear_beta", beta_start=0.0015, beta_end=0.0195, clip_sample=False)
    theirs.set_timesteps(4)
    bits, inputs = random_bits(), tiny.conditions().tensors()
    generator = torch.Generator().manual_seed(11)
    x = torch.randn((1, *LATENT), generator=generator)
    for t in theirs.timesteps.tolist():
        x, _ = theirs.step(tiny.plain_both(x, torch.tensor([float(t)]), inputs, bits), t, x, generator)
    ours = draw(tiny, Denoiser(tiny.unet, tiny.controlnet, tiny.conditions(), bits), mode="upstream")
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


def test_mask_is_embedded_once_for_all_steps(rflow: TinyNetworks) -> None:
    calls: list[int] = []
    hook = rflow.controlnet.controlnet_cond_embedding.register_forward_hook(lambda *_: calls.append(1))
    try:
        draw(rflow, Denoiser(rflow.unet, rflow.controlnet, rflow.conditions(), random_bits()))
    finally:
        hook.remove()
    assert len(calls) == 1


@torch.no_grad()
def test_guidance_by_modality_alone(rflow: TinyNetworks) -> None:
    """Image only: the free side is told the unconditional class."""
    x = torch.randn(1, *LATENT)
    conditioned = Denoiser(rflow.unet, None, rflow.conditions(1))(x, 500.0)
    free = Denoiser(rflow.unet, None, rflow.conditions(0))(x, 500.0)
    assert (conditioned - free).abs().max() > 1e-3
    guided = Denoiser(rflow.unet, None, rflow.conditions(1), guidance=Guidance(3.0, free_modality=0))(x, 500.0)
    torch.testing.assert_close(guided, free + 3 * (conditioned - free))


@torch.no_grad()
def test_guidance_by_a_mask_without_tumours(rflow: TinyNetworks) -> None:
    x, bits, free_bits = torch.randn(1, *LATENT), random_bits(3), random_bits(4)
    conditioned = Denoiser(rflow.unet, rflow.controlnet, rflow.conditions(1), bits)(x, 500.0)
    other_mask = Denoiser(rflow.unet, rflow.controlnet, rflow.conditions(1), free_bits)(x, 500.0)
    free = Denoiser(rflow.unet, rflow.controlnet, rflow.conditions(0), free_bits)(x, 500.0)
    assert (conditioned - other_mask).abs().max() > 1e-3
    assert (other_mask - free).abs().max() > 1e-4
    guided = Denoiser(rflow.unet, rflow.controlnet, rflow.conditions(1), bits, Guidance(2.5, 0, free_bits))(x, 500.0)
    torch.testing.assert_close(guided, free + 2.5 * (conditioned - free))


@pytest.mark.parametrize("masked", [False, True])
def test_guidance_of_scale_one_is_no_guidance(rflow: TinyNetworks, masked: bool) -> None:
    bits, free_bits = (random_bits(3), random_bits(4)) if masked else (None, None)
    plain = draw(rflow, Denoiser(rflow.unet, rflow.controlnet, rflow.conditions(), bits))
    one = draw(rflow, Denoiser(rflow.unet, rflow.controlnet, rflow.conditions(), bits, Guidance(1.0, 0, free_bits)))
    two = draw(rflow, Denoiser(rflow.unet, rflow.controlnet, rflow.conditions(), bits, Guidance(2.0, 0, free_bits)))
    torch.testing.assert_close(one, plain, rtol=1e-4, atol=1e-4)
    assert (two - plain).abs().max() > 1e-3


def calls_of(network: Any, denoiser: Denoiser) -> list[int]:
    """The batch of each call of a network during one evaluation."""
    seen: list[int] = []
    hook = network.conv_in.register_forward_hook(lambda module, given, output: seen.append(len(output)))
    try:
        with torch.no_grad():
            denoiser(torch.randn(1, *LATENT), 500.0)
    finally:
        hook.remove()
    return seen


def guided(tiny: TinyNetworks, scale: float, free_modality: int, free_bits: int, **options: Any) -> Denoiser:
    """A denoiser for modality 1 and mask 3, guided away from another modality and mask."""
    guidance = Guidance(scale, free_modality, random_bits(free_bits))
    return Denoiser(tiny.unet, tiny.controlnet, tiny.conditions(1), random_bits(3), guidance, **options)


@pytest.mark.parametrize(
    ("scale", "free_modality", "free_bits", "calls"), [(1.0, 0, 4, 1), (2.0, 1, 3, 1), (2.0, 0, 3, 2), (2.0, 1, 4, 2)]
)
def test_guidance_is_computed_only_where_it_can_matter(
    rflow: TinyNetworks, scale: float, free_modality: int, free_bits: int, calls: int
) -> None:
    assert calls_of(rflow.unet, guided(rflow, scale, free_modality, free_bits)) == [1] * calls


def test_a_modality_that_networks_do_not_take_needs_no_free_side() -> None:
    ddpm = TinyNetworks.build("ddpm")
    assert calls_of(ddpm.unet, guided(ddpm, 2.0, 0, 3)) == [1]
    assert calls_of(ddpm.unet, guided(ddpm, 2.0, 0, 4)) == [1, 1]


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
def test_both_sides_in_one_call_are_those_of_two(rflow: TinyNetworks, masked: bool) -> None:
    x, bits, free_bits = torch.randn(1, *LATENT), random_bits(3), random_bits(4)
    one, two = (
        Denoiser(
            rflow.unet,
            rflow.controlnet if masked else None,
            rflow.conditions(1),
            bits if masked else None,
            Guidance(3.0, 0, free_bits if masked else None),
            batched=batched,
        )
        for batched in (True, False)
    )
    torch.testing.assert_close(one(x, 500.0), two(x, 500.0), rtol=1e-4, atol=1e-4)
    assert (calls_of(rflow.unet, one), calls_of(rflow.unet, two)) == ([2], [1, 1])


def test_where_memory_runs_out_two_calls_are_made_from_then_on(
    rflow: TinyNetworks, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sampler.predict

    def predict(unet: Any, x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(unet, x, *arguments)

    expected = draw(rflow, guided(rflow, 2.0, 0, 4, batched=False))
    monkeypatch.setattr(sampler, "predict", predict)
    denoiser = guided(rflow, 2.0, 0, 4, batched=True)
    assert torch.equal(draw(rflow, denoiser), expected)
    assert calls_of(rflow.unet, denoiser) == [1, 1]


def test_an_error_that_is_none_of_memory_is_not_tried_again(
    rflow: TinyNetworks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(*_: Any) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(sampler, "predict", predict)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        draw(rflow, guided(rflow, 2.0, 0, 4, batched=True))


def test_latent_stays_float32_while_networks_run_in_bfloat16(tiny: TinyNetworks) -> None:
    kinds: list[torch.dtype] = []
    states: list[torch.dtype] = []
    hook = tiny.unet.conv_in.conv.register_forward_hook(lambda module, given, output: kinds.append(output.dtype))
    reduced = Denoiser(tiny.unet, tiny.controlnet, tiny.conditions(), random_bits(), autocast=torch.bfloat16)
    try:
        latent = draw(tiny, reduced, on_step=lambda done, state, clean: states.extend((state.dtype, clean.dtype)))
    finally:
        hook.remove()
    assert set(kinds) == {torch.bfloat16}
    assert set(states) == {torch.float32}
    assert latent.dtype == torch.float32
    full = draw(tiny, Denoiser(tiny.unet, tiny.controlnet, tiny.conditions(), random_bits()))
    error = (latent - full).abs().mean() / full.abs().mean()
    assert 0 < error < 0.05


def test_steps_are_counted_for_progress(tiny: TinyNetworks) -> None:
    done: list[int] = []
    draw(tiny, Denoiser(tiny.unet, None, tiny.conditions()), on_step=lambda n, state, clean: done.append(n))
    assert done == [1, 2, 3, 4]
