"""The files of the Slicer extension: what is built, installed and shown, and that the modules fit to Slicer."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from Testing.extension_files import EFFECT, LISTS, ROOT, expected, files_under, listed
from Testing.imports import tree_of

SOURCES = [ROOT / name for name in files_under("MAISI") if name.endswith(".py")]
UI_FILES = [ROOT / name for name in files_under("MAISI/Resources/UI")]
CMAKE = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")

#: Absent from Slicer's Python.
NOT_IN_SLICER = {"einops", "huggingface_hub", "monai", "nibabel", "nrrd", "platformdirs", "psutil", "pydantic", "rich"}
NOT_IN_SLICER |= {"safetensors", "torch", "typer"}
HEAVY = {*NOT_IN_SLICER, "scipy", "SimpleITK", "pydicom", "matplotlib", "requests"}
#: Slicer reads these at its start.
READ_AT_START = {ROOT / "MAISI" / "MAISI.py", ROOT / EFFECT / "SegmentEditorMAISI.py"}


def setting(name: str) -> str:
    """A value of the top CMake file, with the variables in it."""
    values: dict[str, str] = dict(re.findall(r'^set\((\w+) "(.*)"\)', CMAKE, re.MULTILINE))
    return re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], values[name])


# What is built


@pytest.mark.parametrize(("cmake", "variable"), LISTS)
def test_the_lists_name_every_file(cmake: str, variable: str) -> None:
    assert listed(cmake, variable) == expected(cmake, variable), "run: make extension-lists"


def test_no_file_replaces_another_one_when_installed() -> None:
    folders = {"ENGINE_FILES": "MAISILib/", "ENGINE_RESOURCES": "MAISILib/Resources/"}
    names = [folders.get(variable, "") + name for cmake, variable in LISTS for name in expected(cmake, variable)]
    assert [name for name, count in Counter(map(str.lower, names)).items() if count > 1] == []


def test_names_that_all_extensions_share_begin_with_ours() -> None:
    """Every extension's files land in one folder."""
    shared = [Path(n) for c, v in LISTS if v.startswith("MODULE") for n in expected(c, v)]
    top = {path.parts[0].removesuffix(".py") for path in shared if path.parts[0] != "Resources"}
    resources = {path.stem for path in shared if path.parts[0] == "Resources"}
    assert top == {"MAISI", "MAISIPanel", "SegmentEditorMAISI", "SegmentEditorMAISILib"}
    assert [name for name in resources if not name.startswith("MAISI")] == []


FAKE_SLICER = """
set(Slicer_USE_FILE "${CMAKE_CURRENT_LIST_DIR}/Use.cmake")
set(Slicer_EXTENSION_GENERATE_CONFIG "${CMAKE_CURRENT_LIST_DIR}/Nothing.cmake")
set(Slicer_EXTENSION_CPACK "${CMAKE_CURRENT_LIST_DIR}/Nothing.cmake")
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR "lib/Slicer-5.13/qt-scripted-modules")
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR "lib/Slicer-5.13/qt-scripted-modules")
"""
FAKE_MACROS = """
macro(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(ARG "WITH_GENERIC_TESTS" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(ARG_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "Unknown: ${ARG_UNPARSED_ARGUMENTS}")
  endif()
  foreach(file ${ARG_SCRIPTS} ${ARG_RESOURCES})
    get_filename_component(folder "${file}" DIRECTORY)
    install(FILES "${file}" DESTINATION "${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}/${folder}")
  endforeach()
endmacro()
macro(slicer_add_python_unittest)
endmacro()
"""


