"""Check boxes for the body regions of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import qt


class RegionBoxes:
    """One box for each region, in a row.

    Args:
        ui: Widgets of ``MAISIGenerate.ui`` by name.
        onChanged: Called when the user checks or unchecks a region.
    """

    def __init__(self, ui: Any, onChanged: Callable[[], None]) -> None:
        self._ui, self._onChanged = ui, onChanged
        self._boxes: dict[str, Any] = {}

    @property
    def chosen(self) -> list[str]:
        """The checked regions, from head to foot."""
        return [region for region, box in self._boxes.items() if box.checked]

    def offer(self, regions: Sequence[str]) -> None:
        """Makes a box for each region; those of another bundle go."""
        if list(self._boxes) != list(regions):
            layout = self._ui.regionFrame.layout()
            for box in self._boxes.values():
                layout.removeWidget(box)
                box.hide()
                box.deleteLater()
            self._boxes = {region: qt.QCheckBox(region) for region in regions}
            for box in self._boxes.values():
                layout.addWidget(box)
                box.connect("toggled(bool)", lambda _checked: self._onChanged())
        self._ui.regionLabel.visible = self._ui.regionFrame.visible = bool(regions)

    def choose(self, regions: Collection[str]) -> None:
        """Checks exactly these."""
        for region, box in self._boxes.items():
            box.checked = region in regions
