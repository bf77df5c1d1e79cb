"""Fine-tuning as a user has it: cases in, a bundle out that knows their label."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import MAISILib as maisi
from MAISILib.bundles.bundle import Bundle, open_bundle
from MAISILib.bundles.weights import read_state_dict, sha256_of
from MAISILib.errors import (
    Cancelled,
    FileFormatError,
    TrainingError,
)
from MAISILib.generation.progress import CancelToken
from MAISILib.jobs.folder import Event, read_events, read_state
from MAISILib.training import finetune as finetuning
from MAISILib.training.checkpoint import read_checkpoint
from MAISILib.training.controlnet_task import ControlNetTask
from MAISILib.training.finetune import FineTuned, finetune
from MAISILib.training.finetune_request import FineTuning
from Testing.tiny_bundle import LIVER, make_tiny_bundle
from Testing.training.finetunings import asked, write_three_cases
from Testing.training.test_derived_bundle import all_bytes, as_published
from Testing.training.users_cases import LESION, patient, write_case, write_image, write_list

MR: dict[str, Any] = {"intensity": {"kind": "mr"}, "modality": {"mri_t1": 9}}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of a moment."""
    monkeypatch.setattr(finetuning, "_PICTURE_STEPS", 1)
    monkeypatch.setattr(finetuning, "_COMPARISON_STEPS", 2)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", with_masks=1)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_three_cases(tmp_path_factory.mktemp("cases"))


def run(wish: FineTuning, *, cancel_at: int = -1, **options: Any) -> FineTuned:
    """Fine-tunes; the user cancels after a step of the training."""
    token = CancelToken()

    def hear(event: Event) -> None:
        if event.stage == "controlnet" and event.done == cancel_at:
            token.cancel()

    return finetune(wish, device="cpu", cancel=token, on_event=hear, **options)


@pytest.fixture(scope="module")
def tuned(parent: Path, cases: Path, tmp_path_factory: pytest.TempPathFactory) -> FineTuned:
    """A bundle that has come out of three steps; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "_PICTURE_STEPS", 1)
        patch.setattr(finetuning, "_COMPARISON_STEPS", 2)
        before = all_bytes(parent)
        outcome = run(asked(parent, cases, tmp_path_factory.mktemp("out") / "Läsions-Modell 1"))
        assert all_bytes(parent) == before
    return outcome


@pytest.fixture(scope="module")
def broken(parent: Path, cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, cancelled after the first step: the folder that the bundle would have; not to be changed."""
    out = tmp_path_factory.mktemp("broken") / "out"
    with pytest.raises(Cancelled, match="--resume goes on"):
        run(asked(parent, cases, out), cancel_at=1)
    return out


def events_of(tuned: FineTuned) -> list[Event]:
    return read_events(tuned.comparison.parent)


# ------------------------------------------------------------------ what comes out


def test_the_bundle_is_whole_and_makes_the_label_at_once(tuned: FineTuned) -> None:
    bundle = open_bundle(tuned.bundle)
    assert bundle.verify() == []
    label = bundle.labels.find("lesion")
    assert (label.value, label.host) == (LESION, LIVER)
    result = maisi.generate(bundle, maisi.GenerateRequest(anatomy=["lesion"], steps=1))
    assert result.mask is not None
    assert LESION in result.mask.labels
    healthy = maisi.generate(bundle, maisi.GenerateRequest(anatomy=["liver"], steps=1))
    assert healthy.mask is not None
    assert LESION not in healthy.mask.labels


def test_the_controlnet_has_learned_and_the_rest_is_the_parents(tuned: FineTuned, parent: Path) -> None:
    old, new = Bundle(parent).weights_sha256(), Bundle(tuned.bundle).weights_sha256()
    assert {name for name in old if old[name] != new[name]} == {"controlnet"}


