"""``maisi finetune``: from a list of cases to a bundle, what it tells where, and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from Testing.cli.conftest import Maisi
from Testing.imports import ROOT
from Testing.tiny_bundle import make_tiny_bundle
from Testing.training.users_cases import write_case, write_list

NEW = ("--new-label", "lesion=150:liver", "--focus", "lesion")


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    folder = tmp_path / "cases"
    return write_list(folder, [write_case(folder, name, shift=shift) for shift, name in enumerate(("ann", "bob"))])


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of a moment."""
    monkeypatch.setattr("MAISILib.training.finetune._PICTURE_STEPS", 1)
    monkeypatch.setattr("MAISILib.training.finetune._COMPARISON_STEPS", 1)


def at_first_loss(monkeypatch: pytest.MonkeyPatch, happens: Any) -> None:
    """Lets something happen to the first losses of the training."""
    from MAISILib.training.controlnet_task import ControlNetTask

    losses = ControlNetTask.losses
    monkeypatch.setattr(ControlNetTask, "losses", lambda *a: happens(losses(*a)))


@pytest.mark.usefixtures("few_steps")
def test_cases_become_a_bundle_that_makes_the_label(maisi: Maisi, work: Path, tiny: Path, cases: Path) -> None:
    told = maisi("finetune", "--bundle", tiny, "--cases", cases, *NEW, "--steps", 1, "--out", "my bundle", "--json")
    assert told.code == 0, told
    assert told.json["bundle"] == "my bundle"
    assert told.json["comparison"] == str(Path("my bundle-training", "comparison.png"))
    assert (told.json["cases"], told.json["held_out"]) == (["ann", "bob"], [])
    assert told.json["metrics"]["steps"] == 1
    assert "Segment '150' is label 150 (lesion), which is new." in told.err
    assert "2 cases: the model learns the look of these few." in told.err
    assert "bundle 1/1 my bundle is ready" in told.err
    again = maisi("finetune", "--bundle", tiny, "--cases", cases, *NEW, "--steps", 1, "--out", "my bundle", "--resume")
    assert again.code == 0, again
    assert again.out.startswith("my bundle: inside the label ")
    assert len(again.out.splitlines()) == 1
    made = maisi("generate", "--bundle", "my bundle", "--anatomy", "lesion", "--steps", 1, "--out", "out", "--json")
    assert made.code == 0, made
    assert (work / "out" / "sample-0000" / "mask.nii.gz").is_file()
    assert maisi("bundles", "verify", work / "my bundle").code == 0


