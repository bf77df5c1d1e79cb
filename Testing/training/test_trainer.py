from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from MAISILib.errors import Cancelled, OutOfMemory, TrainingError
from MAISILib.jobs.folder import read_events, read_state
from MAISILib.training.checkpoint import Checkpoint, read_checkpoint
from MAISILib.training.recipes import Recipe
from MAISILib.training.start import run_task
from MAISILib.training.task import Tensors
from MAISILib.training.trainer import Trainer
from Testing.training.tiny_task import PowerCut, TinyTask, losses_of, same, state_of, train

PLAIN: dict[str, Any] = {
    "optimizer": "adamw", "weight_decay": 0.01, "clip": 0.5, "rate_schedule": "polynomial", "warmup": 2,
    "average_decay": 0.9, "batch": 2, "validate_every": 3,
}  # fmt: skip
JUDGED: dict[str, Any] = {
    "rate_schedule": "epochs", "epoch_factors": [(1, 0.1), (2, 1.0)], "average_decay": 0.5, "batch": 2, "accumulate": 2,
}  # fmt: skip


@pytest.mark.parametrize("judged", [False, True], ids=["one phase", "two phases, accumulated"])
@pytest.mark.parametrize(
    "breaks",
    [
        [("cancel_at", 1), ("cancel_at", 5)],
        [("cancel_at", 2), ("cut_at", 4)],  # two steps are lost and taken again
        [("cut_at", 3)],  # before there was a checkpoint
    ],
    ids=["cancelled twice", "power cut between saves", "power cut before a save"],
)
def test_a_broken_run_ends_like_an_unbroken_one_bit_for_bit(
    breaks: list[tuple[str, int]], judged: bool, tmp_path: Path
) -> None:
    asked = JUDGED if judged else PLAIN

    def go(name: str, **stop: int) -> Trainer:
        torch.manual_seed(len(list(tmp_path.rglob("*"))))  # a new process has other random numbers
        return train(tmp_path / name, TinyTask(judged=judged, validation=2), **asked, **stop)

    unbroken = go("unbroken")
    for how, step in breaks:
        with pytest.raises((Cancelled, PowerCut)):
            go("broken", **{how: step})
    assert go("broken").step == unbroken.step == 7
    assert same(state_of(tmp_path / "broken"), state_of(tmp_path / "unbroken"))
    assert losses_of(tmp_path / "broken") == losses_of(tmp_path / "unbroken")


def test_it_learns_and_averages(tmp_path: Path) -> None:
    trainer = train(tmp_path, steps=60, batch=5, rate=0.03, average_decay=0.9)
    losses = [metrics["loss"] for metrics in losses_of(tmp_path).values()]
    assert losses[-1] < 0.3 * losses[0]
    now, average = state_of(tmp_path)["networks"]["unet"], trainer.averages["unet"].weights
    gap = max(float((now[name] - average[name]).abs().max()) for name in now)
    assert 0 < gap < 0.1


def test_two_batches_of_one_are_one_batch_of_two(tmp_path: Path) -> None:
    for name, asked in (("accumulated", {"accumulate": 2}), ("at once", {"batch": 2})):
        train(tmp_path / name, TinyTask(judged=True), **asked, clip=0.1)
    one, two = (state_of(tmp_path / name)["networks"] for name in ("accumulated", "at once"))
    for network, weights in one.items():
        for key, value in weights.items():
            torch.testing.assert_close(two[network][key], value, rtol=1e-4, atol=1e-6)


class Poisoned(TinyTask):
    """Item 3 spoils the loss, or only its gradient."""

    def __init__(self, poison: str) -> None:
        super().__init__()
        self._poison = poison

    def spoil(self, loss: torch.Tensor, batch: Tensors) -> torch.Tensor:
        ill = (batch["index"] == 3).float()
        if self._poison == "loss":
            return loss * torch.where(ill > 0, float("nan"), 1.0)
        return loss + torch.sqrt((loss - loss.detach()) * ill + 1 - ill) - 1 + ill  # adds 0, with an infinite slope