def test_the_bundle_says_how_it_was_made(tuned: FineTuned, parent: Path) -> None:
    made_by = Bundle(tuned.bundle).manifest.made_by
    assert made_by["parent"]["name"] == "tiny"
    assert made_by["parent"]["weights_sha256"] == Bundle(parent).weights_sha256()
    assert (made_by["cases"], made_by["held_out_cases"], made_by["focus"]) == (2, 1, ["lesion"])
    assert made_by["training"]["steps"] == 3
    assert {"inside_change", "outside_change", "validation region_loss"} <= made_by["metrics"].keys()
    assert made_by["metrics"] == pytest.approx(tuned.metrics, abs=1e-3)
    told = tuned.to_dict()
    assert json.loads(json.dumps(told)) == told


def test_a_held_out_case_is_not_learned_from(tuned: FineTuned) -> None:
    assert (tuned.cases, tuned.held_out) == (("Änne M", "bob"), ("carl",))
    work = tuned.comparison.parent
    state = torch.load(work / "controlnet" / "checkpoint.pt", weights_only=True)
    items = json.loads(state["identity"])["training items"]
    assert sorted(items) == ["bob", "bob-mirrored", "Änne M", "Änne M-mirrored"]
    assert not (work / "latents" / "carl-mirrored_emb.safetensors").exists()
    assert tuned.notes == ()


def test_nothing_in_the_bundle_names_a_case(tuned: FineTuned) -> None:
    told = " ".join(path.name for path in tuned.bundle.rglob("*"))
    told += (tuned.bundle / "bundle.json").read_text(encoding="utf-8")
    for name in ("nne M", "bob", "carl", "Station 3"):
        assert name not in told
    assert not list(tuned.bundle.rglob("*ct*"))


def test_the_work_folder_tells_the_whole_story_with_pictures(tuned: FineTuned) -> None:
    work, events = tuned.comparison.parent, events_of(tuned)
    assert work.name == "Läsions-Modell 1-training"
    stages = list(dict.fromkeys(event.stage for event in events))
    assert stages == ["prepare", "encode", "controlnet", "validation", "picture", "compare", "bundle"]
    pictures = [event.file for event in events if event.file]
    assert pictures == [
        "controlnet/pictures/step-00002.png",
        "controlnet/pictures/step-00003.png",
        "comparison.png",
    ]
    for name in pictures:
        with Image.open(work / name) as picture:
            assert picture.width == 1200
    assert tuned.comparison == work / "comparison.png"
    assert read_state(work) == "done"
    assert not (work / "pid").exists()
    messages = [event.message for event in events]
    assert any(message.startswith("carl: ") and "Sampled on" in message for message in messages)


# ------------------------------------------------------------------ breaks


