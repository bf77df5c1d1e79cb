"""From files to trained weights, network after network, as the command line does it."""

from __future__ import annotations

import json
import random
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from MAISILib.bundles.bundle import Bundle
from MAISILib.bundles.networks import build_network
from MAISILib.bundles.weights import read_checkpoint, save_safetensors, sha256_of
from MAISILib.errors import FileFormatError, TrainingError
from MAISILib.jobs.folder import read_events, read_state
from MAISILib.training.checkpoint import read_checkpoint as read_run
from MAISILib.training.datalist import read_datalist
from MAISILib.training.diffusion_task import diffusion_task
from MAISILib.training.encoding import GridRule, encode_items
from MAISILib.training.recipes import DiffusionRecipe
from MAISILib.training.start import Outcome, start_training
from Testing.tiny_bundle import make_tiny_bundle, tiny_definitions

DEFINITIONS = tiny_definitions()
AUTOENCODER = {
    "network": "autoencoder",
    "definition": DEFINITIONS["autoencoder"],
    "data": {"random_aug": False, "patch_size": [16, 16, 16], "mirror": 0.5, "divisor": 4},
    "steps": 2,
    "batch": 2,
    "perceptual_weight": 0.0,
    "adversarial_weight": 0.0,
}
DIFFUSION = {"network": "diffusion", "definition": DEFINITIONS["diffusion"], "steps": 2, "rate": 1e-3}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny"))


@pytest.fixture(scope="module")
def pairs(patients: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients to learn from and one held out; labels are the structures' numbers, 1 and 23 among them."""
    folder = tmp_path_factory.mktemp("pairs")
    for path in patients.glob("*.nii.gz"):
        shutil.copy(path, folder / path.name)
    entries = [
        {"image": f"pt_{n}_ct.nii.gz", "label": f"pt_{n}_seg.nii.gz", "fold": f} for n, f in ((1, 1), (2, 1), (10, 0))
    ]
    (folder / "list.json").write_text(json.dumps({"training": entries}), encoding="utf-8")
    return folder / "list.json"


@pytest.fixture(scope="module")
def latents(bundle: Bundle, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encode_items(
        bundle, read_datalist(pairs), tmp_path_factory.mktemp("latents"), grid=GridRule(size=(16, 16, 16))
    ).datalist


def train(kind: str, recipe: dict[str, Any], data: Path, out: Path, **options: Any) -> Outcome:
    path = out.parent / f"{out.name}-recipe.json"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return start_training(kind, path, data, out, device="cpu", **options)


def loads_into(definition: dict[str, Any], path: Path) -> None:
    weights = read_checkpoint(path, "safetensors").weights
    build_network(definition).load_state_dict({name: value.float() for name, value in weights.items()})


def test_autoencoder_with_discriminator_leaves_its_weights(pairs: Path, tmp_path: Path) -> None:
    recipe = {**AUTOENCODER, "adversarial_weight": 0.1, "data": {**AUTOENCODER["data"], "patch_size": [32, 32, 32]}}
    outcome = train("autoencoder", recipe, pairs, tmp_path / "run")
    assert outcome.steps == 2
    assert outcome.figures["psnr_db"] > 0
    loads_into(DEFINITIONS["autoencoder"], outcome.weights["autoencoder"])
    assert read_state(tmp_path / "run") == "done"
    metrics = [event.metrics for event in read_events(tmp_path / "run") if event.stage == "autoencoder"]
    assert {"generator loss", "generator adversarial", "discriminator loss"} <= metrics[-1].keys()


def test_autoencoder_learns_from_images_without_labels(patients: Path, tmp_path: Path) -> None:
    entries = [{"image": str(patients / f"pt_{n}_ct.nii.gz")} for n in (1, 2)]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries}), encoding="utf-8")
    recipe = {**AUTOENCODER, "rate": 1e-3, "rate_schedule": "constant", "steps": 12}
    train("autoencoder", recipe, tmp_path / "list.json", tmp_path / "run", fold=None)
    losses = [event.metrics["loss"] for event in read_events(tmp_path / "run")]
    assert sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize("kind", ["rflow", "ddpm"])
def test_diffusion_keeps_the_scale_of_its_latents(kind: str, latents: Path, tmp_path: Path) -> None:
    outcome = train("diffusion", {**DIFFUSION, "schedule": {"kind": kind}}, latents, tmp_path / "run")
    loads_into(DEFINITIONS["diffusion"], outcome.weights["diffusion"])
    scale = read_checkpoint(outcome.weights["diffusion"], "safetensors").scale_factor
    assert scale is not None
    assert scale > 0
    assert outcome.figures["loss"] > 0


