"""The Segment Editor as far as a scripted effect sees it: registering, activation, options frame, parameters, nodes.

Stands in for: ``SegmentEditorEffects``, ``qSlicerSegmentationsEditorEffectsPythonQt``, the effect factory, and an
editor that shows one effect at a time on a real node. Cannot tell: painting, undo, views, and the order in which the
real editor calls an effect while several of its nodes change at once.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import slicer as _slicer
from PySide6 import QtWidgets

from Testing.slicer_standin.mrml_widgets import qMRMLWidget

slicer: Any = _slicer


class AbstractScriptedSegmentEditorEffect:
    """Base of effects written in Python; each method may be overridden."""

    def __init__(self, scriptedEffect: Any) -> None:
        self.scriptedEffect = scriptedEffect

    def register(self) -> None:
        slicer.qSlicerSegmentEditorEffectFactory.instance().registerEffect(self.scriptedEffect)

    def createCursor(self, widget: Any) -> None:
        """The stand-in has no views."""

    def setupOptionsFrame(self) -> None: ...
    def setMRMLDefaults(self) -> None: ...
    def activate(self) -> None: ...
    def deactivate(self) -> None: ...
    def cleanup(self) -> None: ...
    def updateGUIFromMRML(self) -> None: ...
    def updateMRMLFromGUI(self) -> None: ...
    def sourceVolumeNodeChanged(self) -> None: ...
    def referenceGeometryChanged(self) -> None: ...
    def layoutChanged(self) -> None: ...


class qSlicerSegmentEditorScriptedEffect:
    """The C++ half of an effect, with the calls that its Python half makes on it."""

    def __init__(self, parent: Any = None) -> None:
        self.name, self.title, self.perSegment, self.requireSegments = "", "", True, True
        self.showEffectCursorInSliceView = self.showEffectCursorInThreeDView = True
        self._editor: Any = None
        self._python: Any = None
        self._frame = QtWidgets.QFrame()
        self._frame.setLayout(QtWidgets.QFormLayout())

    def setPythonSource(self, path: str) -> None:
        """Makes the class SegmentEditorEffect of a file, which is loaded once, under the name of its folder.

        Afterwards that name is the file's: it is no package, and nothing else can be imported from the folder.
        """
        name = Path(path).parent.name
        if not hasattr(sys.modules.get(name), "SegmentEditorEffect"):
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec, path
            assert spec.loader, path
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        self._python = sys.modules[name].SegmentEditorEffect(self)

    def self(self) -> Any:
        return self._python

    def parameterSetNode(self) -> Any:
        return None if self._editor is None else self._editor.mrmlSegmentEditorNode()

    def optionsFrame(self) -> Any:
        return self._frame

    def optionsLayout(self) -> Any:
        return self._frame.layout()

    def addOptionsWidget(self, widget: Any) -> None:
        self.optionsLayout().addRow(widget)

    def _attribute(self, name: str) -> str:
        return f"{self.name}.{name}"

    def parameterDefined(self, name: str) -> bool:
        return self.parameterSetNode().GetAttribute(self._attribute(name)) is not None

    def parameter(self, name: str) -> str:
        return self.parameterSetNode().GetAttribute(self._attribute(name)) or ""

    def integerParameter(self, name: str) -> int:
        return int(self.parameter(name))

    def setParameter(self, name: str, value: Any) -> None:
        self.parameterSetNode().SetAttribute(self._attribute(name), str(value))

    def setParameterDefault(self, name: str, value: Any) -> None:
        if not self.parameterDefined(name):
            self.setParameter(name, value)


class qSlicerSegmentEditorEffectFactory:
    """Knows the registered effects."""

    _instance: Any = None

    def __init__(self) -> None:
        self.effects: dict[str, Any] = {}

    @classmethod
    def instance(cls) -> qSlicerSegmentEditorEffectFactory:
        cls._instance = cls._instance or cls()
        return cls._instance

    def registerEffect(self, effect: Any) -> bool:
        known = effect.name in self.effects
        self.effects.setdefault(effect.name, effect)
        return not known


class qMRMLSegmentEditorWidget(qMRMLWidget):
    """An editor of one segmentation: it works with clones of the registered effects."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._node: Any = None
        self._tag: int | None = None
        self._active: Any = None
        layout = QtWidgets.QVBoxLayout(self)
        self._effects: dict[str, Any] = {}
        for name, effect in qSlicerSegmentEditorEffectFactory.instance().effects.items():
            clone = effect.self().clone()
            clone._editor = self
            clone.self().setupOptionsFrame()
            clone.optionsFrame().hide()
            layout.addWidget(clone.optionsFrame())
            self._effects[name] = clone

    def setMRMLSegmentEditorNode(self, node: Any) -> None:
        if self._node is not None:
            self._node.RemoveObserver(self._tag)
        self._node = node
        if node is not None:
            self._tag = node.AddObserver("ModifiedEvent", lambda *_: self._show())
            for effect in self._effects.values():
                effect.self().setMRMLDefaults()

    def mrmlSegmentEditorNode(self) -> Any:
        return self._node

    def setSegmentationNode(self, node: Any) -> None:
        self._node.SetAndObserveSegmentationNode(node)

    def setSourceVolumeNode(self, node: Any) -> None:
        self._node.SetAndObserveSourceVolumeNode(node)
        if self._active is not None:
            self._active.self().sourceVolumeNodeChanged()

    def segmentationNode(self) -> Any:
        return self._node.GetSegmentationNode()

    def sourceVolumeNode(self) -> Any:
        return self._node.GetSourceVolumeNode()

    def effectByName(self, name: str) -> Any:
        return self._effects.get(name)

    def activeEffect(self) -> Any:
        return self._active

    def setActiveEffectByName(self, name: str) -> None:
        self.setActiveEffect(self._effects.get(name))

    def setActiveEffect(self, effect: Any) -> None:
        if self._active is not None and self._active is not effect:
            self._active.self().deactivate()
            self._active.optionsFrame().hide()
        self._active = effect
        if effect is not None:
            effect.optionsFrame().show()
            effect.self().activate()
            self._show()

    def discard(self) -> None:
        """What happens to effects when the editor goes: they are cleaned up and deleted."""
        self.setActiveEffect(None)
        self.setMRMLSegmentEditorNode(None)
        for effect in self._effects.values():
            effect.self().cleanup()
        self._effects = {}

    def _show(self) -> None:
        if self._active is not None:
            self._active.self().updateGUIFromMRML()


def modules() -> dict[str, types.ModuleType]:
    """The Python modules by the names under which Slicer has them."""
    classes = {
        "SegmentEditorEffects": AbstractScriptedSegmentEditorEffect,
        "qSlicerSegmentationsEditorEffectsPythonQt": qSlicerSegmentEditorScriptedEffect,
    }
    made = {name: types.ModuleType(name, __doc__) for name in classes}
    for name, cls in classes.items():
        setattr(made[name], cls.__name__, cls)
    return made
