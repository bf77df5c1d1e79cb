"""The widgets of Slicer that follow a MRML scene, made on the real scene of slicer-core.

Stand in for: which nodes a selector offers, its current node, and its signals. Cannot tell: the order of signals of the
real ones when several nodes come and go at once, menus, icons, and everything that is not here.
"""

from __future__ import annotations

from typing import Any

from PySide6 import QtWidgets
from PySide6.QtCore import Signal

from Testing.slicer_standin.ctk_widgets import Property, stored
from Testing.slicer_standin.pythonqt import WIDGETS


class qMRMLWidget(QtWidgets.QWidget):
    """A widget with a scene, which it hands on by its signal."""

    mrmlSceneChanged = Signal(object)

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)

    def mrmlScene(self) -> Any:
        return self.__dict__.get("_scene")


class qSlicerWidget(qMRMLWidget):
    """What the panel of a module is put into."""


def _stop_observing(observed: list[tuple[Any, int]]) -> None:
    while observed:
        subject, tag = observed.pop()
        subject.RemoveObserver(tag)


class qMRMLNodeComboBox(QtWidgets.QComboBox):
    """Offers the nodes of some classes. It chooses none by itself, and loses its node with the scene's."""

    currentNodeChanged = Signal(object)
    currentNodeIDChanged = Signal(str)
    nodeActivated = Signal(object)
    nodeAddedByUser = Signal(object)
    mrmlSceneChanged = Signal(object)
    noneEnabled = stored(bool, "noneEnabled", False)
    noneDisplay = stored(str, "noneDisplay", "None")
    addEnabled = stored(bool, "addEnabled", True)
    removeEnabled = stored(bool, "removeEnabled", True)
    renameEnabled = stored(bool, "renameEnabled", False)
    editEnabled = stored(bool, "editEnabled", False)
    showChildNodeTypes = stored(bool, "showChildNodeTypes", True)
    showHidden = stored(bool, "showHidden", False)
    selectNodeUponCreation = stored(bool, "selectNodeUponCreation", True)
    hideChildNodeTypes = stored("QStringList", "hideChildNodeTypes", [])
    baseName = stored(str, "baseName", "")

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._observed: list[tuple[Any, int]] = []
        self._named: list[tuple[Any, int]] = []
        both = (self._observed, self._named)
        self.destroyed.connect(lambda: [_stop_observing(observed) for observed in both])
        self._classes: list[str] = []
        self._ids: list[str] = []
        self._current = ""
        self.activated.connect(self._choose)

    def setMRMLScene(self, scene: Any) -> None:
        _stop_observing(self._observed)
        self._scene = scene
        if scene is not None:
            for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndBatchProcessEvent):
                self._observed.append((scene, scene.AddObserver(event, lambda *_: self._offer())))
        self._offer()
        self.mrmlSceneChanged.emit(scene)

    def mrmlScene(self) -> Any:
        return self._scene

    def currentNode(self) -> Any:
        return self._scene.GetNodeByID(self._current) if self._scene is not None and self._current else None

    def setCurrentNode(self, node: Any) -> None:
        self._select("" if node is None else node.GetID())

    def setCurrentNodeID(self, identifier: str | None) -> None:
        self._select(identifier or "")

    def nodeCount(self) -> int:
        return len([identifier for identifier in self._ids if identifier])

    def nodeFromIndex(self, index: int) -> Any:
        return self._scene.GetNodeByID(self._ids[index])

    def addNode(self, className: str = "") -> Any:
        className = className or self._classes[0]
        base = self.baseName or className.removeprefix("vtkMRML").removesuffix("Node")
        node = self._scene.AddNewNodeByClass(className, self._scene.GenerateUniqueName(base))
        self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    def _set_classes(self, classes: list[str] | tuple[str, ...] | str) -> None:
        self._classes = [classes] if isinstance(classes, str) else list(classes)
        self._offer()

    nodeTypes = Property("QStringList", lambda self: tuple(self._classes), _set_classes)
    currentNodeID = Property(str, lambda self: self._current, setCurrentNodeID)

    def _fits(self, node: Any) -> bool:
        name = node.GetClassName()
        if (node.GetHideFromEditors() and not self.showHidden) or name in self.hideChildNodeTypes:
            return False
        return any(name == c or (self.showChildNodeTypes and node.IsA(c)) for c in self._classes)

    def _offer(self) -> None:
        if self._scene is not None and self._scene.IsBatchProcessing():
            return
        nodes = self._scene.GetNodes() if self._scene is not None else ()
        fitting = [node for node in nodes if self._fits(node)]
        _stop_observing(self._named)
        self._named += [(node, node.AddObserver("ModifiedEvent", lambda *_: self._name())) for node in fitting]
        self._ids = ([""] if self.noneEnabled else []) + [node.GetID() for node in fitting]
        self.clear()
        self.addItems(([self.noneDisplay] if self.noneEnabled else []) + [node.GetName() or "" for node in fitting])
        self._select(self._current)

    def _name(self) -> None:
        for index, identifier in enumerate(self._ids):
            node = self._scene.GetNodeByID(identifier) if identifier else None
            if node is not None:
                self.setItemText(index, node.GetName())

    def _select(self, identifier: str) -> None:
        identifier = identifier if identifier in self._ids else ""
        self.setCurrentIndex(self._ids.index(identifier) if identifier in self._ids else -1)
        if identifier != self._current:
            self._current = identifier
            self.currentNodeChanged.emit(self.currentNode())
            self.currentNodeIDChanged.emit(identifier)

    def _choose(self, index: int) -> None:
        self._select(self._ids[index])
        self.nodeActivated.emit(self.currentNode())


def mrml_widgets() -> dict[str, type]:
    """The widgets by name, which are in the module ``slicer`` in Slicer; also made known to ``.ui`` files."""
    found = {name: cls for name, cls in globals().items() if name.startswith(("qMRML", "qSlicer"))}
    WIDGETS.update(found)
    return found
