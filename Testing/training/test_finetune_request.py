"""What keeps a fine-tuning from starting is found before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from MAISILib.bundles.bundle import Bundle
from MAISILib.errors import BundleError, MaisiError, OutputError, RequestError, TrainingError
from MAISILib.training.finetune import finetune
from MAISILib.training.finetune_request import RECIPE, FineTuning, check_place
from Testing.tiny_bundle import make_tiny_bundle
from Testing.training.finetunings import asked, write_three_cases
from Testing.training.users_cases import write_case, write_list


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_three_cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture
def refused(parent: Path, cases: Path, tmp_path: Path) -> Callable[..., str]:
    def go(out: Path, kind: type[MaisiError], of: Path = parent) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(kind) as early:
            check_place(Bundle(of), out)
        wish = asked(of, cases, out)
        with pytest.raises(kind) as late:
            finetune(wish, device="cpu")
        assert str(early.value) == str(late.value)
        assert sorted(tmp_path.rglob("*")) == before
        return str(late.value)

    return go


def test_a_folder_that_holds_something_else_is_refused_before_the_work(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    assert "photos: the folder holds other files" in refused(tmp_path / "photos", OutputError)
    assert "cat.jpg: a file of that name" in refused(tmp_path / "photos" / "cat.jpg", OutputError)
    (tmp_path / "new-training").mkdir()
    (tmp_path / "new-training" / "plan.txt").write_text("run 5 km")
    assert "new-training: the folder holds other files" in refused(tmp_path / "new", OutputError)
    (tmp_path / "new-training" / "request.json").write_text('{"train": {"steps": 5}}')
    assert "new-training is needed for the work and holds something else" in refused(tmp_path / "new", OutputError)


def test_no_other_bundle_is_ever_replaced(
    refused: Callable[..., str], parent: Path, cases: Path, tmp_path: Path
) -> None:
    other = make_tiny_bundle(tmp_path / "other")
    assert "holds a bundle that no fine-tuning has made" in refused(other, OutputError)
    own = Path(shutil.copytree(parent, tmp_path / "own"))
    for out in (own, own / "better"):
        assert "cannot lie in the one that it is made from" in refused(out, RequestError, own)
    asked(parent, cases, make_tiny_bundle(tmp_path / "mine", made_by={"recipe": RECIPE})).check()


def test_a_bundle_without_controlnet_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path / "tiny", with_controlnet=False)
    assert "'tiny' has no controlnet network" in refused(tmp_path / "out", BundleError, bundle)


def test_nothing_to_learn_is_refused(
    parent: Path, cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = asked(parent, cases, tmp_path / "out")
    with pytest.raises(RequestError, match="no cases"):
        FineTuning(wish.preparation, (), wish.out).check()
    with pytest.raises(TrainingError, match=r"recipe of the fine-tuning: 'rats' is no field.*'rate'"):
        finetune(asked(parent, cases, tmp_path / "out", recipe={"rats": 1}))
    known = list(write_case(tmp_path / "c", "plain", lesion=False).values())
    plain = write_list(tmp_path / "c", [{"image": known[0], "segmentation": known[1]}])
    with pytest.raises(RequestError, match="Nothing to learn: name a new label"):
        asked(parent, plain, tmp_path / "out", new=()).check()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RequestError, match="runs in one process"):
        wish.check()
    assert not wish.work.exists()


def test_case_names_that_would_meet_in_the_work_folder_are_refused(parent: Path, tmp_path: Path) -> None:
    entries = [write_case(tmp_path, name) for name in ("Anna", "anna-Mirrored")]
    with pytest.raises(RequestError, match="'Anna' and 'Anna-mirrored'"):
        asked(parent, write_list(tmp_path, entries), tmp_path / "out").check()


def test_damaged_weights_of_the_parent_are_found_before_the_work(cases: Path, tmp_path: Path) -> None:
    parent = make_tiny_bundle(tmp_path / "tiny")
    weights = parent / "controlnet.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="controlnet"):
        asked(parent, cases, tmp_path / "out").check()


def test_the_present_folder_can_be_the_bundles(parent: Path, cases: Path, tmp_path: Path) -> None:
    wish = asked(parent, cases, Path())
    assert wish.work == Path.cwd().with_name(f"{Path.cwd().name}-training")
