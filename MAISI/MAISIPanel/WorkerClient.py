"""Talks with the engine's worker process: requests out, events in. Knows neither Qt nor the scene.

Protocol: one JSON object a line, UTF-8, described in ``docs/worker.md``.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from MAISIPanel.EngineProcess import EngineCommand

PROTOCOL = 1
#: ``onFailed`` gets this kind where the process ended before it had answered.
CRASH = "Crash"
#: A worker that has not answered a cancel after this time is ended, with all that it has started: within 2 s in all.
CANCEL_MILLISECONDS = 1500
_KEPT_LINES = 200
#: Exit codes of a process that was killed (SIGKILL), as Qt and as shells tell them.
_ENDED_BY_SYSTEM = (9, -9, 137)
_SHOWN_LINES = 12
_LONGEST_LOG_LINE = 500
_LONGEST_LINE = 256 * 2**20

Event = dict[str, Any]
Later = Callable[[int, Callable[[], None]], Any]


class Process(Protocol):
    """A child process, as `WorkerClient` needs it. The three callbacks are set before it is started."""

    onOutput: Callable[[bytes], None]
    onError: Callable[[bytes], None]
    onFinished: Callable[[int | None], None]

    def start(self, program: str, arguments: list[str], environment: dict[str, str]) -> None:
        """Starts it. Where that is impossible, ``onError`` gets the reason and ``onFinished`` gets None."""

    def write(self, data: bytes) -> None:
        """Sends bytes to its standard input, without waiting."""

    def closeInput(self) -> None:
        """Ends its standard input."""

    def kill(self) -> None:
        """Ends it and everything that it has started, within 2 s."""

    @property
    def isRunning(self) -> bool:
        """Whether it was started and has not ended."""
        ...


@dataclass
class _Request:
    onProgress: Callable[[Event], None] | None
    onSample: Callable[[Event], None] | None
    onResult: Callable[[Event], None] | None
    onFailed: Callable[[str, str], None] | None
    onCancelled: Callable[[], None] | None
    isCancelled: bool = False


class WorkerClient:
    """One worker process, started when first needed and again after it has ended.

    Args:
        makeProcess: Makes a `Process` that was not started yet.
        command: Program, arguments and environment, or a function that gives them at each start.
        later: ``later(milliseconds, function)`` calls a function from the event loop. With it, a worker that does not
            answer a cancel in time is ended.
        onCrash: Called with a message for people when the process has ended by itself.
    """

    def __init__(
        self,
        makeProcess: Callable[[], Process],
        command: EngineCommand | Callable[[], EngineCommand],
        later: Later | None = None,
        onCrash: Callable[[str], None] | None = None,
    ) -> None:
        self.onCrash = onCrash
        #: The worker's ``ready`` event (version, python, pid); None until it has come.
        self.ready: Event | None = None
        self._makeProcess, self._command, self._later = makeProcess, command, later
        self._process: Process | None = None
        self._open: dict[str, _Request] = {}
        self._sent = 0
        self._log: deque[str] = deque(maxlen=_KEPT_LINES)
        self._tail: deque[str] = deque(maxlen=_SHOWN_LINES)  # of the process that runs

    @property
    def isBusy(self) -> bool:
        """Whether a request awaits its end."""
        return bool(self._open)

    @property
    def isRunning(self) -> bool:
        """Whether the worker process is there."""
        return self._process is not None and self._process.isRunning

    @property
    def lastLines(self) -> list[str]:
        """The last lines of the worker's log: its standard error, and what was no event on its standard output."""
        return list(self._log)

    def send(
        self,
        command: str,
        fields: dict[str, Any] | None = None,
        onProgress: Callable[[Event], None] | None = None,
        onSample: Callable[[Event], None] | None = None,
        onResult: Callable[[Event], None] | None = None,
        onFailed: Callable[[str, str], None] | None = None,
        onCancelled: Callable[[], None] | None = None,
    ) -> str:
        """Sends a command. Exactly one of the last three callbacks is called at its end, unless `shutdown` comes first.

        Args:
            command: Name of the command.
            fields: What belongs to it.
            onProgress: Gets each ``progress`` event.
            onSample: Gets each ``sample`` event.
            onResult: Gets the ``data`` of the result.
            onFailed: Gets a message for people and the kind of error: the name of an error class of the engine, or
                `CRASH`.
            onCancelled: Called when `cancel` had its effect.

        Returns:
            The request's id, for `cancel`.
        """
        self._sent += 1
        requestId = str(self._sent)
        self._open[requestId] = _Request(onProgress, onSample, onResult, onFailed, onCancelled)
        self._write({**(fields or {}), "id": requestId, "command": command})
        return requestId

    def cancel(self, requestId: str) -> None:
        """Asks the worker to stop a request; does nothing where it has ended already."""
        request = self._open.get(requestId)
        if request is None or request.isCancelled:
            return
        request.isCancelled = True
        process = self._process
        self._write({"command": "cancel", "id": requestId})

        def stopUnanswered() -> None:
            if self._open.get(requestId) is request and self._process is process:
                self.stop("The engine was stopped because it did not answer a cancel. Start again.")

        if self._later is not None:
            self._later(CANCEL_MILLISECONDS, stopUnanswered)

    def stop(self, message: str) -> None:
        """Ends the worker at once, with everything that it has started; the next request starts another one.

        Args:
            message: What open requests fail with; those that were being cancelled are cancelled.
        """
        process, self._process, self.ready = self._process, None, None
        if process is not None:
            process.kill()
        self._endAll(message)

    def shutdown(self) -> None:
        """Ends the worker at once, with everything that it has started. No callback of an open request is called."""
        self._open.clear()
        process, self._process, self.ready = self._process, None, None
        if process is not None and process.isRunning:
            process.write(b'{"command": "quit"}\n')
            process.closeInput()
            process.kill()

    # ------------------------------------------------------------------ the process

    def _write(self, message: Event) -> None:
        process = self._process
        if process is None or not process.isRunning:
            process = self._start()
        if process is self._process:  # else it has ended at once, and the request with it
            process.write(json.dumps(message, ensure_ascii=False).encode() + b"\n")

    def _start(self) -> Process:
        process = self._makeProcess()
        self._process, self.ready = process, None
        self._tail.clear()
        output = _Lines(lambda line: self._isCurrent(process) and self._line(line))
        errors = _Lines(lambda line: self._isCurrent(process) and self._remember(line))
        process.onOutput, process.onError = output.feed, errors.feed

        def finished(exitCode: int | None) -> None:
            output.end()
            errors.end()
            if self._isCurrent(process):
                self._crashed(exitCode)

        process.onFinished = finished
        command = self._command() if callable(self._command) else self._command
        process.start(command.program, list(command.arguments), dict(command.environment))
        return process

    def _isCurrent(self, process: Process) -> bool:
        return process is self._process

    def _crashed(self, exitCode: int | None) -> None:
        if exitCode is None:
            reason = "The engine could not be started."
        elif self.ready is None:
            reason = f"The engine ended at its start (exit code {exitCode})."
        else:
            reason = f"The engine stopped unexpectedly (exit code {exitCode}). It is started again when it is needed."
            if exitCode in _ENDED_BY_SYSTEM:
                reason += " It was ended from outside, most often because memory ran out: try a smaller size."
        tail = "\n".join(self._tail)
        message = f"{reason}\n{tail}" if tail else f"{reason} It left no message."
        self._process, self.ready = None, None
        self._endAll(message)
        tell(self.onCrash, message)

    def _endAll(self, message: str) -> None:
        requests, self._open = list(self._open.values()), {}
        for request in requests:
            if request.isCancelled:
                tell(request.onCancelled)
            else:
                tell(request.onFailed, message, CRASH)

    # ------------------------------------------------------------------ what it says

    def _line(self, line: str) -> None:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            self._remember(line)
            return
        if event["event"] == "ready":
            self._greeted(event)
            return
        self._answered(event)

    def _greeted(self, event: Event) -> None:
        self.ready = event
        if event.get("protocol") != PROTOCOL:
            self.stop(
                f"The engine speaks version {event.get('protocol')} of the worker protocol, this panel version "
                f"{PROTOCOL}. Bring both to the same version, then start Slicer again."
            )

    def _answered(self, event: Event) -> None:
        requestId, name = str(event.get("id")), event["event"]
        request = self._open.get(requestId)
        if request is None:
            return
        if name == "progress":
            tell(request.onProgress, event)
        elif name == "sample":
            tell(request.onSample, event)
        elif name in ("result", "failed", "cancelled"):
            del self._open[requestId]
            if name == "result":
                data = event.get("data")
                tell(request.onResult, data if isinstance(data, dict) else {})
            elif name == "failed":
                tell(request.onFailed, str(event.get("error")), str(event.get("kind", "MaisiError")))
            else:
                tell(request.onCancelled)

    def _remember(self, line: str) -> None:
        line = line.rstrip()
        if len(line) > _LONGEST_LOG_LINE:
            line = f"{line[:_LONGEST_LOG_LINE]} … ({len(line):,} characters)"
        if line:
            self._log.append(line)
            self._tail.append(line)


def tell(callback: Callable[..., Any] | None, *arguments: Any) -> None:
    """Calls a callback, if there is one. A mistake in it is logged: it must not keep others from their news."""
    if callback is None:
        return
    try:
        callback(*arguments)
    except Exception:
        logging.exception("MAISI: a callback failed")


class _Lines:
    """Cuts a stream of bytes into lines of text, however it arrives."""

    def __init__(self, onLine: Callable[[str], Any]) -> None:
        self._onLine = onLine
        self._parts: list[bytes] = []
        self._length = 0

    def feed(self, data: bytes) -> None:
        *complete, rest = bytes(data).split(b"\n")
        for part in complete:
            self._parts.append(part)
            self.end()
        if rest:
            self._parts.append(rest)
            self._length += len(rest)
            if self._length > _LONGEST_LINE:  # nothing of ours; it must not fill the memory
                self.end()

    def end(self) -> None:
        """What has come without an end of line counts as a line."""
        line, self._parts, self._length = b"".join(self._parts), [], 0
        if line.strip():
            self._onLine(line.decode("utf-8", "replace"))
