"""The module ``ctk``: the widgets of CTK that the panel uses, with the properties and signals of the real ones.

Stands in for: names, values, limits and the signals of changes. Cannot tell: looks and sizes, keyboard and mouse,
default values beyond those written here, and everything of CTK that is not here.
"""

from __future__ import annotations

import types
from typing import Any

from PySide6 import QtCore, QtWidgets
from PySide6.QtCore import Qt, Signal

from Testing.slicer_standin.pythonqt import WIDGETS

Property: Any = QtCore.Property  # its types do not know that a property may be read as an attribute


def stored(kind: Any, name: str, default: Any, signal: str = "") -> Any:
    """A Qt property that keeps a value, and emits a signal with it when it changes."""
    place = f"_{name}"

    def change(self: Any, value: Any) -> None:
        if self.__dict__.get(place, default) != value:
            self.__dict__[place] = value
            if signal:
                getattr(self, signal).emit(value)

    return Property(kind, lambda self: self.__dict__.get(place, default), change)


class ctkCollapsibleButton(QtWidgets.QWidget):
    """A button that shows and hides what is below it.

    What is inside keeps its own visibility: the collapsed widget is only not higher than its button.
    """

    contentsCollapsed = Signal(bool)
    clicked = Signal(bool)

    def __init__(self, text: Any = "", parent: Any = None) -> None:
        text, parent = ("", text) if isinstance(text, QtWidgets.QWidget) else (text, parent)
        super().__init__(parent)
        self._button: Any = QtWidgets.QToolButton(self)
        self._button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self._button.setArrowType(Qt.ArrowType.DownArrow)
        self._button.setSizePolicy(QtWidgets.QSizePolicy.Policy.Ignored, QtWidgets.QSizePolicy.Policy.Fixed)
        self._button.setText(text)
        self._button.clicked.connect(self._toggle)
        self._height = self._button.sizeHint.height()
        self.setContentsMargins(0, self._height, 0, 0)

    def resizeEvent(self, event: Any) -> None:
        self._button.setGeometry(0, 0, event.size().width(), self._height)

    def _toggle(self) -> None:
        self._collapse(not self._is_collapsed())
        self.clicked.emit(self._is_collapsed())

    def _is_collapsed(self) -> bool:
        return self.__dict__.get("_collapsed", False)

    def _collapse(self, collapsed: bool) -> None:
        if collapsed != self._is_collapsed():
            self._collapsed = collapsed
            self._button.setArrowType(Qt.ArrowType.RightArrow if collapsed else Qt.ArrowType.DownArrow)
            self.setMaximumHeight(self._height if collapsed else 16777215)
            self.contentsCollapsed.emit(collapsed)

    text = Property(str, lambda self: self._button.text, lambda self, text: self._button.setText(text))
    collapsed = Property(bool, _is_collapsed, _collapse)


class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):
    """A group box that shows and hides what is in it, by its title."""

    toggled = Signal(bool)

    def _is_collapsed(self) -> bool:
        return self.__dict__.get("_collapsed", False)

    def _collapse(self, collapsed: bool) -> None:
        if collapsed != self._is_collapsed():
            self._collapsed = collapsed
            self.setMaximumHeight(self.fontMetrics().height() + 4 if collapsed else 16777215)
            self.setFlat(collapsed)
            self.toggled.emit(not collapsed)

    def mousePressEvent(self, event: Any) -> None:
        if event.position().y() <= self.fontMetrics().height() + 4:
            self._collapse(not self._is_collapsed())

    collapsed = Property(bool, _is_collapsed, _collapse)


class ctkSliderWidget(QtWidgets.QWidget):
    """A slider with a spin box beside it."""

    valueChanged = Signal(float)
    valueIsChanging = Signal(float)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._slider: Any = QtWidgets.QSlider(Qt.Orientation.Horizontal, self)
        self._box: Any = QtWidgets.QDoubleSpinBox(self)
        self._slider.setRange(0, 1000)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider)
        layout.addWidget(self._box)
        self._box.valueChanged.connect(self._show)
        self._slider.sliderMoved.connect(self._move)

    def _show(self, value: float) -> None:
        extent = self._box.maximum - self._box.minimum
        self._slider.setValue(round(1000 * (value - self._box.minimum) / extent) if extent else 0)
        self.valueChanged.emit(value)

    def _move(self, position: int) -> None:
        self._box.setValue(self._box.minimum + (self._box.maximum - self._box.minimum) * position / 1000)

    def setValue(self, value: float) -> None:
        self._box.setValue(value)

    def setRange(self, minimum: float, maximum: float) -> None:
        self._box.setRange(minimum, maximum)

    value = Property(float, lambda self: self._box.value, setValue)
    minimum = Property(float, lambda self: self._box.minimum, lambda self, value: self._box.setMinimum(value))
    maximum = Property(float, lambda self: self._box.maximum, lambda self, value: self._box.setMaximum(value))
    singleStep = Property(float, lambda self: self._box.singleStep, lambda self, value: self._box.setSingleStep(value))
    pageStep = stored(float, "pageStep", 10.0)
    decimals = Property(int, lambda self: self._box.decimals, lambda self, value: self._box.setDecimals(value))
    suffix = Property(str, lambda self: self._box.suffix, lambda self, value: self._box.setSuffix(value))
    prefix = Property(str, lambda self: self._box.prefix, lambda self, value: self._box.setPrefix(value))
    tracking = stored(bool, "tracking", True)


def make_ctk() -> types.ModuleType:
    """The module, and its widgets for ``.ui`` files."""
    ctk = types.ModuleType("ctk", __doc__)
    for name, cls in list(globals().items()):
        if name.startswith("ctk"):
            setattr(ctk, name, cls)
            WIDGETS[name] = cls
    return ctk
