from __future__ import annotations

import random
from typing import Any

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


def made(kind: str = "rflow", **fields: Any) -> DiffusionTask:
    recipe = DiffusionRecipe.model_validate(
        {"steps": 1, "definition": tiny_definitions()["diffusion"], "schedule": {"kind": kind}, **fields}
    )
    return DiffusionTask(recipe, StoredLatents([None]), StoredLatents([None]))  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_rectified_flow_learns_the_velocity_and_ddpm_the_noise(loss: str) -> None:
    for kind in ("rflow", "ddpm"):
        task = made(kind, loss=loss)  # whose network says nothing yet
        item = {name: value[None] for name, value in task.load_item(0, random.Random(5)).items()}
        error = item["clean"] - item["noise"] if kind == "rflow" else item["noise"]
        expected = error.abs().mean() if loss == "l1" else (error**2).mean()
        assert float(task.losses("main", item)["loss"]) == pytest.approx(float(expected))


def test_part_of_the_items_is_told_the_coarse_modality_so_that_guidance_works() -> None:
    task = made(modality_dropout=0.25, coarse_modality=8)
    told = [int(task.load_item(0, random.Random(seed))["class_labels"]) for seed in range(200)]
    assert set(told) == {1, 8}
    assert 30 < told.count(8) < 70
    assert int(made(modality_dropout=0).load_item(0, random.Random(0))["class_labels"]) == 1
