from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from MAISILib.bundles.networks import build_network
from MAISILib.errors import TrainingError
from MAISILib.training import autoencoder as autoencoder_training
from MAISILib.training.autoencoder import (
    held_back_psnr,
    normalized,
    psnr,
    reconstruction_loss,
    start_with_small_deviation,
    train_autoencoder,
)
from MAISILib.training.checkpoints import Run, averaged_weights
from MAISILib.training.crops import Crop
from MAISILib.training.diffusion import LatentSet, encode_crops, forget_some_labels, train_flow
from MAISILib.training.head_neck import mirror
from Testing.training.stopping import cut_power_after


def say_nothing(message: str) -> None:
    pass


def assert_same_run(one: Run, two: Run) -> None:
    assert one.step == two.step
    for name, network in one.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, two.networks[name].state_dict()[key]), key
            assert torch.equal(one.averages[name].weights[key], two.averages[name].weights[key]), key


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_autoencoder_learns_and_leaves_averaged_weights(
    autoencoder_recipe: dict[str, Any], crops: list[Crop], tmp_path: Path
) -> None:
    said: list[str] = []
    recipe = {**autoencoder_recipe, "steps": 12, "rate": 0.01}
    run = train_autoencoder(recipe, crops[:4], crops[4:], tmp_path, said.append)
    assert run.step == 12
    measured = losses(tmp_path)
    assert np.mean(measured[-3:]) < 0.7 * measured[0]
    assert len(said) == 1
    assert said[0].startswith("step 12: PSNR ")
    network = build_network(recipe["definition"])
    network.load_state_dict(averaged_weights(tmp_path, "autoencoder"))