def test_unet_and_controlnet_are_trained_together_on_boxes(latents: Path, tmp_path: Path) -> None:
    recipe = {
        **DIFFUSION,
        "controlnet": DEFINITIONS["controlnet"],
        "crop": {"size": [4, 4, 4], "probability": 0.5},
        "batch": 1,
        "accumulate": 2,
        "label_dropout": 0.2,
    }
    outcome = train("diffusion", recipe, latents, tmp_path / "run")
    loads_into(DEFINITIONS["controlnet"], outcome.weights["controlnet"])
    start = build_network(DEFINITIONS["controlnet"]).state_dict()
    trained = read_checkpoint(outcome.weights["controlnet"], "safetensors").weights
    assert any(not torch.equal(trained[name].float(), value) for name, value in start.items())


def test_controlnet_learns_beside_the_bundles_frozen_unet(bundle: Bundle, latents: Path, tmp_path: Path) -> None:
    before = bundle.weights_sha256()
    recipe = {
        "network": "controlnet",
        "init_from": str(bundle.folder),
        "steps": 2,
        "rate": 1e-3,
        "weighted_labels": [1],
    }
    outcome = train("controlnet", recipe, latents, tmp_path / "run")
    assert list(outcome.weights) == ["controlnet"]
    loads_into(DEFINITIONS["controlnet"], outcome.weights["controlnet"])
    assert bundle.weights_sha256() == before


def test_controlnet_refuses_latents_of_another_autoencoder(latents: Path, tmp_path: Path) -> None:
    other = make_tiny_bundle(tmp_path / "other", seed=5)
    recipe = {"network": "controlnet", "init_from": str(other), "steps": 2}
    with pytest.raises(FileFormatError, match="another autoencoder"):
        train("controlnet", recipe, latents, tmp_path / "run")


def test_a_finished_run_is_left_alone_and_a_longer_one_is_another(pairs: Path, tmp_path: Path) -> None:
    train("autoencoder", AUTOENCODER, pairs, tmp_path / "run")
    again = train("autoencoder", AUTOENCODER, pairs, tmp_path / "run", resume=True)
    assert again.steps == 2
    with pytest.raises(TrainingError, match="steps was 2, is 3"):
        train("autoencoder", {**AUTOENCODER, "steps": 3}, pairs, tmp_path / "run", resume=True)


def test_an_image_that_is_no_image_is_named_or_skipped(pairs: Path, tmp_path: Path) -> None:
    content = json.loads(pairs.read_text(encoding="utf-8"))
    for entry in content["training"]:
        entry |= {key: str(pairs.parent / entry[key]) for key in ("image", "label")}
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    content["training"].append({"image": str(tmp_path / "bad.nii.gz"), "fold": 1})
    (tmp_path / "list.json").write_text(json.dumps(content), encoding="utf-8")
    recipe = {**AUTOENCODER, "steps": 1}
    with pytest.raises(FileFormatError, match=r"bad\.nii\.gz"):
        train("autoencoder", recipe, tmp_path / "list.json", tmp_path / "run")
    skipped: list[str] = []
    train("autoencoder", recipe, tmp_path / "list.json", tmp_path / "run", skip_bad=True, on_skip=skipped.append)
    assert len(skipped) == 1
    assert "bad.nii.gz" in skipped[0]


