"""Real child processes under Qt's event loop: what goes in and out, and that nothing is left of them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

ECHO = """
import sys
for line in sys.stdin:
    print("heard", line.strip(), *sys.argv[1:], flush=True)
print("the end", file=sys.stderr)
sys.exit(3)
"""
#: As PythonSlicer: starts the real program, waits for it, and dies alone when it is killed.
LAUNCHER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time\\nprint('child', flush=True)\\ntime.sleep(60)"])
print(child.pid, flush=True)
child.wait()
"""


class Ear:
    """A process and all that was heard of it."""

    def __init__(self) -> None:
        from MAISIPanel.QtProcess import QtProcess

        self.output, self.errors, self.ends = b"", b"", []
        self.process = QtProcess()
        self.process.onOutput = lambda data: setattr(self, "output", self.output + data)
        self.process.onError = lambda data: setattr(self, "errors", self.errors + data)
        self.process.onFinished = self.ends.append

    def start(self, code: str, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONUTF8": "1", "MAISI_TEST": "ä"}
        self.process.start(sys.executable, ["-c", code, *arguments], environment)


@pytest.fixture
def ear(app: Any) -> Iterator[Ear]:
    ear = Ear()
    yield ear
    ear.process.kill()
    app.processEvents()


def test_what_is_written_arrives_and_what_is_said_is_heard(ear: Ear, waitUntil: Callable[..., None]) -> None:
    ear.start(ECHO, "Pfad mit Ü und Leerzeichen")
    assert ear.process.isRunning
    ear.process.write("größer\n".encode())
    waitUntil(lambda: b"\n" in ear.output, 30)
    assert ear.output.decode().strip() == "heard größer Pfad mit Ü und Leerzeichen"
    ear.process.closeInput()
    waitUntil(lambda: ear.ends, 30)
    assert ear.ends == [3]
    assert b"the end" in ear.errors
    assert not ear.process.isRunning


def test_the_environment_is_the_given_one(ear: Ear, waitUntil: Callable[..., None]) -> None:
    ear.start("import os; print(os.environ['MAISI_TEST'])")
    waitUntil(lambda: ear.ends, 30)
    assert ear.output.decode().strip() == "ä"


def test_a_missing_program_is_told_once(ear: Ear, waitUntil: Callable[..., None]) -> None:
    ear.process.start("/no/such/program", [], {})
    waitUntil(lambda: ear.ends, 30)
    assert ear.ends == [None]
    assert b"/no/such/program" in ear.errors
    assert not ear.process.isRunning


@pytest.mark.skipif(os.name == "nt", reason="asks for a process by its number, as POSIX does")
def test_what_a_launcher_has_started_ends_with_it_within_two_seconds(ear: Ear, waitUntil: Callable[..., None]) -> None:
    ear.start(LAUNCHER)
    waitUntil(lambda: b"child" in ear.output, 30)
    child = next(int(line) for line in ear.output.splitlines() if line.isdigit())
    started = time.monotonic()
    ear.process.kill()
    waitUntil(lambda: ear.ends and not _runs(child), 10)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("handed", "content"), [(b"a\0b", b"a\0b"), (None, b""), ("größe", "größe".encode()), (bytearray(b"x"), b"x")]
)
def test_output_is_read_however_a_build_of_pythonqt_hands_it_out(app: Any, handed: Any, content: bytes) -> None:
    from MAISIPanel.QtProcess import contentOf

    assert contentOf(SimpleNamespace(data=lambda: handed)) == content
    assert contentOf(content) == content


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
