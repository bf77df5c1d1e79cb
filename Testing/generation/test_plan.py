"""The plan: what a request costs, said before anything is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import MAISILib as maisi
from MAISILib.bundles.bundle import Bundle
from MAISILib.bundles.networks import build_network
from MAISILib.errors import OutOfMemory, RequestError
from MAISILib.generation import costs, speed
from MAISILib.generation import plan as planning
from MAISILib.generation.pipeline import generate, plan_request
from MAISILib.generation.request import GenerateRequest
from Testing.tiny_bundle import tiny_patient


@pytest.fixture(scope="module", autouse=True)
def nothing_is_learned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs in other tests of this process would correct the estimates of some ways to decode, and not of others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MAISI_DATA", str(tmp_path_factory.mktemp("speed")))
        speed.forget()
        yield
    speed.forget()


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: Any) -> None:
        raise AssertionError("a network was loaded")

    monkeypatch.setattr(Bundle, "load", load)


def test_plan_says_what_will_happen(rflow: Bundle) -> None:
    planned = maisi.plan(rflow, GenerateRequest(count=3, steps=2), device="cpu")
    assert (planned.size, planned.spacing, planned.latent) == ((16, 16, 16), (4.0, 4.0, 4.0), (4, 8, 8, 8))
    assert (planned.device, planned.precision, planned.steps, planned.samples) == ("cpu", "float32", 2, 3)
    assert [stage.name for stage in planned.stages] == ["diffusion", "decode"]
    assert all(stage.flops > 0 and stage.bytes > 0 and stage.seconds > 0 for stage in planned.stages)
    assert planned.seconds == pytest.approx(3 * sum(stage.seconds for stage in planned.stages))
    assert planned.fits
    assert json.loads(json.dumps(planned.to_dict()))["fits"] is True
    assert "3 × 16×16×16 voxels at 4×4×4 mm, latent 4×8×8×8, 2 steps on cpu (float32)" in str(planned)


def test_guidance_of_scale_one_costs_nothing_and_another_twice(rflow: Bundle) -> None:
    none, one, two = (
        maisi.plan(rflow, GenerateRequest(guidance_scale=scale), device="cpu").stages[0].flops for scale in (0, 1, 2)
    )
    assert none == one
    assert two == 2 * none


def test_samples_that_wait_for_the_others_are_counted(rflow: Bundle) -> None:
    one, eight, many = (
        maisi.plan(rflow, GenerateRequest(count=count), device="cpu").stages[-1].bytes for count in (1, 8, 80)
    )
    assert eight - one == 7 * 16**3 * 5
    assert many == eight


def test_reading_the_weights_counts_their_file(rflow: Bundle) -> None:
    unet, controlnet = (costs.weight_bytes([costs.unstored(rflow, n)]) for n in ("diffusion", "controlnet"))
    file = rflow.entry("controlnet").bytes
    assert file
    assert costs.loading_bytes(rflow, ["diffusion", "controlnet"]) == unet + controlnet + file
    stage = next(s for s in maisi.plan(rflow, GenerateRequest(), device="cpu").stages if s.name == "diffusion")
    assert stage.bytes >= unet + controlnet + file


def test_networks_get_no_memory(rflow: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []
    build = costs.build_network

    def watched(definition: Any, where: str, device: str) -> Any:
        network = build(definition, where, device=device)
        devices.extend(p.device.type for p in network.parameters())
        return network

    monkeypatch.setattr(costs, "build_network", watched)
    maisi.plan(rflow, GenerateRequest())
    assert set(devices) == {"meta"}


def test_cost_grows_with_what_is_asked_for(rflow: Bundle) -> None:
    def cost(**fields: Any) -> tuple[float, int]:
        diffusion, decode = planning.plan(rflow, GenerateRequest(mask="none", **fields)).stages
        return diffusion.flops + decode.flops, diffusion.bytes + decode.bytes

    flops, size = cost()
    assert cost(output_size=(32, 16, 16)) > (1.9 * flops, size)
    assert cost(guidance_scale=2)[0] > 1.5 * flops
    assert cost(steps=8)[0] > 1.5 * flops
    assert cost(solver="heun")[0] == cost(steps=8)[0]  # two evaluations a step


def test_windows_lower_the_memory_of_a_large_volume(rflow: Bundle) -> None:
    large: dict[str, Any] = {"mask": "none", "output_size": (128, 128, 128), "decode_window": (16, 16, 16)}
    whole, windows = (planning.plan(rflow, GenerateRequest(decode=how, **large)) for how in ("whole", "windows"))
    assert windows.stages[1].bytes < whole.stages[1].bytes / 10
    assert windows.stages[1].flops > whole.stages[1].flops  # they overlap
    assert windows.stages[0] == whole.stages[0]


def test_short_memory_is_refused_before_loading(rflow: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    request = GenerateRequest(mask="none", output_size=(128, 128, 128), decode="whole")
    needed = planning.plan(rflow, request).peak_bytes
    monkeypatch.setattr(planning, "available_bytes", lambda device: needed - 1)
    with pytest.raises(OutOfMemory, match=r"needs about .* GB on cpu.* GB are free.*in tiles would fit.*'exact'"):
        generate(rflow, request)
    monkeypatch.setattr(planning, "available_bytes", lambda device: 1000)
    with pytest.raises(OutOfMemory, match=r"MB are free.*Not even a small volume.*4×4×4 voxels.*Close other"):
        generate(rflow, request)


def test_the_size_that_is_named_would_fit(rflow: Bundle) -> None:
    def planned(size: Any) -> planning.Plan:
        limit = planning.PROCESS_BYTES + 100_000_000
        return planning.plan(rflow, GenerateRequest(mask="none", output_size=size, memory=limit), device="cpu")

    refused = planned((256, 256, 128))
    assert not refused.fits
    named = re.search(r"A volume of (\d+)×(\d+)×(\d+) voxels would fit", refused.advice)
    assert named, refused.advice
    size = tuple(map(int, named.groups()))
    assert planned(size).fits
    assert not planned(tuple(2 * n for n in size)).fits


def test_users_mask_decides_the_size_that_is_planned(rflow: Bundle, users_mask: Callable[..., GenerateRequest]) -> None:
    request = users_mask(tiny_patient(shape=(24, 20, 20), spacing=(3.0, 3.0, 2.0)), spacing=(4.0, 4.0, 4.0))
    fitted = Bundle(rflow.folder)
    limits = fitted.manifest.limits.model_copy(update={name: [16, 24] for name in ("size_x", "size_y", "size_z")})
    fitted.manifest = fitted.manifest.model_copy(update={"limits": limits})
    assert plan_request(fitted, request).size == (24, 24, 16)


def test_decoding_goes_in_tiles_where_memory_is_short(rflow: Bundle) -> None:
    def planned(**fields: Any) -> planning.Plan:
        return planning.plan(rflow, GenerateRequest(mask="none", output_size=(128, 128, 128), **fields), device="cpu")

    whole = planned(decode="whole")
    assert "decode: whole" in str(whole)
    limits = [0.9, 0.6, 0.3]
    needs = [round(planning.PROCESS_BYTES + whole.stages[1].bytes * limit) for limit in limits]
    short = [planned(memory=bytes_) for bytes_ in needs]
    assert all(p.stages[1].bytes + planning.PROCESS_BYTES <= limit for p, limit in zip(short, needs, strict=True))
    assert short[-1].decode.name == "recompute"  # type: ignore[union-attr]
    assert "in tiles of" in short[-1].to_dict()["decode"]
    assert sorted(p.stages[1].seconds for p in short) == [p.stages[1].seconds for p in short]


def test_a_limit_below_what_anything_needs_is_told_with_the_least(rflow: Bundle) -> None:
    with pytest.raises(OutOfMemory, match=r"10 MB were asked for\. That limit is too small.*takes 0\.5\d GB\. Allow"):
        generate(rflow, GenerateRequest(mask="none", memory="10MB"))


def test_other_amounts_of_memory_are_told_where_they_make_a_difference(rflow: Bundle) -> None:
    request = GenerateRequest(mask="none", output_size=(256, 256, 256), count=2)
    planned = planning.plan(rflow, request, device="cpu")
    amounts = [budget.bytes for budget in planned.budgets]
    assert amounts == sorted(set(amounts))
    assert len(planned.budgets) > 1
    assert all(budget.peak_bytes <= budget.bytes for budget in planned.budgets)
    assert planned.budgets[-1].decode == "whole"
    times = [budget.seconds for budget in planned.budgets]
    assert times == sorted(times, reverse=True)
    for budget in planned.budgets:
        asked = planning.plan(rflow, request.model_copy(update={"memory": budget.bytes}), device="cpu")
        assert (str(asked.decode), asked.peak_bytes) == (budget.decode, budget.peak_bytes)
        assert asked.seconds == pytest.approx(budget.seconds)
    assert planned.to_dict()["budgets"][0]["bytes"] == amounts[0]
    assert f"{amounts[-1] / 1e9:.2f} GB" in str(planned)
    ways = [budget.decode for budget in planned.budgets]
    assert len(set(ways)) == len(ways)
    refused = planning.plan(rflow, request.model_copy(update={"memory": amounts[0] - 10_000_000}), device="cpu")
    assert not refused.fits
    assert refused.budgets[0] == planned.budgets[0], "what would do is told"


def test_definition_with_illegal_splits_runs_all_the_same(tiny: Callable[..., Bundle]) -> None:
    """Published networks may ask for a number of parts that their own code fails on; ours are exact without any."""
    bundle = tiny(with_controlnet=False)
    entry = bundle.entry("autoencoder")
    entry.definition["num_splits"] = 7
    assert planning.plan(bundle, GenerateRequest(mask="none")).fits
    assert build_network(entry.definition).decode(torch.randn(1, 4, 6, 6, 6)).shape == (1, 1, 12, 12, 12)  # type: ignore[operator]


@pytest.mark.parametrize("device", ["gpu", "cpu:zero", "cpu:1", "cuda:x", "cuda:", ""])
def test_unknown_device_is_named(rflow: Bundle, device: str) -> None:
    with pytest.raises(RequestError, match=f"Unknown device '{device}'; known: auto, cpu, cuda"):
        maisi.plan(rflow, GenerateRequest(), device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:99"])
def test_device_that_is_not_there_is_named(rflow: Bundle, device: str) -> None:
    with pytest.raises(RequestError, match=f"'{device}' is not available.*--device cpu"):
        maisi.plan(rflow, GenerateRequest(), device=device)


def test_bfloat16_is_taken_only_where_the_device_computes_it(rflow: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    request = GenerateRequest(mask="none", output_size=(96, 96, 96), precision="bfloat16")
    monkeypatch.setattr(planning, "computes_bfloat16", lambda device: False)
    with pytest.raises(RequestError, match=r"'cpu' does not compute bfloat16 itself\. Leave out --precision"):
        planning.plan(rflow, request, device="cpu")
    monkeypatch.setattr(planning, "computes_bfloat16", lambda device: True)
    narrow = planning.plan(rflow, request, device="cpu")
    wide = planning.plan(rflow, GenerateRequest(mask="none", output_size=(96, 96, 96)), device="cpu")
    assert (narrow.precision, wide.precision) == ("bfloat16", "float32")
    assert narrow.stages[0].bytes < wide.stages[0].bytes
    assert narrow.stages[1].bytes == wide.stages[1].bytes  # the codec stays in float32


def test_acceleration_is_refused_before_anything_is_loaded(rflow: Bundle) -> None:
    with pytest.raises(RequestError, match="needs an NVIDIA GPU"):
        generate(rflow, GenerateRequest(accelerate="tensorrt"), device="cpu")


def test_request_is_checked_before_it_is_planned(rflow: Bundle) -> None:
    with pytest.raises(RequestError, match="livr"):
        maisi.plan(rflow, GenerateRequest(anatomy=["livr"]))
    with pytest.raises(RequestError, match="eulr"):
        plan_request(rflow, GenerateRequest(solver="eulr"))
