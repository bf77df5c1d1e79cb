"""How the engine is started: by which Python, with which arguments and environment."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import MAISILib

_SETTING = "MAISI/ExternalPython"


class EngineCommand(NamedTuple):
    """What to start: a program, its arguments, and its whole environment."""

    program: str
    arguments: list[str]
    environment: dict[str, str]


def engineCommand(externalPython: str | None = None, arguments: Sequence[str] = ("worker",)) -> EngineCommand:
    """The command that runs the engine in a process of its own.

    Args:
        externalPython: A Python interpreter outside Slicer that has the engine's packages; None for PythonSlicer inside
            the Slicer application, and for the running interpreter elsewhere.
        arguments: What follows ``python -m MAISILib``.
    """
    environment = _startupEnvironment() if externalPython else dict(os.environ)
    if externalPython:
        environment.pop("PYTHONHOME", None)
    environment["PYTHONPATH"] = str(Path(MAISILib.__file__).resolve().parents[1])
    environment["PYTHONUTF8"] = "1"
    environment["PYTHONUNBUFFERED"] = "1"
    return EngineCommand(externalPython or _ownPython(), ["-m", "MAISILib", *arguments], environment)


def externalPython() -> str | None:
    """The interpreter that the user has set for the engine; None for Slicer's own."""
    settings = _settings()
    return (str(settings.value(_SETTING) or "") or None) if settings is not None else None


def setExternalPython(path: str | None) -> None:
    """Remembers the user's interpreter for the engine; None or an empty text goes back to Slicer's own."""
    settings = _settings()
    if settings is not None:
        settings.setValue(_SETTING, path or "")


def _settings() -> Any:
    try:
        import qt
    except ImportError:
        return None
    return qt.QSettings()


def _ownPython() -> str:
    app = _application()
    home = getattr(app, "slicerHome", None)
    suffix = ".exe" if os.name == "nt" else ""
    beside = Path(str(home), "bin", f"PythonSlicer{suffix}") if home else None
    if beside is not None and beside.is_file():
        return str(beside)
    found = shutil.which("PythonSlicer") if home else None
    return found or sys.executable


def _startupEnvironment() -> dict[str, str]:
    """The environment from before Slicer's launcher put its own libraries in the way of other programs."""
    if hasattr(_application(), "startupEnvironment"):
        from slicer import util

        return {str(name): str(value) for name, value in util.startupEnvironment().items()}
    return dict(os.environ)


def _application() -> Any:
    slicer = sys.modules.get("slicer")
    return getattr(slicer, "app", None)
