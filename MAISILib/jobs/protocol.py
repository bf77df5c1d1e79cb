"""The worker's language: one JSON object a line, UTF-8, both ways. ``docs/worker.md`` says what the messages mean.

Only the standard library is imported, so that the other end of the line can use it too.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from MAISILib.errors import RequestError
from MAISILib.generation.progress import CancelToken

PROTOCOL_VERSION = 1
#: Longer lines are refused (bytes); a request has some thousand.
_LONGEST_LINE = 16_000_000
#: Progress of one stage is told so far apart (seconds) at least: a small network takes hundreds of steps a second.
_INTERVAL = 0.1


class ProtocolError(RequestError):
    """A line that is no message: not JSON, not an object, too long, without an id or a command."""


@dataclass(frozen=True)
class Message:
    """What came in.

    Args:
        command: What to do.
        id: What the answers carry; ``None`` where the command has no answer.
        fields: All else.
    """

    command: str
    id: str | int | None
    fields: dict[str, Any]


def read_messages(stream: BinaryIO) -> Iterator[Message | ProtocolError]:
    """The messages on a stream until it ends; a line that is none gives the error that says why."""
    while line := stream.readline(_LONGEST_LINE):
        if len(line) >= _LONGEST_LINE and not line.endswith(b"\n"):
            while rest := stream.readline(_LONGEST_LINE):
                if rest.endswith(b"\n"):
                    break
            yield ProtocolError(f"A line has more than {_LONGEST_LINE / 1e6:.0f} MB. Send shorter messages.")
        elif line.strip():
            yield parse_message(line)


def parse_message(line: bytes) -> Message | ProtocolError:
    """One line as a message, or the error that says why it is none."""
    line = line.strip()
    try:
        data = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return ProtocolError(f"Not a line of JSON in UTF-8 ({error}): {line[:60]!r}.")
    if not isinstance(data, dict):
        return ProtocolError(f"A message is a JSON object, not a {type(data).__name__}: {line[:60]!r}.")
    command, id = data.pop("command", None), data.pop("id", None)
    if not isinstance(command, str):
        return ProtocolError(f"A message needs a 'command': {line[:60]!r}.")
    if id is None and command != "quit":
        return ProtocolError(f"Command {command!r} needs an 'id', so that its answer can be told from others.")
    if isinstance(id, bool) or not isinstance(id, (str, int, type(None))):  # true would be taken for 1
        return ProtocolError(f"Command {command!r}: the 'id' is text or a whole number, not {id!r}.")
    return Message(command, id, data)


class Outbox:
    """Where events go: a line each, whole lines also from several threads.

    Args:
        stream: Written to until the other end closes it; what comes after that is lost, and nobody misses it.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def send(self, event: dict[str, Any]) -> None:
        """Writes an event at once.

        Raises:
            ValueError: It holds NaN or infinity, which JSON has not.
            TypeError: It holds what is no plain data.
        """
        # ASCII with escapes: a path that is no valid Unicode could not be written in UTF-8.
        line = json.dumps(event, allow_nan=False).encode("ascii") + b"\n"
        with self._lock:
            try:
                self._stream.write(line)
                self._stream.flush()
            except (OSError, ValueError):
                pass


class Job:
    """A command on its way: it tells how it goes, and ends exactly once.

    Args:
        message: The command.
        outbox: Where its events go.
    """

    def __init__(self, message: Message, outbox: Outbox) -> None:
        self.message, self.cancel = message, CancelToken()
        self._outbox, self._lock = outbox, threading.Lock()
        self._begun = self._ended = False
        self._told, self._stage = 0.0, ("", 0)

    @property
    def has_ended(self) -> bool:
        """Whether its end was told; from then on its id is free."""
        with self._lock:
            return self._ended

    def begin(self) -> bool:
        """Marks the job as begun; false where it was cancelled while it waited."""
        with self._lock:
            self._begun = True
            return not self._ended

    def ask_to_stop(self) -> None:
        """Cancels the job: at once where it waits, as soon as it looks at its token where it runs."""
        self.cancel.cancel()
        with self._lock:
            waits = not self._begun
        if waits:
            self.end("cancelled")

    def progress(self, stage: str, done: int, total: int, message: str = "", sample: int = 0, **more: Any) -> None:
        """Tells how far a stage is; not each time, if it is called very often.

        Args:
            stage: What is going on.
            done: Units that are finished.
            total: Units that the stage has; 0 where nobody knows.
            message: One line for people.
            sample: Index of the sample.
            **more: ``remaining_seconds``, ``preview``; ``None`` is left out.
        """
        now, more = time.monotonic(), {name: value for name, value in more.items() if value is not None}
        is_news = (stage, sample) != self._stage or done == total or "preview" in more
        if not is_news and now - self._told < _INTERVAL:
            return
        self._told, self._stage = now, (stage, sample)
        told = {"stage": stage, "done": done, "total": total, "message": message, "sample": sample, **more}
        self._outbox.send({"event": "progress", "id": self.message.id, **told})

    def sample(self, described: dict[str, Any]) -> None:
        """Tells that a sample has been written."""
        self._outbox.send({"event": "sample", "id": self.message.id, **described})

    def end(self, event: str, **data: Any) -> None:
        """Sends ``result``, ``failed`` or ``cancelled``, the first time that it is called.

        Raises:
            ValueError: As `Outbox.send`; the job has not ended then.
            TypeError: Likewise.
        """
        with self._lock:
            if not self._ended:
                self._outbox.send({"event": event, "id": self.message.id, **data})
                self._ended = True


def claim_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """Takes standard input and output for the protocol alone.

    Whatever prints from now on, Python or not, prints to standard error, where it cannot be taken for an event.

    Returns:
        Standard input and output, in binary.
    """
    sys.stdout.flush()
    streams = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return streams