@pytest.mark.slow
def test_the_engine_works_from_where_the_extension_installs_it(tmp_path: Path) -> None:
    """Stands in for Slicer's build system with its two macros; cannot tell how the real ones package."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not installed")
    slicer, build, installed = (tmp_path / name for name in ("slicer", "build folder", "installed"))
    slicer.mkdir()
    for name, text in {"SlicerConfig": FAKE_SLICER, "Use": FAKE_MACROS, "Nothing": ""}.items():
        (slicer / f"{name}.cmake").write_text(text, encoding="utf-8")
    run = [cmake, "-S", str(ROOT), "-B", str(build), f"-DSlicer_DIR={slicer}", "-DBUILD_TESTING=ON"]
    for command in (run, [cmake, "--install", str(build), "--prefix", str(installed)]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    modules = installed / "lib" / "Slicer-5.13" / "qt-scripted-modules"
    assert (modules / "MAISI.py").is_file()
    assert (modules / "SegmentEditorMAISILib" / "SegmentEditorEffect.png").is_file()
    code = (
        "import MAISILib; from MAISILib.resources import resources_folder\n"
        "print(resources_folder(), MAISILib.open_bundle('head-neck-mini').name, sep='|')"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=modules, capture_output=True, text=True, timeout=300)
    assert found.stdout.strip() == f"{modules / 'MAISILib' / 'Resources'}|head-neck-mini", found.stderr


# What the Extensions Manager shows


def test_the_index_entry_says_what_the_extension_says() -> None:
    entry = json.loads((ROOT / "MAISI.json").read_text(encoding="utf-8"))
    keys = "$schema build_dependencies build_subdirectory category scm_revision scm_url tier"
    assert sorted(entry) == keys.split()
    assert re.search(r"^project\((\w+)\)", CMAKE, re.MULTILINE)[1] == "MAISI"  # type: ignore[index]
    assert entry["build_dependencies"] == setting("EXTENSION_DEPENDS").split()
    assert entry["category"] == setting("EXTENSION_CATEGORY")
    assert entry["scm_url"] == f"{setting('EXTENSION_HOMEPAGE')}.git"
    assert (entry["tier"], entry["build_subdirectory"]) == (3, ".")


def test_what_is_said_of_the_extension_is_one_text_for_cmake() -> None:
    """A semicolon would make it a list, of which Slicer's macros take what they find first."""
    assert [line for line in CMAKE.splitlines() if line.startswith("set(EXTENSION_") and ";" in line] == []


@pytest.mark.parametrize("setting_name", ["EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS"])
def test_pictures_of_the_index_are_in_the_repository(setting_name: str) -> None:
    """They are shown from there, so a renamed one would be missing without a message."""
    files, repository = setting("MAISI_FILES"), setting("MAISI_REPOSITORY")
    assert files.split("/")[3:5] == repository.split("/")[3:5]
    addresses = setting(setting_name).split()
    assert addresses
    assert [a for a in addresses if not (ROOT / a.removeprefix(f"{files}/")).is_file()] == []


