"""Trainings as processes: started, followed, found again by another Slicer, stopped, resumed, deleted."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from MAISILib.bundles.catalogue import data_folder
from MAISILib.errors import MaisiError, OutputError, RequestError, TrainingError
from MAISILib.jobs import detached
from Testing.MAISI.drawn_cases import draw_case
from Testing.tiny_bundle import make_tiny_bundle

ROOT = Path(__file__).resolve().parents[2]
#: Does with files what the engine's fine-tuning does; what it is called says how it goes.
SCRIPT = """
import json, os, sys, time
from pathlib import Path
out = Path(next(a for a in sys.argv if a.startswith("--out=")).partition("=")[2])
work = out.with_name(out.name + "-training")
print(json.dumps(sys.argv[1:]), flush=True)
if "refused" in out.name:
    print("maisi: 1 of 1 cases cannot be used:\\n  Anna: no voxels of the label.", file=sys.stderr)
    sys.exit(2)
work.mkdir(parents=True, exist_ok=True)
(work / "pid").write_text(str(os.getpid()))
(work / "state").write_text("running")
def tell(**event):
    with open(work / "events.jsonl", "a") as file:
        file.write(json.dumps(event) + "\\n")
tell(stage="prepare", done=1, total=1)
tell(stage="controlnet", done=1, total=9, metrics={"loss": 0.5})
deadline = time.monotonic() + 60
while "endless" in out.name and "--resume" not in sys.argv and time.monotonic() < deadline:
    if Path(os.environ["MAISI_STOP_FILE"]).exists():
        (work / "state").write_text("cancelled")
        sys.exit(130)
    time.sleep(0.02)
tell(stage="controlnet", done=9, total=9, metrics={"loss": 0.1})
out.mkdir()
(out / "bundle.json").write_text("{}")
(work / "state").write_text("done")
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "Daten von Öz"


@pytest.fixture
def makeJobs(tmp_path: Path, data: Path) -> Iterator[Callable[[], Any]]:
    """Another Slicer: it knows nothing but the folder."""
    from MAISIPanel.EngineProcess import EngineCommand
    from MAISIPanel.TrainingJobs import TrainingJobs

    script = tmp_path / "engine.py"
    script.write_text(textwrap.dedent(SCRIPT), encoding="utf-8")

    def command(arguments: Sequence[str]) -> EngineCommand:
        import os

        return EngineCommand(sys.executable, ["-u", str(script), *arguments], {**os.environ, "PYTHONUTF8": "1"})

    yield lambda: TrainingJobs(data, command)
    for training in TrainingJobs(data, command).running():
        detached.end(training.job)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    path = tmp_path / "cases.json"
    path.write_text("[]", encoding="utf-8")
    return path


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


def test_a_training_runs_in_the_background_and_ends_as_a_bundle(makeJobs: Any, data: Path, listed: Path) -> None:
    jobs = makeJobs()
    training = jobs.start(listed, name="mine", bundle="tiny", newLabels=["-strange- lesion=150:liver"], steps=9)
    tail, seen = jobs.follow(training), []

    def is_done() -> bool:
        seen.extend(tail.read())
        return jobs.state(training) == "done"

    until(is_done)
    seen += tail.read()
    assert [(event.stage, event.done) for event in seen] == [("prepare", 1), ("controlnet", 1), ("controlnet", 9)]
    assert (data / "bundles" / "mine" / "bundle.json").is_file()
    assert "--new-label=-strange- lesion=150:liver" in jobs.log(training)
    assert jobs.running() == []


def test_another_slicer_finds_it_running_stops_and_resumes_it(makeJobs: Any, listed: Path) -> None:
    first = makeJobs()
    first.start(listed, name="endless", newLabels=["lesion:liver"])
    first.start(listed, name="other", newLabels=["lesion:liver"])
    second = makeJobs()
    until(lambda: [training.name for training in second.running()] == ["endless"])
    assert [training.name for training in second.find()] == ["other", "endless"], "the newest first"
    (training,) = second.running()
    assert training.wish.newLabels == ("lesion:liver",)
    until(lambda: len(second.follow(training).read()) == 2)
    with pytest.raises(TrainingError, match="running"):
        second.delete(training)
    second.stop(training)
    until(lambda: second.state(training) == "cancelled")
    third = makeJobs()
    resumed = third.resume(third.find()[1])
    until(lambda: third.state(resumed) == "done")
    assert '"--resume"' in third.log(resumed).splitlines()[-1]