def test_an_image_with_nan_is_named_or_skipped(pairs: Path, tmp_path: Path) -> None:
    import nibabel as nib
    import numpy as np

    array = np.full((32, 32, 32), np.nan, np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "nan.nii.gz")  # type: ignore[attr-defined]
    good = str(pairs.parent / "pt_1_ct.nii.gz")
    content = {"training": [{"image": good}, {"image": str(tmp_path / "nan.nii.gz")}]}
    (tmp_path / "list.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(FileFormatError, match=r"nan\.nii\.gz"):
        train("autoencoder", AUTOENCODER, tmp_path / "list.json", tmp_path / "run", fold=None)
    skipped: list[str] = []
    outcome = train(
        "autoencoder", AUTOENCODER, tmp_path / "list.json", tmp_path / "other", fold=None, skip_bad=True,
        on_skip=skipped.append,
    )  # fmt: skip
    assert outcome.steps == 2
    assert ["nan" in reason for reason in skipped] == [True]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"stepps": 4}, "'steps'"),
        ({"steps": 0}, "'steps' is 0"),
        ({"network": "diffusion"}, "'network' is 'diffusion'"),
        ({"adversarial_weight": 0.1}, "patch_size of at least 32"),
        ({"rate": "fast"}, "'rate' is 'fast'"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_by_field(
    change: dict[str, Any], named: str, pairs: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=named):
        train("autoencoder", {**AUTOENCODER, **change}, pairs, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_trainings_are_answered_with_the_nearest(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="Did you mean 'autoencoder'"):
        train("autoencodr", AUTOENCODER, pairs, tmp_path / "run")


def test_times_near_the_image_are_drawn_more_often_where_the_recipe_says_so(latents: Path) -> None:
    def median_time(power: float) -> float:
        recipe = DiffusionRecipe(
            definition=DEFINITIONS["diffusion"], steps=1, time_power=power, schedule={"kind": "ddpm"}
        )
        task, _ = diffusion_task(recipe, read_datalist(latents))
        return statistics.median(float(task.load_item(0, random.Random(n))["time"]) for n in range(60))

    assert 400 < median_time(1.0) < 600
    assert 150 < median_time(2.0) < 350


def test_a_run_from_before_a_field_of_the_recipe_existed_goes_on(pairs: Path, tmp_path: Path) -> None:
    train("autoencoder", AUTOENCODER, pairs, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pt"
    saved = read_run(path)
    del saved.identity["clip"]
    saved.write(path)
    assert train("autoencoder", AUTOENCODER, pairs, tmp_path / "run", resume=True).steps == 2
    with pytest.raises(TrainingError, match=r"clip was null, is 1\.0"):
        train("autoencoder", {**AUTOENCODER, "clip": 1.0}, pairs, tmp_path / "run", resume=True)


def test_a_unet_goes_on_from_a_bundle_with_the_bundles_scale_and_latents(
    bundle: Bundle, latents: Path, tmp_path: Path
) -> None:
    recipe = {**DIFFUSION, "init_from": str(bundle.folder)}
    outcome = train("diffusion", recipe, latents, tmp_path / "run")
    assert read_checkpoint(outcome.weights["diffusion"], "safetensors").scale_factor == bundle.scale_factor()
    measured = train("diffusion", {**DIFFUSION, "init_from": str(tmp_path / "run")}, latents, tmp_path / "next")
    scale = read_checkpoint(measured.weights["diffusion"], "safetensors").scale_factor
    assert scale != bundle.scale_factor()
    other = make_tiny_bundle(tmp_path / "other", seed=5)
    with pytest.raises(FileFormatError, match="another autoencoder"):
        train("diffusion", {**DIFFUSION, "init_from": str(other)}, latents, tmp_path / "third")
    with pytest.raises(TrainingError, match="scale of the latents was"):  # a resume that would measure instead
        train("diffusion", DIFFUSION, latents, tmp_path / "run", resume=True)


def test_a_controlnet_does_not_go_on_beside_a_unet_that_was_trained_again(latents: Path, tmp_path: Path) -> None:
    folder = make_tiny_bundle(tmp_path / "parent")
    recipe = {"network": "controlnet", "init_from": str(folder), "steps": 2}
    train("controlnet", recipe, latents, tmp_path / "run")
    assert train("controlnet", recipe, latents, tmp_path / "run", resume=True).steps == 2
    shutil.rmtree(folder)
    make_tiny_bundle(folder)
    path = folder / Bundle(folder).entry("diffusion").weights
    changed = {name: value * 1.01 for name, value in read_checkpoint(path, "safetensors").weights.items()}
    save_safetensors(changed, path)
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    entry = manifest["networks"]["diffusion"]
    entry |= {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(TrainingError, match="frozen UNet was"):
        train("controlnet", recipe, latents, tmp_path / "run", resume=True)


def test_patience_without_a_figure_to_wait_for_is_refused(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"recipe\.json: patience needs a best_metric"):
        train("autoencoder", {**AUTOENCODER, "patience": 2}, pairs, tmp_path / "run")
    with pytest.raises(TrainingError, match=r"'psnr_db' is no figure.* there are mae"):  # where larger is better
        train("autoencoder", {**AUTOENCODER, "best_metric": "psnr_db"}, pairs, tmp_path / "run")
