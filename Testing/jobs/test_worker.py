"""The worker's manners, with commands of a moment."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from MAISILib.errors import MaskError
from MAISILib.jobs.protocol import Job
from MAISILib.jobs.worker import Worker

if TYPE_CHECKING:
    from Testing.jobs.conftest import Answers


class Line:
    """Standard input, as a program writes to it."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._news = threading.Condition()

    def send(self, **message: Any) -> None:
        with self._news:
            self._lines.append(json.dumps(message).encode() + b"\n")
            self._news.notify()

    def close(self) -> None:
        with self._news:
            self._lines.append(b"")
            self._news.notify()

    def readline(self, limit: int = -1) -> bytes:
        with self._news:
            self._news.wait_for(lambda: bool(self._lines))
            return self._lines.pop(0)


def run_until_cancelled(job: Job) -> dict[str, Any]:
    job.progress("diffusion", 1, 100)
    while True:
        job.cancel.check()
        time.sleep(0.005)


class _Inner(MaskError):
    """An error of one file only."""


def fail(job: Job, how: str) -> dict[str, Any]:
    raise {
        "mask": MaskError("The mask is empty. Label something."),
        "inner": _Inner("The mask is odd."),
        "bug": ZeroDivisionError("division by zero"),
        "memory": MemoryError(),
        "torch memory": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        "package": ModuleNotFoundError("No module named 'monai'", name="monai"),
        "exit": SystemExit(3),
    }[how]


def download(job: Job, bundle: str) -> dict[str, Any]:
    return {"folder": bundle}


def import_folder(job: Job, folder: Path) -> dict[str, Any]:
    return {"folder": str(folder)}


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "generate": run_until_cancelled,
    "bundles": lambda job: {"bundles": []},
    "download": download,
    "import": import_folder,
    "fail": fail,
    "describe": lambda job: {"seconds": float("nan")},
}


@pytest.fixture
def line(answers: Answers) -> Iterator[Line]:
    """A worker that runs until the line is closed."""
    line, worker = Line(), Worker(answers.outbox, COMMANDS)
    threads = [threading.Thread(target=worker.listen, args=(line,)), threading.Thread(target=worker.work)]
    for thread in threads:
        thread.start()
    yield line
    line.close()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_short_commands_are_answered_while_a_long_one_runs(line: Line, answers: Answers) -> None:
    line.send(id="1", command="generate")
    until(lambda: answers.of("progress"))
    line.send(id="2", command="bundles")
    until(lambda: answers.of("result"))
    assert answers.of("result") == [{"event": "result", "id": "2", "data": {"bundles": []}}]
    line.send(id="1", command="cancel")
    until(lambda: answers.of("cancelled"))
    assert answers.of("cancelled") == [{"event": "cancelled", "id": "1"}]


def test_long_commands_wait_for_one_another_and_can_be_cancelled_meanwhile(line: Line, answers: Answers) -> None:
    line.send(id="1", command="generate")
    until(lambda: answers.of("progress"))
    line.send(id="2", command="download", bundle="a")
    line.send(id="3", command="download", bundle="b")
    line.send(id="2", command="cancel")
    until(lambda: answers.of("cancelled"))
    assert [event["id"] for event in answers.of("cancelled")] == ["2"]
    line.send(id="1", command="cancel")
    until(lambda: answers.of("result"))
    assert answers.of("result") == [{"event": "result", "id": "3", "data": {"folder": "b"}}]
    assert [event["id"] for event in answers.of("cancelled")] == ["2", "1"]


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("mask", "MaskError", "The mask is empty"),
        ("inner", "MaskError", "The mask is odd"),
        ("bug", "ZeroDivisionError", "The engine failed at 'fail': division by zero"),
        ("memory", "OutOfMemory", "Ask for a smaller size"),
        ("torch memory", "OutOfMemory", "Ask for a smaller size"),
        ("package", "MissingPackage", "'monai' is missing"),
        ("exit", "SystemExit", "The engine failed"),
    ],
)
def test_whatever_goes_wrong_is_told_and_the_worker_goes_on(
    line: Line, answers: Answers, how: str, kind: str, said: str
) -> None:
    line.send(id="1", command="fail", how=how)
    line.send(id="2", command="bundles")
    until(lambda: answers.of("result"))
    failed = answers.all()[0]
    assert (failed["event"], failed["id"], failed["kind"]) == ("failed", "1", kind)
    assert said in failed["error"]


