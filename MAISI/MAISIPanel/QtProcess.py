"""A child process run by Qt's event loop."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import qt

_FAILED_TO_START = 0  # QProcess::FailedToStart
#: The system ends a killed process at once; it may have to wait for a disk (milliseconds).
_KILLED_WITHIN = 1000


class QtProcess:
    """`MAISIPanel.WorkerClient.Process` by ``QProcess``."""

    def __init__(self) -> None:
        self.onOutput: Callable[[bytes], None] = _ignored
        self.onError: Callable[[bytes], None] = _ignored
        self.onFinished: Callable[[int | None], None] = _ignored
        self._isRunning = False
        self._process: Any = qt.QProcess()
        self._process.connect("readyReadStandardOutput()", self._readOutput)
        self._process.connect("readyReadStandardError()", self._readError)
        self._process.connect("finished(int,QProcess::ExitStatus)", self._finished)
        self._process.connect("errorOccurred(QProcess::ProcessError)", self._failed)

    @property
    def isRunning(self) -> bool:
        """Whether it was started and has not ended."""
        return self._isRunning

    def start(self, program: str, arguments: list[str], environment: dict[str, str]) -> None:
        """Starts it. Where that is impossible, ``onError`` gets the reason and ``onFinished`` gets None."""
        variables = qt.QProcessEnvironment()
        for name, value in environment.items():
            variables.insert(name, value)
        self._process.setProcessEnvironment(variables)
        self._isRunning = True
        self._process.start(program, arguments)

    def write(self, data: bytes) -> None:
        """Sends bytes to its standard input, without waiting."""
        self._process.write(qt.QByteArray(data))

    def closeInput(self) -> None:
        """Ends its standard input."""
        self._process.closeWriteChannel()

    def kill(self) -> None:
        """Ends it and everything that it has started.

        PythonSlicer is a launcher that would leave the interpreter behind, so all its descendants are ended first.
        """
        if not self._isRunning:
            return
        endDescendants(int(self._process.processId()))
        self._process.kill()
        self._process.waitForFinished(_KILLED_WITHIN)

    def _readOutput(self) -> None:
        self.onOutput(contentOf(self._process.readAllStandardOutput()))

    def _readError(self) -> None:
        self.onError(contentOf(self._process.readAllStandardError()))

    def _finished(self, exitCode: int) -> None:
        self._readOutput()
        self._readError()
        self._isRunning = False
        self.onFinished(int(exitCode))

    def _failed(self, error: Any) -> None:
        if int(getattr(error, "value", error)) != _FAILED_TO_START:
            return  # ``finished`` follows
        self._isRunning = False
        self.onError(f"{self._process.program()}: {self._process.errorString()}\n".encode())
        self.onFinished(None)


def endDescendants(pid: int) -> None:
    """Ends all processes that a process has started, and those that they have started, by force."""
    if pid <= 0:
        return
    if os.name == "nt":
        with suppress(OSError, subprocess.SubprocessError):
            command = ["taskkill", "/F", "/T", "/PID", str(pid)]
            hidden = getattr(subprocess, "CREATE_NO_WINDOW", 0)
            subprocess.run(command, capture_output=True, timeout=2, check=False, creationflags=hidden)
        return
    for child in _descendants(pid):
        with suppress(OSError):
            os.kill(child, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    try:
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, timeout=2, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    children: dict[int, list[int]] = {}
    for line in listed.stdout.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found, next_ = [], [pid]
    while next_:
        next_ = [child for parent in next_ for child in children.get(parent, [])]
        found += next_
    return found


def contentOf(data: Any) -> bytes:
    """The content of a QByteArray, which the builds of PythonQt hand out differently: an empty one also as None."""
    content = data if isinstance(data, bytes) else data.data()
    return content.encode() if isinstance(content, str) else bytes(content or b"")


def _ignored(*_: Any) -> None:
    return None
