"""The whole making of the embedded bundle, stage after stage, with tiny networks on made-up patients."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import MAISILib as maisi
from MAISILib.anatomy.organ_sizes import read_size_table
from MAISILib.bundles.bundle import Bundle
from MAISILib.errors import TrainingError
from MAISILib.resources import resource
from MAISILib.training.datalist import read_datalist
from MAISILib.training.head_neck_bundle import DDPM, FLOW, MASKS
from MAISILib.training.head_neck_mini import STAGES, train
from Testing.tiny_bundle import tiny_definitions
from Testing.tiny_mask_generator import tiny_mask_definitions
from Testing.training.patients import write_openkbp

CLASSES = [0, 121, 134, 135, 138, 139, 140, 200]
CONTROLLABLE = ["right parotid gland", "target"]
#: Without the DDPM variant and the mask generator.
FIRST = ("data", "autoencoder", "latents", "diffusion", "bundle")


def write_recipes(folder: Path) -> Path:
    """Those of the embedded bundle, for networks that learn one step in a moment."""
    images = tiny_definitions()
    masks = tiny_mask_definitions(len(CLASSES), len(CONTROLLABLE))
    settings = {
        "labels_of": "head-neck-mini",
        "classes": CLASSES,
        "size": [16, 16, 16],
        "spacing": [8.0, 8.0, 8.0],
        "resample": False,
    }
    diffusion = {
        "network": "diffusion",
        "definition": images["diffusion"],
        "controlnet": images["controlnet"],
        "steps": 1,
        "batch": 1,
    }
    recipes: dict[str, dict[str, Any]] = {
        "patients": {"shape": [16, 16, 16], "spacings": [[8.0, 8.0, 8.0], [6.0, 6.0, 6.0]], "seed": 1},
        "autoencoder": {
            "network": "autoencoder",
            "definition": images["autoencoder"],
            "labels_of": "head-neck-mini",
            "data": {"random_aug": False, "patch_size": [16, 16, 16]},
            "perceptual_weight": 0.0,
            "adversarial_weight": 0.0,
            "steps": 1,
        },
        **dict.fromkeys(FLOW, diffusion),
        **{key: {**diffusion, "schedule": {"kind": "ddpm"}} for key in DDPM},
        "mask-autoencoder": {
            "network": "mask-autoencoder",
            "definition": masks["mask_autoencoder"],
            "data": settings,
            "steps": 1,
        },
        **{
            key: {
                "network": "mask-diffusion",
                "definition": masks["mask_diffusion"],
                "data": settings,
                "controllable": CONTROLLABLE,
                "schedule": {"kind": "ddpm", "steps": 3},
                "steps": 1,
            }
            for key in MASKS
        },
        "mask-generator": {"one_piece": [134, 135]},
        "bundle": {
            **json.loads(resource("recipes", "head-neck-mini", "bundle.json").read_text(encoding="utf-8")),
            "recommended": [{"size": [16, 16, 16], "spacing": [8.0, 8.0, 8.0]}],
            "limits": {},
        },
    }
    folder.mkdir()
    for name, recipe in recipes.items():
        (folder / f"{name}.json").write_text(json.dumps(recipe), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def openkbp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_openkbp(tmp_path_factory.mktemp("openkbp"))


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipes(tmp_path_factory.mktemp("tiny") / "recipes")


@pytest.fixture(scope="module")
def first(openkbp: Path, recipes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the first stages."""
    out = tmp_path_factory.mktemp("first")
    train(openkbp, out, FIRST, recipes)
    return out


