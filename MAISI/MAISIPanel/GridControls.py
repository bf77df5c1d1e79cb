"""Size, spacing and field of view of the image: presets, and fields that stay legal as one types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slicer.i18n import tr as _

from MAISIPanel.LegalGrid import LegalGrid
from MAISIPanel.Wording import PROBLEM_STYLE, timesText


class GridControls:
    """The preset list, the fields of size and spacing, and the line that tells the field of view.

    Args:
        ui: Widgets of ``MAISIGenerate.ui`` by name.
        onChanged: Called when the user changes size or spacing.
    """

    def __init__(self, ui: Any, onChanged: Callable[[], None]) -> None:
        self._ui, self._onChanged = ui, onChanged
        self._legal = LegalGrid()
        self._presets: list[Mapping[str, Any]] = []
        self._regions: list[str] = []
        self._correction = ""
        self._sizeBoxes = [getattr(ui, f"size{axis}SpinBox") for axis in "XYZ"]
        self._spacingBoxes = [getattr(ui, f"spacing{axis}SpinBox") for axis in "XYZ"]
        for axis, box in enumerate(self._sizeBoxes):
            box.connect("valueChanged(int)", lambda _value, axis=axis: self._onSize(axis))
        for axis, box in enumerate(self._spacingBoxes):
            box.connect("valueChanged(double)", lambda _value, axis=axis: self._onSpacing(axis))
        ui.presetComboBox.connect("activated(int)", self._onPreset)

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels along x, y and z."""
        x, y, z = (int(box.value) for box in self._sizeBoxes)
        return x, y, z

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along x, y and z."""
        x, y, z = (round(float(box.value), 3) for box in self._spacingBoxes)
        return x, y, z

    @property
    def isRecommended(self) -> bool:
        """Whether size and spacing are one of the bundle's recommendations."""
        return 0 <= self._ui.presetComboBox.currentIndex < len(self._presets)

    def offer(self, description: Mapping[str, Any]) -> None:
        """Takes the limits and recommendations of a bundle; sizes that it cannot make become the nearest legal ones."""
        before = self.size, self.spacing
        self._legal = LegalGrid.fromDescription(description)
        self._presets = list(description.get("recommended") or ())
        combo = self._ui.presetComboBox
        combo.blockSignals(True)
        combo.clear()
        for preset in self._presets:
            combo.addItem(_presetText(preset))
        combo.addItem(_("Custom"))
        combo.blockSignals(False)
        for axis in range(3):
            self._limit(axis)
        self.choose(*before)

    def choose(self, size: Sequence[int], spacing: Sequence[float]) -> None:
        """Shows this size and spacing, or the nearest legal ones."""
        self._correction = ""
        self._put(self._legal.nearestSize(size, 0), self._legal.nearestSpacing(spacing, 0))

    def chooseRecommended(self, regions: Sequence[str] = (), modality: str | None = None) -> None:
        """Takes the bundle's recommendation for exactly these body regions and this modality, else its first."""
        if not self._presets:
            return

        def fit(preset: Mapping[str, Any]) -> tuple[bool, bool]:
            hasRegions = bool(regions) and set(preset.get("regions") or ()) == set(regions)
            return hasRegions, bool(modality) and preset.get("modality") == modality

        best = max(self._presets, key=fit)
        self.choose(best["size"], best["spacing"])

    def setRegions(self, regions: Sequence[str]) -> None:
        """Tells for which body regions the field of view has to be large enough."""
        self._regions = list(regions)
        self._showFieldOfView()

    def _limit(self, axis: int) -> None:
        values, box, spacing = self._legal.values(axis), self._sizeBoxes[axis], self._spacingBoxes[axis]
        for widget in (box, spacing):
            widget.blockSignals(True)
        box.minimum = min(values, default=self._legal.divisor)
        box.maximum = max(values, default=4096)
        box.singleStep = self._legal.step(axis)
        spacing.minimum, spacing.maximum = self._legal.spacingMin[axis], self._legal.spacingMax[axis]
        for widget in (box, spacing):
            widget.blockSignals(False)

    def _onSize(self, axis: int) -> None:
        typed = self.size
        legal = self._legal.nearestSize(typed, axis)
        self._correction = (
            _("{0} voxels are not possible here, {1} are.").format(typed[axis], legal[axis])
            if typed[axis] != legal[axis]
            else ""
        )
        self._put(legal, self.spacing)
        self._onChanged()

    def _onSpacing(self, axis: int) -> None:
        self._correction = ""
        self._put(self.size, self._legal.nearestSpacing(self.spacing, axis))
        self._onChanged()

    def _onPreset(self, index: int) -> None:
        if index < len(self._presets):
            self.choose(self._presets[index]["size"], self._presets[index]["spacing"])
            self._onChanged()

    def _put(self, size: Sequence[int], spacing: Sequence[float]) -> None:
        for boxes, values in ((self._sizeBoxes, size), (self._spacingBoxes, spacing)):
            for box, value in zip(boxes, values, strict=True):
                box.blockSignals(True)
                box.value = value
                box.blockSignals(False)
        same = [
            i
            for i, p in enumerate(self._presets)
            if tuple(p["size"]) == self.size and _alike(p["spacing"], self.spacing)
        ]
        self._ui.presetComboBox.currentIndex = same[0] if same else len(self._presets)
        self._showFieldOfView()

    def _showFieldOfView(self) -> None:
        extent = [voxels * mm for voxels, mm in zip(self.size, self.spacing, strict=True)]
        text = f"{timesText(round(mm) for mm in extent)} mm"
        needed = self._legal.neededFieldOfView(self._regions)
        tooSmall = min(extent[:2]) < needed - 0.001 * max(self.size[:2])
        if tooSmall:
            text += "\n" + _("Too small: the model needs {0:.0f} mm in x and y. Raise the size or the spacing.").format(
                needed
            )
        elif self._correction:
            text += "\n" + self._correction
        self._ui.fieldOfViewLabel.text = text
        self._ui.fieldOfViewLabel.styleSheet = PROBLEM_STYLE if tooSmall else ""


def _presetText(preset: Mapping[str, Any]) -> str:
    text = f"{timesText(preset['size'])}  ·  {timesText(preset['spacing'])} mm"
    of = ", ".join([*(preset.get("regions") or ()), *([preset["modality"]] if preset.get("modality") else [])])
    return f"{text}  ({of})" if of else text


def _alike(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(abs(x - y) < 0.0006 for x, y in zip(a, b, strict=True))
