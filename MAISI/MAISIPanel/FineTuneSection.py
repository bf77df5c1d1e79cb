"""The *Fine-tune* section: cases from the scene, which segment is which label, and the start of a training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MAISILib.errors import MaisiError
from MAISIPanel.CasesWriter import CasePair, segmentsOf
from MAISIPanel.DurationBox import DurationBox
from MAISIPanel.SegmentMapping import Row, SegmentMapping
from MAISIPanel.TrainingsView import TrainingsView
from MAISIPanel.TrainingWish import IGNORE, TrainingWish, suggestedName

Notify = Callable[[str], None]
#: Of the tables (pixels); Qt's own is for larger screens.
_ROW_HEIGHT = 24
#: The engine is asked once the user has paused for so long (milliseconds).
_PAUSE = 300


class FineTuneSection:
    """Collects what a fine-tuning needs and starts it; the trainings themselves are the view's (`TrainingsView`).

    Args:
        logic: A `MAISILogic`: its scene, engine and trainings.
        ui: Widgets of ``MAISIFineTune.ui`` by name.
        notify: Shows a line to the user.
        dialogs: Asks before anything is deleted.
        onBundleMade: Called with the name of a bundle that a training has just finished.
    """

    def __init__(self, logic: Any, ui: Any, notify: Notify, dialogs: Any, onBundleMade: Callable[[str], None]) -> None:
        self._logic, self._ui = logic, ui
        self.trainings = TrainingsView(logic, ui, notify, dialogs, onBundleMade)
        self._bundle = ""
        self._pairs: list[tuple[str, str]] = []  # node IDs: nodes may be deleted at any time
        self._mapping = SegmentMapping()
        self._labels: list[str] = []
        self._isNamedByUser = self._isLabelByUser = False
        self._problem = ""
        self._question = 0  # the newest one; answers to earlier ones come too late
        self._durations = DurationBox(ui.durationComboBox, "normal")
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(_PAUSE)
        self._timer.connect("timeout()", self._ask)
        self._connect()
        self._showPairs()
        self._showMapping()

    def _connect(self) -> None:
        ui = self._ui
        for selector in (ui.volumeSelector, ui.segmentationSelector):
            selector.connect("currentNodeChanged(vtkMRMLNode*)", lambda _node: self._showSelection())
        ui.addPairButton.connect("clicked()", self._onAdd)
        ui.removePairButton.connect("clicked()", self._onRemove)
        ui.pairsTable.connect("itemSelectionChanged()", self._showSelection)
        ui.newLabelEdit.connect("textEdited(QString)", self._onNewLabel)
        ui.hostComboBox.connect("currentIndexChanged(int)", lambda _index: self._onHost())
        ui.valueSpinBox.connect("valueChanged(int)", lambda _value: self._onHost())
        ui.focusComboBox.connect("currentIndexChanged(int)", lambda _index: self._suggestName())
        ui.nameEdit.connect("textEdited(QString)", self._onName)
        ui.startButton.connect("clicked()", self._onStart)
        for table, stretched in ((ui.pairsTable, (0, 1)), (ui.mappingTable, (0, 1))):
            table.verticalHeader().setDefaultSectionSize(_ROW_HEIGHT)
            for column in stretched:
                table.horizontalHeader().setSectionResizeMode(column, qt.QHeaderView.Stretch)

    # What the panel tells

    def setBundle(self, name: str) -> None:
        """The model to start from has changed.

        Args:
            name: A bundle on this computer; empty for none.
        """
        if name == self._bundle:
            return
        self._bundle = name
        self._labels = []
        self._mapping.edits.clear()  # they name labels of the other model
        self._fillHosts()
        if name:
            self._logic.client.send(
                "describe",
                {"bundle": name},
                onResult=lambda data: self._onDescribed(data, name),
                onFailed=self._onFailed,
            )
        self._askSoon()

    def refresh(self) -> None:
        """The section is looked at again: segments may have been drawn, trainings may have gone on."""
        self._drop()
        self.trainings.refresh()
        if self._pairs and self._bundle:
            self._askSoon()

    def onSceneClosed(self) -> None:
        """The cases are gone with the scene; trainings go on."""
        self._pairs.clear()
        self._mapping = SegmentMapping(host=self._mapping.host)
        self._ui.newLabelEdit.text = ""
        self._ui.valueSpinBox.value = 0
        self._isNamedByUser = self._isLabelByUser = False
        self._ui.nameEdit.text = ""
        self._showPairs()
        self._showMapping()
        self.trainings.onSceneClosed()

    def cleanup(self) -> None:
        """The panel is taken down; trainings go on."""
        self._timer.stop()
        self.trainings.cleanup()

    def addPair(self, volumeNode: Any, segmentationNode: Any) -> None:
        """Adds a case, once."""
        pair = (volumeNode.GetID(), segmentationNode.GetID())
        if pair not in self._pairs:
            self._pairs.append(pair)
            self._showPairs()
            self._askSoon()

    # Cases

    def pairs(self) -> list[CasePair]:
        """The cases whose nodes are still there."""
        nodes = [tuple(map(self._logic.scene.GetNodeByID, pair)) for pair in self._pairs]
        return [CasePair(volume, segmentation) for volume, segmentation in nodes if volume and segmentation]

    def _onAdd(self) -> None:
        volume, segmentation = self._ui.volumeSelector.currentNode(), self._ui.segmentationSelector.currentNode()
        if volume is not None and segmentation is not None:
            self.addPair(volume, segmentation)

    def _onRemove(self) -> None:
        row = self._ui.pairsTable.currentRow()
        if 0 <= row < len(self._pairs):
            del self._pairs[row]
            self._showPairs()
            self._askSoon()

    def _drop(self) -> bool:
        """Takes cases whose nodes were deleted off the list, and tells whether there were any."""
        if len(self.pairs()) == len(self._pairs):
            return False
        self._showPairs()
        self._askSoon()
        return True

    def _showPairs(self) -> None:
        table, pairs = self._ui.pairsTable, self.pairs()
        self._pairs = [(pair.volumeNode.GetID(), pair.segmentationNode.GetID()) for pair in pairs]
        table.setRowCount(len(pairs))
        for row, pair in enumerate(pairs):
            for column, node in enumerate((pair.volumeNode, pair.segmentationNode)):
                table.setItem(row, column, qt.QTableWidgetItem(node.GetName()))
        self._showSelection()

    def _showSelection(self) -> None:
        ui = self._ui
        isPair = ui.volumeSelector.currentNode() is not None and ui.segmentationSelector.currentNode() is not None
        ui.addPairButton.enabled = isPair
        ui.removePairButton.enabled = 0 <= ui.pairsTable.currentRow() < len(self._pairs)

    # Labels

    def _onDescribed(self, data: dict[str, Any], bundle: str) -> None:
        if bundle != self._bundle:
            return
        self._labels = sorted((label["name"] for label in data["labels"]), key=str.casefold)
        self._fillHosts()
        self._showMapping()

    def _fillHosts(self) -> None:
        combo, before = self._ui.hostComboBox, self._mapping.host
        combo.blockSignals(True)
        combo.clear()
        for label in self._labels:
            combo.addItem(label, label)
        wanted = before if before in self._labels else "body"
        combo.setCurrentIndex(max(0, combo.findData(wanted)) if self._labels else -1)
        combo.blockSignals(False)
        self._mapping.host = str(combo.currentData or "")

    def _onNewLabel(self, text: str) -> None:
        self._isLabelByUser = True
        self._mapping.rename(str(text).strip())
        self._askSoon()

    def _onHost(self) -> None:
        self._mapping.host = str(self._ui.hostComboBox.currentData or "")
        self._mapping.value = int(self._ui.valueSpinBox.value) or None
        self._askSoon()

    def _askSoon(self) -> None:
        self._question += 1
        self._showState()
        self._timer.start()

    def _ask(self, isStart: bool = False) -> None:
        """Has the engine map the segments as they are now, and count how long it would take."""
        self._timer.stop()
        pairs = self.pairs()
        if not pairs or not self._bundle:
            self._mapping.rows = []
            self._showMapping()
            return
        fields = self._mapping.request(self._bundle, segmentsOf(pairs))
        self._question += 1
        question, self._problem = self._question, ""

        def answered(data: dict[str, Any]) -> None:
            if question == self._question:
                self._onMapped(data, isStart)

        def failed(message: str, _kind: str) -> None:
            if question == self._question:
                self._problem = message
                self._showState()

        self._logic.client.send("map_segments", fields, onResult=answered, onFailed=failed)
        if not isStart:
            self._durations.estimate(self._logic.client, self._bundle, len(pairs), failed)

    def _onMapped(self, data: dict[str, Any], isStart: bool) -> None:
        again = self._mapping.take(data)
        unknown = self._mapping.unknown()
        if len(unknown) == 1 and not self._mapping.newLabel and not self._isLabelByUser:
            self._ui.newLabelEdit.text = unknown[0]
            self._mapping.rename(unknown[0])
            again = True
        if again:
            self._ask()
            return
        self._showMapping()
        if isStart and self._ui.startButton.enabled:
            self._start()

    def _showMapping(self) -> None:
        table = self._ui.mappingTable
        rows = sorted(self._mapping.rows, key=lambda row: row.how not in ("unknown", "new"))  # what matters, at the top
        table.setRowCount(len(rows))
        for number, row in enumerate(rows):
            name = qt.QTableWidgetItem(row.segment)
            how = qt.QTableWidgetItem(_HOW_WORDS.get(row.how, row.how))
            for item in (name, how):
                item.setToolTip(row.advice)
            table.setItem(number, 0, name)
            table.setCellWidget(number, 1, self._labelBox(row))
            table.setItem(number, 2, how)
        self._showFocus()
        self._suggestName()
        self._showState()

    def _labelBox(self, row: Row) -> Any:
        """The list of labels for one segment."""
        box = qt.QComboBox()
        if row.how == "unknown" and not row.label:
            box.addItem(_("choose…"), "")
        box.addItem(_("leave out"), IGNORE)
        for label in dict.fromkeys((self._mapping.newLabel, row.label, *self._labels)):
            if label:
                box.addItem(label, label)
        box.setCurrentIndex(max(0, box.findData(row.label or (IGNORE if row.how != "unknown" else ""))))
        box.connect("currentIndexChanged(int)", lambda _index: self._onDecided(row.segment, str(box.currentData or "")))
        return box

    def _onDecided(self, segment: str, label: str) -> None:
        if label:
            self._mapping.decide(segment, label)
            self._askSoon()

    def _showFocus(self) -> None:
        combo, before = self._ui.focusComboBox, str(self._ui.focusComboBox.currentData or "")
        combo.blockSignals(True)
        combo.clear()
        if not self._mapping.newLabel:
            combo.addItem(_("choose…"), "")
        for label in sorted(self._mapping.labels(), key=lambda label: label != self._mapping.newLabel):
            combo.addItem(label, label)
        combo.setCurrentIndex(max(0, combo.findData(before)))
        combo.blockSignals(False)

    # Start

    def wish(self) -> TrainingWish:
        """What the widgets say."""
        focus = str(self._ui.focusComboBox.currentData or "")
        return TrainingWish(
            str(self._ui.nameEdit.text).strip(),
            self._bundle,
            self._mapping.newLabels(),
            (focus,) if focus else (),
            dict(self._mapping.edits),
            str(self._ui.durationComboBox.currentData or "normal"),
        )

    def _onName(self, text: str) -> None:
        self._isNamedByUser = bool(str(text).strip())
        self._showState()

    def _suggestName(self) -> None:
        label = str(self._ui.focusComboBox.currentData or "")
        if label and self._bundle and not self._isNamedByUser:
            taken = self._logic.trainingJobs.takenNames()
            self._ui.nameEdit.text = suggestedName(self._bundle, label, taken)
        self._showState()

    def _showState(self) -> None:
        """What is missing still, and whether the training can start."""
        isValid, reason = self.wish().isValid()
        if not self._pairs:
            text = _("Add a volume with its segmentation.")
        elif not self._bundle:
            text = _("Choose a model in the section Model.")
        else:
            text = self._problem or self._mapping.problem() or ("" if isValid else reason)
        self._say(text)
        self._ui.startButton.enabled = not text

    def _say(self, text: str) -> None:
        self._ui.messageLabel.text = text
        self._ui.messageLabel.visible = bool(text)

    def _onStart(self) -> None:
        if self._drop():
            self._say(_("A node of a case was deleted; the case is off the list. Check the rest."))
            return
        self._ask(isStart=True)  # what was drawn since then counts

    def _start(self) -> None:
        self._ui.startButton.enabled = False
        try:
            training = self._logic.fineTune(self.pairs(), onCase=self._tellCase, **self.wish().toDict())
        except MaisiError as error:
            self._problem = str(error)
            self._showState()
            return
        self._isNamedByUser = False
        self._suggestName()
        self.trainings.watch(training)

    def _tellCase(self, number: int, count: int) -> None:
        """Writing blocks the window for each case (some seconds for 512×512×256 voxels); this tells why."""
        self._say(_("Writing case {0} of {1}…").format(number, count))
        slicer.app.processEvents(qt.QEventLoop.ExcludeUserInputEvents)

    def _onFailed(self, message: str, kind: str) -> None:
        self._problem = message
        self._showState()


_HOW_WORDS = {
    "exact": _("name"),
    "synonym": _("other name"),
    "terminology": _("terminology"),
    "new": _("new label"),
    "ignored": _("left out"),
    "unknown": _("not found"),
    "user": _("your choice"),
}
