"""Which Python runs the engine, and what it finds around it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from Testing.imports import ROOT

slicer: Any = pytest.importorskip("slicer", reason="slicer-core is not installed")


class StartupEnvironment:
    """As QProcessEnvironment: what was there before Slicer's launcher."""

    def keys(self) -> list[str]:
        return ["PATH", "PYTHONHOME", "LD_LIBRARY_PATH"]

    def value(self, name: str, default: str = "") -> str:
        return f"the user's {name}"


@pytest.fixture(autouse=True)
def slicersEnvironment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/opt/Slicer/lib/Python")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/Slicer/lib")


def test_in_slicer_the_engine_runs_in_its_own_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from MAISIPanel.EngineProcess import engineCommand

    program = tmp_path / "Slicer 5.12 ä" / "bin" / ("PythonSlicer.exe" if sys.platform == "win32" else "PythonSlicer")
    program.parent.mkdir(parents=True)
    program.touch()
    monkeypatch.setattr(slicer, "app", SimpleNamespace(slicerHome=str(program.parents[1])), raising=False)
    command = engineCommand()
    assert command.program == str(program)
    assert command.arguments == ["-m", "MAISILib", "worker"]
    assert command.environment["PYTHONPATH"] == str(ROOT)
    assert command.environment["PYTHONUTF8"] == "1"
    assert command.environment["LD_LIBRARY_PATH"] == "/opt/Slicer/lib"


def test_another_python_sees_nothing_of_slicers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slicer's libraries in its way would keep it from starting."""
    from MAISIPanel.EngineProcess import engineCommand

    monkeypatch.setattr(slicer, "app", SimpleNamespace(startupEnvironment=StartupEnvironment), raising=False)
    command = engineCommand("/opt/Pythön 3/bin/python", ["finetune", "--name=ä b"])
    assert command.program == "/opt/Pythön 3/bin/python"
    assert command.arguments == ["-m", "MAISILib", "finetune", "--name=ä b"]
    assert command.environment["LD_LIBRARY_PATH"] == "the user's LD_LIBRARY_PATH"
    assert command.environment["PYTHONPATH"] == str(ROOT)
    assert "PYTHONHOME" not in command.environment


def test_outside_slicer_the_running_python_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from MAISIPanel.EngineProcess import engineCommand

    monkeypatch.setattr(slicer, "app", None, raising=False)
    assert engineCommand().program == sys.executable


def test_the_users_choice_is_remembered(app: Any) -> None:
    from MAISIPanel.EngineProcess import externalPython, setExternalPython

    assert externalPython() is None
    setExternalPython("/opt/Pythön/bin/python")
    assert externalPython() == "/opt/Pythön/bin/python"
    setExternalPython("")
    assert externalPython() is None
