"""``slicer.app`` and what hangs on it: scene, logics of Slicer's modules, layout, modules, settings, main window.

Stands in for: the calls of the panel on the application. The scene, its logics, the layout and its view nodes are
Slicer's own code. Cannot tell: what is drawn in the views (there are none), reading and writing through Slicer's
dialogs, command line modules.
"""

from __future__ import annotations

import tempfile
import types
from pathlib import Path
from typing import Any

import slicer as _slicer
import vtk as _vtk
from PySide6 import QtCore, QtWidgets

from Testing.slicer_standin.mrml_widgets import qSlicerWidget

slicer: Any = _slicer
vtk: Any = _vtk

LOGICS = {
    "Colors": "vtkMRMLColorLogic",
    "Plots": "vtkSlicerPlotsLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Units": "vtkSlicerUnitsLogic",
    "Volumes": "vtkSlicerVolumesLogic",
}


class Module:
    """What PythonQt shows of a module. Like there, it has these attributes and takes no others."""

    __slots__ = (
        "_logic",
        "_representation",
        "acknowledgementText",
        "associatedNodeTypes",
        "categories",
        "contributors",
        "dependencies",
        "helpText",
        "hidden",
        "icon",
        "index",
        "name",
        "path",
        "title",
        "widgetRepresentationCreationEnabled",
    )  # fmt: skip

    def __init__(self, name: str, path: str = "", logic: Any = None) -> None:
        self.name, self.title, self.path, self._logic, self._representation = name, name, path, logic, None
        self.hidden, self.widgetRepresentationCreationEnabled = False, True

    def logic(self) -> Any:
        return self._logic

    def widgetRepresentation(self) -> Any:
        return self._representation


class qSlicerScriptedLoadableModule(Module):
    """A module written in Python."""

    __slots__ = ()


class qSlicerScriptedLoadableModuleWidget(qSlicerWidget):
    """The frame that a scripted module puts its panel into."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self._make = make
        self._entered = False
        self.setLayout(QtWidgets.QVBoxLayout())
        self.setMRMLScene(slicer.mrmlScene)
        self.reload()

    def self(self) -> Any:
        return self._python

    def reload(self) -> None:
        self._python = self._make(self)
        self._python.setup()

    def isEntered(self) -> bool:
        return self._entered

    def enter(self) -> None:
        self._entered = True
        self._python.enter()

    def exit(self) -> None:
        self._entered = False
        self._python.exit()


class ModuleManager(QtCore.QObject):
    """Knows the modules by name."""

    moduleAboutToBeUnloaded = QtCore.Signal(str)
    moduleLoaded = QtCore.Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self.modules: dict[str, Module] = {}

    def add(self, module: Module) -> None:
        self.modules[module.name] = module
        setattr(slicer.modules, module.name.lower(), module)
        setattr(slicer.moduleNames, module.name, module.name)
        self.moduleLoaded.emit(module.name)

    def module(self, name: str) -> Module | None:
        return self.modules.get(name)

    def modulesNames(self) -> tuple[str, ...]:
        return tuple(self.modules)

    def loadedModuleNames(self) -> tuple[str, ...]:
        return tuple(self.modules)

    def factoryManager(self) -> Any:
        return self


class ModuleSelector:
    """The menu of modules: selecting one leaves the last and enters it."""

    selectedModule = ""

    def selectModule(self, name: str) -> None:
        for module, call in ((self.selectedModule, "exit"), (name, "enter")):
            found = slicer.app.moduleManager().module(module)
            frame = found.widgetRepresentation() if found is not None else None
            if frame is not None:
                getattr(frame, call)()
        self.selectedModule = name


class MainWindow(QtWidgets.QMainWindow):
    """The window with the status bar and the menu of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self._selector = ModuleSelector()

    def moduleSelector(self) -> ModuleSelector:
        return self._selector


class SliceWidget:
    """A slice view: its logic and its nodes, without a window."""

    def __init__(self, logic: Any) -> None:
        self._logic = logic

    def sliceLogic(self) -> Any:
        return self._logic

    def mrmlSliceNode(self) -> Any:
        return self._logic.GetSliceNode()


class ViewWidget:
    """A plot or table view: its node, without a window."""

    def __init__(self, node: Any) -> None:
        self._node = node

    def mrmlPlotViewNode(self) -> Any:
        return self._node

    def mrmlTableViewNode(self) -> Any:
        return self._node


