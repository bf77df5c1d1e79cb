"""``slicer.ScriptedLoadableModule``, ``slicer.i18n`` and ``slicer.packaging``, as far as modules build on them.

Stand in for: base classes and their attributes, texts that stay as they are, and installing packages, which is recorded
only. Cannot tell: the developer's reload section, translations, and whether a package can be installed.
"""

from __future__ import annotations

import os
import types
import unittest
from pathlib import Path
from typing import Any

import slicer as _slicer
from PySide6 import QtGui

slicer: Any = _slicer


class ScriptedLoadableModule:
    """Describes a module to Slicer."""

    def __init__(self, parent: Any) -> None:
        self.parent = parent
        parent.title, parent.categories, parent.dependencies = "", [], []
        parent.contributors, parent.helpText, parent.acknowledgementText = [], "", ""
        self.moduleName = type(self).__name__
        icons = [self.resourcePath(f"Icons/{self.moduleName}{suffix}") for suffix in (".svg", ".png")]
        parent.icon = next((QtGui.QIcon(icon) for icon in icons if os.path.isfile(icon)), QtGui.QIcon())

    def resourcePath(self, filename: str) -> str:
        return os.path.join(os.path.dirname(self.parent.path), "Resources", filename)

    def getDefaultModuleDocumentationLink(self, docPage: str | None = None) -> str:
        return f'<p>See the <a href="https://example.org/{docPage or self.moduleName}">documentation</a>.</p>'


class ScriptedLoadableModuleWidget:
    """The panel of a module; ``parent`` is the frame that it goes into."""

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.parent = parent
        self.layout = parent.layout()
        self.logic: Any = None
        self.developerMode = False
        slicer.app.moduleManager().connect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def resourcePath(self, filename: str) -> str:
        module = slicer.app.moduleManager().module(self.moduleName)
        return os.path.join(os.path.dirname(module.path), "Resources", filename)

    def setup(self) -> None:
        """Here comes the section for developers in Slicer."""

    def enter(self) -> None:
        """The module is chosen."""

    def exit(self) -> None:
        """Another module is chosen."""

    def cleanup(self) -> None:
        """The panel is about to be removed."""

    def onReload(self) -> None:
        slicer.util.reloadScriptedModule(self.moduleName)

    def _onModuleAboutToBeUnloaded(self, moduleName: str) -> None:
        if moduleName == self.moduleName:
            self.cleanup()
            slicer.app.moduleManager().disconnect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)


class ScriptedLoadableModuleTest(unittest.TestCase):
    """The test that a module carries in itself."""

    def delayDisplay(self, message: str, requestedDelay: int | None = None, msec: int | None = None) -> None:
        slicer.util.delayDisplay(message)

    def runTest(self) -> None:
        """Overridden by the module."""


#: What `pip_ensure` and `pip_install` were asked for; a test may set `declined` to refuse.
installed: list[Any] = []
declined = False


def pip_ensure(requirements: list[Any], requester: str | None = None, **options: Any) -> None:
    if declined:
        raise RuntimeError("User declined package installation")
    installed.extend(requirements)


def pip_install(requirements: Any, **options: Any) -> None:
    installed.append(requirements)


def load_requirements(path: Any) -> list[str]:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def modules() -> dict[str, types.ModuleType]:
    """The Python modules by the names under which Slicer has them."""
    bases = (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleTest,
    )
    contents: dict[str, dict[str, Any]] = {
        "slicer.ScriptedLoadableModule": {cls.__name__: cls for cls in bases},
        "slicer.i18n": {"tr": lambda text: text, "translate": lambda context, text: text},
        "slicer.packaging": {f.__name__: f for f in (pip_ensure, pip_install, load_requirements)},
    }
    made = {}
    for name, content in contents.items():
        made[name] = types.ModuleType(name, __doc__)
        vars(made[name]).update(content)
    return made
