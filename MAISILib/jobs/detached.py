"""Trainings that go on when the program that started them is closed, and are found again by their folders.

A detached job has a folder with ``launch.json`` (what was started), ``pid``, ``log.txt`` (all that it prints) and, once
it is asked to end, ``stop``. How it goes, the training itself tells in its work folder. Nothing but the standard
library is needed, so that Slicer's own Python can start and follow what the engine does.

    job = start(folder, [python, "-m", "MAISILib"], ["finetune", …, "--out", out], work=work_folder(out))
    tail = job.events()
    tail.read()      # events since the last time
    stop(job)        # the training saves its present step
    resume(job)      # and goes on from it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MAISILib.errors import FileFormatError, TrainingError
from MAISILib.files.atomic import output_error, write_text
from MAISILib.jobs.folder import LOG_NAME, PID_NAME, STATE_NAME, EventTail, State, read_state, running_process
from MAISILib.jobs.processes import ask_group, end_group

LAUNCH_NAME = "launch.json"
#: The file whose appearance asks a training to stop; its path is in the environment variable. On Windows nothing else
#: asks a process without a window.
STOP_NAME, STOP_VARIABLE = "stop", "MAISI_STOP_FILE"
#: A training step of a small model takes some seconds on a CPU, and is saved afterwards.
GRACE_SECONDS = 20.0

#: Processes that were started here, to be asked for their end: else they would stay as zombies until this program ends.
_children: list[subprocess.Popen[Any]] = []


@dataclass(frozen=True)
class DetachedJob:
    """A job that was started, now or by an earlier program.

    Args:
        folder: Its folder.
        program: What runs the engine, as ``[python, "-m", "MAISILib"]``.
        arguments: What follows.
        work: Folder of the training's events, state and pictures; made by the training, which may not have begun.
        details: Whatever the starter wanted to remember.
        created: Seconds since 1970.
    """

    folder: Path
    program: tuple[str, ...]
    arguments: tuple[str, ...]
    work: Path
    details: dict[str, Any] = field(default_factory=dict)
    created: float = 0.0

    def state(self) -> State:
        """How it stands. A process that is gone without a word has failed; what it said is in the log."""
        if self.pid is not None:
            return "running"
        told = read_state(self.work)
        if told == "running":  # a launcher is gone, what it has started is not
            return "running"
        if told in ("done", "cancelled"):
            return told
        if (self.folder / STOP_NAME).exists():
            return "cancelled"
        return "failed" if (self.folder / PID_NAME).exists() else "queued"

    @property
    def pid(self) -> int | None:
        """Number of the process that was started, while it runs."""
        for child in _children[:]:
            if child.poll() is not None:
                _children.remove(child)
        return running_process(self.folder)

    def events(self) -> EventTail:
        """Reads what the training tells, from the beginning on."""
        return EventTail(self.work)

    def log_lines(self, count: int = 20) -> list[str]:
        """The last lines that it has printed."""
        try:
            with (self.folder / LOG_NAME).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 200 * count))
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return []
        return text.splitlines()[-count:]


def start(
    folder: Path,
    program: Sequence[str],
    arguments: Sequence[str],
    *,
    work: Path,
    environment: Mapping[str, str] | None = None,
    details: Mapping[str, Any] | None = None,
) -> DetachedJob:
    """Starts a training as a process of its own session, which outlives this one.

    Args:
        folder: Of the job; made where missing. The process works in it: give absolute paths.
        program: As ``[python, "-m", "MAISILib"]``.
        arguments: As ``["finetune", "--cases", …]``.
        work: Where the training tells how it goes; of a fine-tuning, ``work_folder(out)``.
        environment: The whole environment; this process's by default. It is not stored.
        details: Plain data to remember with the job.

    Raises:
        TrainingError: The job runs already, or the program cannot be started.
        OutputError: The folder cannot be written.
    """
    job = DetachedJob(folder, tuple(program), tuple(arguments), work, dict(details or {}), round(time.time(), 3))
    _launch(job, [*program, *arguments], environment)
    return job


def resume(
    job: DetachedJob, *, program: Sequence[str] | None = None, environment: Mapping[str, str] | None = None
) -> DetachedJob:
    """Goes on with a job that was stopped or has failed, from its last checkpoint.

    Args:
        job: The job.
        program: What runs the engine now, if something else than then.
        environment: As for `start`.

    Returns:
        The job as it runs now.

    Raises:
        TrainingError: It is running, or cannot be started.
        OutputError: Its folder cannot be written.
    """
    program = tuple(program or job.program)
    job = DetachedJob(job.folder, program, job.arguments, job.work, job.details, job.created)
    option = () if "--resume" in job.arguments else ("--resume",)
    _launch(job, [*program, *job.arguments, *option], environment)
    return job


def find_job(folder: Path) -> DetachedJob:
    """The job in a folder.

    Raises:
        FileFormatError: There is none, or its record is damaged.
    """
    path = folder / LAUNCH_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        program, arguments = (tuple(map(str, data[name])) for name in ("program", "arguments"))
        return DetachedJob(folder, program, arguments, Path(data["work"]), dict(data["details"]), data["created"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path} does not describe a job ({error!r}). Delete the folder.") from None


def list_jobs(jobs_folder: Path) -> list[DetachedJob]:
    """The jobs below a folder, running or ended, oldest first; damaged ones are left out."""
    jobs = []
    for path in jobs_folder.glob(f"*/{LAUNCH_NAME}"):
        try:
            jobs.append(find_job(path.parent))
        except FileFormatError:
            continue
    return sorted(jobs, key=lambda job: job.created)


def ask_to_stop(job: DetachedJob) -> None:
    """Asks a training to save its present step and end; returns at once. `DetachedJob.state` tells when it has.

    Raises:
        OutputError: Its folder cannot be written.
    """
    write_text(job.folder / STOP_NAME, "")
    if (pid := job.pid or running_process(job.work)) is not None:
        ask_group(pid)


def end(job: DetachedJob) -> None:
    """Ends all processes of a job within two seconds, without asking. The last checkpoint stays.

    Raises:
        OutputError: Its folder cannot be written.
    """
    write_text(job.folder / STOP_NAME, "")
    for folder in (job.folder, job.work):  # the launcher, and what is left where that is gone
        if (pid := running_process(folder)) is not None:
            end_group(pid)


def stop(job: DetachedJob, grace_seconds: float = GRACE_SECONDS) -> State:
    """Asks a training to end, and ends it within two seconds more if it has not by then.

    Args:
        job: The job.
        grace_seconds: How long it may take to save its present step.

    Returns:
        Its state: ``cancelled``, or ``done`` where it was just finishing.
    """
    ask_to_stop(job)
    deadline = time.monotonic() + grace_seconds
    while job.state() == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    if job.state() == "running":
        end(job)
    return job.state()


def _launch(job: DetachedJob, command: list[str], environment: Mapping[str, str] | None) -> None:
    if (job.folder / LAUNCH_NAME).exists() and find_job(job.folder).state() == "running":
        raise TrainingError(f"The training in {job.folder} is running already. Stop it first.")
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        # What an earlier try has left would be taken for news of this one.
        for stale in (job.folder / STOP_NAME, job.folder / PID_NAME, job.work / STATE_NAME):
            stale.unlink(missing_ok=True)
        record = {
            "program": job.program,
            "arguments": job.arguments,
            "work": str(job.work),
            "details": job.details,
            "created": job.created,
        }
        write_text(job.folder / LAUNCH_NAME, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        child_environment = {**(os.environ if environment is None else environment)}
        child_environment[STOP_VARIABLE] = str((job.folder / STOP_NAME).absolute())
        with (job.folder / LOG_NAME).open("ab") as log:
            child = _detached_process(command, job.folder, child_environment, log)
    except OSError as error:
        raise output_error(job.folder, error) from error
    _children.append(child)
    write_text(job.folder / PID_NAME, f"{child.pid}\n")


def _detached_process(command: list[str], folder: Path, environment: dict[str, str], log: Any) -> subprocess.Popen[Any]:
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    try:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options
        )
    except OSError as error:
        raise TrainingError(
            f"{command[0]} cannot be started ({error.strerror or error}). Check the Python that is set for the engine."
        ) from None
