"""``maisi worker``: the engine as a process that another program talks to."""

from __future__ import annotations


def run() -> None:
    """Take commands as JSON lines on standard input, and answer on standard output. For programs; see docs/worker.md.

    Models stay loaded between commands. The end of standard input ends it.
    """
    from MAISILib.jobs.worker import serve

    serve()
