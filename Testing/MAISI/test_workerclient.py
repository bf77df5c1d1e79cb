"""Requests and answers on a line between two processes, whatever happens to the line and to the other process."""

from __future__ import annotations

import json
from typing import Any

import pytest

from Testing.MAISI.scripted_process import READY, EventLoop, ScriptedProcess

pytestmark = pytest.mark.filterwarnings("error")


class Line:
    """A client with scripted processes, and what its callbacks were told."""

    def __init__(self) -> None:
        from MAISIPanel.EngineProcess import EngineCommand
        from MAISIPanel.WorkerClient import WorkerClient

        self.processes: list[ScriptedProcess] = []
        self.loop = EventLoop()
        self.told: list[tuple[Any, ...]] = []
        self.reasonNotToStart = ""
        command = EngineCommand("/opt/Slicer 5/Pythön", ["-m", "MAISILib", "worker"], {"PYTHONUTF8": "1"})
        self.client = WorkerClient(
            self._make, lambda: command, self.loop.later, lambda m: self.told.append(("crash", m))
        )

    def _make(self) -> ScriptedProcess:
        self.processes.append(ScriptedProcess())
        self.process.reasonNotToStart = self.reasonNotToStart
        return self.process

    @property
    def process(self) -> ScriptedProcess:
        return self.processes[-1]

    def send(self, command: str, **fields: Any) -> str:
        def tell(name: str) -> Any:
            return lambda *what: self.told.append((command, name, *what))

        names = ("onProgress", "onSample", "onResult", "onFailed", "onCancelled")
        return self.client.send(command, fields, **{name: tell(name) for name in names})


@pytest.fixture
def line() -> Line:
    return Line()


def test_the_engine_starts_with_the_first_request_and_stays(line: Line) -> None:
    assert line.processes == []
    line.send("bundles")
    line.send("describe", bundle="Kopf ä")
    assert len(line.processes) == 1
    program, arguments, environment = line.process.started or ("", [], {})
    assert (program, arguments[-1], environment["PYTHONUTF8"]) == ("/opt/Slicer 5/Pythön", "worker", "1")
    assert [message["command"] for message in line.process.sent] == ["bundles", "describe"]
    assert line.process.sent[1]["bundle"] == "Kopf ä"


def test_each_answer_reaches_who_asked(line: Line) -> None:
    generate, plan = line.send("generate"), line.send("plan")
    line.process.say(**READY)
    line.process.say(event="progress", id=generate, stage="diffusion", done=1, total=30)
    line.process.say(event="result", id=plan, data={"text": "24 s"})
    line.process.say(event="sample", id=generate, folder="/tmp/ä ö")
    line.process.say(event="failed", id=generate, error="No room left.", kind="OutputError")
    assert [told[:2] for told in line.told] == [
        ("generate", "onProgress"),
        ("plan", "onResult"),
        ("generate", "onSample"),
        ("generate", "onFailed"),
    ]
    assert line.told[1][2] == {"text": "24 s"}
    assert line.told[2][2]["folder"] == "/tmp/ä ö"
    assert line.told[3][2:] == ("No room left.", "OutputError")
    assert not line.client.isBusy
    line.process.say(event="result", id=generate, data={})  # twice: nobody is told again
    assert len(line.told) == 4


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_lines_may_come_in_pieces_of_any_size(line: Line, size: int) -> None:
    asked = [line.send("describe"), line.send("plan")]
    events = [{"event": "result", "id": each, "data": {"title": "Kopf-Hals-CT, 20 µm – größer 頭"}} for each in asked]
    text = "".join(json.dumps(event, ensure_ascii=False) + "\r\n" for event in events).encode()
    for start in range(0, len(text), size):
        line.process.onOutput(text[start : start + size])
    assert [told[2]["title"] for told in line.told] == ["Kopf-Hals-CT, 20 µm – größer 頭"] * 2


def test_an_event_of_ten_megabytes_is_understood(line: Line) -> None:
    asked = line.send("generate")
    text = json.dumps({"event": "progress", "id": asked, "preview": "x" * 10_000_000}).encode() + b"\n"
    for start in range(0, len(text), 4096):
        line.process.onOutput(text[start : start + 4096])
    assert [len(told[2]["preview"]) for told in line.told] == [10_000_000]


def test_garbage_goes_to_the_log_and_what_follows_is_understood(line: Line) -> None:
    asked = line.send("plan")
    line.process.onOutput(b'\xff\xfe\x00 printed by a library\n\n[1, 2]\n{"event": 5}\n' + b"y" * 10_000_000 + b"\n")
    line.process.complain("a warning")
    line.process.say(event="result", id=asked, data={})
    assert [told[:2] for told in line.told] == [("plan", "onResult")]
    log = line.client.lastLines
    assert "printed by a library" in log[0]
    assert log[1:3] == ["[1, 2]", '{"event": 5}']
    assert log[3].endswith("(10,000,000 characters)")
    assert len(log[3]) < 600
    assert log[4] == "a warning"


