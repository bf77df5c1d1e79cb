"""The button Generate that becomes Cancel, and what a run shows: stage, bar, remaining time, preview."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import qt
from slicer.i18n import tr as _

from MAISIPanel.Wording import durationText

#: Seconds after the start in which a second click, that of a double click, does not cancel.
DOUBLE_CLICK_SECONDS = 0.6


class RunControls:
    """The button and the widgets below it.

    Args:
        ui: Widgets of ``MAISIGenerate.ui`` by name.
        onGenerate: Called when the user wants a run.
        onCancel: Called when the user wants it to end.
    """

    def __init__(self, ui: Any, onGenerate: Callable[[], None], onCancel: Callable[[], None]) -> None:
        self._ui, self._onGenerate, self._onCancel = ui, onGenerate, onCancel
        self.isRunning = False
        self._started = 0.0
        self._count = 1
        ui.generateButton.connect("clicked()", self._onClicked)
        self.end()

    def start(self, count: int) -> None:
        """Shows that a run of so many images has begun."""
        self.isRunning, self._count, self._started = True, count, time.monotonic()
        ui = self._ui
        ui.generateButton.text = _("Cancel")
        ui.generateButton.enabled = True
        ui.stageLabel.text = _("Starting the engine")
        ui.remainingLabel.text = ""
        ui.runProgressBar.maximum = 0
        ui.previewLabel.visible = False
        ui.runFrame.visible = True

    def end(self) -> None:
        """Back to a button that says Generate."""
        self.isRunning = False
        self._ui.generateButton.text = _("Generate")
        self._ui.runFrame.visible = False
        self._ui.previewLabel.clear()

    def allow(self, reason: str) -> None:
        """Lets the user press Generate, or not for a reason that the button's tool tip tells."""
        if not self.isRunning:
            self._ui.generateButton.enabled = not reason
        self._ui.generateButton.toolTip = reason

    def show(self, event: Mapping[str, Any]) -> None:
        """Shows a progress event of the engine."""
        if not self.isRunning:
            return
        ui, done, total = self._ui, event.get("done") or 0, event.get("total") or 0
        stage = _stageText(str(event.get("stage") or ""))
        if self._count > 1:
            stage = _("Image {0} of {1}: {2}").format(int(event.get("sample") or 0) + 1, self._count, stage)
        ui.stageLabel.text = stage
        ui.stageLabel.toolTip = str(event.get("message") or "")
        ui.runProgressBar.maximum = total if total > 1 else 0  # one step says nothing about how far it is
        ui.runProgressBar.value = min(done, total)
        remaining = event.get("remaining_seconds")
        ui.remainingLabel.text = "" if remaining is None else _("{0} left").format(durationText(float(remaining)))
        if event.get("preview"):
            self._preview(str(event["preview"]))

    def _onClicked(self) -> None:
        if not self.isRunning:
            self._onGenerate()
        elif time.monotonic() - self._started > DOUBLE_CLICK_SECONDS:
            self._ui.generateButton.text = _("Cancelling…")
            self._ui.generateButton.enabled = False
            self._onCancel()

    def _preview(self, png: str) -> None:
        pixmap = qt.QPixmap()
        # Decoded by Qt: bytes with zeros would not reach it whole from every Python.
        if pixmap.loadFromData(qt.QByteArray.fromBase64(qt.QByteArray(png.encode("ascii", "ignore")))):
            # Previews come from the latent: small, and smoothed to be looked at.
            smooth = pixmap.scaled(220, 220, qt.Qt.KeepAspectRatio, qt.Qt.SmoothTransformation)
            self._ui.previewLabel.setPixmap(smooth)
            self._ui.previewLabel.visible = True


def _stageText(stage: str) -> str:
    """The engine's stages in the panel's words."""
    words = {
        "prepare": _("Reading the segmentation"),
        "mask": _("Making the mask"),
        "load": _("Loading the networks"),
        "diffusion": _("Sampling"),
        "decode": _("Decoding the image"),
        "quality": _("Checking the image"),
        "done": _("Saving the image"),
        "show": _("Putting the image into the scene"),
    }
    return words.get(stage, stage)