def test_autoencoder_resumes_bit_for_bit(
    autoencoder_recipe: dict[str, Any], crops: list[Crop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(folder: str) -> Run:
        return train_autoencoder(autoencoder_recipe, crops[:4], crops[4:], tmp_path / folder, say_nothing)

    unbroken = train("unbroken")
    cut_power_after(2, monkeypatch, lambda: train("broken"))
    torch.manual_seed(99)  # a new process
    assert_same_run(train("broken"), unbroken)


def test_autoencoder_resumes_bit_for_bit_from_before_the_cut(
    autoencoder_recipe: dict[str, Any], crops: list[Crop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(folder: str) -> Run:
        return train_autoencoder(autoencoder_recipe, crops[:4], crops[4:], tmp_path / folder, say_nothing)

    unbroken = train("unbroken")
    cut_power_after(3, monkeypatch, lambda: train("broken"), unsaved=2)
    assert_same_run(train("broken"), unbroken)


def test_measuring_psnr_does_not_move_the_random_numbers_of_the_training(
    autoencoder_recipe: dict[str, Any], crops: list[Crop], tmp_path: Path
) -> None:
    run = train_autoencoder({**autoencoder_recipe, "steps": 1}, crops[:4], crops[4:], tmp_path, say_nothing)
    before = torch.get_rng_state()
    held_back_psnr(run, autoencoder_recipe, crops[4:])
    assert torch.equal(torch.get_rng_state(), before)


def test_finished_autoencoder_is_not_trained_again(
    autoencoder_recipe: dict[str, Any], crops: list[Crop], tmp_path: Path
) -> None:
    first = train_autoencoder(autoencoder_recipe, crops[:4], crops[4:], tmp_path, say_nothing)
    log = (tmp_path / "metrics.jsonl").read_text()
    assert_same_run(train_autoencoder(autoencoder_recipe, crops[:4], crops[4:], tmp_path, say_nothing), first)
    assert (tmp_path / "metrics.jsonl").read_text() == log


def test_autoencoder_with_another_recipe_is_refused(
    autoencoder_recipe: dict[str, Any], crops: list[Crop], tmp_path: Path
) -> None:
    train_autoencoder({**autoencoder_recipe, "steps": 1}, crops[:4], crops[4:], tmp_path, say_nothing)
    with pytest.raises(TrainingError, match=r"differing: kl_weight, steps"):
        train_autoencoder({**autoencoder_recipe, "kl_weight": 1.0}, crops[:4], crops[4:], tmp_path, say_nothing)


def test_autoencoder_that_diverges_stops(
    autoencoder_recipe: dict[str, Any], crops: list[Crop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_power_after(
        2, monkeypatch, lambda: train_autoencoder(autoencoder_recipe, crops[:4], crops[4:], tmp_path, say_nothing)
    )
    before = averaged_weights(tmp_path, "autoencoder")
    nan = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr(autoencoder_training, "reconstruction_loss", lambda *_: nan * 1)
    with pytest.raises(TrainingError, match=r"Step 2 .*last checkpoint is kept"):
        train_autoencoder(autoencoder_recipe, crops[:4], crops[4:], tmp_path, say_nothing)
    after = averaged_weights(tmp_path, "autoencoder")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_loss_and_psnr_look_at_the_body() -> None:
    target, body = torch.full((1, 1, 2, 2, 2), 0.5), torch.zeros(1, 1, 2, 2, 2, dtype=torch.bool)
    body[..., 0] = True
    in_air, in_body = target.clone(), target.clone()
    in_air[..., 1] += 0.1
    in_body[..., 0] += 0.1
    assert float(reconstruction_loss(in_body, target, body, 5.0)) == pytest.approx((0.1 + 5 * 0.01) / 1.1, rel=1e-4)
    assert float(reconstruction_loss(in_air, target, body, 5.0)) == pytest.approx(0.1 * 0.15 / 1.1, rel=1e-4)
    assert psnr(in_body, target, body) == pytest.approx(20, abs=1e-3)  # 10·log10(1 / 0.1²)
    assert psnr(target + 0.01, target, body) == pytest.approx(40, abs=1e-2)


def test_hu_are_normalized_as_the_codec_does() -> None:
    assert normalized(np.array([-2000.0, -1000, 0, 500, 1000, 3000])).tolist() == [0, 0, 0.5, 0.75, 1, 1]


def test_posterior_starts_narrow(autoencoder_recipe: dict[str, Any]) -> None:
    network: Any = build_network(autoencoder_recipe["definition"])
    start_with_small_deviation(network)
    with torch.no_grad():
        _, deviation = network.encode(torch.rand(1, 1, 8, 8, 8))
    assert float(deviation.median()) == pytest.approx(np.exp(-4), rel=0.5)


def test_latents_have_unit_deviation_and_both_sides(latents: LatentSet, crops: list[Crop]) -> None:
    loaded = [latents.load(crop, mirrored) for crop in crops for mirrored in (False, True)]
    values = np.stack([latent for latent, _ in loaded])
    assert values.shape == (12, 4, 8, 8, 8)
    assert values.std() == pytest.approx(1, abs=1e-3)
    (plain, labels), (reflected, reflected_labels) = loaded[:2]
    np.testing.assert_array_equal(labels, crops[0].load()[1])
    np.testing.assert_array_equal(reflected_labels, mirror(labels, labels=True))
    assert np.abs(plain - reflected).max() > 0.1


def test_mirrored_latent_is_of_the_mirrored_image(
    latents: LatentSet, crops: list[Crop], autoencoder_recipe: dict[str, Any]
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network: Any = build_network(autoencoder_recipe["definition"])
    start_with_small_deviation(network)
    image = torch.from_numpy(normalized(mirror(crops[0].load()[0])))[None, None]
    with torch.no_grad():
        mean, _ = network.encode(image)
    expected = mean[0].numpy() * latents.scale_factor
    np.testing.assert_allclose(latents.load(crops[0], True)[0], expected, rtol=2e-3, atol=2e-3)


def test_encoded_crops_are_not_encoded_again(latents: LatentSet, crops: list[Crop]) -> None:
    again = encode_crops(torch.nn.Identity(), crops, latents.folder, say_nothing)
    assert again.scale_factor == latents.scale_factor


def test_forgotten_labels_become_body_as_a_whole() -> None:
    labels = np.repeat(np.array([0, 200, 121, 134, 135, 138, 139, 140], np.uint8), 3).reshape(2, 3, 4)
    assert forget_some_labels(labels, 0.0, random.Random(1)) is labels
    assert set(np.unique(forget_some_labels(labels, 1.0, random.Random(1)))) == {0, 200}
    some = forget_some_labels(labels, 0.5, random.Random(1))
    assert some.dtype == np.uint8
    for value in np.unique(labels):
        (now,) = np.unique(some[labels == value])
        assert now in ((value,) if value == 0 else (value, 200))
    assert not np.array_equal(some, labels)


def test_flow_learns(flow_recipe: dict[str, Any], latents: LatentSet, tmp_path: Path) -> None:
    run = train_flow({**flow_recipe, "steps": 24, "rate": 0.02}, latents, tmp_path, say_nothing)
    assert run.step == 24
    measured = losses(tmp_path)
    assert np.mean(measured[-6:]) < 0.9 * np.mean(measured[:6])
    assert set(run.averages) == {"diffusion", "controlnet"}


def test_flow_resumes_bit_for_bit(
    flow_recipe: dict[str, Any], latents: LatentSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(folder: str) -> Run:
        return train_flow(flow_recipe, latents, tmp_path / folder, say_nothing)

    unbroken = train("unbroken")
    cut_power_after(2, monkeypatch, lambda: train("broken"))
    torch.manual_seed(99)
    assert_same_run(train("broken"), unbroken)
    assert losses(tmp_path / "broken") == losses(tmp_path / "unbroken")


def test_flow_on_other_latents_is_refused(flow_recipe: dict[str, Any], latents: LatentSet, tmp_path: Path) -> None:
    train_flow({**flow_recipe, "steps": 1}, latents, tmp_path, say_nothing)
    other = LatentSet(latents.folder, latents.crops, latents.scale_factor * 2)
    with pytest.raises(TrainingError, match=r"differing: scale_factor\)"):
        train_flow({**flow_recipe, "steps": 1}, other, tmp_path, say_nothing)
    with pytest.raises(TrainingError, match=r"differing: mask_dropout\)"):
        train_flow({**flow_recipe, "steps": 1, "mask_dropout": 0.1}, latents, tmp_path, say_nothing)


def test_withheld_mask_does_not_reach_the_unet(flow_recipe: dict[str, Any], latents: LatentSet, tmp_path: Path) -> None:
    """Where every step withholds the mask, the ControlNet gets no gradient, and the UNet learns alone."""
    recipe = {**flow_recipe, "mask_dropout": 1.0, "steps": 2}
    torch.manual_seed(recipe["seed"])
    before = {name: build_network(recipe[key]).state_dict() for name, key in (("a", "unet"), ("b", "controlnet"))}
    run = train_flow(recipe, latents, tmp_path, say_nothing)
    unet, controlnet = run.networks["diffusion"].state_dict(), run.networks["controlnet"].state_dict()
    assert any(not torch.equal(value, before["a"][key]) for key, value in unet.items())
    for key, value in controlnet.items():
        assert torch.allclose(value, before["b"][key], rtol=1e-3, atol=0), key  # only weight decay
