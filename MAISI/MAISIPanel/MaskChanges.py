"""What is changed in the masks of the library: another patient of each, a new lesion in each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from slicer.i18n import tr as _

from MAISIPanel.Parameters import GenerateParameters


class MaskChanges:
    """A check box for another patient, and a row with lesion, size and host.

    Args:
        ui: Widgets of ``MAISIGenerate.ui`` by name.
        onChanged: Called when the user changes something.
    """

    def __init__(self, ui: Any, onChanged: Callable[[], None]) -> None:
        self._ui, self._onChanged = ui, onChanged
        ui.varyCheckBox.connect("toggled(bool)", lambda _on: onChanged())
        ui.lesionComboBox.connect("currentIndexChanged(int)", lambda _index: self._onLesion())
        ui.lesionHostComboBox.connect("currentIndexChanged(int)", lambda _index: onChanged())
        ui.lesionDiameterSpinBox.connect("valueChanged(double)", lambda _value: onChanged())
        self._onLesion(isUser=False)

    @property
    def fields(self) -> dict[str, Any]:
        """What is chosen, as fields of `GenerateParameters`."""
        ui = self._ui
        return {
            "vary": bool(ui.varyCheckBox.checked),
            "lesion": str(ui.lesionComboBox.currentData or ""),
            "lesionDiameter": float(ui.lesionDiameterSpinBox.value),
            "lesionHost": str(ui.lesionHostComboBox.currentData or ""),
        }

    def offer(self, description: Mapping[str, Any]) -> None:
        """Offers the lesions of a bundle, and what its library's masks hold as their hosts."""
        ui, labels = self._ui, description.get("labels") or ()
        lesions = [each["name"] for each in labels if each.get("host") is not None]
        held = (description.get("anatomies_of") or {}).get("library") or ()
        _fill(ui.lesionComboBox, _("none"), lesions)
        _fill(ui.lesionHostComboBox, _("in usual host"), [name for name in held if name not in lesions])
        ui.lesionLabel.visible = ui.lesionFrame.visible = bool(lesions)
        self._onLesion(isUser=False)

    def choose(self, parameters: GenerateParameters) -> None:
        """Shows what parameters from a scene say."""
        ui = self._ui
        ui.varyCheckBox.checked = parameters.vary
        ui.lesionComboBox.currentIndex = max(0, ui.lesionComboBox.findData(parameters.lesion))
        ui.lesionHostComboBox.currentIndex = max(0, ui.lesionHostComboBox.findData(parameters.lesionHost))
        ui.lesionDiameterSpinBox.value = parameters.lesionDiameter
        self._onLesion(isUser=False)

    def _onLesion(self, isUser: bool = True) -> None:
        hasLesion = bool(self._ui.lesionComboBox.currentData)
        self._ui.lesionDiameterSpinBox.enabled = self._ui.lesionHostComboBox.enabled = hasLesion
        if isUser:
            self._onChanged()


def _fill(combo: Any, none: str, names: list[str]) -> None:
    before = combo.currentData
    combo.blockSignals(True)
    combo.clear()
    combo.addItem(none, "")
    for name in names:
        combo.addItem(name, name)
    combo.currentIndex = max(0, combo.findData(before))
    combo.blockSignals(False)