@pytest.mark.parametrize(("poison", "told"), [("loss", "loss nan"), ("gradient", "a gradient of norm (nan|inf)")])
def test_a_step_that_is_not_finite_names_its_batch_and_spoils_nothing(poison: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=rf"{told}.* on pt_3\. .*--resume goes on"):
        train(tmp_path, Poisoned(poison), save_minutes=1e-9, steps=20)
    saved = state_of(tmp_path)
    assert saved["step"] == len(losses_of(tmp_path)) > 0
    assert all(value.isfinite().all() for value in saved["networks"]["unet"].values())
    assert read_state(tmp_path) == "failed"
    assert "pt_3" in (tmp_path / "log.txt").read_text()
    train(tmp_path, steps=20)  # with the item repaired
    train(tmp_path / "healthy", steps=20)
    for part in ("networks", "averages", "optimizers"):
        assert same(state_of(tmp_path)[part], state_of(tmp_path / "healthy")[part])


@pytest.fixture
def _ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock for the trainer that goes on by a second whenever it is looked at: once or twice a step."""
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: float(next(ticks)))
    monkeypatch.setattr("MAISILib.training.trainer.time", clock)


@pytest.mark.usefixtures("_ticking")
def test_a_loss_that_runs_away_ends_the_run_with_an_early_checkpoint(tmp_path: Path) -> None:
    class Growing(TinyTask):
        taken = 0

        def spoil(self, loss: torch.Tensor, batch: Tensors) -> torch.Tensor:
            self.taken += 1
            return loss.detach().clamp(1, 1) * 1.06**self.taken + 0 * loss

    with pytest.raises(TrainingError, match="the loss has diverged"):
        train(tmp_path, Growing(), steps=100, save_minutes=2 / 60)
    assert read_state(tmp_path) == "failed"
    assert 20 < state_of(tmp_path)["step"] < len(losses_of(tmp_path)) - 5


class Settling(TinyTask):
    """The loss doubles after 20 steps and stays there: doubtful, but not diverged."""

    taken = 0

    def spoil(self, loss: torch.Tensor, batch: Tensors) -> torch.Tensor:
        self.taken += 1
        return loss.detach().clamp(1, 1) * (1.0 if self.taken <= 20 else 2.0) + 0 * loss


@pytest.mark.usefixtures("_ticking")
def test_a_doubtful_loss_holds_checkpoints_back_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = Checkpoint.write

    def note(self: Checkpoint, path: Path) -> None:
        written.append(self.step)
        write(self, path)

    monkeypatch.setattr(Checkpoint, "write", note)
    train(tmp_path, Settling(), steps=80, save_minutes=1 / 60)
    gaps = [after - before for before, after in itertools.pairwise(written)]
    assert max(gaps[:5]) <= 2
    assert 4 < max(gaps) <= 11


def test_cancelling_while_the_loss_runs_away_keeps_the_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        train(tmp_path, Settling(), steps=80, cancel_at=10)
    again = Settling()
    again.taken = 10
    with pytest.raises(Cancelled, match=r"Stopped at step 45, where the loss was running away: .* is kept"):
        train(tmp_path, again, steps=80, cancel_at=45)
    assert state_of(tmp_path)["step"] == 10
    with pytest.raises(Cancelled, match=r"Stopped at step 45\. The same command"):
        train(tmp_path / "nothing better", Settling(), steps=80, cancel_at=45)
    assert state_of(tmp_path / "nothing better")["step"] == 45


def test_a_resume_on_data_that_changed_behind_their_names_says_so(tmp_path: Path) -> None:
    def task(**facts: str) -> TinyTask:
        made = TinyTask(validation=1)
        made.facts = {"frozen UNet": "abc", **facts}
        return made

    train(tmp_path, task(), steps=1)
    assert train(tmp_path, task(), steps=1).step == 1
    with pytest.raises(TrainingError, match='holds another run: frozen UNet was "abc", is "def"'):
        train(tmp_path, task(**{"frozen UNet": "def"}), steps=1)
    more = task()
    more._validation = 2
    with pytest.raises(TrainingError, match=r'held-out items was \["held_pt_0"\], is \["held_pt_0", "held_pt_1"\]'):
        train(tmp_path, more, steps=1)
    path = tmp_path / "checkpoint.pt"
    saved = read_checkpoint(path)
    for name in ("frozen UNet", "held-out items"):
        del saved.identity[name]
    saved.write(path)
    assert train(tmp_path, more, steps=1).step == 1  # from before these were kept


def test_a_resume_with_another_recipe_or_other_data_says_what_differs(tmp_path: Path) -> None:
    train(tmp_path, steps=1)
    with pytest.raises(TrainingError, match=r"holds another run: batch was 1, is 2; rate was 0\.01, is 0\.02\. Resume"):
        train(tmp_path, steps=1, rate=0.02, batch=2)
    with pytest.raises(TrainingError, match=r'training items was \["pt_0",.* is \["case_0"'):
        train(tmp_path, TinyTask(prefix="case"), steps=1)
    assert train(tmp_path, steps=1, save_minutes=7).step == 1  # how often to save may change


def test_a_folder_with_a_run_is_left_alone_without_resume(tmp_path: Path) -> None:
    train(tmp_path, steps=1)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(TrainingError, match=r"holds a run\. --resume goes on with it"):
        Trainer(TinyTask(), Recipe(steps=1), tmp_path, device="cpu")
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_a_folder_that_another_process_is_training_in_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (tmp_path / "state").write_text("running\n")
        (tmp_path / "pid").write_text(f"{other.pid}\n")
        with pytest.raises(TrainingError, match="is being trained by another process"):
            train(tmp_path)
        other.communicate(b"\n")
    assert train(tmp_path, steps=1).step == 1


def test_cancelling_saves_the_step_and_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(Cancelled, match=r"Stopped at step 4\. The same command with --resume goes on\."):
        train(tmp_path, cancel_at=4)
    assert read_state(tmp_path) == "cancelled"
    assert state_of(tmp_path)["step"] == 4
    assert train(tmp_path).step == 7
    assert read_state(tmp_path) == "done"


def test_the_folder_tells_the_whole_story(tmp_path: Path) -> None:
    def draw(step: int, networks: dict[str, Any], folder: Path) -> list[Path]:
        (folder / "pictures").mkdir()
        (folder / "pictures" / "3.png").write_bytes(b"")
        return [folder / "pictures" / "3.png"]

    heard = []
    recipe = Recipe(steps=3, seed=3)
    task = TinyTask(validation=3)
    figures = Trainer(task, recipe, tmp_path, device="cpu", on_event=heard.append, on_validation=draw).run()
    events = read_events(tmp_path)
    assert [(e.stage, e.done, e.total) for e in events] == [
        ("tiny", 1, 3), ("tiny", 2, 3), ("tiny", 3, 3), ("validation", 3, 3), ("picture", 3, 3),
    ]  # fmt: skip
    assert set(events[0].metrics) == {"loss", "error"}
    assert events[3].metrics == pytest.approx(figures, rel=1e-5)
    assert figures["seen"] == 1.5  # the mean of the two items that have this figure
    assert events[4].file == "pictures/3.png"
    assert all(e.time > 1e9 for e in events)
    assert [e.stage for e in heard] == [e.stage for e in events]
    assert read_state(tmp_path) == "done"
    assert not (tmp_path / "pid").exists()
    assert json.loads((tmp_path / "request.json").read_text())["train"]["steps"] == 3
    assert list((tmp_path / "tensorboard").iterdir())


def test_validation_looks_at_averaged_weights_and_does_not_disturb(tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Looking(TinyTask):
        def validate_item(self, index: int, networks: Any) -> dict[str, float]:
            assert not networks["unet"].training
            seen.append({name: value.clone() for name, value in networks["unet"].state_dict().items()})
            return {"loss": 0.0}

    asked: dict[str, Any] = {"validate_every": 7, "average_decay": 0.9}
    trainer = train(tmp_path / "looked at", Looking(validation=1), **asked)
    train(tmp_path / "alone", **asked)
    assert same(seen[-1], trainer.averages["unet"].weights)
    assert not same(seen[-1], state_of(tmp_path / "looked at")["networks"]["unet"])
    for part in ("networks", "averages", "optimizers"):
        assert same(state_of(tmp_path / "looked at")[part], state_of(tmp_path / "alone")[part])


def test_the_best_weights_are_kept_and_the_training_stops_when_it_gets_no_better(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"validate_every": 1, "best_metric": "loss", "patience": 2}
    task = TinyTask(validation=1)
    task.scripted = [5.0, 3.0, 4.0, 3.5, 1.0]
    assert train(tmp_path, task, **asked).step == 4
    assert torch.load(tmp_path / "best.pt", weights_only=True)["step"] == 2
    assert read_events(tmp_path)[-1].message.endswith("stopping early")
    again = train(tmp_path, TinyTask(validation=1), **asked)
    assert again.step == 4  # it does not begin anew to hope
    assert again.run() == {"loss": 3.5}


def test_a_figure_that_nobody_judges_by_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"best_metric 'los' is no figure.* there are loss\. Did you mean 'loss'"):
        train(tmp_path / "run", TinyTask(validation=1), best_metric="los")
    assert not (tmp_path / "run").exists()


def test_a_validation_that_is_not_finite_is_not_the_best(tmp_path: Path) -> None:
    task = TinyTask(validation=1)
    task.scripted = [float("nan"), 3.0, float("nan"), float("-inf"), 9.0]
    trainer = train(tmp_path / "some", task, validate_every=1, best_metric="loss", steps=5)
    assert trainer.has_best
    assert torch.load(tmp_path / "some" / "best.pt", weights_only=True)["step"] == 2
    never = TinyTask(validation=1)
    never.scripted = [float("nan")] * 2
    recipe = Recipe(steps=2, validate_every=1, best_metric="loss")
    outcome = run_task(never, recipe, tmp_path / "never", None, device="cpu")
    assert outcome.weights_step == 2  # the last weights, since none were best


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = train(tmp_path, TinyTask(validation=1), steps=2)
    events = read_events(tmp_path)
    again = train(tmp_path, TinyTask(validation=1), steps=2)
    assert again.run() == first.run() != {}
    assert read_events(tmp_path) == events


def test_too_little_memory_is_explained(tmp_path: Path) -> None:
    class Huge(TinyTask):
        def spoil(self, loss: torch.Tensor, batch: Tensors) -> torch.Tensor:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 byte")

    with pytest.raises(OutOfMemory, match=r"does not fit into the memory of cpu\. Set checkpoint_activations"):
        train(tmp_path, Huge())


def test_other_errors_end_up_in_the_log(tmp_path: Path) -> None:
    class Broken(TinyTask):
        def load_item(self, index: int, rng: Any) -> Tensors:
            raise ZeroDivisionError("on the way")

    with pytest.raises(ZeroDivisionError):
        train(tmp_path, Broken())
    assert read_state(tmp_path) == "failed"
    assert "ZeroDivisionError: on the way" in (tmp_path / "log.txt").read_text()


def test_narrow_arithmetic_keeps_wide_weights(tmp_path: Path) -> None:
    train(tmp_path, precision="bfloat16", steps=2)
    saved = state_of(tmp_path)
    assert {value.dtype for value in saved["networks"]["unet"].values()} == {torch.float32}
    with pytest.raises(TrainingError, match="There is nothing to train the tiny on"):
        train(tmp_path / "empty", TinyTask(0))
