"""Recipes: the published learning rates, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from MAISILib.errors import TrainingError
from MAISILib.training.images import ImageSettings
from MAISILib.training.mask_recipes import MaskSettings
from MAISILib.training.recipes import AutoencoderRecipe, DiffusionRecipe, Recipe, parse_recipe
from MAISILib.training.start import KINDS
from Testing.imports import ROOT


def test_the_autoencoder_warms_up_by_tens_of_epochs() -> None:
    recipe = AutoencoderRecipe(steps=1000, definition={})
    rates = [recipe.rate_at(500, epoch) for epoch in (0, 9.9, 10, 19.9, 20, 900)]
    assert rates == pytest.approx([1e-6, 1e-6, 1e-5, 1e-5, 1e-4, 1e-4])


def test_diffusion_slows_down_by_the_square_of_what_is_left() -> None:
    recipe = DiffusionRecipe(steps=100, definition={})
    assert [recipe.rate_at(step, 0) for step in (0, 50, 90)] == pytest.approx([1e-5, 0.25e-5, 0.01e-5])


def test_a_cosine_ends_at_a_fiftieth_and_a_warm_up_comes_before_it() -> None:
    recipe = Recipe(steps=110, rate=1.0, rate_schedule="cosine", warmup=10)
    assert [recipe.rate_at(step, 0) for step in (0, 9, 10, 60)] == pytest.approx([0.1, 1.0, 1.0, 0.51])
    assert recipe.rate_at(109, 0) == pytest.approx(0.02, abs=1e-3)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"air_weight": 0}, "'air_weight' is 0: Input should be greater than 0"),
        ({"rate_schedule": "epochs", "epoch_factors": []}, "'epoch_factors' is .*at least 1 item"),
        ({"crop": {"size": [8, 8, 8], "probability": 0.5}}, "items of two shapes; set batch to 1"),
        ({"weight": 1}, r"'weight' is no field of this recipe\. Did you mean"),
    ],
)
def test_a_field_that_does_not_fit_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainingError, match=f"R: .*{said}"):
        parse_recipe({"steps": 1, "definition": {}, **fields}, DiffusionRecipe, "R")


def test_every_setting_is_in_the_guide() -> None:
    guide = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("training.md", "training-data.md"))
    kinds = (*(kind for kind, *_ in KINDS.values()), ImageSettings, MaskSettings)
    fields = {name for kind in kinds for name in kind.model_fields}
    assert sorted(name for name in fields if f"`{name}`" not in guide) == []
