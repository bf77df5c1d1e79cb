"""The trainings of this computer in the panel: how they go, their pictures, chart and log; stop, resume, delete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from MAISILib.errors import MaisiError
from MAISIPanel.LossChart import LossChart
from MAISIPanel.TrainingProgress import TrainingProgress

Notify = Callable[[str], None]
#: Milliseconds between two looks at the files of the trainings.
_POLL = 1000
#: Width of the pictures (pixels): what fits into a panel of 500.
_PICTURE_WIDTH = 420
#: Lines of the log that are shown.
_LOG_LINES = 400


class TrainingsView:
    """Follows trainings, also those that an earlier Slicer has started; looks at files only, in a timer.

    Args:
        logic: A `MAISILogic`: its scene and trainings.
        ui: Widgets of ``MAISIFineTune.ui`` by name.
        notify: Shows a line to the user.
        dialogs: Asks before anything is deleted.
        onBundleMade: Called with the name of a bundle that a training has just finished.
    """

    def __init__(self, logic: Any, ui: Any, notify: Notify, dialogs: Any, onBundleMade: Callable[[str], None]) -> None:
        self._logic, self._ui, self._notify, self._dialogs = logic, ui, notify, dialogs
        self._onBundleMade = onBundleMade
        self._jobs = logic.trainingJobs
        self._trainings: dict[str, Any] = {}
        self._states: dict[str, str] = {}
        self._stopping: set[str] = set()
        self._isListed = False
        self._shown = ""
        self._progress = TrainingProgress()
        self._tail: Any = None
        self._chart: LossChart | None = None
        self._picture, self._isNewestShown = -1, True
        self._timer = qt.QTimer()
        self._timer.setInterval(_POLL)
        self._timer.connect("timeout()", self.poll)
        ui.jobComboBox.connect("currentIndexChanged(int)", lambda _index: self._onPicked())
        ui.stopButton.connect("clicked()", self._onStop)
        ui.resumeButton.connect("clicked()", self._onResume)
        ui.chartButton.connect("clicked()", self._onChart)
        ui.deleteButton.connect("clicked()", self._onDelete)
        ui.previousPictureButton.connect("clicked()", lambda: self._showPicture(self._picture - 1))
        ui.nextPictureButton.connect("clicked()", lambda: self._showPicture(self._picture + 1))
        ui.logButton.connect("toggled(bool)", lambda _checked: self._showLog())
        self._showTraining()

    def refresh(self) -> None:
        """Lists the trainings again and attaches to what runs."""
        self._list(self._shown)
        self.poll()
        if not self._timer.isActive():
            self._timer.start()

    def watch(self, training: Any) -> None:
        """Shows a training that was just started; its chart comes into the scene with the first losses."""
        self._states[training.name] = "running"
        self._list(training.name)
        self._chart = LossChart(self._logic.scene, training.name)
        self._timer.start()
        self.poll()

    def onSceneClosed(self) -> None:
        """Charts are gone with the scene; they come again on a click."""
        self._chart = None

    def cleanup(self) -> None:
        """Stops looking. The trainings go on."""
        self._timer.stop()

    def poll(self) -> None:
        """Looks at the files once: what is new in the training that is shown, and which one has ended."""
        ended = []
        for name, training in self._trainings.items():
            before = self._states.get(name)
            if before in ("done", "failed", "cancelled"):
                continue
            state = self._states[name] = self._jobs.state(training)
            if before is not None and state != before and state not in ("queued", "running"):
                ended.append((name, state))
        if self._current is not None:
            new = self._tail.read()
            self._progress.add(new)
            if self._chart is not None:
                self._chart.add(new)
            self._showTraining()
        for name, state in ended:
            self._tell(name, state)
        if not any(map(self._isRunning, self._states)):
            self._timer.stop()

    @property
    def _current(self) -> Any:
        return self._trainings.get(self._shown)

    def _isRunning(self, name: str) -> bool:
        return self._states.get(name) in ("queued", "running")

    def _tell(self, name: str, state: str) -> None:
        self._relabel()
        if state == "done":
            self._notify(_("The training '{0}' is finished. Its model is in the section Model.").format(name))
            self._onBundleMade(name)
        elif state == "failed":
            problem = self._jobs.problem(self._trainings[name])
            self._notify(_("The training '{0}' has failed: {1}").format(name, problem))

    def _list(self, selected: str) -> None:
        before, isFirst, self._isListed = self._states, not self._isListed, True
        self._trainings = {training.name: training for training in self._jobs.find()}
        self._states = {
            name: self._states[name] if self._isRunning(name) else self._jobs.state(training)
            for name, training in self._trainings.items()
        }
        running = [name for name in self._states if self._isRunning(name)]
        wanted = next((name for name in (selected, *running, *self._trainings) if name in self._trainings), "")
        combo = self._ui.jobComboBox
        combo.blockSignals(True)
        combo.clear()
        for name in self._trainings:
            combo.addItem(name, name)
        combo.setCurrentIndex(combo.findData(wanted))
        combo.blockSignals(False)
        self._relabel()
        if wanted != self._shown:
            self._onPicked()
        for name, state in self._states.items():
            if state == "done" and name not in before and not isFirst:  # the Segment Editor effect has started it
                self._tell(name, state)

    def _relabel(self) -> None:
        combo = self._ui.jobComboBox
        for index, (name, state) in enumerate(self._states.items()):
            combo.setItemText(index, f"{name} – {_STATE_WORDS.get(state, state)}")

    def _onPicked(self) -> None:
        self._shown = str(self._ui.jobComboBox.currentData or "")
        self._progress, self._chart = TrainingProgress(), None
        self._picture, self._isNewestShown = -1, True
        if self._current is not None:
            self._tail = self._jobs.follow(self._current)
            self._progress.add(self._tail.read())
        self._showTraining()

    # What it looks like

    def _showTraining(self) -> None:
        ui, training, progress = self._ui, self._current, self._progress
        state = self._states.get(self._shown, "")
        isRunning = self._isRunning(self._shown)
        ui.jobComboBox.enabled = bool(self._trainings)
        isStopping = isRunning and self._shown in self._stopping
        ui.stopButton.enabled = isRunning and not isStopping
        ui.resumeButton.enabled = state in ("failed", "cancelled")
        ui.deleteButton.enabled = training is not None and not isRunning
        ui.chartButton.enabled = progress.hasLosses
        ui.progressBar.visible = isRunning
        ui.progressBar.maximum = progress.total
        ui.progressBar.value = progress.done
        if training is None:
            ui.stateLabel.text = _("No trainings yet.")
        elif isStopping:
            ui.stateLabel.text = _("Stopping after the present step…")
        elif isRunning:
            ui.stateLabel.text = progress.line() or _("Starting…")
        elif state == "failed":
            ui.stateLabel.text = _("Failed: {0}").format(self._jobs.problem(training))
        elif state == "cancelled":
            ui.stateLabel.text = _("Stopped at step {0}. Resume goes on from there.").format(progress.step)
        else:
            steps = _("Finished after {0} steps.").format(progress.step)
            ui.stateLabel.text = steps if progress.step else _("Finished.")
        self._showPicture(len(progress.pictures) - 1 if self._isNewestShown else self._picture)
        self._showLog()

    def _showPicture(self, index: int) -> None:
        ui, pictures = self._ui, self._progress.pictures
        hasAny = bool(pictures)
        for widget in (ui.pictureLabel, ui.previousPictureButton, ui.nextPictureButton, ui.pictureCaption):
            widget.visible = hasAny
        if not hasAny or self._current is None:
            return
        index = min(max(index, 0), len(pictures) - 1)
        self._isNewestShown = index == len(pictures) - 1
        ui.previousPictureButton.enabled, ui.nextPictureButton.enabled = index > 0, not self._isNewestShown
        step, file = pictures[index]
        caption = _("before and after") if "comparison" in file else _("step {0}").format(step)
        ui.pictureCaption.text = f"{caption} ({index + 1}/{len(pictures)})"
        if index == self._picture:
            return
        self._picture = index
        pixmap = qt.QPixmap(str(Path(self._current.work, file)))
        if pixmap.isNull():
            ui.pictureLabel.text = _("The picture {0} is gone.").format(file)
        else:
            ui.pictureLabel.setPixmap(pixmap.scaledToWidth(_PICTURE_WIDTH, qt.Qt.SmoothTransformation))

    def _showLog(self) -> None:
        ui = self._ui
        ui.logText.visible = bool(ui.logButton.checked)
        if not ui.logButton.checked or self._current is None:
            return
        text = self._jobs.log(self._current, _LOG_LINES)
        if text != ui.logText.plainText:
            ui.logText.setPlainText(text)
            bar = ui.logText.verticalScrollBar()
            bar.setValue(bar.maximum)

    # What the user does

    def _onStop(self) -> None:
        if self._do(self._jobs.stop):
            self._stopping.add(self._shown)
            self._showTraining()

    def _onResume(self) -> None:
        training = self._current
        if training is not None and self._do(self._jobs.resume):
            self._states[training.name] = "running"
            self._stopping.discard(training.name)
            self._relabel()
            self._timer.start()
            self._showTraining()

    def _onDelete(self) -> None:
        question = _("Delete the cases, pictures and checkpoints of the training '{0}'? A finished model stays.")
        if self._current is not None and self._dialogs.confirm(question.format(self._shown)):
            name = self._shown
            if self._do(self._jobs.delete):
                self._states.pop(name, None)
                self._shown = ""
                self._list("")
                self._onPicked()

    def _onChart(self) -> None:
        if self._current is None:
            return
        if self._chart is None:
            self._chart = LossChart(self._logic.scene, self._shown)
            self._chart.add(self._progress.events)
        self._chart.show()

    def _do(self, work: Callable[[Any], object]) -> bool:
        """Does something with the training that is shown, and says why if that is impossible."""
        if self._current is None:
            return False
        try:
            work(self._current)
        except MaisiError as error:
            self._notify(str(error))
            return False
        return True


_STATE_WORDS = {
    "queued": _("waiting"),
    "running": _("running"),
    "done": _("finished"),
    "failed": _("failed"),
    "cancelled": _("stopped"),
}
