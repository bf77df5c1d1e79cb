from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from MAISILib.bundles.catalogue import installed_folder
from MAISILib.jobs import preflight as module
from MAISILib.jobs.preflight import PACKAGES, TRAINING_PACKAGES, Check, lacking_packages, preflight
from Testing.imports import ROOT
from Testing.tiny_bundle import make_tiny_bundle


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Check]]:
    return lambda: {check.name: check for check in preflight()}


Look = Callable[[], dict[str, Check]]


def test_the_list_of_packages_is_that_of_the_distribution() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    required = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert required
    assert dict(re.findall(r'"([\w.-]+)>=([\d.]+)"', required.group(1))) == PACKAGES
    training = re.search(r"^train = \[(.*)\]", text, re.MULTILINE)
    assert training
    assert TRAINING_PACKAGES.items() <= dict(re.findall(r'"([\w.-]+)>=([\d.]+)"', training.group(1))).items()


def test_this_environment_is_fit(look: Look) -> None:
    checks = look()
    assert [name for name, check in checks.items() if check.state == "problem"] == []
    assert "head-neck-mini" in checks["models"].found
    assert all(check.advice for check in checks.values() if check.state != "ok")


def test_what_is_missing_or_too_old_is_named() -> None:
    assert lacking_packages({"no-such-package": "1", "numpy": "1.26"}) == ["no-such-package is missing"]
    assert re.fullmatch(r"numpy [\d.]+ is older than 999\.1", lacking_packages({"numpy": "999.1"})[0])


@pytest.mark.parametrize(
    ("found", "lowest", "is_enough"),
    [("2.13.0+cpu", "2.8", True), ("2.7.1", "2.8", False), ("1.6rc1", "1.6", True), ("4.10", "4.9", True)],
)
def test_versions_are_compared_by_their_numbers(
    monkeypatch: pytest.MonkeyPatch, found: str, lowest: str, is_enough: bool
) -> None:
    monkeypatch.setattr(module, "version", lambda name: found)
    assert (lacking_packages({"torch": lowest}) == []) is is_enough


def test_an_old_python_and_an_intel_mac_are_problems(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PYTHON", ((3, 98), (3, 99)))
    assert look()["Python"].advice == "Choose a Python from 3.98 to 3.98."
    monkeypatch.undo()
    monkeypatch.setattr(module, "sys", SimpleNamespace(platform="darwin", version_info=(3, 12), executable="python"))
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    check = look()["Python"]
    assert check.state == "problem"
    assert "external Python for arm64" in check.advice


def test_a_cpu_build_beside_an_nvidia_card_is_pointed_out(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr(module, "_nvidia_card", lambda: "NVIDIA RTX 4000")
    check = look()["PyTorch"]
    assert check.state == "warning"
    assert "NVIDIA RTX 4000" in check.found
    assert "Install a CUDA build" in check.advice


def test_short_memory_and_a_full_disk_are_told(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "memory_bytes", lambda: (8e9, 1e9))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=2e9))
    checks = look()
    assert (checks["memory"].state, checks["memory"].found) == ("problem", "1.0 of 8.0 GB free")
    assert checks["disk"].state == "warning"
    assert "MAISI_DATA" in checks["disk"].advice


@pytest.mark.skipif(sys.platform == "win32", reason="needs psutil there")
def test_memory_is_known_without_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    with_psutil = module.memory_bytes()
    monkeypatch.setitem(sys.modules, "psutil", None)
    without = module.memory_bytes()
    assert without[0] == pytest.approx(with_psutil[0], rel=0.05)
    assert 0 < without[1] <= without[0]


def test_a_damaged_model_is_a_warning_with_its_name(look: Look) -> None:
    (make_tiny_bundle(installed_folder("torn"), name="torn") / "bundle.json").write_text("{")
    check = look()["models"]
    assert check.state == "warning"
    assert "damaged: torn: " in check.found


def test_a_library_that_cannot_be_loaded_is_a_line_of_the_list_not_its_end(
    look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    checks = look()
    assert checks["PyTorch"].state == "problem"
    assert checks["disk"].state in ("ok", "warning")

    def broken() -> Check:
        raise OSError("libtorch_cpu.so: undefined symbol")

    monkeypatch.setattr(module, "_torch", broken)
    assert "undefined symbol" in look()["PyTorch"].found


def test_a_data_folder_that_cannot_be_written_is_a_problem(
    look: Look, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)
    check = look()["disk"]
    assert check.state == "problem"
    assert "cannot be written" in check.found