def test_data_that_is_no_json_is_a_failure_and_no_second_end(line: Line, answers: Answers) -> None:
    line.send(id="1", command="describe")
    until(answers.all)
    line.send(id="1", command="bundles")  # the id is free again
    until(lambda: answers.of("result"))
    assert [(event["event"], event["id"]) for event in answers.all()] == [("failed", "1"), ("result", "1")]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"command": "bundels"}, "Unknown command 'bundels'. Did you mean 'bundles'"),
        ({"command": "bundles", "verbose": 1}, "has no field 'verbose'"),
        ({"command": "download"}, "needs the field 'bundle'"),
        ({"command": "download", "bundel": "a"}, "no field 'bundel'. Did you mean 'bundle'"),
        ({"command": "import", "folder": ""}, "the field 'folder' is a path, not ''"),
        ({"command": "import", "folder": "a\0b"}, "the field 'folder' is a path, not 'a\\x00b'"),
    ],
)
def test_senseless_commands_are_refused(line: Line, answers: Answers, message: dict[str, Any], said: str) -> None:
    line.send(id="1", **message)
    until(answers.all)
    answer = answers.all()[0]
    assert (answer["event"], answer["id"], answer["kind"]) == ("failed", "1", "RequestError")
    assert said in answer["error"]


def test_an_id_in_use_is_refused_without_ending_its_owner(line: Line, answers: Answers) -> None:
    line.send(id="1", command="generate")
    until(lambda: answers.of("progress"))
    line.send(id="1", command="bundles")
    until(lambda: answers.of("failed"))
    assert answers.of("failed")[0]["id"] is None
    line.send(id="1", command="cancel")
    until(lambda: answers.of("cancelled"))
    assert answers.of("result") == []


def test_an_id_is_free_as_soon_as_its_end_was_told(line: Line, answers: Answers) -> None:
    line.send(id="1", command="generate")
    until(lambda: answers.of("progress"))
    line.send(id="2", command="download", bundle="a")  # waits for the other
    line.send(id="2", command="cancel")
    until(lambda: answers.of("cancelled"))
    line.send(id="2", command="bundles")
    until(lambda: answers.of("result"))
    assert answers.of("failed") == []
    line.send(id="1", command="cancel")
    until(lambda: len(answers.of("cancelled")) == 2)
    line.send(id="2", command="generate")  # nor has the end of the one that waited taken its successor's place
    until(lambda: len(answers.of("progress")) == 2)
    line.send(id="2", command="cancel")
    until(lambda: len(answers.of("cancelled")) == 3)


def test_a_late_cancel_changes_nothing(line: Line, answers: Answers) -> None:
    line.send(id="1", command="bundles")
    until(lambda: answers.of("result"))
    line.send(id="1", command="cancel")
    line.send(id="2", command="bundles")
    until(lambda: len(answers.of("result")) == 2)
    assert len(answers.all()) == 2


@pytest.mark.parametrize("way", ["quit", "end of input"])
def test_the_end_cancels_what_runs_and_what_waits(line: Line, answers: Answers, way: str) -> None:
    for id in ("1", "2"):
        line.send(id=id, command="generate")
    until(lambda: answers.of("progress"))
    line.send(command="quit") if way == "quit" else line.close()
    until(lambda: len(answers.of("cancelled")) == 2)
    assert sorted(event["id"] for event in answers.of("cancelled")) == ["1", "2"]
