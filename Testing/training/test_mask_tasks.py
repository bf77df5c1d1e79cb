"""The mask generator's trainings: label maps on one grid, losses of each mask alone, sizes as conditions."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from MAISILib.anatomy.organ_sizes import NOT_TOLD, OrganSize
from MAISILib.bundles.bundle import open_bundle
from MAISILib.bundles.networks import build_network
from MAISILib.bundles.weights import save_safetensors
from MAISILib.errors import TrainingError
from MAISILib.files.nifti import write_labels
from MAISILib.resources import resource
from MAISILib.training.datalist import DataItem, Datalist
from MAISILib.training.mask_autoencoder_task import (
    MaskAutoencoderTask,
    mask_autoencoder_task,
    open_mask_autoencoder,
)
from MAISILib.training.mask_dataset import MaskDataset
from MAISILib.training.mask_diffusion_task import MaskDiffusionTask, mask_diffusion_task
from MAISILib.training.mask_recipes import MaskAutoencoderRecipe, MaskDiffusionRecipe
from MAISILib.training.recipes import read_recipe
from MAISILib.training.run_identity import check_resumable, run_identity
from MAISILib.training.task import Task, Tensors
from MAISILib.volumes import LabelMap
from Testing.tiny_bundle import BODY, LIVER, LUNG, tiny_patient
from Testing.tiny_mask_generator import make_generating_bundle, tiny_mask_definitions

RIGHT_LUNG = 30
CLASSES = [0, LIVER, LUNG, RIGHT_LUNG, BODY]
DATA: dict[str, Any] = {"classes": CLASSES, "size": (16, 16, 16), "spacing": (4.0, 4.0, 4.0)}
DEFINITIONS = tiny_mask_definitions(len(CLASSES), 2)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[DataItem]:
    """Four patients whose livers grow from 1 to 4 slices more; the lung sits on the left side."""
    folder = tmp_path_factory.mktemp("masks")
    found = []
    for shift in range(4):
        mask = tiny_patient(shift=shift)
        array = mask.array.copy()
        array[: 16 // 2 + 1][array[: 16 // 2 + 1] == LUNG] = BODY
        write_labels(mask.with_array(array), folder / f"patient-{shift}.nii.gz", synthetic=False)
        found.append(DataItem(f"patient-{shift}", folder / f"patient-{shift}.nii.gz"))
    return found


@pytest.fixture
def recipe() -> MaskAutoencoderRecipe:
    return MaskAutoencoderRecipe.model_validate(
        {"definition": DEFINITIONS["mask_autoencoder"], "data": DATA, "steps": 30, "rate": 0.01, "batch": 2}
    )


@pytest.fixture
def diffusion_recipe() -> MaskDiffusionRecipe:
    return MaskDiffusionRecipe.model_validate(
        {
            "definition": DEFINITIONS["mask_diffusion"],
            "data": DATA,
            "controllable": ["liver", "left lung upper lobe"],
            "steps": 2,
            "variants": 3,
        }
    )


@pytest.fixture
def diffusion(diffusion_recipe: MaskDiffusionRecipe, items: list[DataItem]) -> Callable[..., MaskDiffusionTask]:
    def make(**changes: Any) -> MaskDiffusionTask:
        recipe = diffusion_recipe.model_copy(update=changes)
        masks = MaskDataset(items, recipe.data)
        torch.manual_seed(3)
        return MaskDiffusionTask(recipe, masks, masks, build_network(DEFINITIONS["mask_autoencoder"]))

    return make


def stacked(task: Task, seeds: dict[int, int]) -> Tensors:
    """A batch of items by index and seed."""
    loaded = [task.load_item(index, random.Random(seed)) for index, seed in seeds.items()]
    return {name: torch.stack([item[name] for item in loaded]) for name in loaded[0]}


def settings_with(**changes: Any) -> Any:
    return MaskAutoencoderRecipe.model_validate(
        {"definition": DEFINITIONS["mask_autoencoder"], "data": {**DATA, **changes}, "steps": 1}
    ).data


# Label maps


def test_mirror_exchanges_left_and_right(items: list[DataItem]) -> None:
    masks = MaskDataset(items, settings_with(mirror=1.0))
    array = masks.load(0)
    mirrored = masks.vary(array, random.Random(0))
    assert np.array_equal(mirrored == RIGHT_LUNG, (array == LUNG)[::-1])
    assert np.array_equal(mirrored == LIVER, (array == LIVER)[::-1])
    assert not (mirrored == LUNG).any()


def test_stretch_changes_sizes_but_no_labels(items: list[DataItem]) -> None:
    masks = MaskDataset(items, settings_with(mirror=0.0, stretch=0.2))
    array = masks.load(1)
    volumes = {int((masks.vary(array, random.Random(seed)) == LIVER).sum()) for seed in range(6)}
    assert len(volumes) > 3
    assert set(np.unique(masks.vary(array, random.Random(1)))) <= set(np.unique(array))
    assert np.array_equal(masks.vary(array, random.Random(2)), masks.vary(array, random.Random(2)))


def test_masks_of_other_grids_are_resampled_or_left_out(items: list[DataItem], tmp_path: Path) -> None:
    write_labels(tiny_patient(shape=(32, 32, 32), spacing=(2.0, 2.0, 2.0)), tmp_path / "fine.nii.gz", synthetic=False)
    mixed = [items[0], DataItem("fine", tmp_path / "fine.nii.gz")]
    resampled = MaskDataset(mixed, settings_with())
    assert resampled.load(1).shape == (16, 16, 16)
    assert (resampled.load(1) == LIVER).sum() == pytest.approx((tiny_patient().array == LIVER).sum(), rel=0.3)
    told: list[str] = []
    kept = MaskDataset(mixed, settings_with(resample=False), on_skip=told.append)
    assert [kept.name(i) for i in range(len(kept))] == ["patient-0"]
    assert told == ["1 of 2 label maps left out: they do not have 16×16×16 voxels of 4×4×4 mm."]


def test_any_orientation_becomes_ras(items: list[DataItem], tmp_path: Path) -> None:
    mask = tiny_patient()
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = 15
    array = mask.array.copy()
    array[2, 7, 7] = LIVER
    write_labels(LabelMap(array[::-1].copy(), mask.affine @ flip, mask.table), tmp_path / "lps.nii.gz", synthetic=False)
    masks = MaskDataset([DataItem("lps", tmp_path / "lps.nii.gz")], settings_with(classes=[0, LIVER, LUNG, BODY, 9]))
    assert np.array_equal(masks.load(0), array)


def test_labels_that_are_no_classes_are_named(items: list[DataItem]) -> None:
    masks = MaskDataset(items, settings_with(classes=[0, LIVER, BODY, 9, 10]))
    with pytest.raises(TrainingError, match=r"patient-2\.nii\.gz holds labels that are no classes.*: 28\."):
        masks.load(2)


# The autoencoder


def test_autoencoder_learns_its_masks(recipe: MaskAutoencoderRecipe, items: list[DataItem]) -> None:
    task, scale = mask_autoencoder_task(recipe, Datalist(tuple(items), tuple(items[:1])))
    assert scale is None
    network = task.networks["mask_autoencoder"]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    before = task.validate_item(0, {"mask_autoencoder": network.eval()})
    first = last = 0.0
    for step in range(30):
        losses = task.losses("main", stacked(task, {0: step, 3: step}))
        loss = losses["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        last = loss.item()
        first = first or last
    with torch.no_grad():
        after = task.validate_item(0, {"mask_autoencoder": network.eval()})
    assert last < 0.6 * first
    assert after["dice"] > max(0.5, before["dice"])
    assert after["dice_loss"] == pytest.approx(1 - after["dice"])
    assert {"dice of 1", "dice of 28", "dice of 200"} <= set(after)


def test_losses_of_a_mask_do_not_depend_on_its_neighbours(recipe: MaskAutoencoderRecipe, items: list[DataItem]) -> None:
    masks = MaskDataset(items, recipe.data)
    task = MaskAutoencoderTask(recipe, masks, masks)
    both, one = (task.losses("main", stacked(task, seeds)) for seeds in ({0: 1, 2: 5}, {2: 5}))
    for name in ("loss", "cross_entropy", "dice_loss", "kl"):
        assert both[name].shape == (2,)
        torch.testing.assert_close(both[name][1:], one[name], rtol=1e-4, atol=1e-5)


def test_losses_weigh_as_the_recipe_says(recipe: MaskAutoencoderRecipe, items: list[DataItem]) -> None:
    weights = {"cross_entropy_weight": 2.0, "dice_weight": 3.0, "kl_weight": 0.1}
    masks = MaskDataset(items, recipe.data)
    task = MaskAutoencoderTask(recipe.model_copy(update=weights), masks, masks)
    losses = task.losses("main", stacked(task, {0: 1}))
    expected = 2 * losses["cross_entropy"] + 3 * losses["dice_loss"] + 0.1 * losses["kl"]
    torch.testing.assert_close(losses["loss"], expected)


def test_classes_that_a_mask_lacks_do_not_count(recipe: MaskAutoencoderRecipe, items: list[DataItem]) -> None:
    """A perfect answer has no Dice loss although the right lung is never there."""
    masks = MaskDataset(items, settings_with(mirror=0.0))
    task = MaskAutoencoderTask(recipe, masks, masks)
    batch = stacked(task, {0: 1})
    classes = torch.tensor(CLASSES)
    scores = 50.0 * (batch["labels"] == classes.view(1, -1, 1, 1, 1))
    network: Any = task.networks["mask_autoencoder"]
    network.decode = lambda latent: scores
    losses = task.losses("main", batch)
    assert float(losses["dice_loss"]) == pytest.approx(0.0, abs=1e-3)
    assert float(losses["cross_entropy"]) == pytest.approx(0.0, abs=1e-3)


def test_patches_hold_part_of_the_patient(recipe: MaskAutoencoderRecipe, items: list[DataItem]) -> None:
    masks = MaskDataset(items, recipe.data)
    task = MaskAutoencoderTask(recipe.model_copy(update={"patch_size": (8, 4, 4)}), masks, masks)
    for seed in range(20):
        item = task.load_item(0, random.Random(seed))
        assert item["labels"].shape == (1, 8, 4, 4)
        assert item["noise"].shape == (4, 4, 2, 2)
        assert item["labels"].any()
    task = MaskAutoencoderTask(recipe.model_copy(update={"patch_size": (32, 4, 4)}), masks, masks)
    with pytest.raises(TrainingError, match=r"patch_size \(32, 4, 4\) is larger"):
        task.load_item(0, random.Random(0))


def test_trained_autoencoder_is_found_in_its_run_or_in_a_bundle(tmp_path: Path, recipe: MaskAutoencoderRecipe) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "request.json").write_text(json.dumps({"train": recipe.model_dump(mode="json")}))
    with pytest.raises(TrainingError, match=r"mask_autoencoder\.safetensors is missing"):
        open_mask_autoencoder(str(run))
    save_safetensors(build_network(recipe.definition).state_dict(), run / "weights" / "mask_autoencoder.safetensors")
    assert open_mask_autoencoder(str(run)).training is False
    assert open_mask_autoencoder(str(make_generating_bundle(tmp_path / "bundle").folder)).training is False
    with pytest.raises(TrainingError, match="Name its run folder or a bundle"):
        open_mask_autoencoder(None)


# The UNet


def test_conditions_are_the_percentiles_of_the_organs(diffusion: Callable[..., MaskDiffusionTask]) -> None:
    task = diffusion(data=settings_with(mirror=0.0))
    livers = [float(task.load_item(index, random.Random(0))["conditions"][0, 0]) for index in range(4)]
    assert livers == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=0.02)


def test_mirrored_variations_are_told_that_the_left_lung_is_absent(
    diffusion: Callable[..., MaskDiffusionTask],
) -> None:
    task = diffusion(data=settings_with(mirror=1.0))
    assert float(task.load_item(0, random.Random(0))["conditions"][0, 1]) == -1.0


def test_a_cut_organ_is_told_a_size_that_it_may_have(
    diffusion: Callable[..., MaskDiffusionTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = diffusion(data=settings_with(mirror=0.0))
    measure = MaskDataset.sizes
    monkeypatch.setattr(
        MaskDataset,
        "sizes",
        lambda self, array, labels: [s and OrganSize(s.volume_mm3, False) for s in measure(self, array, labels)],
    )
    told = {float(task.load_item(2, random.Random(seed))["conditions"][0, 0]) for seed in range(8)}
    assert len(told) > 4
    assert min(told) >= 0.6


def test_items_are_the_same_for_the_same_random_numbers(diffusion: Callable[..., MaskDiffusionTask]) -> None:
    first, again = (stacked(diffusion(), {0: 1, 1: 2}) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = stacked(diffusion(), {0: 3, 1: 4})
    assert not torch.equal(first["noise"], other["noise"])


def test_latents_are_scaled_to_unit_variance(diffusion: Callable[..., MaskDiffusionTask]) -> None:
    task = diffusion(data=settings_with(mirror=0.0))
    clean = stacked(task, {index: index for index in range(4)})["clean"]
    assert float(clean.std()) == pytest.approx(1.0, rel=0.1)
    assert diffusion(scale_factor=2.0).scale_factor == 2.0


def test_dropped_conditions_tell_nothing(diffusion: Callable[..., MaskDiffusionTask]) -> None:
    item = diffusion(condition_dropout=1.0).load_item(0, random.Random(0))
    assert (item["conditions"] == NOT_TOLD).all()


@pytest.mark.parametrize("kind", ["ddpm", "rflow"])
def test_error_of_a_mask_does_not_depend_on_its_neighbours(
    diffusion: Callable[..., MaskDiffusionTask], kind: str
) -> None:
    task = diffusion(schedule={"kind": kind})
    network: Any = task.networks["mask_diffusion"]
    for parameter in network.out.parameters():  # MONAI starts it at zero
        torch.nn.init.normal_(parameter, std=0.1)
    both, one = (task.losses("main", stacked(task, seeds))["loss"] for seeds in ({0: 1, 2: 5}, {2: 5}))
    assert both.shape == (2,)
    torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-5)


def test_a_network_that_says_nothing_has_the_error_of_the_noise(diffusion: Callable[..., MaskDiffusionTask]) -> None:
    task = diffusion()
    with torch.no_grad():
        figures = [task.validate_item(0, task.networks) for _ in range(2)]
    assert figures[0] == figures[1]
    assert figures[0]["loss"] == pytest.approx((2 / np.pi) ** 0.5, rel=0.05)


def test_errors_weigh_as_those_of_the_velocity_up_to_the_recipes_limit(
    diffusion: Callable[..., MaskDiffusionTask],
) -> None:
    plain, weighted = diffusion(), diffusion(velocity_weight=20)
    batch = stacked(plain, {0: 1, 1: 2, 2: 3})
    batch["time"] = torch.tensor([0, 300, 999])
    with torch.no_grad():
        ratio = weighted.losses("main", batch)["loss"] / plain.losses("main", batch)["loss"]
    betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2
    signal = np.cumprod(1 - betas)
    assert ratio.tolist() == pytest.approx([1 / signal[0], 1 / signal[300], 20.0], rel=1e-3)


def test_handing_the_noise_through_is_a_better_start(diffusion: Callable[..., MaskDiffusionTask]) -> None:
    plain, passing = diffusion(), diffusion(pass_through_start=True)
    with torch.no_grad():
        errors = [float(np.mean([t.validate_item(i, t.networks)["loss"] for i in range(4)])) for t in (plain, passing)]
    assert errors[1] < 0.8 * errors[0]


def test_task_comes_from_recipe_and_datalist(
    diffusion_recipe: MaskDiffusionRecipe, items: list[DataItem], tmp_path: Path
) -> None:
    bundle = make_generating_bundle(tmp_path / "bundle")
    recipe = diffusion_recipe.model_copy(update={"autoencoder": str(bundle.folder)})
    task, scale = mask_diffusion_task(recipe, Datalist(tuple(items), ()))
    assert scale == task.scale_factor > 0
    assert task.facts == {"mask autoencoder": bundle.weights_sha256()["mask_autoencoder"]}
    assert (task.item_count(), task.validation_count(), task.item_name(3)) == (4, 0, "patient-3")


def test_a_run_goes_on_when_its_mask_autoencoder_is_called_by_another_path(
    diffusion_recipe: MaskDiffusionRecipe, items: list[DataItem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_generating_bundle(tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    identities = []
    for path in (str(bundle.folder), "bundle"):
        asked = diffusion_recipe.model_copy(update={"autoencoder": path})
        task, _ = mask_diffusion_task(asked, Datalist(tuple(items), ()))
        identities.append(run_identity(task, asked))
    check_resumable(identities[0], identities[1], asked, tmp_path)


def test_a_mask_autoencoder_that_was_trained_again_is_told_from_the_earlier_one(
    diffusion_recipe: MaskDiffusionRecipe, recipe: MaskAutoencoderRecipe, items: list[DataItem], tmp_path: Path
) -> None:
    (tmp_path / "request.json").write_text(json.dumps({"train": recipe.model_dump(mode="json")}))
    asked = diffusion_recipe.model_copy(update={"autoencoder": str(tmp_path)})
    facts = []
    for _ in range(2):
        trained = build_network(recipe.definition).state_dict()
        save_safetensors(trained, tmp_path / "weights" / "mask_autoencoder.safetensors")
        facts.append(mask_diffusion_task(asked, Datalist(tuple(items), ()))[0].facts)
    assert facts[0].keys() == facts[1].keys()
    assert facts[0] != facts[1]


# Recipes


@pytest.mark.parametrize("change", [{"out_channels": 4}, {"in_channels": 1}])
def test_recipe_whose_channels_do_not_fit_is_refused(change: dict[str, int]) -> None:
    definition = {**DEFINITIONS["mask_autoencoder"], **change}
    with pytest.raises(ValidationError, match="5 classes need 8 input and as many output channels"):
        MaskAutoencoderRecipe.model_validate({"definition": definition, "data": DATA, "steps": 1})


@pytest.mark.parametrize("classes", [[1, 2], [0, 1, 1]])
def test_classes_begin_with_background_and_are_named_once(classes: list[int]) -> None:
    with pytest.raises(ValidationError, match="classes begin with 0"):
        settings_with(classes=classes)


def test_recipe_with_as_many_anatomies_as_the_network_takes(diffusion_recipe: MaskDiffusionRecipe) -> None:
    wrong = {**diffusion_recipe.model_dump(), "controllable": ["liver"]}
    with pytest.raises(ValidationError, match="cross_attention_dim is 2, but there are 1"):
        MaskDiffusionRecipe.model_validate(wrong)


def test_recipes_of_the_embedded_model_fit_its_labels() -> None:
    folder = resource("recipes", "head-neck-mini")
    autoencoder = read_recipe(folder / "mask-autoencoder.json", MaskAutoencoderRecipe)
    diffusion = read_recipe(folder / "mask-diffusion.json", MaskDiffusionRecipe)
    table = open_bundle("head-neck-mini").labels
    assert autoencoder.data.classes == [0, *sorted(label.value for label in table)]
    assert diffusion.data.classes == autoencoder.data.classes
    assert [table.find(name).name for name in diffusion.controllable] == diffusion.controllable
    weights = [p for d in (autoencoder.definition, diffusion.definition) for p in build_network(d).parameters()]
    assert 2 * sum(p.numel() for p in weights) < 4e6  # bytes in float16
