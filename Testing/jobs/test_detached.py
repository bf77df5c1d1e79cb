"""Trainings as processes of their own: started here, found by others, stopped and resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from MAISILib.bundles.bundle import Bundle
from MAISILib.errors import FileFormatError, TrainingError
from MAISILib.jobs import detached
from MAISILib.jobs.detached import DetachedJob, end, find_job, list_jobs, resume, start, stop
from MAISILib.jobs.folder import Event, EventTail, JobFolder, State, read_events, work_folder
from Testing.imports import ROOT
from Testing.training.users_cases import write_case, write_list

PATIENCE = 240.0
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(job: DetachedJob, seconds: float = 30.0) -> State:
    until(lambda: job.state() != "running", seconds)
    return job.state()


Run = Callable[..., DetachedJob]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Starts a program that stands for a training, in a folder with a name."""
    jobs: list[DetachedJob] = []

    def start_program(program: str, name: str = "Läsion 1", **options: Any) -> DetachedJob:
        folder = tmp_path / "jobs" / name
        code = f"import os, signal, subprocess, sys, time\nfrom pathlib import Path\n{program}"
        jobs.append(
            start(folder, [sys.executable, "-c"], [code], work=tmp_path / "work", environment=ENVIRONMENT, **options)
        )
        return jobs[-1]

    yield start_program
    for job in jobs:
        end(job)


AS_A_TRAINING = """
from MAISILib.jobs.folder import Event, JobFolder
work = JobFolder(Path(sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] != '--resume' else '../../work'))
"""
OBEDIENT = """
from MAISILib.cli.running import cancel_on_interrupt
with cancel_on_interrupt() as cancel, work.running():
    work.event(Event('controlnet', 1, 9))
    while True:
        cancel.check()
        time.sleep(0.01)
"""


def test_a_job_is_found_again_by_its_folder(run: Run, tmp_path: Path) -> None:
    job = run("print('begun', flush=True); time.sleep(600)", details={"name": "mine"})
    assert job.state() == "running"
    found = find_job(job.folder)
    assert found == job
    assert found.details == {"name": "mine"}
    assert list_jobs(tmp_path / "jobs") == [job]
    # Another program, as bare as Slicer's own Python.
    program = (
        "import sys; from pathlib import Path; from MAISILib.jobs.detached import list_jobs\n"
        "job, = list_jobs(Path(sys.argv[1])); print(job.state(), job.pid, *job.log_lines())\n"
        "assert not {'numpy', 'psutil', 'pydantic'} & set(sys.modules)"
    )
    command = [sys.executable, "-S", "-c", program, str(tmp_path / "jobs")]
    until(lambda: job.log_lines() == ["begun"])
    told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert told.stdout == f"running {job.pid} begun\n", told.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="uses sessions")
def test_a_job_outlives_the_program_that_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, os, signal; from pathlib import Path; from MAISILib.jobs.detached import start\n"
        "start(Path(sys.argv[1]), [sys.executable, '-c'], ['import time; time.sleep(600)'], work=Path(sys.argv[1]))\n"
        "os.killpg(0, signal.SIGKILL)"
    )
    folder = tmp_path / "job"
    command = [sys.executable, "-S", "-c", program, str(folder)]
    subprocess.run(command, cwd=ROOT, start_new_session=True, timeout=60)
    job = find_job(folder)
    assert job.state() == "running"
    end(job)
    assert job.state() == "cancelled"


def test_the_end_of_a_job_is_told(run: Run) -> None:
    failed = run("print('maisi: the case is empty. Label it.', file=sys.stderr); sys.exit(2)", "failed")
    assert ended(failed) == "failed"
    assert failed.log_lines() == ["maisi: the case is empty. Label it."]
    done = run(f"{AS_A_TRAINING}\nwith work.running(): pass", "done")
    assert ended(done) == "done"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
