"""The options of the effect *MAISI*: an image for the segmentation, and a training on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MAISILib.errors import MaisiError
from MAISIPanel import RunControls
from MAISIPanel.CasesWriter import CasePair, segmentsOf
from MAISIPanel.DurationBox import DurationBox
from MAISIPanel.SegmentMapping import SegmentMapping
from MAISIPanel.TrainingProgress import TrainingProgress
from MAISIPanel.TrainingWish import IGNORE, TrainingWish, suggestedName

_POLL = 1000


@dataclass(frozen=True)
class Edited:
    """What the Segment Editor works on; anything may be missing."""

    segmentationNode: Any = None
    volumeNode: Any = None
    segmentId: str = ""

    @property
    def segmentName(self) -> str:
        """Name of the selected segment; empty where there is none."""
        segmentation = self.segmentationNode.GetSegmentation() if self.segmentationNode else None
        segment = segmentation.GetSegment(self.segmentId) if segmentation and self.segmentId else None
        return (segment.GetName() or self.segmentId) if segment else ""


class EffectOptions:
    """Starts what the logic of the module *MAISI* does, and watches it while it is looked at.

    Args:
        findLogic: Gives the logic when it is first needed: making the module's panel takes a moment.
        edited: What the Segment Editor works on now.
        store: Keeps a parameter of the effect in the scene.
    """

    def __init__(
        self, findLogic: Callable[[], Any], edited: Callable[[], Edited], store: Callable[[str, str], object]
    ) -> None:
        self._findLogic, self._edited, self._store = findLogic, edited, store
        self._logic: Any = None
        self._bundle = ""
        self._job: Any = None
        self._started = 0.0
        self._training: Any = None
        self._tail: Any = None
        self._progress = TrainingProgress()
        self._host = ""
        self._isActive = self._wasClosed = False
        self._makeWidgets()
        self._timer = qt.QTimer()
        self._timer.setInterval(_POLL)
        self._timer.connect("timeout()", self._poll)

    def activate(self) -> None:
        """Asks the engine about the model that is chosen in the module, and attaches to a training that runs."""
        self._isActive = True
        if self._logic is None:
            self._logic = self._findLogic()
        bundle = self._logic.parameterNode.get().bundle
        if bundle != self._bundle or not self.hostComboBox.count:
            self._bundle = bundle
            if bundle:
                fields = {"bundle": bundle}
                self._logic.client.send("describe", fields, onResult=self._onDescribed, onFailed=self._onNotDescribed)
        if self._training is not None:
            self._poll()  # it may have ended meanwhile
        elif running := self._logic.trainingJobs.running():
            self._watch(running[0])
        self._timer.start()
        self._showState()

    def deactivate(self) -> None:
        """Stops looking; generation and training go on."""
        self._isActive = False
        self._timer.stop()

    def close(self) -> None:
        """The widgets are about to be destroyed; what was begun goes on without them."""
        self.deactivate()
        self._wasClosed = True

    @property
    def _isClosed(self) -> bool:
        """Also where Slicer has destroyed the widgets without a word: to PythonQt, what is destroyed is false."""
        return self._wasClosed or not self.widget

    def show(self, host: str, duration: str) -> None:
        """Shows the effect's parameters, and what can be done with what is being edited."""
        self._host = host or self._host
        for combo, wanted in ((self.hostComboBox, self._host), (self.durationComboBox, duration)):
            index = combo.findData(wanted)
            if index >= 0 and index != combo.currentIndex:
                combo.blockSignals(True)
                combo.setCurrentIndex(index)
                combo.blockSignals(False)
        self._showState()

    def _makeWidgets(self) -> None:
        self.widget = qt.QWidget()
        layout = qt.QFormLayout(self.widget)
        layout.setContentsMargins(0, 0, 0, 0)
        self.modelLabel = _label()
        self.generateButton = qt.QPushButton(_("Generate image for this segmentation"))
        self.progressBar = qt.QProgressBar()
        self.messageLabel = _label()
        self.segmentLabel = _label()
        self.hostComboBox = qt.QComboBox()
        self.hostComboBox.setToolTip(_("The tissue that would be there without what the segment shows."))
        self.durationComboBox = qt.QComboBox()
        self._durations = DurationBox(self.durationComboBox, "quick")
        self.fineTuneButton = qt.QPushButton(_("Fine-tune on this segmentation"))
        self.stateLabel = _label()
        self.stopButton = qt.QPushButton(_("Stop"))
        self.moduleButton = qt.QPushButton(_("Open MAISI"))
        buttons = qt.QHBoxLayout()
        buttons.addWidget(self.stopButton)
        buttons.addWidget(self.moduleButton)
        layout.addRow(_("Model:"), self.modelLabel)
        layout.addRow(self.generateButton)
        layout.addRow(self.progressBar)
        layout.addRow(self.messageLabel)
        layout.addRow(_("Teach segment:"), self.segmentLabel)
        layout.addRow(_("It lies in:"), self.hostComboBox)
        layout.addRow(_("Duration:"), self.durationComboBox)
        layout.addRow(self.fineTuneButton)
        layout.addRow(self.stateLabel)
        layout.addRow(buttons)
        self.progressBar.visible = False
        self._tell("")
        self._report("")
        self.generateButton.connect("clicked()", self._onGenerate)
        self.fineTuneButton.connect("clicked()", self._onFineTune)
        self.stopButton.connect("clicked()", self._onStop)
        self.moduleButton.connect("clicked()", lambda: slicer.util.selectModule("MAISI"))
        self.hostComboBox.connect("currentIndexChanged(int)", lambda _index: self._onChosen("Host", self.hostComboBox))
        self.durationComboBox.connect(
            "currentIndexChanged(int)", lambda _index: self._onChosen("Duration", self.durationComboBox)
        )

    def _onChosen(self, parameter: str, combo: Any) -> None:
        if combo.currentData:
            self._store(parameter, str(combo.currentData))

    def _onDescribed(self, data: dict[str, Any]) -> None:
        if self._isClosed:
            return
        combo = self.hostComboBox
        combo.blockSignals(True)
        combo.clear()
        for name in sorted((label["name"] for label in data["labels"]), key=str.casefold):
            combo.addItem(name, name)
        combo.setCurrentIndex(max(0, combo.findData(self._host or "body")))
        combo.blockSignals(False)
        self._durations.estimate(self._logic.client, self._bundle, 1, self._onFailed)
        self._showState()

    def _onNotDescribed(self, message: str, _kind: str) -> None:
        self._bundle = ""
        self._tell(_("{0} Open MAISI: its section Setup says what is missing.").format(message))
        self._showState()

    def _showState(self) -> None:
        if self._isClosed:
            return
        edited, isReady = self._edited(), bool(self._logic is not None and self._bundle)
        self.modelLabel.text = self._bundle or _("none chosen: open MAISI, section Model")
        hasBoth = edited.segmentationNode is not None and edited.volumeNode is not None
        self.segmentLabel.text = edited.segmentName or _("none selected")
        self.generateButton.text = _("Cancel") if self._job else _("Generate image for this segmentation")
        self.generateButton.enabled = bool(self._job) or (isReady and edited.segmentationNode is not None)
        self.fineTuneButton.enabled = isReady and hasBoth and bool(edited.segmentName)
        self.stopButton.enabled = self._training is not None

    # An image

    def _onGenerate(self) -> None:
        if self._job is not None:
            if time.monotonic() - self._started > RunControls.DOUBLE_CLICK_SECONDS:
                self._job.cancel()
            return
        self._started = time.monotonic()
        edited, parameters = self._edited(), self._logic.parameterNode.get()
        self._tell("")
        self.progressBar.maximum = 0
        self.progressBar.visible = True
        notes: list[str] = []
        job = self._logic.generateAsync(
            bundle=self._bundle,
            segmentationNode=edited.segmentationNode,
            referenceVolumeNode=edited.volumeNode,
            device=parameters.device,
            seed=parameters.seed,  # the panel's: with its dice another image is made
            onProgress=self._onProgress,
            onNote=notes.append,
            onDone=lambda _nodes: self._ended(" ".join([_("The image is in the scene."), *notes])),
            onFailed=lambda message, _kind: self._ended(message),
            onCancelled=lambda: self._ended(_("Cancelled.")),
        )
        self._job = job if job.isRunning else None
        self._showState()

    def _onProgress(self, event: dict[str, Any]) -> None:
        if self._isClosed:
            return
        self.progressBar.maximum = event.get("total") or 0
        self.progressBar.value = event.get("done") or 0

    def _ended(self, message: str) -> None:
        self._job = None
        if self._isClosed:
            return
        self.progressBar.visible = False
        self._tell(message)
        self._showState()

    def _tell(self, message: str) -> None:
        if self._isClosed:
            return
        self.messageLabel.text = message
        self.messageLabel.visible = bool(message)

    # A training

    def _report(self, message: str) -> None:
        self.stateLabel.text = message
        self.stateLabel.visible = bool(message)

    def _onFineTune(self) -> None:
        """Asks the engine which labels the segments are; the selected one becomes a new label where it is none."""
        edited = self._edited()
        pair, taught = CasePair(edited.volumeNode, edited.segmentationNode), edited.segmentName
        mapping, segments = SegmentMapping(), segmentsOf([pair])
        if taught not in [segment["name"] for segment in segments]:
            self._report(_("The segment '{0}' is empty. Draw it first.").format(taught))
            return
        self.fineTuneButton.enabled = False
        host, duration = (str(combo.currentData or "") for combo in (self.hostComboBox, self.durationComboBox))

        def onMapped(data: dict[str, Any]) -> None:
            mapping.take(data)
            row = next(row for row in mapping.rows if row.segment == taught)
            for segment in mapping.unknown():
                if segment != taught:
                    mapping.decide(segment, IGNORE)
            if row.label or mapping.newLabel:
                self._start(pair, mapping, row.label or mapping.newLabel, duration)
                return
            mapping.newLabel, mapping.host = taught, host
            ask()  # whether the name will do

        def ask() -> None:
            fields = mapping.request(self._bundle, segments)
            self._logic.client.send("map_segments", fields, onResult=onMapped, onFailed=self._onFailed)

        ask()

    def _start(self, pair: CasePair, mapping: SegmentMapping, focus: str, duration: str) -> None:
        wish = TrainingWish(
            suggestedName(self._bundle, focus, self._logic.trainingJobs.takenNames()),
            self._bundle,
            mapping.newLabels(),
            (focus,),
            mapping.edits,
            duration,
        )
        try:
            training = self._logic.fineTune([pair], onCase=self._tellCase, **wish.toDict())
        except MaisiError as error:
            self._onFailed(str(error), "")
            return
        self._watch(training)

    def _tellCase(self, _number: int, _count: int) -> None:
        """Writing a large case blocks the window for some seconds; this tells why."""
        self._report(_("Writing the volume and its segmentation for the training…"))
        slicer.app.processEvents(qt.QEventLoop.ExcludeUserInputEvents)

    def _watch(self, training: Any) -> None:
        self._training, self._progress = training, TrainingProgress()
        self._tail = self._logic.trainingJobs.follow(training)
        self._poll()

    def _poll(self) -> None:
        if self._isClosed:
            self._timer.stop()
            return
        if self._training is None or not self._isActive:
            return
        self._progress.add(self._tail.read())
        name, state = self._training.name, self._logic.trainingJobs.state(self._training)
        if state in ("queued", "running"):
            self._report(f"{name}: {self._progress.line() or _('starting…')}")
        else:
            words = {
                "done": _("'{0}' is finished. Its model is in the module MAISI, section Model.").format(name),
                "cancelled": _("'{0}' is stopped. Resume it in the module MAISI.").format(name),
            }
            problem = self._logic.trainingJobs.problem(self._training)
            self._report(words.get(state) or _("'{0}' has failed: {1}").format(name, problem))
            self._training = None
        self._showState()

    def _onStop(self) -> None:
        if self._training is not None:
            self._logic.trainingJobs.stop(self._training)

    def _onFailed(self, message: str, _kind: str) -> None:
        if self._isClosed:
            return
        self._report(message)
        self._showState()


def _label() -> Any:
    label = qt.QLabel()
    label.wordWrap = True
    return label
