"""A stand-in for the Slicer application, for tests of its modules without Slicer.

Slicer's scene and logics are the real ones (slicer-core), the widgets are real ones of Qt (PySide6), and the rest is
written here, one file for each part; each file says what it stands in for and what it cannot tell. A test that passes
here says that the logic is right and that the panel is wired. It does not say that the module works in Slicer; for
that, Slicer runs the module's own test.

``install()`` makes ``import qt, ctk, slicer`` work as in Slicer, for the whole process. ``loadModule(path)`` loads a
scripted module.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any


def install() -> Any:
    """Starts the application, once in a process.

    Returns:
        ``slicer.app``.
    """
    import slicer as _slicer

    slicer: Any = _slicer
    if hasattr(slicer, "app"):
        return slicer.app
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

    from Testing.slicer_standin import pythonqt

    sys.modules["qt"] = pythonqt.make_qt()
    from Testing.slicer_standin import ctk_widgets, mrml_widgets, scripted_modules, segment_editor

    sys.modules["ctk"] = ctk_widgets.make_ctk()
    for name, module in {**scripted_modules.modules(), **segment_editor.modules()}.items():
        sys.modules[name] = module
        if name.startswith("slicer."):
            setattr(slicer, name.partition(".")[2], module)

    from Testing.slicer_standin import application
    from Testing.slicer_standin.dialogs import DIALOGS

    for name in ("modules", "moduleNames"):
        module = types.ModuleType(f"slicer.{name}")
        setattr(slicer, name, module)
        sys.modules[module.__name__] = module
    classes = (segment_editor.qMRMLSegmentEditorWidget, segment_editor.qSlicerSegmentEditorEffectFactory)
    classes += (application.qSlicerScriptedLoadableModule, application.qSlicerScriptedLoadableModuleWidget)
    for cls in (*mrml_widgets.mrml_widgets().values(), *classes):
        setattr(slicer, cls.__name__, cls)
    app = application.Application()
    slicer.app, slicer.mrmlScene = app, app.mrmlScene()
    app.start()
    DIALOGS.install(slicer.util)
    return app


def loadModule(path: Path | str, enter: bool = True) -> Any:
    """Does with a scripted module what Slicer does at its start and when the module is chosen.

    Args:
        path: The file of the module; its class, and that of its panel, are named after it.
        enter: Also make and enter the panel, unless the module is hidden.

    Returns:
        The panel (``slicer.modules.<name>Widget``), or the description of the module where there is no panel.
    """
    import slicer as _slicer

    slicer: Any = _slicer
    path = Path(path)
    name, app = path.stem, install()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec, path
    assert spec.loader, path
    python = importlib.util.module_from_spec(spec)
    sys.modules[name] = python
    spec.loader.exec_module(python)
    module = slicer.qSlicerScriptedLoadableModule(name, str(path))
    app.moduleManager().add(module)
    described = getattr(python, name)(module)
    setattr(slicer.modules, f"{name}Instance", described)
    app.startupCompleted.emit()
    app.disconnect("startupCompleted()")  # a module hears of the start once
    if not enter or module.hidden or not hasattr(python, f"{name}Widget"):
        return described

    def make(frame: Any) -> Any:
        panel = getattr(sys.modules[name], f"{name}Widget")(frame)
        setattr(slicer.modules, f"{name}Widget", panel)
        return panel

    module._representation = slicer.qSlicerScriptedLoadableModuleWidget(make)
    app._window.moduleSelector().selectModule(name)
    return module.widgetRepresentation().self()


def unloadModule(name: str) -> None:
    """Does with a module what Slicer does when it quits."""
    import slicer as _slicer

    slicer: Any = _slicer
    manager = slicer.app.moduleManager()
    module = manager.modules.pop(name, None)
    if module is None:
        return
    frame = module.widgetRepresentation()
    selector = slicer.util.mainWindow().moduleSelector()
    if selector.selectedModule == name:
        frame.exit()
        selector.selectedModule = ""
    manager.moduleAboutToBeUnloaded.emit(name)
    if frame is not None:
        frame.delete()
    for attribute in (name.lower(), f"{name}Instance", f"{name}Widget"):
        vars(slicer.modules).pop(attribute, None)
    sys.modules.pop(name, None)
