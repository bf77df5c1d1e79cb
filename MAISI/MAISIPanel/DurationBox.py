"""The list of durations of a fine-tuning, each with its steps and the time that it takes on this computer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slicer.i18n import tr as _

from MAISILib.training.durations import DURATIONS
from MAISIPanel.Wording import durationText


class DurationBox:
    """Fills a combo box whose data are the durations' names.

    Args:
        combo: A QComboBox.
        chosen: What is selected at first.
    """

    def __init__(self, combo: Any, chosen: str) -> None:
        self._combo = combo
        self._asked = 0
        for duration in DURATIONS:
            combo.addItem(_WORDS[duration], duration)
        combo.setCurrentIndex(combo.findData(chosen))

    def estimate(self, client: Any, bundle: str, cases: int, onFailed: Callable[[str, str], None]) -> None:
        """Asks the engine how long each duration takes for so many cases; without an answer the words stay.

        Args:
            client: A `WorkerClient`.
            bundle: The parent.
            cases: Number of cases.
            onFailed: Called with a message and its kind where the bundle cannot be fine-tuned at all.
        """
        self._asked += 1
        for duration in DURATIONS:
            client.send(
                "finetune_estimate",
                {"bundle": bundle, "cases": cases, "duration": duration},
                onResult=lambda data, duration=duration, asked=self._asked: self._show(data, duration, asked),
                onFailed=onFailed,
            )

    def _show(self, data: dict[str, Any], duration: str, asked: int) -> None:
        if asked == self._asked:
            words = _("{0}: {1} steps, about {2}")
            text = words.format(_WORDS[duration], data["steps"], durationText(data["seconds"]))
            self._combo.setItemText(self._combo.findData(duration), text)


_WORDS = {"quick": _("Quick"), "normal": _("Normal"), "long": _("Long")}
