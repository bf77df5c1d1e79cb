"""Sizes of the organs that a bundle's mask generator can control: one row each, free, absent or of a chosen size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ctk
import qt
from slicer.i18n import tr as _

#: What the engine calls an organ that must not be there.
ABSENT = -1.0


class SizeSliders:
    """Rows of name, choice and slider.

    Args:
        ui: Widgets of ``MAISIGenerate.ui`` by name.
        onChanged: Called when the user changes a row.
    """

    def __init__(self, ui: Any, onChanged: Callable[[], None]) -> None:
        self._layout, self._onChanged = ui.sizesFrame.layout(), onChanged
        self._rows: dict[str, tuple[Any, Any, Any]] = {}

    @property
    def sizes(self) -> dict[str, float]:
        """Anatomy → percentile 0–1, or −1 where it must be absent; free ones are left out."""
        chosen = {}
        for name, (_label, choice, slider) in self._rows.items():
            if choice.currentData != "free":
                chosen[name] = ABSENT if choice.currentData == "absent" else round(slider.value / 100, 4)
        return chosen

    def offer(self, names: Sequence[str]) -> None:
        """Makes a row for each name; the rows of another bundle go."""
        if list(self._rows) == list(names):
            return
        for row in self._rows.values():
            for widget in row:
                self._layout.removeWidget(widget)
                widget.hide()
                widget.deleteLater()
        self._rows = {name: self._row(index, name) for index, name in enumerate(names)}

    def choose(self, sizes: Mapping[str, float]) -> None:
        """Shows these sizes; rows that are not named become free."""
        for name, (_label, choice, slider) in self._rows.items():
            size = sizes.get(name)
            kind = "free" if size is None else "absent" if size < 0 else "size"
            for widget in (choice, slider):
                widget.blockSignals(True)
            choice.currentIndex = choice.findData(kind)
            if kind == "size":
                slider.value = 100 * float(size)  # type: ignore[arg-type]
            slider.enabled = kind == "size"
            for widget in (choice, slider):
                widget.blockSignals(False)

    def _row(self, index: int, name: str) -> tuple[Any, Any, Any]:
        label, choice, slider = qt.QLabel(name), qt.QComboBox(), ctk.ctkSliderWidget()
        choice.objectName, slider.objectName = f"{name} choice", f"{name} size"
        for text, data in ((_("any size"), "free"), (_("size"), "size"), (_("absent"), "absent")):
            choice.addItem(text, data)
        slider.minimum, slider.maximum, slider.decimals, slider.singleStep = 0.0, 100.0, 0, 1.0
        slider.suffix = " %"
        slider.value = 50.0
        slider.enabled = False
        slider.toolTip = _("Percentile among patients: 0 % is the smallest seen, 100 % the largest")
        choice.connect("currentIndexChanged(int)", lambda _index: self._chosen(choice, slider))
        slider.connect("valueChanged(double)", lambda _value: self._onChanged())
        for column, widget in enumerate((label, choice, slider)):
            self._layout.addWidget(widget, index, column)
        return label, choice, slider

    def _chosen(self, choice: Any, slider: Any) -> None:
        slider.enabled = choice.currentData == "size"
        self._onChanged()
