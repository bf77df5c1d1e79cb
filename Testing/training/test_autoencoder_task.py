from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from MAISILib.training.autoencoder import AutoencoderTask, kl_divergence, reconstruct
from MAISILib.training.recipes import AutoencoderRecipe
from Testing.tiny_bundle import tiny_definitions


class OneImage:
    """Has the face of an ``ImageDataset``."""

    def __init__(self, label: torch.Tensor | None = None) -> None:
        self.label = label

    def __len__(self) -> int:
        return 1

    def load(self, index: int, rng: Any) -> Any:
        image = torch.rand(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
        return SimpleNamespace(image=image, label=self.label)


def recipe(**fields: Any) -> AutoencoderRecipe:
    definition = tiny_definitions()["autoencoder"]
    return AutoencoderRecipe.model_validate({"steps": 1, "definition": definition, "adversarial_weight": 0, **fields})


@torch.no_grad()
def test_a_held_out_image_is_measured_in_the_body_and_where_none_is_drawn_as_a_whole() -> None:
    def figures(label: torch.Tensor | None) -> dict[str, float]:
        task = AutoencoderTask(recipe(), OneImage(), OneImage(label))  # type: ignore[arg-type]
        return task.validate_item(0, task.networks)

    half = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    half[:, :4] = 200
    assert math.isfinite(figures(None)["psnr_db"])
    assert figures(torch.zeros_like(half)) == figures(None) != figures(half)


@torch.no_grad()
def test_what_comes_back_without_any_error_has_a_psnr_too(monkeypatch: pytest.MonkeyPatch) -> None:
    task = AutoencoderTask(recipe(), OneImage(), OneImage())  # type: ignore[arg-type]
    monkeypatch.setattr("MAISILib.training.autoencoder.reconstruct", lambda network, image, window: image)
    assert task.validate_item(0, task.networks) == {"psnr_db": 100.0, "mae": 0.0}


@torch.no_grad()
def test_the_error_is_absolute_or_squared_or_both() -> None:
    image = torch.rand(2, 1, 8, 8, 8)
    batch = {"image": image, "weight": torch.ones_like(image), "noise": torch.zeros(2, 4, 4, 4, 4)}

    def reconstruction(**weights: float) -> torch.Tensor:
        task = AutoencoderTask(recipe(**weights), OneImage(), OneImage())  # type: ignore[arg-type]
        network: Any = task.networks["autoencoder"]
        error = network.decode(network.encode(batch["image"])[0]) - batch["image"]
        expected = weights.get("absolute_weight", 1) * error.abs() + weights.get("squared_weight", 0) * error**2
        torch.testing.assert_close(task.losses("main", batch)["reconstruction"], expected.mean((1, 2, 3, 4)))
        return expected.mean()

    weights: list[dict[str, float]] = [{}, {"absolute_weight": 0, "squared_weight": 1}, {"squared_weight": 5}]
    assert len({float(reconstruction(**each)) for each in weights}) == 3
    with pytest.raises(ValueError, match="both 0: nothing would be reconstructed"):
        recipe(absolute_weight=0)


def test_the_divergence_is_that_of_normal_distributions() -> None:
    mean, deviation = torch.randn(2, 4, 3, 3, 3), torch.rand(2, 4, 3, 3, 3) + 0.1
    posterior, standard = torch.distributions.Normal(mean, deviation), torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(posterior, standard).flatten(1).sum(1)
    torch.testing.assert_close(kl_divergence(mean, deviation), expected)


def test_autoencoder_and_discriminator_pull_in_opposite_directions() -> None:
    asked = recipe(adversarial_weight=0.1, kl_weight=1e-3, data={"patch_size": [32, 32, 32]})
    task = AutoencoderTask(asked, OneImage(), OneImage())  # type: ignore[arg-type]
    assert task.phases == {"generator": ("autoencoder",), "discriminator": ("discriminator",)}
    scores: dict[str, float] = {}

    class Judge(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
            return [torch.full((len(image), 1, 2, 2, 2), scores["real" if image is batch["image"] else "made"])]

    task.networks["discriminator"] = Judge()
    image = torch.rand(1, 1, 32, 32, 32)
    batch = {"image": image, "weight": torch.ones_like(image), "noise": torch.zeros(1, 4, 16, 16, 16)}
    with torch.no_grad():
        for real, made in ((0.75, 0.25), (1.0, 0.0), (0.0, 1.0)):
            scores |= {"real": real, "made": made}
            losses = task.losses("generator", batch)
            assert float(losses["adversarial"]) == pytest.approx((1 - made) ** 2)
            total = losses["reconstruction"] + 1e-3 * losses["kl"] + 0.1 * losses["adversarial"]
            torch.testing.assert_close(losses["loss"], total)
            judged = float(task.losses("discriminator", batch)["loss"])
            assert judged == pytest.approx(0.5 * ((1 - real) ** 2 + made**2))


def test_large_held_out_images_are_coded_in_windows() -> None:
    seen: list[tuple[int, ...]] = []

    class Halving:
        def reconstruct(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(image.shape[2:]))
            return image / 2

    image = torch.rand(1, 1, 20, 16, 12)
    for window, shapes in ((None, {(20, 16, 12)}), ((20, 16, 16), {(20, 16, 12)}), ((8, 8, 8), {(8, 8, 8)})):
        seen.clear()
        torch.testing.assert_close(reconstruct(Halving(), image, window), image / 2)
        assert set(seen) == shapes
