"""The module ``qt``: PySide6 that behaves like PythonQt, which is what Slicer has.

Stands in for: properties read and set as attributes (``label.text = "…"``), signals connected by their C++ signature
(``button.connect("clicked()", slot)``), slots that are kept alive by their connection and are called with as many
arguments as they take, no new attributes on objects of Qt, ``.ui`` files with stand-ins for Slicer's widgets.

Stricter than PythonQt: a misspelt signal or an unknown widget class of a ``.ui`` file is an error, no line in a log.

Cannot tell: what is different in Qt 5 (Slicer's binaries still have it), and how long PythonQt keeps objects alive.
PySide6's enumerators are no integers and PythonQt's are; code that only compares them with ``==`` runs in both.
"""

from __future__ import annotations

import enum
import inspect
import types
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import cache
from typing import Any

import shiboken6
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

#: Classes that a ``.ui`` file may name and Qt does not have: filled by the files with the stand-in widgets.
WIDGETS: dict[str, type] = {}

_property, _set_property = QtCore.QObject.property, QtCore.QObject.setProperty
_being_read: list[tuple[int, str]] = []
_loading = False  # PySide6 sets the children of a .ui file as attributes of its top widget


@cache
def _qt_properties(cls: type) -> frozenset[str]:
    meta: Any = cls.staticMetaObject  # pyright: ignore[reportAttributeAccessIssue]
    names = frozenset(meta.property(i).name() for i in range(meta.propertyCount()))
    # Newer builds of PythonQt give this name to the static function alone.
    return names - {"singleShot"} if issubclass(cls, QtCore.QTimer) else names


def _is_of_qt(cls: type) -> bool:
    """Whether PythonQt would show the class as one of C++."""
    return cls.__module__.startswith("PySide6") or cls.__name__ in WIDGETS


def _signal(sender: Any, signature: str) -> Any:
    name, _, arguments = signature.replace(" ", "").replace("const", "").replace("&", "").rstrip(")").partition("(")
    signal: Any = getattr(sender, name, None)
    if type(signal) is QtCore.SignalInstance:
        if _is_of_python(type(sender), name):
            return signal
        if sender.metaObject().indexOfSignal(f"{name}({arguments})") >= 0:
            return signal[arguments or ()]  # pyright: ignore[reportIndexIssue]
    raise ValueError(f"{type(sender).__name__} has no signal {signature}")


def _is_of_python(cls: type, signal: str) -> bool:
    """Signals of Python classes have types of Python, which no C++ signature names."""
    return any(signal in c.__dict__ for c in cls.__mro__ if not c.__module__.startswith("PySide6"))


def _positional(slot: Callable[..., Any]) -> int | None:
    """How many arguments PythonQt hands to a function or method at most; None for as many as there are."""
    function = slot.__func__ if inspect.ismethod(slot) else slot
    if not inspect.isfunction(function) or function.__code__.co_flags & inspect.CO_VARARGS:
        return None
    return function.__code__.co_argcount - inspect.ismethod(slot)


def _connect(sender: Any, signature: str, *target: Any) -> bool:
    slot = target[0] if len(target) == 1 else getattr(target[0], target[1].partition("(")[0])
    kinds = signature.partition("(")[2].rstrip(") ")
    given = len(kinds.split(",")) if kinds else 0
    taken = _positional(slot)
    count = given if taken is None else min(given, taken)

    def call(*arguments: Any) -> None:  # holds the slot, as PythonQt does and PySide6 does not
        slot(*arguments[:count])

    _signal(sender, signature).connect(call)
    sender.__dict__.setdefault("_connections", []).append((signature.replace(" ", ""), slot, call))
    return True


def _disconnect(sender: Any, signature: str, *target: Any) -> bool:
    slot = None if not target else target[0] if len(target) == 1 else getattr(target[0], target[1].partition("(")[0])
    connections = sender.__dict__.get("_connections", [])
    ending = [c for c in connections if c[0] == signature.replace(" ", "") and slot in (None, c[1])]
    for connection in ending:
        _signal(sender, signature).disconnect(connection[2])
        connections.remove(connection)
    return bool(ending)


_MANNERS = {"connect": _connect, "disconnect": _disconnect}


