"""A job on disk: a folder that says what was asked, what happened so far, and how it ended.

``request.json`` · ``events.jsonl`` (one event a line) · ``log.txt`` · ``state`` · ``pid`` · ``result/``. Everything is
plain text, so that another program (3D Slicer, started again) can find a job, follow it and stop it.
"""

from __future__ import annotations

import json
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from MAISILib.errors import Cancelled, MaisiError
from MAISILib.files.atomic import output_error, write_text
from MAISILib.jobs.processes import is_running

State = Literal["queued", "running", "done", "failed", "cancelled"]
REQUEST_NAME, EVENTS_NAME, LOG_NAME, STATE_NAME, PID_NAME = "request.json", "events.jsonl", "log.txt", "state", "pid"


@dataclass(frozen=True)
class Event:
    """One piece of news of a job.

    Args:
        stage: What is going on, for example ``autoencoder`` or ``encode``.
        done: Units of the stage that are finished.
        total: Units that the stage has; 0 where nobody knows.
        message: One line for people; may be empty.
        metrics: Figures by name; what is not finite is not written down.
        file: A file that came into being, relative to the job's folder.
        time: Seconds since 1970.
    """

    stage: str
    done: int = 0
    total: int = 0
    message: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    file: str | None = None
    time: float = 0.0

    def to_json(self) -> str:
        """One line of JSON, without what is empty and without figures that are not finite, which JSON cannot tell."""
        fields = asdict(self) | {"metrics": {name: v for name, v in self.metrics.items() if math.isfinite(v)}}
        return json.dumps({k: v for k, v in fields.items() if v not in ("", None, {})}, ensure_ascii=False)


OnEvent = Callable[[Event], None]


class JobFolder:
    """Writes the files of a job. One process writes a folder at a time.

    Args:
        folder: Made if missing.

    Raises:
        OutputError: The folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(folder, error) from error

    def write_request(self, request: dict[str, Any]) -> None:
        """Stores what was asked for."""
        write_text(self.folder / REQUEST_NAME, json.dumps(request, indent=2, ensure_ascii=False) + "\n")

    def set_state(self, state: State) -> None:
        """Stores how the job stands."""
        write_text(self.folder / STATE_NAME, state + "\n")

    def event(self, event: Event) -> None:
        """Appends an event, with the present time where it has none."""
        self._append(EVENTS_NAME, Event(**{**asdict(event), "time": event.time or round(time.time(), 3)}).to_json())

    def log(self, line: str) -> None:
        """Appends a line to the log."""
        self._append(LOG_NAME, line)

    def _append(self, name: str, line: str) -> None:
        path = self.folder / name
        try:
            with path.open("ab+") as file:
                # A process that was killed, or a full disk, may have left a part of a line.
                if file.seek(0, os.SEEK_END) > 0:
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read(1) == b"\n" else f"\n{line}"
                file.write(f"{line}\n".encode())
        except OSError as error:
            raise output_error(path, error) from error

    @contextmanager
    def running(self) -> Iterator[JobFolder]:
        """Marks the job as running with this process's number, and as done, failed or cancelled when the block ends."""
        write_text(self.folder / PID_NAME, f"{os.getpid()}\n")
        self.set_state("running")
        end: State = "failed"
        try:
            yield self
            end = "done"
        except (Cancelled, KeyboardInterrupt):
            end = "cancelled"
            raise
        except MaisiError as error:
            message = str(error)
            _quietly(lambda: self.log(message))
            raise
        except Exception:
            trace = traceback.format_exc()
            _quietly(lambda: self.log(trace))
            raise
        finally:
            _quietly(lambda: self.set_state(end))
            _quietly(lambda: (self.folder / PID_NAME).unlink(missing_ok=True))


class EventTail:
    """Reads the events of a job as they come.

    Args:
        folder: The job's; it may not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS_NAME
        self._position = 0

    def read(self) -> list[Event]:
        """The events since the last call, oldest first; all of them where the job was begun anew.

        A line that is being written is left for the next time.
        """
        try:
            with self._path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._position:
                    self._position = 0
                file.seek(self._position)
                lines = file.read()
        except OSError:
            return []
        lines = lines[: lines.rfind(b"\n") + 1]
        self._position += len(lines)
        events = []
        for line in lines.decode("utf-8", errors="replace").split("\n"):
            try:
                events.append(Event(**json.loads(line)))
            except (ValueError, TypeError):
                continue
        return events


def read_events(folder: Path) -> list[Event]:
    """The events of a job so far, oldest first; a line that is being written is left out."""
    return EventTail(folder).read()


def read_state(folder: Path) -> State | None:
    """How a job stands, ``None`` where the folder holds none. A job whose process is gone has failed."""
    path = folder / STATE_NAME
    if not path.is_file():
        return None
    state = path.read_text(encoding="utf-8").strip()
    if state == "running" and running_process(folder) is None:
        return "failed"
    return state  # type: ignore[return-value]


def running_process(folder: Path) -> int | None:
    """Number of the process that is noted in a job's folder; ``None`` where there is none, or it no longer runs."""
    path = folder / PID_NAME
    try:
        pid, recorded_at = int(path.read_text(encoding="utf-8")), path.stat().st_mtime
    except (OSError, ValueError):
        return None
    return pid if is_running(pid, recorded_at) else None


def work_folder(out: Path) -> Path:
    """Where a fine-tuning works for a bundle folder: beside it, as ``<out>-training``."""
    out = out if out.name not in ("", "..") else Path(os.path.abspath(out))
    return out.with_name(f"{out.name}-training")


def runs_elsewhere(folder: Path) -> bool:
    """Whether another process is at work on a job."""
    if read_state(folder) != "running":
        return False
    # None: it has just ended. Ours: a container that was started again may give us a killed predecessor's number.
    return running_process(folder) not in (None, os.getpid())


def _quietly(work: Callable[[], None]) -> None:
    """A full disk must not hide the error that ended the job."""
    with suppress(MaisiError, OSError):
        work()
