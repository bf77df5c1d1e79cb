"""A child process run by Qt's event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt

from MAISILib.jobs.processes import end_descendants

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
        end_descendants(int(self._process.processId()))
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


def contentOf(data: Any) -> bytes:
    """The content of a QByteArray, which the builds of PythonQt hand out differently: an empty one also as None."""
    content = data if isinstance(data, bytes) else data.data()
    return content.encode() if isinstance(content, str) else bytes(content or b"")


def _ignored(*_: Any) -> None:
    return None