def test_a_crash_fails_every_request_with_the_last_lines_and_the_next_one_starts_anew(line: Line) -> None:
    line.send("generate")
    line.send("plan")
    line.process.say(**READY)
    line.process.complain("Fatal Python error: Segmentation fault")
    first = line.process
    first.end(-11)
    assert [told[:2] for told in line.told] == [
        ("generate", "onFailed"),
        ("plan", "onFailed"),
        ("crash", line.told[2][1]),
    ]
    for message in (line.told[0][2], line.told[2][1]):
        assert "stopped unexpectedly" in message
        assert "Segmentation fault" in message
    assert line.told[0][3] == "Crash"

    asked = line.send("bundles")
    assert len(line.processes) == 2
    first.onOutput(json.dumps({"event": "failed", "id": asked, "error": "late"}).encode() + b"\n")
    line.process.say(event="result", id=asked, data={})
    assert line.told[-1][:2] == ("bundles", "onResult")


def test_an_engine_that_was_killed_is_told_with_the_likely_reason(line: Line) -> None:
    line.send("generate")
    line.process.say(**READY)
    line.process.end(9)
    assert "memory ran out: try a smaller size" in line.told[0][2]


def test_a_crash_is_not_explained_with_lines_of_an_earlier_engine(line: Line) -> None:
    for lines in ("the first one", "the second one"):
        line.send("bundles")
        line.process.complain(lines)
        line.process.end(1)
    told = [message for kind, message, *_ in line.told if kind == "crash"][1]
    assert "the second one" in told
    assert "the first one" not in told
    assert line.client.lastLines[-2:] == ["the first one", "the second one"]  # for the report


def test_a_program_that_is_missing_is_told(line: Line) -> None:
    line.reasonNotToStart = "/opt/python: No such file or directory"
    line.send("plan")
    assert line.told[0][:2] == ("plan", "onFailed")
    assert "could not be started" in line.told[0][2]
    assert "No such file or directory" in line.told[0][2]
    assert not line.client.isRunning


def test_an_engine_that_ends_at_once_says_why(line: Line) -> None:
    line.send("plan")
    line.process.complain("The Python package 'pydantic' is missing. Install what the engine needs: section Setup.")
    line.process.end(2)
    assert "ended at its start" in line.told[0][2]
    assert "'pydantic' is missing" in line.told[0][2]


def test_a_cancel_is_passed_on_and_answered(line: Line) -> None:
    asked = line.send("generate")
    line.client.cancel(asked)
    line.client.cancel(asked)
    assert line.process.all("cancel") == [{"command": "cancel", "id": asked}]
    line.process.say(event="cancelled", id=asked)
    assert [told[:2] for told in line.told] == [("generate", "onCancelled")]
    line.loop.advance(10_000)
    assert not line.process.wasKilled
    line.client.cancel(asked)
    assert len(line.process.all("cancel")) == 1


def test_an_engine_that_does_not_answer_a_cancel_is_ended_within_two_seconds(line: Line) -> None:
    asked, _ = line.send("generate"), line.send("download")
    line.client.cancel(asked)
    line.loop.advance(1000)
    assert not line.process.wasKilled
    line.loop.advance(900)
    assert line.process.wasKilled
    assert [told[:2] for told in line.told] == [("generate", "onCancelled"), ("download", "onFailed")]
    assert "did not answer a cancel" in line.told[1][2]
    line.process.onFinished(-9)
    assert len(line.told) == 2  # no crash is told: it was us
    line.send("bundles")
    assert len(line.processes) == 2


def test_a_cancel_does_not_end_the_engine_that_came_after(line: Line) -> None:
    asked = line.send("generate")
    line.client.cancel(asked)
    line.process.end(1)
    line.send("bundles")
    line.loop.advance(2000)
    assert not line.process.wasKilled


def test_an_engine_of_another_version_is_refused(line: Line) -> None:
    line.send("bundles")
    line.process.say(**{**READY, "protocol": 2})
    assert "version 2 of the worker protocol" in line.told[0][2]
    assert line.process.wasKilled


def test_shutting_down_ends_the_engine_and_tells_nobody(line: Line) -> None:
    line.send("generate")
    line.client.shutdown()
    assert line.process.wasKilled
    assert line.process.sent[-1] == {"command": "quit"}
    line.process.onFinished(-9)
    line.process.onOutput(b"late\n")
    assert line.told == []
    assert not line.client.isBusy
    line.client.shutdown()


def test_a_mistake_in_one_callback_does_not_keep_others_from_their_news(line: Line, caplog: Any) -> None:
    def fail(data: Any) -> None:
        raise ZeroDivisionError

    bad, good = line.client.send("plan", {}, onResult=fail), line.send("bundles")
    for asked in (bad, good):
        line.process.say(event="result", id=asked, data={})
    assert [told[:2] for told in line.told] == [("bundles", "onResult")]
    assert "ZeroDivisionError" in caplog.text
