"""``maisi bundles make``: the whole way from images to a model of one's own, in commands, and what is refused on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MAISILib.anatomy.labels import LabelTable, default_table
from MAISILib.anatomy.library import build_library
from MAISILib.bundles.bundle import Bundle
from MAISILib.bundles.weights import read_state_dict, save_safetensors
from MAISILib.cli.app import main
from MAISILib.files.images import read_grid
from MAISILib.files.nifti import write_labels, write_volume
from MAISILib.training.trained_networks import trained_network
from MAISILib.volumes import Grid, Volume
from Testing.cli.conftest import Maisi
from Testing.tiny_bundle import LABELS_CSV, tiny_definitions, tiny_patient

DEFINITIONS = tiny_definitions()
FIELDS: dict[str, Any] = {
    "name": "own",
    "title": "A model of one's own",
    "licence": {"name": "MIT"},
    "modality": {"ct": 1},
    "labels": "labels.csv",
    "schedule": {"kind": "rflow", "steps": 2},
    "intensity": {"kind": "ct"},
    "masks": {"index": "library/masks.json"},
    "recommended": [{"size": [16, 16, 16], "spacing": [4.0, 4.0, 4.0]}],
    "limits": {},
}
RECIPES: dict[str, dict[str, Any]] = {
    "autoencoder": {
        "definition": DEFINITIONS["autoencoder"],
        "data": {"random_aug": False, "patch_size": [8, 8, 8]},
        "perceptual_weight": 0.0,
        "adversarial_weight": 0.0,
    },
    "diffusion": {"definition": DEFINITIONS["diffusion"], "batch": 1},
    "controlnet": {"definition": DEFINITIONS["controlnet"], "init_from": "without-controlnet"},
}


def write_files(folder: Path) -> None:
    """Images, recipes, and what goes into the bundle beside its networks."""
    for number in (1, 2):
        mask = tiny_patient(shift=number)
        values = np.random.default_rng(number).integers(-1000, 1000, mask.array.shape).astype(np.int16)
        write_volume(
            Volume(values, Grid.axis_aligned((16, 16, 16), (4.0, 4.0, 4.0)).affine),
            folder / f"data/p{number}_ct.nii.gz",
        )
        write_labels(mask, folder / f"data/p{number}_seg.nii.gz")
    for name, recipe in RECIPES.items():
        (folder / f"{name}.json").write_text(json.dumps({"network": name, "steps": 1, **recipe}), encoding="utf-8")
    (folder / "model").mkdir()
    (folder / "model" / "labels.csv").write_text(LABELS_CSV, encoding="utf-8")
    table = LabelTable.read(folder / "model" / "labels.csv", base=default_table())
    build_library([("one", tiny_patient(table))], folder / "model" / "library", table)
    (folder / "model" / "fields.json").write_text(json.dumps(FIELDS), encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which every command was run."""
    folder = tmp_path_factory.mktemp("own")
    write_files(folder)
    runs = "--run autoencoder=runs/autoencoder --run diffusion=runs/diffusion"
    commands = [
        "train autoencoder --recipe autoencoder.json --data data --out runs/autoencoder --device cpu",
        "encode --autoencoder runs/autoencoder --data data --out latents --device cpu",
        "train diffusion --recipe diffusion.json --data latents --out runs/diffusion --device cpu",
        f"bundles make --manifest model/fields.json {runs} --out without-controlnet",
        "train controlnet --recipe controlnet.json --data latents --out runs/controlnet --device cpu",
        f"bundles make --manifest model/fields.json {runs} --run controlnet=runs/controlnet --out whole",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in commands:
            assert main(command.split()) == 0, command
    return folder


def test_images_become_a_bundle_that_generates(maisi: Maisi, made: Path, work: Path) -> None:
    assert maisi("bundles", "verify", made / "whole").code == 0
    bundle = Bundle(made / "whole")
    assert list(bundle.manifest.networks) == ["autoencoder", "diffusion", "controlnet"]
    assert bundle.scale_factor() == trained_network(made / "runs" / "diffusion", "diffusion").read().scale_factor
    told = maisi("generate", "--bundle", made / "whole", "--anatomy", "liver", "--seed", 3, "--device", "cpu")
    assert told.code == 0, told
    assert read_grid(work / "out" / "sample-0000" / "image.nii.gz").shape == (16, 16, 16)


def test_a_bundle_without_controlnet_generates_without_a_mask(maisi: Maisi, made: Path, work: Path) -> None:
    told = maisi("generate", "--bundle", made / "without-controlnet", "--no-mask", "--device", "cpu")
    assert told.code == 0, told
    assert (work / "out" / "sample-0000" / "image.nii.gz").is_file()


def make(made: Path, fields: Path, **runs: object) -> list[object]:
    named = {"autoencoder": made / "runs" / "autoencoder", "diffusion": made / "runs" / "diffusion", **runs}
    options = [text for name, run in named.items() if run for text in ("--run", f"{name}={run}")]
    return ["bundles", "make", "--manifest", fields, *options, "--out", "bundle"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"titel": "x"}, "Did you mean 'title'"),
        ({"labels": "gone.csv"}, "names 'gone.csv', which is not beside it"),
        ({"masks": {"index": "gone/masks.json"}}, "masks.json is missing"),
        ({"labels": "../labels.csv"}, "'labels'"),
        ({"schedule": {"kind": "ddpm"}}, "trained with another schedule: kind 'rflow', not 'ddpm'"),
        ({"body_region_input": True}, "'body_region_input' is true, but the diffusion network"),
        ({"scale_factor": 1.0}, "leave 'scale_factor' out"),
        ({"quality": "gone.csv"}, "quality table 'gone.csv' is missing"),
    ],
)
def test_fields_that_do_not_fit_are_refused(
    refused: Maisi, made: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    model = Path(shutil.copytree(made / "model", tmp_path / "model"))
    (model / "fields.json").write_text(json.dumps({**FIELDS, **changes}), encoding="utf-8")
    assert said in refused(*make(made, model / "fields.json")).err


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ({"diffusion": None}, "Name the run of diffusion"),
        ({"diffusion": "gone"}, "Let the training 'gone' end first"),
        ({"difusion": "gone"}, "Did you mean 'diffusion'"),
    ],
)
def test_runs_that_do_not_fit_are_refused(refused: Maisi, made: Path, runs: dict[str, str | None], said: str) -> None:
    assert said in refused(*make(made, made / "model" / "fields.json", **runs)).err


def test_the_run_of_another_network_is_refused(refused: Maisi, made: Path) -> None:
    asked = make(made, made / "model" / "fields.json", controlnet=made / "runs" / "autoencoder")
    assert "is a training of autoencoder, not of controlnet" in refused(*asked).err


def test_a_run_without_its_network_is_refused(refused: Maisi, made: Path) -> None:
    asked = [*make(made, made / "model" / "fields.json"), "--run", str(made)]
    assert "as NETWORK=RUN" in refused(*asked).err


def test_networks_of_different_autoencoders_are_refused(refused: Maisi, made: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(made / "runs" / "autoencoder", tmp_path / "other"))
    weights = other / "weights" / "autoencoder.safetensors"
    save_safetensors({name: value + 1 for name, value in read_state_dict(weights, "safetensors").items()}, weights)
    asked = make(made, made / "model" / "fields.json", autoencoder=other)
    assert "learned on latents of another autoencoder" in refused(*asked).err
