"""Shows the events of a training on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from MAISILib.jobs.folder import Event, OnEvent

#: Elsewhere than on a terminal lines come at least this far apart (seconds), unless a stage ends or there is a message.
_INTERVAL = 10.0


@contextmanager
def events_on_stderr() -> Iterator[OnEvent]:
    """Gives what a training calls with its events."""
    if not sys.stderr.isatty():
        last = 0.0

        def on_event(event: Event) -> None:
            nonlocal last
            if event.message or event.file or time.monotonic() - last > _INTERVAL:
                last = time.monotonic()
                print(_line(event), file=sys.stderr, flush=True)

        yield on_event
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    with Progress(console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def on_event(event: Event) -> None:
            if event.message or event.file:
                bars.console.print(_line(event), highlight=False)
                return
            if event.stage not in tasks:
                tasks[event.stage] = bars.add_task(event.stage, total=event.total)
            shown = _figures(event) or event.stage
            bars.update(tasks[event.stage], completed=event.done, total=event.total, description=shown)

        yield on_event


def _line(event: Event) -> str:
    return f"{event.stage} {event.done}/{event.total} {event.message or event.file or _figures(event)}".rstrip()


def _figures(event: Event) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in event.metrics.items())
