"""What an installation gets: declared dependencies, pinned versions, and a wheel that carries its resources."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from Testing.imports import ENGINE, MODULES, ROOT, imports_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def normalized(requirement: str) -> str:
    """``Huggingface_Hub[cli]>=0.30`` → ``huggingface-hub``."""
    name = re.match(r"[\w.-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name.group()).lower()


def declared(project: dict[str, Any], *extras: str) -> set[str]:
    lists = [project["project"]["dependencies"], *(project["project"]["optional-dependencies"][e] for e in extras)]
    return {normalized(requirement) for requirements in lists for requirement in requirements}


def test_every_room_is_packed(project: dict[str, Any]) -> None:
    rooms = {
        f"MAISILib.{p.parent.relative_to(ENGINE).as_posix().replace('/', '.')}" for p in ENGINE.glob("*/**/__init__.py")
    }
    assert set(project["tool"]["setuptools"]["packages"]) == {"MAISILib", "MAISILib.Resources"} | rooms


def test_every_third_party_import_is_a_declared_dependency(project: dict[str, Any]) -> None:
    distributions = packages_distributions()
    known = declared(project, "scene", "train", "dicom")
    undeclared = []
    for module in MODULES:
        for top in {name.split(".")[0] for name in imports_of(module)} - set(sys.stdlib_module_names) - {"MAISILib"}:
            if not {normalized(d) for d in distributions.get(top, [top])} & known:
                undeclared.append(f"{module.relative_to(ROOT)}: {top}")
    assert undeclared == []


def test_dependencies_are_floors_never_pins(project: dict[str, Any]) -> None:
    """A pin would replace the numpy or scipy that 3D Slicer brings."""
    requirements = project["project"]["dependencies"]
    assert [r for r in requirements if not re.fullmatch(r"[\w.-]+>=[\d.]+", r)] == []


def test_the_lock_pins_every_dependency_for_every_python(project: dict[str, Any]) -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert [line for line in lines if not re.match(r"[\w.-]+==[\w.]+(; .+)?$", line)] == []
    newer = {normalized(line) for line in lines if "python_version <" not in line}
    older = {normalized(line) for line in lines if "python_version >=" not in line}
    wanted = declared(project, "scene", "dev") - {"slicer-maisi"}
    assert wanted - newer == set()
    assert wanted - older == set()


@pytest.mark.slow
def test_the_wheel_carries_the_resources_and_finds_them(tmp_path: Path) -> None:
    source, unpacked = tmp_path / "source", tmp_path / "unpacked"
    source.mkdir()
    for name in ("MAISILib", "Resources"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for name in ("pyproject.toml", "README.md", "LICENSE.txt"):
        shutil.copy(ROOT / name, source / name)

    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path)]
    run = subprocess.run(build, cwd=source, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr

    (wheel,) = tmp_path.glob("slicer_maisi-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(unpacked)
    expected = {f"MAISILib/{p.relative_to(source)}" for p in (source / "Resources").rglob("*") if p.is_file()}
    expected |= {str(p.relative_to(source)) for p in (source / "MAISILib").rglob("*.py")}
    assert expected - names == set()
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == {"MAISILib"}

    where = "from MAISILib.resources import resources_folder; print(resources_folder())"
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    run = subprocess.run(
        [sys.executable, "-P" if sys.version_info >= (3, 11) else "-B", "-c", where],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert Path(run.stdout.strip()) == unpacked / "MAISILib" / "Resources", run.stderr
