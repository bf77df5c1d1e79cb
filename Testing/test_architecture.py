"""The rules of docs/architecture.md, kept by reading the source: who may import whom, and what a file looks like."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Set
from pathlib import Path

import pytest

import MAISILib
from MAISILib import errors
from MAISILib.resources import resource, resources_folder
from Testing.imports import ENGINE, MODULES, ROOT, imports_of, running_nodes, tree_of

MATHS = {"anatomy", "diffusion", "codec", "quality"}
MAY_IMPORT_THE_PIPELINE = {"generation", "cli", "jobs", "training"}
NEVER_AT_START = {"torch", "monai", "scipy", "nibabel", "matplotlib", "huggingface_hub", "vtk", "slicer"}
NETWORK_ROOMS = {"MAISILib.diffusion", "MAISILib.codec", "MAISILib.training", "MAISILib.bundles.networks"}

#: Folders of a working copy that are no part of the product.
NOT_PRODUCT = {".git", ".venv", ".ruff_cache", ".pytest_cache", ".hypothesis", "__pycache__", "build", "dist", "runs"}
MADE_BY_RUNNING = {"demo", "out"}


def room_of(module: Path) -> str:
    """The room that a source file lies in; empty for the files directly in MAISILib."""
    parts = module.relative_to(ENGINE).parts
    return parts[0] if len(parts) > 1 else ""


def within(names: Set[str], packages: set[str]) -> list[str]:
    return sorted(n for n in names if any(n == p or n.startswith(p + ".") for p in packages))


def offenders(forbidden: set[str], rooms: set[str] | None = None, but: Set[str] = frozenset()) -> dict[str, list[str]]:
    """Files of ``rooms`` (all where None), except those of the rooms ``but``, that import something forbidden."""
    return {
        str(module.relative_to(ROOT)): found
        for module, names in ((module, imports_of(module)) for module in MODULES)
        if (rooms is None or room_of(module) in rooms) and room_of(module) not in but
        if (found := within(names, forbidden))
    }


def test_no_room_imports_the_pipeline() -> None:
    outside = {module.name for module in MODULES if room_of(module) == ""}
    assert {"__init__.py", "__main__.py"} <= outside
    assert offenders({"MAISILib.generation"}, but=MAY_IMPORT_THE_PIPELINE) == {}


@pytest.mark.parametrize("room", sorted(MATHS))
def test_rooms_of_maths_do_not_import_one_another(room: str) -> None:
    assert offenders({f"MAISILib.{other}" for other in MATHS - {room}}, rooms={room}) == {}


def test_only_the_scene_imports_slicer_or_vtk() -> None:
    assert offenders({"slicer", "vtk", "vtkmodules", "slicer_core"}, but={"scene"}) == {}


def test_the_engine_imports_no_user_interface() -> None:
    assert offenders({"MAISI", "qt", "ctk", "PySide6", "PyQt5", "PyQt6", "PythonQt"}) == {}


def test_files_and_scene_know_nothing_of_networks() -> None:
    assert offenders({"torch", "monai"} | NETWORK_ROOMS, rooms={"files", "scene"}) == {}


def test_the_command_line_is_imported_by_nobody() -> None:
    found = offenders({"MAISILib.cli"}, but={"cli"})
    assert set(found) <= {"MAISILib/__main__.py"}


def test_the_type_checking_branch_is_free() -> None:
    tree = ast.parse("if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy\nimport json\n")
    names = {a.name for node in running_nodes(tree) if isinstance(node, ast.Import) for a in node.names}
    assert names == {"numpy", "json"}


def test_files_are_short() -> None:
    sources = [*MODULES, *(ROOT / "MAISI").rglob("*.py"), *(ROOT / "Testing").rglob("*.py")]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in sources}
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_file_names_say_what_is_inside() -> None:
    sources = [*MODULES, *(ROOT / "MAISI").rglob("*.py"), *(ROOT / "Testing").rglob("*.py")]
    vague = re.compile(r"(test_)?(utils?|helpers?|misc|common|tools)$")
    assert [p.name for p in sources if vague.match(p.stem)] == []


def test_what_is_public_is_documented() -> None:
    missing = []
    for module in MODULES:
        tree = tree_of(module)
        if tree.body and not ast.get_docstring(tree):
            missing.append(f"{module.relative_to(ROOT)}: the file itself")
        missing += [
            f"{module.relative_to(ROOT)}: {node.name}"
            for node in tree.body
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            if not node.name.startswith("_") and not ast.get_docstring(node)
        ]
    assert missing == []


def test_annotations_stay_unevaluated() -> None:
    """Python 3.10 is supported, so every file with code has the future import."""
    without = [
        str(module.relative_to(ROOT))
        for module in MODULES
        if module.read_text(encoding="utf-8").strip() and "__future__" not in imports_of(module)
    ]
    assert without == []


def product_files() -> Iterator[Path]:
    texts = {".py", ".md", ".toml", ".json", ".csv", ".txt", ".lock", ".cmake", ".ui", ".sh", ".yml", ".yaml", ""}
    for folder, inside, names in os.walk(ROOT):
        skipped = NOT_PRODUCT | (MADE_BY_RUNNING if Path(folder) == ROOT else set())
        inside[:] = sorted(name for name in inside if name not in skipped and not name.endswith(".egg-info"))
        yield from (Path(folder, name) for name in sorted(names) if Path(name).suffix in texts)


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    place = re.compile(r"(?<![\w.:$}-])/(home|root|Users|work|mnt|media|scratch)/[\w.]")
    found = {
        str(path.relative_to(ROOT)): match.group()
        for path in product_files()
        if (match := place.search(path.read_text(encoding="utf-8")))
    }
    assert found == {}


def loaded_after(code: str) -> tuple[set[str], float]:
    """Top-level modules that a fresh interpreter has loaded after ``code``, and its seconds of processor time."""
    program = (
        "import json, sys, time\n"
        "start = time.process_time()\n"
        f"{code}\n"
        "seconds = time.process_time() - start\n"
        "print('\\n' + json.dumps([sorted({m.split('.')[0] for m in sys.modules}), seconds]))\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    modules, seconds = json.loads(run.stdout.splitlines()[-1])
    return set(modules), seconds


START = {
    "import MAISILib": "import MAISILib",
    "maisi --help": (
        "from MAISILib.cli.app import main\n"
        "sys.argv = ['maisi', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code"
    ),
}


@pytest.mark.parametrize("code", START.values(), ids=START.keys())
def test_starting_is_light(code: str) -> None:
    runs = [loaded_after(code) for _ in range(3)]
    assert runs[0][0] & NEVER_AT_START == set()
    assert min(seconds for _, seconds in runs) < 0.5


@pytest.mark.parametrize("name", MAISILib.__all__)
def test_public_names_are_found(name: str) -> None:
    assert name in dir(MAISILib)
    assert callable(getattr(MAISILib, name))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'genrate'"):
        _ = MAISILib.genrate  # type: ignore[attr-defined]


def test_every_error_is_public_and_of_the_family() -> None:
    family = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, Exception)}
    assert family <= set(MAISILib.__all__)
    assert all(issubclass(getattr(errors, name), errors.MaisiError) for name in family)


def test_resources_are_found() -> None:
    assert resources_folder() == ROOT / "Resources"
    with pytest.raises(errors.FileFormatError, match="missing"):
        resource("no-such-file")
