"""The line that says what a run will cost on this machine; it turns red before the run cannot work."""

from __future__ import annotations

from typing import Any

import qt
from slicer.i18n import tr as _

from MAISIPanel.Wording import PROBLEM_STYLE

#: Milliseconds without a change before the engine is asked.
DEBOUNCE_MS = 400


class CostLine:
    """Asks the engine for a plan a moment after the last change, and shows the newest answer only.

    Args:
        logic: Its ``plan`` asks the engine.
        label: Where the line is shown.
    """

    def __init__(self, logic: Any, label: Any) -> None:
        self._logic, self._label = logic, label
        self._parameters: Any = None
        self._asked = 0
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.setInterval(DEBOUNCE_MS)
        self._timer.connect("timeout()", self._ask)

    def askFor(self, parameters: Any) -> None:
        """Asks soon what a run with these parameters costs."""
        self._parameters = parameters
        self._timer.start()

    def say(self, text: str, isProblem: bool = False) -> None:
        """Shows a line of the panel's own instead, and forgets what was to be asked."""
        self._timer.stop()
        self._asked += 1
        self._show(text, isProblem)

    def stop(self) -> None:
        """Asks nothing any more and ignores what is still to come."""
        self._timer.stop()
        self._asked += 1

    def _ask(self) -> None:
        self._asked += 1
        number = self._asked

        def answered(data: dict[str, Any]) -> None:
            if number == self._asked:
                self._show(data["text"], not data["fits"])

        def failed(message: str, kind: str) -> None:
            if number == self._asked:
                self._show(_("The cost is not known: the engine does not run.") if kind == "Crash" else message, True)

        self._logic.plan(self._parameters, answered, failed)

    def _show(self, text: str, isProblem: bool) -> None:
        self._label.text = text
        self._label.styleSheet = PROBLEM_STYLE if isProblem else ""
