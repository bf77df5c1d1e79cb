"""``maisi worker``: a process that keeps models loaded and does what it is told, a JSON line at a time.

Commands that take long are done one after the other on the main thread; short ones on another, so that they are
answered meanwhile; a third thread reads. The end of standard input ends everything: no worker outlives the program
that started it.
"""

from __future__ import annotations

import faulthandler
import os
import platform
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from queue import SimpleQueue
from typing import BinaryIO, NoReturn

from MAISILib import __version__, errors
from MAISILib.errors import Cancelled, MaisiError, OutOfMemory, RequestError, did_you_mean, means_out_of_memory
from MAISILib.jobs.commands import HEAVY, Command, fields_of, make_commands
from MAISILib.jobs.protocol import (
    PROTOCOL_VERSION,
    Job,
    Message,
    Outbox,
    ProtocolError,
    claim_standard_streams,
    read_messages,
)

#: When the other end is gone, what cannot be cancelled (a copy of weights) may go on for so long (seconds).
_LAST_SECONDS = 5.0


class Worker:
    """Reads messages, does what they ask for, answers.

    Args:
        outbox: Where the answers go.
        commands: What can be asked for.
    """

    def __init__(self, outbox: Outbox, commands: Mapping[str, Command]) -> None:
        self._outbox, self._commands = outbox, commands
        self._heavy: SimpleQueue[Job | None] = SimpleQueue()
        self._light: SimpleQueue[Job | None] = SimpleQueue()
        self._open: dict[str | int | None, Job] = {}
        self._lock = threading.Lock()

    def listen(self, stream: BinaryIO) -> None:
        """Takes messages from a stream until ``quit`` or its end, then stops everything."""
        try:
            for message in read_messages(stream):
                if isinstance(message, ProtocolError):
                    self._refuse(None, message)
                elif message.command == "quit":
                    break
                else:
                    self._take(message)
        finally:
            self.stop()

    def work(self) -> None:
        """Does the commands; returns after `stop`."""
        light = threading.Thread(target=self._do_all, args=(self._light,), daemon=True)
        light.start()
        self._do_all(self._heavy)
        light.join(timeout=1)

    def stop(self) -> None:
        """Cancels what runs and what waits, and lets `work` return. From any thread, but not from a signal handler."""
        with self._lock:
            jobs = list(self._open.values())
        for job in jobs:
            job.ask_to_stop()
        self._heavy.put(None)
        self._light.put(None)

    def _take(self, message: Message) -> None:
        with self._lock:
            running = self._open.get(message.id)
        if message.command == "cancel":
            if running is not None:  # else it has ended in the meantime
                running.ask_to_stop()
        elif running is not None and not running.has_ended:
            self._refuse(None, ProtocolError(f"The id {message.id!r} is in use. Give each command its own."))
        elif message.command not in self._commands:
            hint = did_you_mean(message.command, self._commands) or f" There are: {', '.join(self._commands)}."
            self._refuse(message.id, RequestError(f"Unknown command {message.command!r}.{hint}"))
        else:
            job = Job(message, self._outbox)
            with self._lock:
                self._open[message.id] = job
            (self._heavy if message.command in HEAVY else self._light).put(job)

    def _refuse(self, id: str | int | None, error: MaisiError) -> None:
        self._outbox.send({"event": "failed", "id": id, "error": str(error), "kind": type(error).__name__})

    def _do_all(self, jobs: SimpleQueue[Job | None]) -> None:
        while (job := jobs.get()) is not None:
            try:
                if job.begin():
                    self._do(job)
            finally:
                with self._lock:
                    if self._open.get(job.message.id) is job:  # else the next one has the id already
                        del self._open[job.message.id]

    def _do(self, job: Job) -> None:
        command = self._commands[job.message.command]
        try:
            job.end("result", data=command(job, **fields_of(command, job.message)))
        except Cancelled:
            job.end("cancelled")
        except MaisiError as error:
            job.end("failed", error=str(error), kind=_kind(error))
        except ImportError as error:
            job.end("failed", error=_missing_package(error), kind="MissingPackage")
        except BaseException as error:  # whatever it is, the next command may work
            traceback.print_exc()
            if means_out_of_memory(error):
                job.end("failed", error="Memory ran out. Ask for a smaller size.", kind=OutOfMemory.__name__)
            else:
                told = f"The engine failed at '{job.message.command}': {error or type(error).__name__}. See the log."
                job.end("failed", error=told, kind=type(error).__name__)


def serve() -> NoReturn:
    """Runs a worker on this process's standard streams until it is told to quit, then ends the process."""
    faulthandler.enable()  # a crash in native code leaves its last lines on standard error
    stdin, stdout = claim_standard_streams()
    outbox = Outbox(stdout)
    worker = Worker(outbox, make_commands())
    stopped = threading.Event()

    def stop_soon(number: int, frame: object) -> None:
        # Not here: the handler runs in the middle of whatever the main thread does, with its locks held.
        threading.Thread(target=worker.stop, daemon=True).start()
        stopped.set()

    def listen() -> None:
        worker.listen(stdin)
        stopped.set()

    def end_anyway() -> None:
        stopped.wait()
        threading.Event().wait(_LAST_SECONDS)
        os._exit(MaisiError.exit_code)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_soon)
    ready = {"protocol": PROTOCOL_VERSION, "version": __version__, "python": platform.python_version()}
    outbox.send({"event": "ready", **ready, "pid": os.getpid()})
    for target in (listen, end_anyway):
        threading.Thread(target=target, daemon=True).start()
    worker.work()
    sys.stderr.flush()
    # The interpreter would take its time to end with PyTorch loaded, and another thread may be in the middle of it.
    os._exit(0)


def _kind(error: MaisiError) -> str:
    """Name of the error's class, or of the nearest one above it that programs can know."""
    return next(each.__name__ for each in type(error).__mro__ if getattr(errors, each.__name__, None) is each)


def _missing_package(error: ImportError) -> str:
    name = f"The Python package '{error.name}'" if error.name else "A Python package"
    return (
        f"{name} is missing in {sys.executable}, or cannot be loaded ({error}). Install what the engine needs: in 3D "
        "Slicer the module MAISI does it under Setup, elsewhere 'pip install slicer-maisi'."
    )