def _getter(of_qt: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """The attributes of a class as PythonQt shows them; ``of_qt`` is PySide6's own way, different in each class."""

    def get(self: Any, name: str) -> Any:
        if name in _MANNERS:
            usual = of_qt(self, name)  # PySide6 itself calls this, with signatures that begin with a number

            def either(*arguments: Any) -> Any:
                by_signature = bool(arguments) and isinstance(arguments[0], str) and arguments[0][:1].isalpha()
                return _MANNERS[name](self, *arguments) if by_signature else usual(*arguments)

            return either
        if name[0] == "_" or name not in _qt_properties(type(self)) or (id(self), name) in _being_read:
            return of_qt(self, name)
        _being_read.append((id(self), name))  # PySide6 then looks for a Python override of that name (sizeHint)
        try:
            return _property(self, name)
        finally:
            _being_read.pop()

    return get


def _set(self: Any, name: str, value: Any) -> None:
    cls = type(self)
    if name in _qt_properties(cls):
        meta = self.metaObject()
        if not meta.property(meta.indexOfProperty(name)).isWritable():
            raise AttributeError(f"Property '{name}' of {cls.__name__} is not writable.")
        plain = value.value if isinstance(value, enum.Enum) else value  # PySide6 6.9 takes only their numbers here
        if not _set_property(self, name, plain):
            raise ValueError(f"Property '{name}' of {cls.__name__} cannot be {value!r}.")
        return
    attribute = inspect.getattr_static(cls, name, None)
    if isinstance(attribute, property):
        attribute.__set__(self, value)
    elif name[0] == "_" or _loading or not _is_of_qt(cls):
        self.__dict__[name] = value
    elif name.encode() in self.dynamicPropertyNames():
        _set_property(self, name, value)
    else:
        raise AttributeError(f"{cls.__name__} has no attribute '{name}', and C++ objects get no new ones from Python.")


class QUiLoader(QtUiTools.QUiLoader):
    """Makes the widgets of a ``.ui`` file, also those of WIDGETS, and its connections."""

    def createWidget(self, className: str, parent: Any = None, name: str = "") -> Any:
        cls = WIDGETS.get(className) or getattr(QtWidgets, className, None)
        if cls is None:
            self._unknown.append(className)
            cls = QtWidgets.QWidget
        widget = cls(parent) if parent is not None else cls()
        widget.setObjectName(name)
        return widget

    def load(self, file: Any, parentWidget: Any = None) -> Any:
        global _loading
        path = file.fileName() if isinstance(file, QtCore.QFile) else str(file)
        root = ET.parse(path).getroot()
        self._unknown: list[str] = []
        connections = root.find("connections")
        if connections is not None:
            root.remove(connections)  # Qt finds no slots that are written in Python
        buffer = QtCore.QBuffer()
        buffer.setData(QtCore.QByteArray(ET.tostring(root)))
        buffer.open(QtCore.QBuffer.OpenModeFlag.ReadOnly)
        _loading = True
        try:
            top = super().load(buffer, parentWidget)
        finally:
            _loading = False
        if self._unknown:
            raise ValueError(f"{path}: neither a widget of Qt nor of the stand-in: {', '.join(self._unknown)}")
        for connection in connections if connections is not None else ():
            ends = {part: connection.findtext(part, "") for part in ("sender", "signal", "receiver", "slot")}
            sender, receiver = (self._named(top, ends[end]) for end in ("sender", "receiver"))
            _connect(sender, ends["signal"], receiver, ends["slot"])
        return top

    @staticmethod
    def _named(top: Any, name: str) -> Any:
        found = top if top.objectName == name else top.findChild(QtCore.QObject, name)
        if found is None:
            raise ValueError(f"A connection of the .ui file names {name}, which is not in it.")
        return found


def make_qt() -> types.ModuleType:
    """Gives the classes of PySide6 the manners of PythonQt, for the whole process, and puts them into one module."""
    qt: Any = types.ModuleType("qt", __doc__)
    for module in (QtCore, QtGui, QtWidgets):
        for name in dir(module):  # not vars(): PySide6 makes its classes when they are first asked for
            if name.startswith("Q"):
                setattr(qt, name, getattr(module, name))
    any_class: Any = QtCore.QObject
    any_class.name = property(lambda self: self.objectName, lambda self, value: self.setObjectName(value))
    any_class.className = lambda self: self.metaObject().className()
    any_class.delete = lambda self: shiboken6.delete(self)
    any_class.__bool__ = lambda self: shiboken6.isValid(self)
    classes = [cls for cls in vars(qt).values() if isinstance(cls, type) and issubclass(cls, QtCore.QObject)]
    getters = [_getter(cls.__getattribute__) for cls in classes]  # of all classes, before the first one changes
    for cls, get in zip(classes, getters, strict=True):
        cls.__getattribute__, cls.__setattr__ = get, _set
        if "exec" in cls.__dict__:
            cls.exec_ = cls.__dict__["exec"]  # pyright: ignore[reportAttributeAccessIssue]
    qt.QUiLoader = QUiLoader
    qt.Signal, qt.Slot, qt.Property = QtCore.Signal, QtCore.Slot, QtCore.Property
    return qt
