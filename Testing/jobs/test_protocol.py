from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from MAISILib.jobs import protocol
from MAISILib.jobs.generating import preview_png
from MAISILib.jobs.protocol import Job, Message, Outbox, ProtocolError, read_messages
from Testing.imports import ROOT

if TYPE_CHECKING:
    from Testing.jobs.conftest import Answers


def test_messages_are_read_line_by_line() -> None:
    stream = io.BytesIO('{"id": "7", "command": "describe", "bundle": "Größe 头"}\n\n{"command": "quit"}'.encode())
    assert list(read_messages(stream)) == [
        Message("describe", "7", {"bundle": "Größe 头"}),
        Message("quit", None, {}),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"hello", "Not a line of JSON.*b'hello'"),
        (b'{"id": "1", "command": "plan"', "Not a line of JSON"),
        (b'{"id": "1", "command": "\xff"}', "UTF-8"),
        (b"[" * 100_000, "Not a line of JSON"),
        (b"[1, 2]", "a JSON object, not a list"),
        (b'{"id": "1"}', "needs a 'command'"),
        (b'{"id": "1", "command": 5}', "needs a 'command'"),
        (b'{"command": "plan"}', "needs an 'id'"),
        (b'{"command": "cancel"}', "needs an 'id'"),
        (b'{"id": {}, "command": "plan"}', "text or a whole number"),
        (b'{"id": true, "command": "plan"}', "text or a whole number"),
    ],
)
def test_a_line_that_is_no_message_is_refused_and_the_next_is_read(line: bytes, said: str) -> None:
    found = list(read_messages(io.BytesIO(line + b'\n{"id": 1, "command": "bundles"}\n')))
    assert found[1] == Message("bundles", 1, {})
    assert isinstance(found[0], ProtocolError)
    with pytest.raises(ProtocolError, match=said):
        raise found[0]


def test_a_line_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_LONGEST_LINE", 1000)
    found = list(read_messages(io.BytesIO(b"x" * 5500 + b'\n{"id": 1, "command": "bundles"}\n' + b"y" * 1000)))
    assert [type(message) for message in found] == [ProtocolError, Message, ProtocolError]


def test_a_job_ends_once(job: Job, answers: Answers) -> None:
    assert job.begin()
    job.end("result", data={"a": 1})
    job.end("cancelled")
    assert answers.all() == [{"event": "result", "id": "7", "data": {"a": 1}}]


def test_a_job_that_waits_is_cancelled_at_once_and_never_begins(job: Job, answers: Answers) -> None:
    job.ask_to_stop()
    assert answers.all() == [{"event": "cancelled", "id": "7"}]
    assert not job.begin()


def test_a_running_job_is_only_asked(job: Job, answers: Answers) -> None:
    job.begin()
    job.ask_to_stop()
    assert job.cancel.cancelled
    assert answers.all() == []


def test_progress_that_comes_too_often_is_thinned_but_its_end_is_told(job: Job, answers: Answers) -> None:
    for step in range(1, 1001):
        job.progress("diffusion", step, 1000)
    job.progress("decode", 0, 3)
    job.progress("decode", 1, 3, preview="abc")
    told = [(event["stage"], event["done"]) for event in answers.of("progress")]
    assert told[0] == ("diffusion", 1)
    assert told[-3:] == [("diffusion", 1000), ("decode", 0), ("decode", 1)]
    assert len(told) < 100
    assert "preview" not in answers.all()[0]


def test_events_are_valid_json_or_an_error(answers: Answers) -> None:
    with pytest.raises(ValueError, match="JSON"):
        answers.outbox.send({"event": "result", "data": float("nan")})
    answers.outbox.send({"event": "result", "data": "\udce4 of a path that is no UTF-8"})
    assert len(answers.all()) == 1


def test_nobody_who_listens_is_no_error() -> None:
    stream = io.BytesIO()
    stream.close()
    Outbox(stream).send({"event": "ready"})


def test_stray_prints_go_to_standard_error() -> None:
    program = (
        "import os, sys\n"
        "from MAISILib.jobs.protocol import Outbox, claim_standard_streams\n"
        "stdin, stdout = claim_standard_streams()\n"
        "print('python says'); os.write(1, b'native code says\\n'); os.system('echo a child says')\n"
        "Outbox(stdout).send({'event': 'ready', 'read': stdin.readline().decode()})\n"
        "assert sys.stdin.read() == ''\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], input="hé\n".encode(), capture_output=True, timeout=60, cwd=ROOT
    )
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout) == {"event": "ready", "read": "hé\n"}
    for voice in (b"python says", b"native code says", b"a child says"):
        assert voice in told.stderr


def test_a_preview_stands_upright_with_the_patients_right_on_the_left_and_small() -> None:
    picture = np.zeros((20, 10), np.uint8)
    picture[-1, -1] = 255  # right and superior
    decoded = Image.open(io.BytesIO(base64.b64decode(preview_png(picture, (200.0, 400.0)))))
    assert decoded.size == (64, 128)
    seen = np.asarray(decoded)
    assert seen[:12, :3].mean() > 100
    assert seen[20:].max() < 30
