"""``maisi encode``: what it tells, what it refuses, and what a Ctrl-C leaves."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from MAISILib.bundles.weights import sha256_of
from MAISILib.files.images import read_image
from MAISILib.files.nifti import write_labels, write_volume
from MAISILib.training.latent_files import read_header, read_posterior
from MAISILib.training.start import start_training
from MAISILib.training.trained_networks import trained_network
from MAISILib.volumes import Grid, Volume
from Testing.cli.conftest import Maisi, interrupted
from Testing.tiny_bundle import tiny_definitions, tiny_patient


def write_pair(folder: Path, name: str, size: int = 16) -> None:
    grid = Grid.axis_aligned((size, size, size), (4.0, 4.0, 4.0))
    values = np.random.default_rng(len(name)).integers(-1000, 1000, grid.shape).astype(np.int16)
    write_volume(Volume(values, grid.affine), folder / f"{name}_ct.nii.gz")
    write_labels(tiny_patient(shape=grid.shape), folder / f"{name}_seg.nii.gz")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("p1", "p22"):
        write_pair(tmp_path / "data", name)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ended training of an autoencoder whose latent voxel stands for 2 image voxels along an axis."""
    folder = tmp_path_factory.mktemp("training")
    write_pair(folder / "data", "p1")
    recipe = {
        "network": "autoencoder",
        "definition": tiny_definitions()["autoencoder"],
        "data": {"random_aug": False, "patch_size": [8, 8, 8], "divisor": 4},
        "steps": 1,
        "perceptual_weight": 0.0,
        "adversarial_weight": 0.0,
    }
    (folder / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    return start_training("autoencoder", folder / "recipe.json", folder / "data", folder / "run", device="cpu").folder


def test_a_folder_is_encoded_once(maisi: Maisi, work: Path, tiny: Path, data: Path) -> None:
    told = maisi("encode", "--bundle", tiny, "--data", data, "--out", "latents", "--mirrored", "--json")
    assert told.code == 0, told
    assert told.json["encoded"] == ["p1", "p1-mirrored", "p22", "p22-mirrored"]
    assert (told.json["datalist"], told.json["skipped"]) == (str(Path("latents", "latents.json")), [])
    assert "encode 1/4 p1-mirrored" in told.err
    assert read_header(work / "latents" / "p1_emb.safetensors").image_shape == (16, 16, 16)
    again = maisi("encode", "--bundle", tiny, "--data", data, "--out", "latents", "--mirrored")
    assert again.code == 0
    assert again.out.strip().endswith("latents.json: 0 encoded, 4 kept, 0 left out")


def test_a_datalist_with_a_base_and_a_fold_is_encoded(maisi: Maisi, work: Path, tiny: Path, data: Path) -> None:
    entries = [{"image": f"{name}_ct.nii.gz", "fold": fold} for fold, name in enumerate(("p1", "p22"))]
    (work / "list.json").write_text(json.dumps({"training": entries}))
    options = ["--base", data, "--fold", 1, "--size", 8, 8, 12, "--precision", "float32"]
    told = maisi("encode", "--bundle", tiny, "--data", "list.json", "--out", "latents", *options)
    assert told.code == 0, told
    lists = json.loads((work / "latents" / "latents.json").read_text())
    assert [[e["image"] for e in lists[part]] for part in ("training", "validation")] == [
        ["p1_emb.safetensors"],
        ["p22_emb.safetensors"],
    ]
    assert lists["training"][0]["dim"] == [8, 8, 12]
    assert read_header(work / "latents" / "p1_emb.safetensors").precision == "float32"


def test_a_training_encodes_before_there_is_a_bundle(maisi: Maisi, work: Path, run: Path, data: Path) -> None:
    write_pair(data, "p333", size=18)
    asked = ["encode", "--autoencoder", run, "--data", data, "--out", "latents", "--device", "cpu"]
    told = maisi(*asked, "--keep-voxels", "--json")
    assert told.code == 0, told
    assert told.json["encoded"] == ["p1", "p22", "p333"]
    headers = [read_header(work / "latents" / f"{name}_emb.safetensors") for name in ("p1", "p333")]
    assert [header.image_shape for header in headers] == [(16, 16, 16), (20, 20, 20)]
    assert {header.autoencoder_sha256 for header in headers} == {sha256_of(run / "weights" / "autoencoder.safetensors")}
    assert maisi(*asked, "--keep-voxels", "--json").json["kept"] == ["p1", "p22", "p333"]
    mean, _ = read_posterior(work / "latents" / "p1_emb.safetensors")
    network: Any = trained_network(run, "autoencoder").load()
    image = read_image(data / "p1_ct.nii.gz", "HU", 0).array
    with torch.inference_mode():
        expected = network.encode(torch.from_numpy((image.astype(np.float32) + 1000) / 2000)[None, None])[0][0]
    assert torch.allclose(torch.as_tensor(mean).float(), expected, atol=2e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--bundle head-neck-mini", "Give one"),
        ("--size 9 8 8", "needs multiples of 2"),
        ("--size 8 8 8 --keep-voxels", "contradict"),
        ("--modality cr", "Unknown modality 'cr'"),
        ("--autoencoder gone", "Let the training 'gone' end first"),
        ("--data gone.json", "gone.json does not exist"),
        ("--memory plenty", "--memory plenty: write an amount of memory"),
        ("--memory 0GB", "--memory 0GB: give more than nothing"),
    ],
)
def test_senseless_options_beside_a_training_are_refused(
    refused: Maisi, run: Path, data: Path, options: str, said: str
) -> None:
    told = refused("encode", "--autoencoder", run, "--data", data, "--out", "latents", *options.split())
    assert said in told.err