def test_a_resumed_run_ends_with_the_same_weights(
    tuned: FineTuned, broken: Path, parent: Path, cases: Path, tmp_path: Path
) -> None:
    assert not broken.exists()
    assert read_state(broken.with_name("out-training")) == "cancelled"
    shutil.copytree(broken.parent, tmp_path, dirs_exist_ok=True)
    latents = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out-training/latents/*.safetensors")}
    assert len(latents) == 5
    again = run(asked(parent, cases, tmp_path / "out"), resume=True)
    assert sha256_of(again.bundle / "controlnet.safetensors") == sha256_of(tuned.bundle / "controlnet.safetensors")
    assert {**again.metrics, "seconds": 0} == {**tuned.metrics, "seconds": 0}
    assert {path: path.stat().st_mtime_ns for path in latents} == latents  # encoded once


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 4}, "steps was 3, is 4"),
        ({"new": (f"lesion={LESION}:body",)}, r"new labels was .*\[150, 1\].*, is .*\[150, 200\]"),
        ({"edits": {"28": "ignore"}}, r'mapping was .*"28": 28.*, is .*"28": null'),
        ({"focus": ["lesion", "liver"]}, r"focus was \[150\], is \[150, 1\]"),
        ({"recipe": {"rate": 0.5}}, r"recipe was .*, is .*0\.5"),
        ({"cases": "fewer"}, r"case carl was \[.*\], is null"),
        ({"cases": "other voxels"}, r"case bob was \["),
        ({"parent": "other"}, "parent was .*, is "),
    ],
)
def test_a_resume_that_asks_something_else_is_refused_and_changes_nothing(
    broken: Path, parent: Path, cases: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    shutil.copytree(broken.parent, tmp_path, dirs_exist_ok=True)
    if which := change.pop("cases", None):
        folder = Path(shutil.copytree(cases.parent, tmp_path / "cases"))
        cases = folder / "cases.json"
        if which == "fewer":
            write_list(folder, json.loads(cases.read_text(encoding="utf-8"))[:2])
        else:
            ct, mask = patient(shift=3)
            write_image(folder / "bob_seg.nrrd", mask.array, ct.affine)
    if change.pop("parent", None):
        parent = make_tiny_bundle(tmp_path / "tiny", seed=7)
    wish = asked(parent, cases, tmp_path / "out", **change)
    before = all_bytes(wish.work)
    with pytest.raises(TrainingError, match=f"holds another run: .*{said}"):
        run(wish, resume=True)
    assert all_bytes(wish.work) == before
    assert not wish.out.exists()


def test_a_training_is_not_overwritten_without_resume(broken: Path, parent: Path, cases: Path, tmp_path: Path) -> None:
    shutil.copytree(broken.parent, tmp_path, dirs_exist_ok=True)
    wish = asked(parent, cases, tmp_path / "out")
    before = all_bytes(wish.work)
    with pytest.raises(TrainingError, match=r"out-training holds a training\. --resume goes on with it"):
        run(wish)
    assert all_bytes(wish.work) == before


def test_a_training_that_runs_elsewhere_is_left_alone(broken: Path, parent: Path, cases: Path, tmp_path: Path) -> None:
    shutil.copytree(broken.parent, tmp_path, dirs_exist_ok=True)
    wish = asked(parent, cases, tmp_path / "out")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (wish.work / "state").write_text("running\n")
        (wish.work / "pid").write_text(f"{other.pid}\n")
        with pytest.raises(TrainingError, match=r"A fine-tuning is at work in .*out-training"):
            run(wish, resume=True)
        other.communicate(b"\n")


@pytest.mark.parametrize("stage", ["prepare", "encode"])
def test_a_cancel_before_the_training_leaves_no_bundle_and_needs_no_resume(
    stage: str, parent: Path, cases: Path, tmp_path: Path
) -> None:
    wish, token = asked(parent, cases, tmp_path / "out"), CancelToken()

    def hear(event: Event) -> None:
        if event.stage == stage and event.done == 1:
            token.cancel()

    with pytest.raises(Cancelled):
        finetune(wish, device="cpu", cancel=token, on_event=hear)
    assert not wish.out.exists()
    assert read_state(wish.work) == "cancelled"
    assert not list(tmp_path.rglob(".maisi-*"))
    wish.check()


def test_a_failure_leaves_no_bundle_and_is_logged_and_can_be_tried_again(
    parent: Path, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = asked(parent, cases, tmp_path / "out", steps=1)
    with monkeypatch.context() as patch:
        losses = ControlNetTask.losses
        patch.setattr(ControlNetTask, "losses", lambda *a: {n: v * float("nan") for n, v in losses(*a).items()})
        with pytest.raises(TrainingError, match=r"gave loss nan.* on .*"):
            run(wish)
    assert [path.name for path in tmp_path.iterdir()] == ["out-training"]
    assert read_state(wish.work) == "failed"
    assert "loss nan" in (wish.work / "log.txt").read_text(encoding="utf-8")
    run(wish)
    assert Bundle(wish.out).verify() == []
    assert not (wish.work / "log.txt").exists()
    stages = [event.stage for event in read_events(wish.work)]
    assert stages.count("bundle") == 2  # of the second try alone: begun and done


# ------------------------------------------------------------------ what is learned


def test_the_weights_that_validated_best_go_into_the_bundle(
    parent: Path, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = [5.0, 3.0, 4.0, 3.5, 1.0]
    monkeypatch.setattr(ControlNetTask, "validate_item", lambda *a: {"loss": 9.0, "region_loss": scripted.pop(0)})
    recipe = {"validate_every": 1, "patience": 2, "rate": 1e-3}
    tuned = run(asked(parent, cases, tmp_path / "out", steps=6, recipe=recipe))
    assert tuned.metrics["steps"] == 4  # no better twice: stopped
    assert tuned.metrics["weights_step"] == 2
    assert tuned.metrics["validation region_loss"] == 3.0
    folder = tmp_path / "out-training" / "controlnet"
    written = read_state_dict(tuned.bundle / "controlnet.safetensors", "safetensors")
    best, last = (read_checkpoint(folder / name).averages["controlnet"] for name in ("best.pt", "checkpoint.pt"))
    assert all(torch.equal(written[name], value.half()) for name, value in best.items())
    assert any(not torch.equal(written[name], value.half()) for name, value in last.items())
    assert any("stopping early" in event.message for event in events_of(tuned))


def test_one_case_works_and_says_what_to_expect_while_one_without_the_label_is_left_out(
    parent: Path, tmp_path: Path
) -> None:
    entries = [write_case(tmp_path / "c", "with"), write_case(tmp_path / "c", "without", lesion=False)]
    cases = write_list(tmp_path / "c", entries)
    with pytest.raises(FileFormatError, match=r"1 of 2 cases.*\n +without: There is no 150 \(lesion\) in it"):
        run(asked(parent, cases, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    skipped: list[str] = []
    tuned = run(asked(parent, cases, tmp_path / "out", steps=2), skip_bad=True, on_skip=skipped.append)
    assert [reason.split(":")[0] for reason in skipped] == ["without"]
    assert (tuned.cases, tuned.held_out) == (("with",), ())
    assert tuned.notes[0].startswith("One case: ")
    assert tuned.notes[0] in [event.message for event in events_of(tuned)]
    assert [event.file for event in events_of(tuned) if event.file] == [
        "controlnet/pictures/step-00002.png",
        "comparison.png",
    ]
    assert open_bundle(tuned.bundle).verify() == []


@pytest.mark.parametrize("kind", ["mr with weights as published", "ddpm with regions"])
def test_other_kinds_of_bundles_learn_too(kind: str, tmp_path: Path) -> None:
    entries = [write_case(tmp_path / "c", name, shift=shift) for shift, name in enumerate("abc")]
    if kind.startswith("mr"):
        parent = make_tiny_bundle(tmp_path / "tiny", **MR)
        as_published(parent)
    else:
        parent = make_tiny_bundle(tmp_path / "tiny", "ddpm")
    tuned = run(asked(parent, write_list(tmp_path / "c", entries), tmp_path / "out", steps=2))
    bundle = open_bundle(tuned.bundle)
    assert bundle.verify() == []
    assert bundle.scale_factor() == Bundle(parent).scale_factor()
    result = maisi.generate(bundle, maisi.GenerateRequest(anatomy=["lesion"], steps=2))
    assert result.mask is not None
    assert LESION in result.mask.labels


def test_two_cases_teach_a_label_that_the_parent_knows(parent: Path, cases: Path, tmp_path: Path) -> None:
    three = asked(parent, cases, tmp_path / "out", steps=1, focus=["liver"])
    tuned = run(FineTuning(three.preparation, three.cases[:2], three.out, 1))
    assert tuned.held_out == ()
    assert tuned.notes[0].startswith("2 cases: ")
    made_by = Bundle(tuned.bundle).manifest.made_by
    assert made_by["focus"] == ["liver"]
    assert made_by["training"]["contrastive_weight"] == 0  # the liver has no host