def test_one_that_does_not_stop_when_asked_is_ended(
    makeJobs: Any, listed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detached, "GRACE_SECONDS", 600.0)
    monkeypatch.setattr(detached, "ask_group", lambda pid: None)
    monkeypatch.setattr(detached, "STOP_VARIABLE", "NOBODY_LOOKS_AT_THIS")
    monkeypatch.setenv("MAISI_STOP_FILE", "/no/such/file")
    jobs = makeJobs()
    training = jobs.start(listed, name="endless", focus=["liver"])
    until(lambda: jobs.follow(training).read())
    jobs.stop(training)
    with pytest.raises(TrainingError, match="saving its present step"):
        jobs.resume(training)
    monkeypatch.setattr(detached, "GRACE_SECONDS", 0.2)
    until(lambda: jobs.state(training) != "running")
    assert jobs.state(training) == "cancelled"


def test_a_refusal_of_the_engine_is_told_in_full(makeJobs: Any, listed: Path, data: Path) -> None:
    jobs = makeJobs()
    training = jobs.start(listed, name="refused", focus=["liver"])
    until(lambda: jobs.state(training) == "failed")
    assert jobs.problem(training) == "1 of 1 cases cannot be used:\n  Anna: no voxels of the label."
    jobs.delete(training)
    assert jobs.find() == []
    assert not (data / "trainings" / "refused").exists()


def test_deleting_a_training_leaves_its_bundle(makeJobs: Any, listed: Path, data: Path) -> None:
    jobs = makeJobs()
    training = jobs.start(listed, name="mine", focus=["liver"])
    until(lambda: jobs.state(training) == "done")
    jobs.delete(training)
    assert [path.name for path in (data / "bundles").iterdir()] == ["mine"]
    assert jobs.takenNames() == {"mine"}
    with pytest.raises(OutputError, match="'mine' is taken"):
        jobs.start(listed, name="mine", focus=["liver"])


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"name": "Bad name", "focus": ["liver"]}, "Name the new model"),
        ({"name": "../up", "focus": ["liver"]}, "Name the new model"),
        ({"name": "mine"}, "Say what is to be learned"),
        ({"name": "mine", "focus": ["liver"], "duration": "endless"}, "Unknown duration 'endless'"),
        ({"name": "mine", "focus": ["liver"], "steps": 0}, "0 training steps"),
        ({"name": "mine", "focus": ["liver"], "bundle": ""}, "Choose the model"),
        ({"name": "mine", "fokus": ["liver"]}, "fokus.*Its fields: name, bundle"),
    ],
)
def test_a_senseless_wish_starts_nothing(makeJobs: Any, listed: Path, data: Path, wish: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        makeJobs().start(listed, **wish)
    assert not data.exists()


def test_an_engine_that_is_not_there_leaves_nothing_behind(data: Path, listed: Path) -> None:
    from MAISIPanel.EngineProcess import EngineCommand
    from MAISIPanel.TrainingJobs import TrainingJobs

    jobs = TrainingJobs(data, lambda arguments: EngineCommand("/no/python", ["-m", "MAISILib", *arguments], {}))
    with pytest.raises(MaisiError, match="/no/python cannot be started"):
        jobs.start(listed, name="mine", focus=["liver"])
    assert jobs.find() == []
    assert list((data / "trainings").iterdir()) == []


def test_cases_that_cannot_be_written_leave_nothing_behind(makeJobs: Any, scene: Any, data: Path) -> None:
    volume, segmentation = draw_case(scene)
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    with pytest.raises(MaisiError, match="'empty' is empty"):
        makeJobs().start([(volume, segmentation), (empty, segmentation)], name="mine", focus=["liver"])
    assert not (data / "trainings" / "mine").exists()


def test_slicer_and_engine_mean_the_same_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from MAISIPanel.TrainingJobs import userDataFolder

    for variables in ({"MAISI_DATA": str(tmp_path / "a b")}, {"XDG_DATA_HOME": str(tmp_path)}, {"XDG_DATA_HOME": ""}):
        with monkeypatch.context() as patch:
            patch.delenv("MAISI_DATA", raising=False)
            for name, value in variables.items():
                patch.setenv(name, value)
            assert userDataFolder() == data_folder()


def test_trainings_need_no_package_that_slicer_lacks() -> None:
    lacking = ("pydantic", "psutil", "platformdirs", "torch", "monai", "nibabel", "nrrd", "qt", "vtk", "slicer")
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "MAISI")!r}]
sys.modules.update(dict.fromkeys({lacking!r}))
from pathlib import Path
from MAISIPanel.TrainingJobs import TrainingJobs
assert TrainingJobs(Path("nowhere")).running() == []
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def test_a_suggested_name_is_free_and_fit_for_a_folder() -> None:
    from MAISIPanel.TrainingWish import TrainingWish, suggestedName

    assert suggestedName("head-neck-mini", "Läsion, links (2)", []) == "head-neck-mini-Lasion-links-2"
    assert suggestedName("/models/mine", "lesion", ["Mine-lesion", "mine-lesion-2"]) == "mine-lesion-3"
    for name in (suggestedName("b", "?" * 300, []), suggestedName("b" * 300, "l", []), suggestedName("", "", [])):
        assert TrainingWish(name, focus=("x",)).isValid() == (True, "")


