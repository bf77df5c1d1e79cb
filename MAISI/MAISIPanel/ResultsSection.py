"""The *Results* section: what was made or loaded, and what can be done with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from MAISILib.errors import MaisiError
from MAISIPanel.Wording import PROBLEM_COLOR, durationText

_QUALITY = 2
#: Rows that the table shows without scrolling.
_MOST_ROWS = 6


class ResultsSection:
    """A table of the results that the scene holds.

    Args:
        logic: ``results`` lists them and knows what to do with them; ``replayAsync`` makes one again.
        ui: Widgets of ``MAISIResults.ui`` by name.
        notify: Shows a line to the user.
        dialogs: Asks for folders, and before deleting.
        run: Begins a run, where none is going on.
    """

    def __init__(
        self, logic: Any, ui: Any, notify: Callable[[str], None], dialogs: Any, run: Callable[..., None]
    ) -> None:
        self._logic, self._ui, self._notify, self._dialogs, self._run = logic, ui, notify, dialogs, run
        self._entries: list[Any] = []
        self._items: list[Any] = []  # older builds of PythonQt leave cells to Python
        header = ui.resultsTable.horizontalHeader()
        header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
        for column in (1, 2, 3):
            header.setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)
        ui.resultsTable.connect("itemSelectionChanged()", self._showSelection)
        ui.resultsTable.connect("itemDoubleClicked(QTableWidgetItem*)", lambda _item: self._onShow())
        ui.showButton.connect("clicked()", self._onShow)
        ui.compareButton.connect("clicked()", self._onCompare)
        ui.chartButton.connect("clicked()", self._onChart)
        ui.replayButton.connect("clicked()", self._onReplay)
        ui.saveButton.connect("clicked()", self._onSave)
        ui.deleteButton.connect("clicked()", self._onDelete)
        self.refresh()

    @property
    def selected(self) -> list[Any]:
        """The selected results, in the order of the table."""
        rows = sorted({index.row() for index in self._ui.resultsTable.selectionModel().selectedRows()})
        return [self._entries[row] for row in rows if row < len(self._entries)]

    def refresh(self) -> None:
        """Lists the results that the scene holds now; what was selected stays selected."""
        chosen = {entry.volumeNode.GetID() for entry in self.selected if entry.volumeNode.GetScene() is not None}
        self._entries = list(self._logic.results.entries)
        table = self._ui.resultsTable
        table.blockSignals(True)
        table.setRowCount(len(self._entries))
        self._items = []
        for row, entry in enumerate(self._entries):
            cells, story = _cells(entry), "\n".join(entry.qualityStory)  # once for the row: they read the provenance
            for column, text in enumerate(cells):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(story)
                if column == _QUALITY and text == _verdict("failed"):
                    item.setForeground(qt.QBrush(qt.QColor(PROBLEM_COLOR)))
                table.setItem(row, column, item)
                self._items.append(item)
        table.clearSelection()
        table.blockSignals(False)
        rows = max(2, min(_MOST_ROWS, len(self._entries)))
        header = table.horizontalHeader().sizeHint.height()
        table.minimumHeight = table.maximumHeight = header + rows * table.verticalHeader().defaultSectionSize + 4
        self._select(chosen)

    def added(self, volumeNode: Any) -> None:
        """A result has come into the scene: it is listed and selected."""
        self.refresh()
        self._ui.resultsTable.clearSelection()
        self._select({volumeNode.GetID()})

    def onSceneClosed(self) -> None:
        """The results are gone with the scene."""
        self.refresh()

    def _select(self, nodeIDs: set[str]) -> None:
        table = self._ui.resultsTable
        mode = table.selectionMode
        table.selectionMode = qt.QAbstractItemView.MultiSelection
        for row, entry in enumerate(self._entries):
            if entry.volumeNode.GetID() in nodeIDs:
                table.selectRow(row)
        table.selectionMode = mode
        self._showSelection()

    def _showSelection(self) -> None:
        ui, selected = self._ui, self.selected
        isEmpty = not self._entries
        ui.resultsTable.visible = ui.resultButtonsFrame.visible = not isEmpty
        ui.resultsEmptyLabel.visible = isEmpty
        ui.compareButton.enabled = len(selected) == 2
        for button in (ui.showButton, ui.replayButton, ui.chartButton):
            button.enabled = len(selected) == 1
        ui.saveButton.enabled = ui.deleteButton.enabled = bool(selected)
        lines = [[*entry.qualityStory, *entry.maskStory, *entry.notes] for entry in selected[:1]]
        ui.resultLabel.text = "\n".join(lines[0]) if len(selected) == 1 else ""
        ui.resultLabel.visible = bool(ui.resultLabel.text)

    def _onShow(self) -> None:
        self._with(1, lambda entry: self._logic.results.show(entry))

    def _onCompare(self) -> None:
        self._with(2, lambda first, second: self._notify(self._logic.results.compare(first, second)))

    def _onChart(self) -> None:
        self._with(1, lambda entry: self._logic.results.chart(entry))

    def _onReplay(self) -> None:
        self._with(1, lambda entry: self._run(lambda: self._logic.replayAsync(entry.volumeNode)))

    def _onSave(self) -> None:
        selected = self.selected
        folder = self._dialogs.folder(_("Folder for the results"))
        if folder:
            self._with(len(selected), lambda *entries: self._save(entries, Path(folder)))

    def _save(self, entries: Sequence[Any], folder: Path) -> None:
        targets: list[Path] = []
        for entry in entries:
            targets.append(_free(folder / re.sub(r"[^\w.-]+", "-", entry.name)))
            self._logic.results.save(entry, targets[-1])
        self._notify("\n".join(_("Saved in {0}.").format(target) for target in targets))

    def _onDelete(self) -> None:
        selected = self.selected
        question = _("Remove {0} from the scene?").format(", ".join(entry.name for entry in selected))
        if self._dialogs.confirm(question):
            self._with(len(selected), lambda *entries: [self._logic.results.delete(entry) for entry in entries])
            self.refresh()

    def _with(self, count: int, work: Callable[..., Any]) -> None:
        """Works on the selection; a node that was deleted meanwhile is no longer listed."""
        if len(self.selected) != count:
            return
        if any(entry.volumeNode.GetScene() is None for entry in self.selected):
            self.refresh()
            return
        try:
            work(*self.selected)
        except MaisiError as error:
            self._notify(str(error))


def _free(folder: Path) -> Path:
    """A folder that is not there yet: results of other scenes have the same names."""
    names = (folder, *(folder.with_name(f"{folder.name}-{number}") for number in range(2, 100_000)))
    return next(each for each in names if not each.exists())


def _cells(entry: Any) -> tuple[str, str, str, str]:
    seed = "–" if entry.seed is None else str(entry.seed)
    time = "–" if entry.seconds is None else durationText(entry.seconds)
    return entry.name, seed, _verdict(entry.verdict), time


def _verdict(verdict: str) -> str:
    return {"passed": _("passed"), "unusual": _("unusual"), "failed": _("failed")}.get(verdict, "–")