@pytest.fixture(scope="module")
def whole(openkbp: Path, recipes: Path, first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of all stages, which goes on where the first ones ended."""
    out = Path(shutil.copytree(first, tmp_path_factory.mktemp("whole") / "runs"))
    train(openkbp, out, recipes=recipes)
    return out


def sample(folder: Path, **request: Any) -> maisi.Sample:
    asked = maisi.GenerateRequest(seed=3, steps=1, quality_check=False, **request)
    return maisi.generate(Bundle(folder), asked, device="cpu").samples[0]


def test_every_stage_of_the_embedded_bundle_has_its_recipe() -> None:
    needed = {*STAGES, "patients", "mask-generator", *FLOW, *DDPM, *MASKS} - {"data", "latents", "ddpm"}
    recipes = {
        name: json.loads(resource("recipes", "head-neck-mini", f"{name}.json").read_text(encoding="utf-8"))
        for name in needed
    }
    for name in DDPM:
        assert recipes[name]["schedule"] == {"kind": "ddpm", "prediction_type": "v_prediction"}
        assert all(recipes[FLOW[0]][key] == recipes[name][key] for key in ("definition", "controlnet"))


def test_the_first_stages_end_in_a_bundle_that_generates(first: Path) -> None:
    bundle = Bundle(first / "bundle")
    assert bundle.verify() == []
    assert bundle.name == "head-neck-mini"
    assert bundle.manifest.made_by["metrics"] == {"autoencoder_steps": 1, "diffusion_steps": len(FLOW)}
    assert bundle.scale_factor() > 0
    made = sample(first / "bundle", anatomy=["target"])
    assert made.image.array.shape == (16, 16, 16)
    assert made.mask is not None
    assert 140 in np.unique(made.mask.array)


def test_a_stage_that_did_not_run_is_left_out(first: Path) -> None:
    assert set(Bundle(first / "bundle").manifest.networks) == {"autoencoder", "diffusion", "controlnet"}
    assert Bundle(first / "bundle").manifest.mask_generator is None
    assert not (first / "bundle-ddpm").exists()


def test_validation_patients_are_neither_learned_from_nor_handed_on(first: Path) -> None:
    latents = read_datalist(first / "latents" / "latents.json")
    assert {item.name.split("-")[0] for item in latents.training} == {"pt_1", "pt_2", "pt_10"}
    assert sum(item.name.endswith("-mirrored") for item in latents.training) == len(latents.training) / 2
    assert [item.name for item in latents.validation] == ["pt_201-0"]
    index = json.loads((first / "bundle" / "masks" / "masks.json").read_text(encoding="utf-8"))
    assert [entry["file"] for entry in index["masks"]] == [f"masks/pt-{n}.nii.gz" for n in (1, 10, 2)]


def test_all_stages_add_the_ddpm_variant_and_the_mask_generator(whole: Path) -> None:
    flow, ddpm = Bundle(whole / "bundle"), Bundle(whole / "bundle-ddpm")
    assert flow.verify() == ddpm.verify() == []
    assert (flow.manifest.schedule.kind, ddpm.manifest.schedule.kind) == ("rflow", "ddpm")
    assert ddpm.name == "head-neck-mini-ddpm"
    assert ddpm.manifest.schedule.steps == 1000
    for shared in ("autoencoder.safetensors", "labels.csv", "quality.csv", "masks/masks.json"):
        assert (whole / "bundle" / shared).read_bytes() == (whole / "bundle-ddpm" / shared).read_bytes()
    assert ddpm.manifest.networks["diffusion"].sha256 != flow.manifest.networks["diffusion"].sha256
    assert sample(whole / "bundle-ddpm", anatomy=["target"]).image.array.shape == (16, 16, 16)


def test_the_bundle_draws_masks_of_its_own(whole: Path) -> None:
    bundle = Bundle(whole / "bundle")
    generator = bundle.manifest.mask_generator
    assert generator is not None
    assert (generator.classes, generator.size, generator.one_piece) == (CLASSES, (16, 16, 16), [134, 135])
    assert bundle.manifest.controllable == CONTROLLABLE
    assert generator.sizes is not None
    sizes = read_size_table(bundle.path(generator.sizes), CONTROLLABLE)
    assert len(sizes.rows) == 3  # the centred crops, not those of another voxel size
    assert bundle.manifest.made_by["metrics"]["mask_diffusion_steps"] == len(MASKS)
    made = sample(whole / "bundle", mask="generated")
    assert made.mask is not None
    assert made.mask.array.shape == (16, 16, 16)


def test_stages_that_have_ended_are_left_alone(whole: Path, first: Path) -> None:
    for name in ("autoencoder", "diffusion", "controlnet"):
        weights = f"bundle/{name}.safetensors"
        assert (whole / weights).read_bytes() == (first / weights).read_bytes()


def test_a_bundle_before_its_trainings_says_which_one_is_missing(
    openkbp: Path, recipes: Path, first: Path, tmp_path: Path
) -> None:
    shutil.copytree(first / "pairs", tmp_path / "pairs")
    with pytest.raises(TrainingError, match="Let the training 'diffusion-finish' end first"):
        train(openkbp, tmp_path, ("bundle",), recipes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs"]