@pytest.mark.slow
def test_a_painted_label_becomes_a_bundle_that_the_engine_lists(
    scene: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    waitUntil: Callable[..., None],
    request: pytest.FixtureRequest,
) -> None:
    """The real engine, stopped by a second Slicer and finished by a third."""
    from MAISIPanel.Logic import MAISILogic
    from MAISIPanel.TrainingJobs import TrainingJobs

    data = tmp_path / "Daten von Öz"
    monkeypatch.setenv("MAISI_DATA", str(data))
    make_tiny_bundle(data / "bundles" / "tiny", with_masks=1)
    wish = {"name": "tiny-lesion", "bundle": "tiny", "newLabels": ["lesion=150:liver"], "steps": 12, "device": "cpu"}
    TrainingJobs().start([draw_case(scene)], edits={"Segment_1": "lesion"}, **wish)
    request.addfinalizer(lambda: [detached.end(training.job) for training in TrainingJobs(data).running()])
    second = TrainingJobs()
    (training,) = second.running()
    tail, losses = second.follow(training), []

    def has_begun() -> bool:
        assert second.state(training) == "running", second.log(training)
        losses.extend(event for event in tail.read() if event.stage == "controlnet" and event.metrics)
        return bool(losses)

    until(has_begun, 600)
    second.stop(training)
    until(lambda: second.state(training) != "running", 60)
    assert second.state(training) == "cancelled", second.log(training)

    third = TrainingJobs()
    training = third.resume(third.find()[0])
    until(lambda: third.state(training) != "running", 600)
    assert third.state(training) == "done", third.log(training)
    events = third.follow(training).read()
    assert [e.done for e in events if e.stage == "controlnet" and e.metrics][-1] == 12
    assert all((training.work / event.file).is_file() for event in events if event.file)
    logic = MAISILogic(scene)
    try:
        states = {bundle["name"]: bundle["state"] for bundle in logic.ask("bundles")["bundles"]}
        assert states["tiny-lesion"] == "installed"
        names = [label["name"] for label in logic.ask("describe", bundle="tiny-lesion")["labels"]]
        assert "lesion" in names
    finally:
        logic.shutdown()
        waitUntil(lambda: not logic.client.isRunning)
