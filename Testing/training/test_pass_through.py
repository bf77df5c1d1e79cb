from __future__ import annotations

from typing import Any

import pytest
import torch

from MAISILib.bundles.networks import build_network
from MAISILib.diffusion.networks import Conditions, predict
from MAISILib.errors import TrainingError
from MAISILib.training.pass_through import start_with_pass_through
from Testing.tiny_bundle import tiny_definitions

DEFINITION = tiny_definitions()["diffusion"]


def prediction(sign: float | None, x: torch.Tensor, time: float) -> torch.Tensor:
    torch.manual_seed(3)
    unet = build_network(DEFINITION)
    if sign is not None:
        start_with_pass_through(unet, sign)
    with torch.inference_mode():
        return predict(unet, x, torch.tensor([time]), Conditions(1, (4.0, 4.0, 4.0)).tensors())


@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("time", [900.0, 300.0])
def test_noise_goes_through_and_comes_out_at_unit_strength(sign: float, time: float) -> None:
    noise = torch.randn((1, 4, 8, 8, 8), generator=torch.Generator().manual_seed(1))
    output = prediction(sign, noise * time / 1000, time)  # plain air: nothing but noise
    strength = (noise**2).mean(dim=(2, 3, 4), keepdim=True).sqrt()
    assert torch.allclose(output, sign * noise / strength, atol=1e-3)


def test_without_it_the_output_begins_as_nothing() -> None:
    noise = torch.randn((1, 4, 8, 8, 8), generator=torch.Generator().manual_seed(1))
    assert not prediction(None, noise, 900.0).any()


@pytest.mark.parametrize(
    "change", [{"in_channels": 3}, {"norm_num_groups": 16}, {"in_channels": 10, "out_channels": 10}]
)
def test_other_layouts_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match="pass_through_start needs"):
        start_with_pass_through(build_network({**DEFINITION, **change}), -1.0)