@pytest.mark.usefixtures("few_steps")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_keeps_the_training_for_resume(
    maisi: Maisi, work: Path, tiny: Path, cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("finetune", "--bundle", tiny, "--cases", cases, *NEW, "--steps", 2, "--out", "mine", "--json")

    def interrupted(losses: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return losses

    with monkeypatch.context() as patch:
        at_first_loss(patch, interrupted)
        told = maisi(*command)
    assert told.code == 130, told
    assert told.out == ""
    assert told.err.splitlines()[-1] == "maisi: Stopped at step 1. The same command with --resume goes on."
    assert [path.name for path in work.iterdir()] == ["mine-training"]
    refused = maisi(*command)
    assert refused.code == 2
    assert "mine-training holds a training. --resume goes on with it" in refused.err
    other = maisi(*command, "--resume", "--steps", 3)
    assert other.code == 2
    assert "steps was 2, is 3" in other.err
    told = maisi(*command, "--resume")
    assert told.code == 0, told
    assert told.json["metrics"]["steps"] == 2


@pytest.mark.usefixtures("few_steps")
def test_a_training_that_fails_has_its_own_exit_code_and_leaves_no_bundle(
    maisi: Maisi, work: Path, tiny: Path, cases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_first_loss(monkeypatch, lambda losses: {name: value * float("nan") for name, value in losses.items()})
    told = maisi("finetune", "--bundle", tiny, "--cases", cases, *NEW, "--steps", 2, "--out", "mine")
    assert told.code == 3, told
    assert told.out == ""
    assert told.err.splitlines()[-1].startswith("maisi: Step 0 of mine-training")
    assert "Traceback" not in told.err
    assert [path.name for path in work.iterdir()] == ["mine-training"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--steps 0", "0 training steps are not possible"),
        ("--duration quik", r"Unknown duration 'quik'; there are quick \(40 steps\).*Did you mean 'quick'"),
        ("--new-label lesion=150:livr", "no label 'livr' to be the host.*Did you mean 'liver'"),
        ("--new-label lesion=300:liver", "outside 1–255"),
        ("--new-label lesion=200:liver", "always means the body"),
        ("--focus lesoin", "no anatomy 'lesoin'.*Did you mean 'lesion'"),
        ("--map 77=liver", "No case has a segment '77'"),
        ("--map 150=liver", r"No segment of the cases is 150 \(lesion\)"),
        ("--bundle tiiny", "no bundle 'tiiny'"),
        ("--cases gone.json", r"gone\.json does not exist"),
    ],
)
def test_senseless_options_are_refused(refused: Maisi, tiny: Path, cases: Path, options: str, said: str) -> None:
    import re

    command = ["--bundle", tiny, "--cases", cases, "--new-label", "lesion=150:liver", "--out", "mine"]
    if options.startswith("--new-label"):
        command[4:6] = []
    told = refused("finetune", *command, *options.split())
    assert re.search(said, told.err), told.err


def test_bad_cases_are_named_or_left_out(
    maisi: Maisi, tiny: Path, tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "many"
    entries = [write_case(folder, name, lesion=name != "plain") for name in ("good", "torn", "plain")]
    (folder / "torn_ct.nii.gz").write_bytes(b"no image")
    cases = write_list(folder, entries)
    command = ("finetune", "--bundle", tiny, "--cases", cases, *NEW, "--steps", 1, "--out", "mine")
    told = maisi(*command)
    assert told.code == 2
    assert "1 of 3 cases cannot be used" in told.err
    assert "torn_ct.nii.gz" in told.err
    assert list(work.iterdir()) == []
    for name in ("_PICTURE_STEPS", "_COMPARISON_STEPS"):
        monkeypatch.setattr(f"MAISILib.training.finetune.{name}", 1)
    told = maisi(*command, "--skip-bad", "--json")
    assert told.code == 0, told
    assert told.json["cases"] == ["good"]
    assert [line.split(":")[1].strip() for line in told.err.splitlines() if line.startswith("left out: ")] == [
        "torn",
        "plain",
    ]


def test_a_bundle_that_cannot_learn_or_be_written_is_refused_before_the_cases_are_read(
    refused: Maisi, tiny: Path, work: Path, tmp_path: Path
) -> None:
    without = make_tiny_bundle(tmp_path / "without", with_controlnet=False)
    common = ("--cases", "gone.json", *NEW, "--steps", 1)
    assert "no controlnet network" in refused("finetune", "--bundle", without, *common, "--out", "mine").err
    (work / "full").mkdir()
    (work / "full" / "thesis.txt").write_text("all of it")
    assert "holds other files" in refused("finetune", "--bundle", tiny, *common, "--out", "full").err
    assert "cannot lie in" in refused("finetune", "--bundle", tiny, *common, "--out", tiny).err


@pytest.mark.parametrize("options", [("--focus", "lesoin"), ("--cases", "gone.json")])
def test_bad_input_is_answered_without_pytorch(tiny: Path, cases: Path, work: Path, options: tuple[str, ...]) -> None:
    program = (
        "import sys; from MAISILib.cli.app import main\n"
        "code = main(sys.argv[1:]); sys.exit(code if not {'torch', 'monai'} & set(sys.modules) else 99)"
    )
    command = [sys.executable, "-c", program, "finetune", "--bundle", tiny, "--cases", cases, *NEW, "--out", "mine"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        [*map(str, command), *options], capture_output=True, text=True, timeout=120, cwd=work, env=environment
    )
    assert (told.returncode, told.stdout) == (2, ""), told.stderr
    assert told.stderr.startswith("maisi: ")
    assert list(work.iterdir()) == []


def test_the_help_says_how_long_a_training_may_take(maisi: Maisi) -> None:
    told = maisi("finetune", "--help")
    assert told.code == 0
    assert "quick, normal or long" in told.out
