"""The panel as a whole: how it opens, what it asks for, and how it copes without an engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from Testing.imports import ROOT
from Testing.MAISI.panel_user import PanelUser, opened_panel
from Testing.MAISI.scripted_client import ScriptedClient

pytestmark = pytest.mark.usefixtures("app")

OPEN = """
import sys, time
from Testing.slicer_standin import install, loadModule
install()
import slicer
from Testing.MAISI.scripted_client import ScriptedClient
sys.path.insert(0, "MAISI")
before = set(sys.modules)
start = time.process_time()
import MAISI
module = time.process_time() - start
assert not [name for name in set(sys.modules) - before if name.startswith(("MAISIPanel", "MAISILib"))]
from MAISIPanel.Logic import MAISILogic
MAISILogic._shared = MAISILogic(slicer.mrmlScene, ScriptedClient())
loadModule("MAISI/MAISI.py")
print(module, time.process_time() - start, *{name.partition(".")[0] for name in set(sys.modules) - before})
"""


def test_opening_is_quick_and_loads_nothing_heavy(app: Any, tmp_path: Path) -> None:
    """In an interpreter of its own, where nothing has been imported by other tests."""
    runs = []
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, "-c", OPEN],
            cwd=ROOT,
            env={**os.environ, "MAISI_DATA": str(tmp_path), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr
        module, panel, *loaded = run.stdout.split()
        assert {"torch", "monai", "pydantic", "nibabel", "scipy", "psutil", "platformdirs"} & set(loaded) == set()
        runs.append((float(module), float(panel)))
    assert min(module for module, _ in runs) < 0.05
    assert min(panel for _, panel in runs) < 0.5


RELOAD = """
import sys
from Testing.slicer_standin import install, loadModule
install()
import slicer
sys.path.insert(0, "MAISI")
from MAISIPanel.EngineProcess import setExternalPython
setExternalPython("/no/such/python")
first = loadModule("MAISI/MAISI.py")
before = sys.modules["MAISIPanel.PanelWidget"]
first.onReload()
second = slicer.modules.MAISIWidget
assert second is not first and first.panel is None
assert sys.modules["MAISIPanel.PanelWidget"] is not before
assert second.logic is not first.logic
second.logic.shutdown()
"""


def test_a_developer_reloads_the_panel_with_all_its_files(app: Any, tmp_path: Path) -> None:
    """In an interpreter of its own, whose modules may be exchanged."""
    folders = {"MAISI_DATA": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", RELOAD],
        cwd=ROOT,
        env={**os.environ, **folders},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr


def test_the_panel_fits_beside_the_views(user: PanelUser) -> None:
    user.choose("bundleComboBox", "whole-body")
    user.choose("maskSourceComboBox", "generated")
    for section in ("loadButton", "fineTuneButton", "setupButton"):
        user.find(section).collapsed = False
    assert user.panel.widget.minimumSizeHint.width() <= 500


def test_the_engine_is_asked_for_when_the_panel_is_first_looked_at(user: PanelUser) -> None:
    assert {"bundles", "describe", "preflight"} <= {sent.command for sent in user.client.sent}
    assert "182 GB free" in user.reads("checksLabel")


def test_without_an_engine_the_panel_says_what_is_missing_and_installs_it(
    scene: Any, loadedModule: Any, waitUntil: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    from MAISIPanel import Installer

    missing = {"torch", "monai"}
    monkeypatch.setattr(Installer, "installed_version", lambda name: None if name in missing else "99")
    installed: list[str] = []

    class PyTorchUtilsLogic:
        def installTorch(self, askConfirmation: bool, torchVersionRequirement: str) -> Any:
            installed.append(f"torch{torchVersionRequirement} {askConfirmation}")
            missing.discard("torch")
            return object()

    fake: Any = type(sys)("PyTorchUtils")
    fake.PyTorchUtilsLogic = PyTorchUtilsLogic
    monkeypatch.setitem(sys.modules, "PyTorchUtils", fake)
    from slicer import packaging  # type: ignore[attr-defined]

    def pip_ensure(requirements: Any, requester: str) -> None:
        installed.extend(requirements)
        missing.clear()

    monkeypatch.setattr(packaging, "pip_ensure", pip_ensure)
    with opened_panel(scene, loadedModule, waitUntil, tmp_path, monkeypatch) as user:
        assert user.client.sent == []  # an engine that cannot start is not started
        assert "not installed" in user.message
        assert not user.find("setupButton").collapsed
        assert "torch&gt;=2.8, monai&gt;=1.6" in user.reads("checksLabel")
        assert not user.find("generateButton").enabled
        user.press("installButton")
        assert installed[0] == "torch>=2.8 True"
        assert "monai>=1.6" in installed
        assert not any(each.startswith(("numpy", "scipy", "SimpleITK", "requests")) for each in installed)
        assert user.message == "The engine is installed."
        assert user.find("generateButton").enabled


def test_a_declined_installation_changes_nothing(
    scene: Any, loadedModule: Any, waitUntil: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    from MAISIPanel import Installer
    from slicer import packaging  # type: ignore[attr-defined]

    def pip_ensure(requirements: Any, requester: str) -> None:
        raise RuntimeError("User declined package installation")

    monkeypatch.setattr(Installer, "installed_version", lambda name: None if name == "monai" else "99")
    monkeypatch.setattr(packaging, "pip_ensure", pip_ensure)
    with opened_panel(scene, loadedModule, waitUntil, tmp_path, monkeypatch) as user:
        user.press("installButton")
        assert "Nothing was changed" in user.message
        assert user.find("installButton").enabled


def test_an_engine_that_cannot_start_is_explained_in_setup(
    scene: Any, loadedModule: Any, waitUntil: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    client = ScriptedClient()
    message = "The engine ended at its start (exit code 1).\nImportError: libcuda.so.1"
    client.lastLines = list(message.splitlines())
    for command in client.answers:
        client.answers[command] = type("Crash", (Exception,), {})(message)
    with opened_panel(scene, loadedModule, waitUntil, tmp_path, monkeypatch, client) as user:
        assert "libcuda" in user.reads("checksLabel")
        assert "libcuda" in user.message
        report = user.panel.setup.report()
        assert "[ok] Slicer: 5.13" in report
        assert "ImportError: libcuda.so.1" in report
        client.answers.update(ScriptedClient().answers)
        client.answers["bundles"] = {"bundles": client.bundles}
        user.press("checkButton")
        assert user.find("generateButton").enabled


def test_the_self_test_of_the_module_passes(user: PanelUser) -> None:
    """What a real Slicer runs, as far as it needs no engine."""
    import MAISI

    test = MAISI.MAISITest()
    for name in ("test_panelOpens", "test_parametersAreKeptInTheScene"):
        test.setUp()
        getattr(test, name)()


def test_the_report_is_copied(user: PanelUser) -> None:
    import qt

    user.find("setupButton").collapsed = False
    user.press("reportButton")
    text = qt.QApplication.clipboard().text()
    assert "[warning] Graphics card: none" in text
    assert "-m MAISILib worker" in text


def test_another_python_for_the_engine_restarts_it_and_is_remembered(user: PanelUser, tmp_path: Path) -> None:
    from MAISIPanel.EngineProcess import externalPython

    python = tmp_path / "my python"
    python.write_text("", encoding="utf-8")
    before = user.client.shutdowns
    user.type("pythonEdit", str(python))
    assert externalPython() == str(python)
    assert user.client.shutdowns == before + 1
    assert str(python) in user.reads("checksLabel")
    user.type("pythonEdit", " ")
    assert externalPython() is None


def test_the_intel_build_for_macos_is_told_what_works_instead() -> None:
    from MAISIPanel.Installer import Installer, InstallError

    installer = Installer(versionOf=lambda name: None, machine=("darwin", "x86_64"))
    assert "Python of your own" in installer.obstacle()
    with pytest.raises(InstallError, match=r"2\.2"):
        installer.install()
    assert Installer(machine=("darwin", "arm64")).obstacle() == ""


def test_floors_are_those_of_the_distribution() -> None:
    import re

    from MAISIPanel.Installer import Installer

    project = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    floors = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', project))
    listed = {each.name: each.floor for each in Installer().requirements()}
    assert listed == {name: floors[name] for name in listed}
    engine = project.partition("dependencies = [")[2].partition("]")[0]
    needed = set(re.findall(r'"([\w-]+)>=', engine)) - {"numpy", "scipy", "pydicom"}
    assert needed <= set(listed)


@pytest.mark.parametrize(
    ("version", "isEnough"),
    [("2.8.0+cpu", True), ("2.8", True), ("2.10.1", True), ("2.7.1", False), (None, False), ("3.0.0rc1", True)],
)
def test_versions_are_compared_as_numbers(version: str | None, isEnough: bool) -> None:
    from MAISIPanel.Installer import Installer

    missing = Installer(versionOf=lambda name: version if name == "torch" else "99").missing()
    assert (missing == []) is isEnough
