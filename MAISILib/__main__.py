"""``python -m MAISILib``: the ``maisi`` command for an interpreter that has no such script, as PythonSlicer."""

from __future__ import annotations

from MAISILib.cli.app import main

if __name__ == "__main__":
    raise SystemExit(main())
