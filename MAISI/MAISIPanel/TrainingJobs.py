"""Fine-tunings as processes of their own, which Slicer starts, finds again, follows, stops and resumes.

A training has two folders. ``trainings/<name>`` in the data folder is ours: the cases, what was started, the log. The
engine works in ``bundles/<name>-training``, a job folder with events, pictures and checkpoints, beside the bundle
``bundles/<name>`` that comes of it. Nothing but the standard library is used: Slicer's Python may lack the packages of
the engine.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MAISILib.errors import OutputError, RequestError, TrainingError
from MAISILib.files.atomic import output_error
from MAISILib.jobs import detached
from MAISILib.jobs.folder import EventTail, State, work_folder
from MAISIPanel.EngineProcess import EngineCommand, engineCommand, externalPython
from MAISIPanel.TrainingWish import TrainingWish

CASES_FOLDER = "cases"
#: What the engine prints before the message that ends a run.
_ENGINE_SAYS = "maisi: "
_LONGEST_MESSAGE = 600


@dataclass(frozen=True)
class Training:
    """One fine-tuning, running or not.

    Args:
        name: Its own and that of the bundle.
        bundle: Folder of the bundle that comes of it.
        wish: What was asked.
        job: Its process.
    """

    name: str
    bundle: Path
    wish: TrainingWish
    job: detached.DetachedJob

    @property
    def work(self) -> Path:
        """Where the engine works; files in events are relative to it."""
        return self.job.work


class TrainingJobs:
    """The fine-tunings of this computer.

    Args:
        dataFolder: Where trainings and bundles lie; the user's data folder where not given.
        command: Gives the process for arguments of ``python -m MAISILib``.

    Lines for the Slicer Python console::

        jobs = MAISILogic.shared().trainingJobs
        training = jobs.start([(volumeNode, segmentationNode)], name="my-lesion", newLabels=["lesion:target"])
        jobs.state(training)
        jobs.stop(training)
    """

    def __init__(
        self, dataFolder: Path | None = None, command: Callable[[Sequence[str]], EngineCommand] | None = None
    ) -> None:
        self._data = dataFolder or userDataFolder()
        self._command = command or (lambda arguments: engineCommand(externalPython(), arguments))
        self._askedAt: dict[str, float] = {}

    def start(
        self, cases: Any, *, onCase: Callable[[int, int], object] = lambda number, count: None, **wish: Any
    ) -> Training:
        """Writes the cases and starts a training in the background.

        Args:
            cases: Pairs of a volume node and a segmentation node; or the path of a list of cases (``cases.json``).
            onCase: Called before each case is written, with its number and how many there are.
            wish: Fields of `TrainingWish`; ``name`` is needed.

        Raises:
            RequestError: The wish cannot be carried out, or there are no cases.
            OutputError: A training or a bundle of this name exists, or the folder cannot be written.
            TrainingError: The engine cannot be started.
        """
        asked = TrainingWish.of(wish)
        isValid, reason = asked.isValid()
        if not isValid:
            raise RequestError(reason)
        folder, out = self._data / "trainings" / asked.name, self._data / "bundles" / asked.name
        for taken in (folder, out, work_folder(out)):
            if taken.exists():
                raise OutputError(f"The name '{asked.name}' is taken: {taken} exists. Choose another name.")
        try:
            if isinstance(cases, (str, Path)):
                listed = Path(cases).absolute()
            else:
                from MAISIPanel.CasesWriter import CasePair, writeCases  # needs VTK

                pairs = [pair if isinstance(pair, CasePair) else CasePair(*pair) for pair in cases]
                listed = writeCases(pairs, folder / CASES_FOLDER, onCase)
            program, arguments, environment = self._command(asked.arguments(listed, out))
            job = detached.start(
                folder,
                [program, *arguments[:2]],
                arguments[2:],
                work=work_folder(out),
                environment=environment,
                details=asked.toDict(),
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return Training(asked.name, out, asked, job)

    def find(self) -> list[Training]:
        """All trainings, the newest first, also those that an earlier Slicer has started."""
        trainings = []
        for job in reversed(detached.list_jobs(self._data / "trainings")):
            try:
                wish = TrainingWish.of(job.details)
            except RequestError:  # of another version
                continue
            trainings.append(Training(wish.name, self._data / "bundles" / wish.name, wish, job))
        return trainings

    def running(self) -> list[Training]:
        """Those that run, the newest first."""
        return [training for training in self.find() if self.state(training) in ("queued", "running")]

    def takenNames(self) -> set[str]:
        """Names that a new bundle cannot have."""
        folders = [self._data / "trainings", self._data / "bundles"]
        return {path.name for folder in folders if folder.is_dir() for path in folder.iterdir()}

    def state(self, training: Training) -> State:
        """How a training stands. One that does not end when it is asked to is ended by force after a while."""
        state = training.job.state()
        asked = self._askedAt.get(training.name)
        if state == "running" and asked is not None and time.monotonic() - asked > detached.GRACE_SECONDS:
            detached.end(training.job)
            state = training.job.state()
        if state != "running":
            self._askedAt.pop(training.name, None)
        return state

    def follow(self, training: Training) -> EventTail:
        """Reads what a training tells, from its beginning on: each ``read()`` gives the events since the last one."""
        return training.job.events()

    def log(self, training: Training, lines: int = 400) -> str:
        """The last lines that a training has printed."""
        return "\n".join(training.job.log_lines(lines))

    def problem(self, training: Training) -> str:
        """Why a training has failed, for people."""
        lines = [line for line in training.job.log_lines(60) if line.strip()]
        starts = [number for number, line in enumerate(lines) if line.startswith(_ENGINE_SAYS)]
        if starts:
            message = "\n".join(lines[starts[-1] :]).removeprefix(_ENGINE_SAYS)
        elif lines:
            message = lines[-1]
        else:
            return "The process has ended without a word; perhaps the computer was switched off. Resume it."
        return message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]} …"

    def stop(self, training: Training) -> None:
        """Asks a training to save its present step and end. Returns at once; the state tells when it has.

        Raises:
            OutputError: Its folder cannot be written.
        """
        self._askedAt.setdefault(training.name, time.monotonic())
        detached.ask_to_stop(training.job)

    def resume(self, training: Training) -> Training:
        """Goes on with a training that was stopped or has failed, from its last checkpoint.

        Raises:
            TrainingError: It runs, or is about to stop, or the engine cannot be started.
            OutputError: Its folder cannot be written.
        """
        if self.state(training) == "running" and training.name in self._askedAt:
            raise TrainingError(f"The training '{training.name}' is saving its present step. Resume it when it has.")
        program, arguments, environment = self._command(training.job.arguments)
        job = detached.resume(training.job, program=[program, *arguments[:2]], environment=environment)
        return Training(training.name, training.bundle, training.wish, job)

    def delete(self, training: Training) -> None:
        """Deletes what a training has written, except the bundle.

        Raises:
            TrainingError: It runs.
            OutputError: A file cannot be deleted.
        """
        if self.state(training) == "running":
            raise TrainingError(f"The training '{training.name}' is running. Stop it first.")
        for folder in (training.work, training.job.folder):
            try:
                if folder.exists():
                    shutil.rmtree(folder)
            except OSError as error:
                raise output_error(folder, error) from error


def userDataFolder() -> Path:
    """Where the engine keeps bundles: ``$MAISI_DATA``, else the user's data folder of this operating system.

    The engine finds it by the package platformdirs, which Slicer's Python may not have.
    """
    override = os.environ.get("MAISI_DATA")
    if override:
        return Path(override).expanduser().resolve()
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME", "").strip() or home / ".local" / "share")
    return base / "MAISI"
