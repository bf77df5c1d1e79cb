"""``maisi train``: what it prints where, what it refuses, and how a run that was stopped goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from MAISILib.bundles.weights import read_state_dict
from MAISILib.jobs.folder import read_state
from MAISILib.training.checkpoint import read_checkpoint
from Testing.cli.conftest import Maisi, interrupted
from Testing.imports import ROOT
from Testing.tiny_bundle import tiny_definitions
from Testing.training.patients import write_patient

RECIPE: dict[str, Any] = {
    "network": "autoencoder",
    "definition": tiny_definitions()["autoencoder"],
    "data": {"random_aug": False, "patch_size": [16, 16, 16], "mirror": 0.5},
    "steps": 2,
    "rate": 1e-3,
    "rate_schedule": "constant",
    "perceptual_weight": 0.0,
    "adversarial_weight": 0.0,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for number in (1, 2):
        write_patient(folder, f"pt_{number}", brightness=10.0 * number)
    return folder


@pytest.fixture
def recipe(work: Path) -> Callable[..., Path]:
    """Writes the recipe with changes."""

    def write(**changes: Any) -> Path:
        path = work / "recipe.json"
        path.write_text(json.dumps({**RECIPE, **changes}), encoding="utf-8")
        return path

    return write


def arguments(recipe: Path | str, data: Path | str, out: str = "run", network: str = "autoencoder") -> list[object]:
    return ["train", network, "--recipe", recipe, "--data", data, "--out", out, "--device", "cpu"]


def test_with_json_there_is_nothing_else_on_stdout(
    start: Callable[..., subprocess.Popen[str]], recipe: Callable[..., Path], data: Path, work: Path
) -> None:
    process = start(*arguments(recipe(), data), "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    told = json.loads(out)
    assert (told["run"], told["steps"], told["weights_step"]) == ("run", 2, 2)
    assert set(read_state_dict(work / told["weights"]["autoencoder"], "safetensors"))
    assert "autoencoder 1/2 loss " in err
    assert "Traceback" not in err
    assert read_state(work / "run") == "done"


def test_without_json_it_says_what_was_trained_and_where_the_weights_are(
    maisi: Maisi, recipe: Callable[..., Path], data: Path, work: Path
) -> None:
    entries = [{"image": f"pt_{n}_ct.nii.gz", "label": f"pt_{n}_seg.nii.gz", "fold": n} for n in (1, 2)]
    (data / "list.json").write_text(json.dumps({"training": entries}), encoding="utf-8")
    told = maisi(*arguments(recipe(), data / "list.json"), "--fold", 2)
    assert told.code == 0, told
    first, second = told.out.splitlines()
    assert first.startswith("2 steps in 0.")
    assert "psnr_db" in first
    assert (work / second).is_file()


def test_items_that_cannot_be_read_are_left_out_on_request(
    maisi: Maisi, recipe: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    write_patient(tmp_path / "work", "pt_7")
    (tmp_path / "work" / "pt_8_ct.nii.gz").write_bytes(b"no image")
    told = maisi(*arguments(recipe(), tmp_path / "work"))
    assert told.code == 2
    assert "pt_8_ct.nii.gz cannot be read" in told.err
    told = maisi(*arguments(recipe(), tmp_path / "work"), "--skip-bad")
    assert told.code == 0, told
    assert told.err.count("left out: pt_8: ") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stepps": 3}, "'stepps' is no field of this recipe. Did you mean 'steps'"),
        ({"steps": "many"}, "'steps' is 'many'"),
        ({"definition": {"_target_": "Unet"}}, "unknown network 'Unet'"),
        ({"network": "diffusion"}, "'network' is 'diffusion'"),
        ({"init_from": "no-such-bundle"}, "no-such-bundle"),
        ({"init_from": "head-neck-mini"}, "another network than the recipe describes"),
        ({"labels_of": "no-such-bundle"}, "no-such-bundle"),
        ({"perceptual_weight": 0.3, "perceptual_weights": "gone.pth"}, "gone.pth"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(
    changes: dict[str, Any], said: str, refused: Maisi, recipe: Callable[..., Path], data: Path
) -> None:
    assert said in refused(*arguments(recipe(**changes), data)).err


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({"--recipe": "gone.json"}, "gone.json"),
        ({"--data": "gone.json"}, "gone.json does not exist"),
        ({"--data": "."}, "holds no images"),
        ({"--device": "tpu"}, "Unknown device 'tpu'; known: auto, cpu, cuda"),
        ({"--out": "recipe.json"}, "is a file, not a folder"),
        ({"train": "autoencodr"}, "Did you mean 'autoencoder'"),
    ],
)
def test_what_is_not_there_is_refused(
    replaced: dict[str, str], said: str, refused: Maisi, recipe: Callable[..., Path], data: Path
) -> None:
    asked = arguments(recipe(), data)
    for option, value in replaced.items():
        asked[asked.index(option) + 1] = value
    assert said in refused(*asked).err


def test_a_folder_with_a_run_is_refused_and_so_is_another_recipe(
    maisi: Maisi, refused: Maisi, recipe: Callable[..., Path], data: Path
) -> None:
    assert maisi(*arguments(recipe(), data)).code == 0
    assert "--resume goes on with it" in refused(*arguments(recipe(), data)).err
    assert "steps was 2, is 3" in refused(*arguments(recipe(steps=3), data), "--resume").err


def test_a_training_that_breaks_off_is_no_bad_input(
    maisi: Maisi, recipe: Callable[..., Path], data: Path, work: Path
) -> None:
    told = maisi(*arguments(recipe(rate=1e30, steps=20), data))
    assert (told.code, told.out) == (3, "")
    assert "Traceback" not in told.err
    assert "lower the rate" in told.err.splitlines()[-1]
    assert read_state(work / "run") == "failed"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot ask a process to end")
def test_a_run_that_was_stopped_ends_with_the_weights_of_an_unbroken_one(
    start: Callable[..., subprocess.Popen[str]], maisi: Maisi, recipe: Callable[..., Path], data: Path, work: Path
) -> None:
    asked = recipe(steps=30)
    told = interrupted(start(*arguments(asked, data)), "autoencoder ", signal.SIGTERM)
    assert "--resume goes on" in told
    assert read_state(work / "run") == "cancelled"
    assert 0 < read_checkpoint(work / "run" / "checkpoint.pt").step < 30
    assert not (work / "run" / "weights").exists()
    assert maisi(*arguments(asked, data), "--resume").code == 0
    assert maisi(*arguments(asked, data, "unbroken")).code == 0
    weights = [work / run / "weights" / "autoencoder.safetensors" for run in ("run", "unbroken")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_help_needs_no_pytorch() -> None:
    program = (
        "import sys; from MAISILib.cli.app import main\n"
        "code = main(['train', '--help']); sys.exit(code if not {'torch', 'monai'} & set(sys.modules) else 99)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert "torchrun" in run.stdout
