from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch

from MAISILib.training.autoencoder import AutoencoderTask
from MAISILib.training.recipes import AutoencoderRecipe
from Testing.tiny_bundle import tiny_definitions


class OneImage:
    """Has the face of an ``ImageDataset``."""

    def __init__(self, label: torch.Tensor | None) -> None:
        self.label = label

    def __len__(self) -> int:
        return 1

    def load(self, index: int, rng: Any) -> Any:
        image = torch.rand(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
        return SimpleNamespace(image=image, label=self.label)


@torch.no_grad()
def test_a_held_out_image_is_measured_in_the_body_and_where_none_is_drawn_as_a_whole() -> None:
    recipe = AutoencoderRecipe(steps=1, definition=tiny_definitions()["autoencoder"], adversarial_weight=0)

    def figures(label: torch.Tensor | None) -> dict[str, float]:
        task = AutoencoderTask(recipe, OneImage(None), OneImage(label))  # type: ignore[arg-type]
        return task.validate_item(0, task.networks)

    half = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    half[:, :4] = 200
    assert math.isfinite(figures(None)["psnr_db"])
    assert figures(torch.zeros_like(half)) == figures(None) != figures(half)