def test_a_killed_job_has_failed_and_is_no_zombie(run: Run) -> None:
    job = run(f"{AS_A_TRAINING}\nwith work.running(): time.sleep(600)")
    until(lambda: (job.work / "state").is_file())
    pid = job.pid
    assert pid is not None
    os.kill(pid, 9)
    assert ended(job) == "failed"
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("way", ["signal", "file"])
def test_a_training_is_asked_to_stop_and_does(run: Run, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "file":  # as on Windows
        monkeypatch.setattr(detached, "ask_group", lambda pid: None)
    job = run(AS_A_TRAINING + OBEDIENT)
    until(lambda: read_events(job.work))
    assert stop(job) == "cancelled"
    assert (job.work / "state").read_text() == "cancelled\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_a_training_that_has_not_begun_stops_at_once(run: Run) -> None:
    job = run("time.sleep(600)")
    before = time.monotonic()
    assert stop(job) == "cancelled"
    assert time.monotonic() - before < 2


@pytest.mark.skipif(sys.platform == "win32", reason="uses process groups")
def test_the_whole_tree_of_one_that_does_not_listen_is_ended_within_two_seconds(run: Run) -> None:
    job = run(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    until(job.log_lines)
    child = psutil.Process(int(job.log_lines()[0]))
    before = time.monotonic()
    assert stop(job, grace_seconds=0.5) == "cancelled"
    assert time.monotonic() - before < 2.5
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 0.1)


@pytest.mark.skipif(sys.platform == "win32", reason="uses process groups")
def test_what_a_launcher_has_left_is_stopped_too(run: Run) -> None:
    """A launcher that is killed leaves the training behind."""
    training = "import sys, time\nfrom pathlib import Path\n" + AS_A_TRAINING + OBEDIENT
    job = run(f"child = subprocess.Popen([sys.executable, '-c', {training!r}]); child.wait()")
    until(lambda: read_events(job.work))
    pid = job.pid
    assert pid is not None
    os.kill(pid, 9)
    until(lambda: job.pid is None)
    assert job.state() == "running"
    assert stop(job) == "cancelled"


def test_a_running_job_is_not_started_twice(run: Run) -> None:
    job = run("time.sleep(600)")
    with pytest.raises(TrainingError, match="running already"):
        resume(job, environment=ENVIRONMENT)
    with pytest.raises(TrainingError, match="running already"):
        run("time.sleep(600)")


def test_a_resumed_job_gets_the_option_and_forgets_how_the_last_try_ended(run: Run) -> None:
    job = run("print(sys.argv[1:], flush=True); time.sleep(600 if len(sys.argv) < 2 else 0)")
    until(job.log_lines)
    assert stop(job, 0.1) == "cancelled"
    again = resume(find_job(job.folder), environment=ENVIRONMENT)
    assert ended(again) == "failed"  # it was not stopped this time, and says nothing of success
    assert again.log_lines() == ["[]", "['--resume']"]
    assert find_job(job.folder) == job


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no-such-python cannot be started.*Check the Python"):
        start(tmp_path / "job", [str(tmp_path / "no-such-python")], [], work=tmp_path / "work")
    assert find_job(tmp_path / "job").state() == "queued"


def test_damaged_records_are_left_out(run: Run, tmp_path: Path) -> None:
    job = run("pass")
    for name, text in {"torn": "{", "other": "{}", "list": "[]"}.items():
        (tmp_path / "jobs" / name).mkdir()
        (tmp_path / "jobs" / name / "launch.json").write_text(text)
    assert list_jobs(tmp_path / "jobs") == [job]
    with pytest.raises(FileFormatError, match="does not describe a job"):
        find_job(tmp_path / "jobs" / "torn")
    assert list_jobs(tmp_path / "nowhere") == []


def test_secrets_of_the_environment_are_not_written_down(run: Run, tmp_path: Path) -> None:
    job = run("print(os.environ['PYTHONPATH'], flush=True)")
    until(job.log_lines)
    assert job.log_lines() == [str(ROOT)]
    assert set(json.loads((job.folder / "launch.json").read_text())) == {
        *("program", "arguments", "work", "details", "created")
    }


def test_a_tail_gives_each_event_once_and_all_of_a_new_beginning(tmp_path: Path) -> None:
    tail, job = EventTail(tmp_path / "job"), JobFolder(tmp_path / "job")
    assert tail.read() == []
    job.event(Event("encode", 1, time=1.0))
    with (tmp_path / "job" / "events.jsonl").open("ab") as file:
        file.write(b'{"stage": "enc')
        file.flush()
        assert [event.done for event in tail.read()] == [1]
        file.write(b'ode", "done": 2}\n')
    assert [event.done for event in tail.read()] == [2]
    assert tail.read() == []
    (tmp_path / "job" / "events.jsonl").unlink()
    assert tail.read() == []
    job.event(Event("p", 7, time=1.0))
    assert [event.done for event in tail.read()] == [7]


@pytest.mark.slow
def test_a_fine_tuning_is_stopped_and_resumed_to_its_bundle(tiny: Path, tmp_path: Path) -> None:
    cases = write_list(tmp_path / "Fälle", [write_case(tmp_path / "Fälle", "ann")])
    out = tmp_path / "new bundle"
    arguments = [
        *("finetune", "--cases", str(cases), "--out", str(out), "--bundle", str(tiny)),
        *("--new-label", "lesion=150:liver", "--steps", "6", "--device", "cpu"),
    ]
    program = [sys.executable, "-m", "MAISILib"]
    job = start(tmp_path / "job", program, arguments, work=work_folder(out), environment=ENVIRONMENT)
    tail, seen = job.events(), list[Event]()

    def has_learned() -> bool:
        assert job.state() == "running", job.log_lines()
        seen.extend(tail.read())
        return any(event.stage == "controlnet" and event.metrics for event in seen)

    until(has_learned, PATIENCE)
    assert stop(find_job(job.folder), grace_seconds=60) == "cancelled"
    assert job.log_lines()[-1].startswith("maisi: Stopped at step") or "Cancelled" in job.log_lines()[-1]
    assert not out.exists()
    resumed = resume(find_job(job.folder), environment=ENVIRONMENT)
    assert ended(resumed, PATIENCE) == "done", resumed.log_lines()
    seen.extend(tail.read())
    steps = [event.done for event in seen if event.stage == "controlnet" and event.metrics]
    assert steps[-1] == 6
    assert len(steps) == len(set(steps))  # no step was done twice: it was saved
    assert Bundle(out).verify() == []
    assert Bundle(out).labels.find("lesion").value == 150
