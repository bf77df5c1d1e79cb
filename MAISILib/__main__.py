"""``python -m MAISILib``: the ``maisi`` command for an interpreter that has no such script, as PythonSlicer."""

from __future__ import annotations

import sys


def _run() -> int:
    if sys.argv[1:] == ["worker"]:
        # Without the command line's packages: a worker can say what is missing before anything is installed.
        from MAISILib.jobs.worker import serve

        serve()
    from MAISILib.cli.app import main

    return main()


if __name__ == "__main__":
    raise SystemExit(_run())