def test_icons_have_the_size_that_slicer_asks_for() -> None:
    sizes = {"MAISI/Resources/Icons/MAISI.png": 128, "MAISI/Resources/Icons/MAISI256.png": 256}
    sizes[f"{EFFECT}/SegmentEditorMAISILib/SegmentEditorEffect.png"] = 64
    for name, size in sizes.items():
        header = (ROOT / name).read_bytes()[:24]
        assert (int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")) == (size, size), name


# How the modules fit together


def names_in(ui_file: Path) -> set[str]:
    return {part.get("name", "") for part in ET.parse(ui_file).iter() if part.tag in ("widget", "layout", "action")}


def is_ui(node: ast.expr) -> bool:
    """``ui``, ``self.ui``, ``self._ui``."""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.lstrip("_") == "ui"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_widgets_that_the_code_uses_are_in_one_ui_file(source: Path) -> None:
    used = {n.attr for n in ast.walk(tree_of(source)) if isinstance(n, ast.Attribute) and is_ui(n.value)}
    missing = min((used - names_in(ui_file) for ui_file in UI_FILES), key=len)
    assert missing == set()


@pytest.mark.parametrize("ui_file", UI_FILES, ids=lambda path: path.stem)
def test_widgets_with_nodes_get_the_scene(ui_file: Path) -> None:
    root = ET.parse(ui_file)
    widgets = {w.get("name"): w.get("class", "") for w in root.iter("widget")}
    top = root.find("widget")
    assert top is not None
    assert top.get("class") == "qMRMLWidget"
    connected = {
        c.findtext("receiver")
        for c in root.iter("connection")
        if (c.findtext("sender"), c.findtext("signal")) == (top.get("name"), "mrmlSceneChanged(vtkMRMLScene*)")
        and c.findtext("slot") == "setMRMLScene(vtkMRMLScene*)"
    }
    needing = {n for n, c in widgets.items() if c.startswith("qMRML") and n != top.get("name")}
    assert needing - connected == set()


@pytest.mark.parametrize("ui_file", UI_FILES, ids=lambda path: path.stem)
def test_qt_5_can_read_the_ui_file(ui_file: Path) -> None:
    """Today's Designer writes ``Qt::AlignmentFlag::AlignRight``, which the Qt in Slicer's binaries ignores."""
    values = [part.text or "" for part in ET.parse(ui_file).iter() if part.tag in ("enum", "set")]
    assert [v for v in values if not all(re.fullmatch(r"\w+::\w+", name) for name in v.split("|"))] == []


# How they fit to Slicer


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_no_module_imports_anything_heavy_at_file_scope(source: Path) -> None:
    imported: set[str] = set()
    for node in top_level(tree_of(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported & (HEAVY | ({"numpy"} if source in READ_AT_START else set())) == set()


def top_level(tree: ast.AST) -> Iterator[ast.AST]:
    """What runs when a file is imported: everything but the bodies of functions."""
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from top_level(child)


ONLY_WHAT_SLICER_HAS = """
import importlib, sys
sys.path[:0] = [{root!r}, {root!r} + "/MAISI", {root!r} + "/MAISI/SegmentEditorMAISI"]
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from Testing.slicer_standin import install
install()
for name in {names!r}:
    importlib.import_module(name)
"""


@pytest.mark.usefixtures("app")
def test_the_modules_need_nothing_that_slicer_lacks() -> None:
    packages = {name for source in SOURCES for name in [dotted(source)] if name}
    code = ONLY_WHAT_SLICER_HAS.format(root=str(ROOT), absent=set(NOT_IN_SLICER), names=sorted(packages))
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr


def dotted(source: Path) -> str:
    """``MAISI/MAISIPanel/Logic.py`` → ``MAISIPanel.Logic``."""
    folder = ROOT / EFFECT if source.is_relative_to(ROOT / EFFECT) else ROOT / "MAISI"
    return ".".join(source.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")


def chain(node: ast.AST) -> list[str]:
    """``slicer.util.loadUI`` as its three names; nothing where it begins with something else than a name."""
    if isinstance(node, ast.Attribute):
        before = chain(node.value)
        return [*before, node.attr] if before else []
    return [node.id] if isinstance(node, ast.Name) else []


def used_of(modules: set[str]) -> set[tuple[str, ...]]:
    chains = (tuple(chain(node)) for source in SOURCES for node in ast.walk(tree_of(source)))
    return {names for names in chains if len(names) > 1 and names[0] in modules}


def test_names_of_qt_and_slicer_that_the_code_uses_exist(app: Any) -> None:
    """Slicer's own classes and functions are the real ones here; what the stand-in adds is only as good as that."""
    made_by_a_running_application = {("slicer", "modules"), ("slicer", "testing")}
    unknown = []
    for names in sorted(used_of({"slicer", "qt", "ctk", "vtk"})):
        if names[:2] in made_by_a_running_application:
            continue
        found: Any = __import__(names[0])
        for name in names[1:]:
            if not hasattr(found, name):
                unknown.append(".".join(names))
                break
            found = getattr(found, name)
            if not isinstance(found, type) and not hasattr(found, "__file__") and found is not app:
                break  # the attributes of an object that a call gave are not known here
    assert unknown == []


@cache
def methods_of_slicer() -> frozenset[str]:
    import slicer
    import vtk

    classes = [getattr(m, n) for m in (vtk, slicer) for n in dir(m) if n.startswith("vtk")]
    return frozenset(name for cls in classes if isinstance(cls, type) for name in dir(cls))


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("folder", ["MAISI", "MAISILib/scene"])
def test_methods_of_nodes_that_the_code_calls_exist(folder: str) -> None:
    """Methods of VTK begin with a capital letter; classes of Python also do, and are no methods."""
    called: set[str] = set()
    for name in files_under(folder):
        if name.endswith(".py"):
            nodes = list(ast.walk(tree_of(ROOT / name)))
            imports = [n for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))]
            modules = [[alias.asname or alias.name] for n in imports for alias in n.names]
            functions = [n.func for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
            called |= {f.attr for f in functions if f.attr[0].isupper() and chain(f.value) not in modules}
    assert called
    assert called - methods_of_slicer() == set()
