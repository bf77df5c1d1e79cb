"""What the tests of the Slicer modules share: the stand-in for the application, with a clean scene for each test."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def app() -> Any:
    """``slicer.app``; from here on, ``import qt, ctk, slicer`` works as in Slicer."""
    pytest.importorskip("slicer", reason="slicer-core is not installed (pip install slicer-maisi[scene])")
    reason = "Qt for Python does not start; on Debian it needs libegl1 libgl1 libxkbcommon0 libdbus-1-3 libfontconfig1"
    try:
        import PySide6.QtWidgets  # noqa: F401
    except ModuleNotFoundError:
        pytest.skip("PySide6 is not installed (pip install slicer-maisi[dev])")
    except ImportError as error:
        pytest.skip(f"{reason} ({error})")
    from Testing.slicer_standin import install

    return install()


@pytest.fixture(autouse=True)
def modulesFolder(monkeypatch: pytest.MonkeyPatch) -> None:
    """``MAISIPanel`` can be imported, as in Slicer, which puts the folders of its modules on the path."""
    monkeypatch.syspath_prepend(str(ROOT / "MAISI"))


@pytest.fixture(autouse=True)
def uncaught_errors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BaseException]]:
    """An error in a slot or an observer is printed and forgotten by Slicer; here it fails the test."""
    uncaught: list[BaseException] = []
    usual = sys.excepthook

    def keep(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
        uncaught.append(error)
        usual(kind, error, traceback)

    monkeypatch.setattr(sys, "excepthook", keep)
    yield uncaught
    assert uncaught == []


@pytest.fixture
def dialogs(app: Any) -> Any:
    """What the user is told and asked, see `Dialogs`."""
    from Testing.slicer_standin.dialogs import DIALOGS

    DIALOGS.reset()
    return DIALOGS


@pytest.fixture
def scene(app: Any, dialogs: Any) -> Iterator[Any]:
    """``slicer.mrmlScene``, empty, with empty settings of the application."""
    app.settings().clear()
    yield app.mrmlScene()
    clear(app)


def clear(app: Any) -> None:
    app.mrmlScene().Clear(0)
    for node in list(app.mrmlScene().GetNodesByClass("vtkMRMLScriptedModuleNode")):
        app.mrmlScene().RemoveNode(node)
    app.processEvents()


@pytest.fixture
def loadedModule(scene: Any) -> Iterator[Callable[..., Any]]:
    """Loads a module by its file in MAISI/, and unloads it at the end of the test: ``loadedModule("MAISI.py")``."""
    from Testing.slicer_standin import loadModule, unloadModule

    loaded: list[str] = []

    def load(file: str | Path = "MAISI.py", **options: Any) -> Any:
        path = ROOT / "MAISI" / file
        loaded.append(path.stem)
        return loadModule(path, **options)

    yield load
    for name in loaded:
        unloadModule(name)


@pytest.fixture
def waitUntil(app: Any) -> Callable[..., None]:
    """Lets the event loop run until a condition holds: ``waitUntil(lambda: …, seconds=30)``."""

    def wait(condition: Callable[[], Any], seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds} s"
            app.processEvents()
            time.sleep(0.005)

    return wait


@pytest.fixture
def user(
    scene: Any, loadedModule: Callable[..., Any], waitUntil: Callable[..., None], tmp_path: Path, monkeypatch: Any
) -> Iterator[Any]:
    """A `PanelUser`: somebody who works with the panel, with an engine that the test plays."""
    from Testing.MAISI.panel_user import opened_panel

    with opened_panel(scene, loadedModule, waitUntil, tmp_path, monkeypatch) as user:
        yield user


@pytest.fixture
def grab(app: Any) -> Callable[[Any, Path], Path]:
    """Saves the picture of a widget: ``grab(widget, tmp_path / "panel.png")``."""

    def save(widget: Any, path: Path) -> Path:
        app.processEvents()
        assert widget.grab().save(str(path))
        return path

    return save
