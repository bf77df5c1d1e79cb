"""Picks anatomies from a tree with groups and a search field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import qt
from slicer.i18n import tr as _

#: Heights of the tree in pixels.
_LOWEST, _HIGHEST = 60, 156


class AnatomyPicker:
    """The tree, its search field and the line that says what is checked.

    Args:
        ui: Widgets of ``MAISIGenerate.ui`` by name.
        onChanged: Called when the user checks or unchecks an anatomy.
    """

    def __init__(self, ui: Any, onChanged: Callable[[], None]) -> None:
        self._ui, self._onChanged = ui, onChanged
        self._items: dict[str, Any] = {}
        self._groups: dict[str, Any] = {}
        self._groupOf: dict[str, str] = {}
        self._searchWords: dict[str, str] = {}
        ui.anatomySearchEdit.connect("textChanged(QString)", self._search)
        ui.anatomyTree.connect("itemChanged(QTreeWidgetItem*,int)", lambda _item, _column: self._changed())
        ui.anatomyClearButton.connect("clicked()", lambda: self.choose([], tell=True))
        self._showChosen()

    @property
    def chosen(self) -> list[str]:
        """Names of the checked anatomies, in the order of the tree."""
        return [name for name, item in self._items.items() if item.checkState(0) == qt.Qt.Checked]

    def offer(self, labels: Sequence[Mapping[str, Any]], names: Iterable[str]) -> None:
        """Fills the tree; what was checked stays checked where it is still offered.

        Args:
            labels: Rows of the bundle's label table: name, group, color, synonyms.
            names: Those that can be asked for.
        """
        before, wanted, tree = self.chosen, set(names), self._ui.anatomyTree
        tree.blockSignals(True)
        tree.clear()
        self._items, self._groups = {}, {}
        for label in labels:
            if label["name"] not in wanted:
                continue
            group = label.get("group") or _("other")
            if group not in self._groups:
                self._groups[group] = _heading(tree, group)
            item = qt.QTreeWidgetItem()
            self._groups[group].addChild(item)
            item.setText(0, label["name"])
            item.setIcon(0, _swatch(label.get("color")))
            item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
            item.setCheckState(0, qt.Qt.Unchecked)
            self._items[label["name"]] = item
            self._groupOf[label["name"]] = group
            words = [label["name"], group, *(label.get("synonyms") or ())]
            self._searchWords[label["name"]] = " ".join(words).casefold()
        tree.blockSignals(False)
        self.choose(before)
        self._search(self._ui.anatomySearchEdit.text)

    def choose(self, names: Iterable[str], tell: bool = False) -> None:
        """Checks exactly these anatomies; ``tell`` where the user asked for it."""
        wanted = set(names)
        self._ui.anatomyTree.blockSignals(True)
        for name, item in self._items.items():
            item.setCheckState(0, qt.Qt.Checked if name in wanted else qt.Qt.Unchecked)
        self._ui.anatomyTree.blockSignals(False)
        self._ui.anatomyTree.viewport().update()
        self._showChosen()
        if tell:
            self._onChanged()

    def _search(self, text: str) -> None:
        words = text.casefold().split()
        found = {name for name in self._items if all(word in self._searchWords[name] for word in words)}
        for name, item in self._items.items():
            item.setHidden(name not in found)
        for group, heading in self._groups.items():
            heading.setHidden(not any(self._groupOf[name] == group for name in found))
            heading.setExpanded(True)
        self._fit(len(found) + len({self._groupOf[name] for name in found}))

    def _fit(self, rows: int) -> None:
        """As high as its rows, within limits."""
        tree = self._ui.anatomyTree
        height = max(_LOWEST, min(_HIGHEST, rows * max(16, tree.sizeHintForRow(0)) + 6))
        tree.minimumHeight = tree.maximumHeight = height

    def _changed(self) -> None:
        self._showChosen()
        self._onChanged()

    def _showChosen(self) -> None:
        chosen = self.chosen
        self._ui.anatomyChosenLabel.text = (
            _("In the image: {0}").format(", ".join(chosen)) if chosen else _("Nothing checked: any anatomy")
        )
        self._ui.anatomyClearButton.enabled = bool(chosen)


def _heading(tree: Any, text: str) -> Any:
    item = qt.QTreeWidgetItem()
    tree.addTopLevelItem(item)
    item.setText(0, text)
    item.setFlags(qt.Qt.ItemIsEnabled)
    font = item.font(0)
    font.setBold(True)
    item.setFont(0, font)
    item.setExpanded(True)
    return item


def _swatch(color: Sequence[int] | None) -> Any:
    pixmap = qt.QPixmap(12, 12)
    pixmap.fill(qt.QColor(*(color or (160, 160, 160))))
    return qt.QIcon(pixmap)
