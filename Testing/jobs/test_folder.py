from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from MAISILib.errors import Cancelled, OutputError, TrainingError
from MAISILib.jobs import folder as folder_module
from MAISILib.jobs.folder import Event, JobFolder, read_events, read_state, runs_elsewhere
from Testing.imports import ROOT


def test_events_are_read_as_they_were_written(tmp_path: Path) -> None:
    job = JobFolder(tmp_path / "job")
    told = [
        Event("encode", 1, 3, "Größe 5 µm — 头", time=5.0),
        Event("diffusion", 2, metrics={"loss": 0.25}, time=6.0),
        Event("picture", file="pictures/a.png", message="two\nlines\u2028or three", time=7.0),
    ]
    for event in told:
        job.event(event)
    assert read_events(job.folder) == told
    lines = (job.folder / "events.jsonl").read_bytes().decode().split("\n")
    assert lines[1] == '{"stage": "diffusion", "done": 2, "total": 0, "metrics": {"loss": 0.25}, "time": 6.0}'


def test_figures_that_json_cannot_tell_are_left_out(tmp_path: Path) -> None:
    job = JobFolder(tmp_path)
    job.event(Event("validation", 3, message="loss nan", metrics={"loss": math.nan, "mae": 0.5, "psnr_db": -math.inf}))
    job.event(Event("validation", 4, metrics={"loss": math.nan}))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for line in (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=refuse)
    first, second = read_events(tmp_path)
    assert (first.message, first.metrics, second.metrics) == ("loss nan", {"mae": 0.5}, {})


def test_an_event_gets_the_present_time(tmp_path: Path) -> None:
    JobFolder(tmp_path).event(Event("encode"))
    assert read_events(tmp_path)[0].time > 1.7e9


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    JobFolder(tmp_path).event(Event("encode", 1))
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write('{"stage": "encode", "message": "µ'.encode()[:-1])  # in the middle of a letter
    assert [event.done for event in read_events(tmp_path)] == [1]
    JobFolder(tmp_path).event(Event("encode", 2))  # goes on after the break
    assert [event.done for event in read_events(tmp_path)] == [1, 2]
    assert read_events(tmp_path / "elsewhere") == []


@pytest.mark.parametrize(
    ("error", "state"),
    [(None, "done"), (Cancelled("stop"), "cancelled"), (KeyboardInterrupt(), "cancelled"), (ValueError("x"), "failed")],
)
def test_the_state_says_how_a_job_ended(error: BaseException | None, state: str, tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    job = JobFolder(tmp_path)
    try:
        with job.running():
            assert read_state(tmp_path) == "running"
            assert (tmp_path / "pid").read_text() == f"{os.getpid()}\n"
            if error is not None:
                raise error
    except type(error or Cancelled("")):
        pass
    assert read_state(tmp_path) == state
    assert not (tmp_path / "pid").exists()


def test_the_log_says_why_a_job_failed(tmp_path: Path) -> None:
    for error in (TrainingError("The loss is NaN on pt_7."), ZeroDivisionError("by chance")):
        with pytest.raises(type(error)), JobFolder(tmp_path).running():
            raise error
    log = (tmp_path / "log.txt").read_text()
    assert log.startswith("The loss is NaN on pt_7.\nTraceback")
    assert log.endswith("ZeroDivisionError: by chance\n\n")


def test_a_full_disk_does_not_hide_the_error_that_ended_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OutputError("the disk is full")

    def work() -> None:
        with JobFolder(tmp_path).running() as job:
            monkeypatch.setattr(folder_module, "write_text", refuse)
            monkeypatch.setattr(job, "_append", refuse)
            raise TrainingError("no good")

    with pytest.raises(TrainingError, match="no good"):
        work()
    assert read_state(tmp_path) == "failed"  # its process is not there any more


def test_a_killed_job_has_failed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from MAISILib.jobs.folder import JobFolder\n"
        f"with JobFolder(Path({str(tmp_path)!r})).running():\n    print('here', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        assert read_state(tmp_path) == "running"
        assert runs_elsewhere(tmp_path)
        process.send_signal(signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
    assert (tmp_path / "state").read_text() == "running\n"
    assert read_state(tmp_path) == "failed"
    assert not runs_elsewhere(tmp_path)


def test_a_job_that_ends_while_it_is_looked_at_runs_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "read_state", lambda folder: "running")
    assert not runs_elsewhere(tmp_path)  # its number is gone already


def test_a_number_that_another_process_got_later_is_not_the_job(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("running\n")
    (tmp_path / "pid").write_text(f"{os.getpid()}\n")
    assert read_state(tmp_path) == "running"
    assert not runs_elsewhere(tmp_path)  # it is us
    os.utime(tmp_path / "pid", (1e9, 1e9))  # written years before this process began
    assert read_state(tmp_path) == "failed"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        JobFolder(tmp_path / "file" / "job")
