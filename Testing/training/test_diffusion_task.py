from __future__ import annotations

import pytest
import torch

from MAISILib.errors import TrainingError
from MAISILib.training.diffusion_task import DiffusionTask
from MAISILib.training.recipes import DiffusionRecipe
from Testing.tiny_bundle import tiny_definitions
from Testing.training.stored_latents import StoredLatents


@torch.no_grad()
def test_a_held_out_latent_without_the_regions_that_the_network_is_told_is_named() -> None:
    recipe = DiffusionRecipe(steps=1, definition=tiny_definitions("ddpm")["diffusion"], schedule={"kind": "ddpm"})
    told, untold = StoredLatents([None], regions=(1, 2)), StoredLatents([None], names=["pt_9"])
    good = DiffusionTask(recipe, told, told)  # type: ignore[arg-type]
    assert "loss" in good.validate_item(0, good.networks)
    task = DiffusionTask(recipe, told, untold)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="pt_9 has no top-most body region"):
        task.validate_item(0, task.networks)