def test_a_training_of_another_network_is_refused(refused: Maisi, run: Path, data: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    (other / "weights" / "autoencoder.safetensors").rename(other / "weights" / "diffusion.safetensors")
    told = refused("encode", "--autoencoder", other, "--data", data, "--out", "latents")
    assert "is a training of diffusion, not of autoencoder" in told.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--size 9 8 8", "needs multiples of 4"),
        ("--size 8 8 8 --keep-voxels", "contradict"),
        ("--spacing 0 1 1", "must be positive"),
        ("--modality cr", "Unknown modality 'cr'"),
        ("--device gpu", "Unknown device 'gpu'"),
        ("--bundle tiiny", "no bundle 'tiiny'"),
        ("--data gone.json", r"gone.json does not exist"),
    ],
)
def test_senseless_options_are_refused(refused: Maisi, tiny: Path, data: Path, options: str, said: str) -> None:
    told = refused("encode", "--bundle", tiny, "--data", data, "--out", "latents", *options.split())
    assert said in told.err


def test_bad_images_are_named_or_left_out(maisi: Maisi, refused: Maisi, tiny: Path, data: Path, work: Path) -> None:
    (data / "p3_ct.nii.gz").write_bytes(b"no image")
    write_pair(data, "p4", size=12)
    (data / "p4_seg.nii.gz").write_bytes((data / "p1_seg.nii.gz").read_bytes())
    told = refused("encode", "--bundle", tiny, "--data", data, "--out", "latents")
    assert "2 of 4 entries" in told.err
    assert "p3_ct.nii.gz cannot be read" in told.err
    assert "p4_ct.nii.gz has 12×12×12 voxels" in told.err
    told = maisi("encode", "--bundle", tiny, "--data", data, "--out", "latents", "--skip-bad", "--json")
    assert told.code == 0
    assert told.json["encoded"] == ["p1", "p22"]
    assert [reason.split(":")[0] for reason in told.json["skipped"]] == ["p3", "p4"]
    assert told.err.count("left out: ") == 2


def test_too_little_memory_is_told_before_it_is_taken(maisi: Maisi, tiny: Path, data: Path) -> None:
    told = maisi("encode", "--bundle", tiny, "--data", data, "--out", "latents", "--memory", "20MB")
    assert told.code == 3
    assert "Encoding 16×16×16 voxels" in told.err
    assert "0.02 GB in all were asked for" in told.err
    assert "Traceback" not in told.err


def test_ctrl_c_leaves_whole_latents_only(
    start: Callable[..., subprocess.Popen[str]], maisi: Maisi, work: Path, tiny: Path, tmp_path: Path
) -> None:
    for number in range(8):
        write_pair(tmp_path / "many", f"p{number}", size=32)
    process = start("encode", "--bundle", tiny, "--data", tmp_path / "many", "--out", "latents")
    assert "Cancelled" in interrupted(process, "encode 2/", signal.SIGINT)
    left = {path.name for path in (work / "latents").iterdir()}
    assert {"p0_emb.safetensors", "p1_emb.safetensors"} <= left
    assert not {name for name in left if name.startswith(".") or name == "latents.json"}
    for name in left:
        if name.endswith(".safetensors"):
            read_header(work / "latents" / name)
    told = maisi("encode", "--bundle", tiny, "--data", tmp_path / "many", "--out", "latents", "--json")
    assert {"p0", "p1"} <= set(told.json["kept"])
    assert len(told.json["kept"]) + len(told.json["encoded"]) == 8