class LayoutManager:
    """The arrangement of the views. Slicer's own logic makes the view nodes; the three slices also have logics."""

    def __init__(self, application_logic: Any) -> None:
        self._logic = slicer.vtkMRMLLayoutLogic()
        self._logic.SetMRMLApplicationLogic(application_logic)
        self._logic.SetMRMLScene(slicer.mrmlScene)
        self._slices: dict[str, SliceWidget] = {}
        self.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        for name in ("Red", "Green", "Yellow"):  # in the order of the layout
            logic = slicer.vtkMRMLSliceLogic()
            logic.SetMRMLScene(slicer.mrmlScene)
            logic.SetMRMLApplicationLogic(application_logic)
            logic.SetSliceNode(slicer.mrmlScene.GetNodeByID(f"vtkMRMLSliceNode{name}"))
            application_logic.GetSliceLogics().AddItem(logic)
            self._slices[name] = SliceWidget(logic)

    @property
    def layout(self) -> int:
        return self.layoutLogic().GetLayoutNode().GetViewArrangement()

    def setLayout(self, layout: int) -> None:
        self.layoutLogic().GetLayoutNode().SetViewArrangement(layout)

    def layoutLogic(self) -> Any:
        return self._logic

    def sliceViewNames(self) -> tuple[str, ...]:
        return tuple(self._slices)

    def sliceWidget(self, name: str) -> SliceWidget:
        return self._slices[name]

    def plotWidget(self, index: int) -> ViewWidget | None:
        node = slicer.mrmlScene.GetNthNodeByClass(index, "vtkMRMLPlotViewNode")
        return None if node is None else ViewWidget(node)

    def tableWidget(self, index: int) -> ViewWidget | None:
        node = slicer.mrmlScene.GetNthNodeByClass(index, "vtkMRMLTableViewNode")
        return None if node is None else ViewWidget(node)

    threeDViewCount = 0

    def threeDWidget(self, index: int) -> None:
        """There is no 3D view."""

    def resetSliceViews(self) -> None:
        for widget in self._slices.values():
            widget.sliceLogic().FitSliceToAll()

    resetThreeDViews = resetSliceViews


class Application(QtWidgets.QApplication):
    """``slicer.app``."""

    startupCompleted = QtCore.Signal()

    def __init__(self) -> None:
        super().__init__(["Slicer"])
        self.setApplicationName("Slicer")
        self.setOrganizationName("slicer.org")
        self.setStyle("Fusion")  # on every system the same
        self._folder = tempfile.TemporaryDirectory(prefix="slicer standin ")  # with a space, as on users' machines
        for scope in (QtCore.QSettings.Scope.UserScope, QtCore.QSettings.Scope.SystemScope):
            QtCore.QSettings.setPath(QtCore.QSettings.Format.IniFormat, scope, self.temporaryPath)
        QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
        self._scene = slicer.vtkMRMLScene()
        self._logic = slicer.vtkSlicerApplicationLogic()
        self._modules = ModuleManager()

    majorVersion, minorVersion, revision, platform = 5, 13, "stand-in", "linux-amd64"

    def start(self) -> None:
        """Sets the scene up as the application does, and opens the main window."""
        scene, logic = self._scene, self._logic
        logic.SetMRMLScene(scene)
        logic.SetTemporaryPath(self.temporaryPath)
        logic.SetSliceLogics(vtk.vtkCollection())
        logic.SetViewLogics(vtk.vtkCollection())
        for name, cls in LOGICS.items():
            module_logic = getattr(slicer, cls)()
            module_logic.SetMRMLScene(scene)
            module_logic.SetMRMLApplicationLogic(logic)
            logic.SetModuleLogic(name, module_logic)
            self._modules.add(Module(name, logic=module_logic))
        logic.GetModuleLogic("Colors").AddDefaultColorNodes()
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
        slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        self._layout = LayoutManager(logic)
        self._window = MainWindow()
        self.aboutToQuit.connect(self._folder.cleanup)

    @property
    def temporaryPath(self) -> str:
        return self._folder.name

    @property
    def slicerHome(self) -> str:
        return str(Path(self._folder.name) / "Slicer 5.13")

    def mrmlScene(self) -> Any:
        return self._scene

    def applicationLogic(self) -> Any:
        return self._logic

    def layoutManager(self) -> LayoutManager:
        return self._layout

    def moduleManager(self) -> ModuleManager:
        return self._modules

    def settings(self) -> QtCore.QSettings:
        return QtCore.QSettings()

    userSettings = revisionUserSettings = settings

    def startupEnvironment(self) -> Any:
        return QtCore.QProcessEnvironment.systemEnvironment()

    def testingEnabled(self) -> bool:
        return False

    def commandOptions(self) -> Any:
        return types.SimpleNamespace(testingEnabled=False, noMainWindow=False, noSplash=True)
