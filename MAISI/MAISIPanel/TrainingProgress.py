"""What the events of a training say about how far it is."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from slicer.i18n import tr as _

from MAISIPanel.Wording import durationText

#: Stage of the steps themselves, and those that only tell something beside them.
TRAINING_STAGE = "controlnet"
_ASIDE = ("validation", "picture")
#: The remaining time comes from the pace of so many last steps.
_PACE_OVER = 50
#: A pause of so many seconds between two steps means that the training was broken off in between.
_PAUSE = 600.0


class TrainingProgress:
    """Collects the events of one training.

    Attributes:
        events: All so far.
        pictures: ``(step, file)`` of each picture, the file relative to the training's work folder.
    """

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.pictures: list[tuple[int, str]] = []
        self._last: Any = None
        self._steps: list[tuple[int, float]] = []

    def add(self, events: Iterable[Any]) -> None:
        """Takes new events, in their order."""
        for event in events:
            self.events.append(event)
            if event.file and event.file.endswith(".png") and all(event.file != file for _step, file in self.pictures):
                self.pictures.append((event.done, event.file))
            if event.stage not in _ASIDE:
                self._last = event
            if event.stage == TRAINING_STAGE and event.metrics:
                self._steps.append((event.done, event.time))

    @property
    def step(self) -> int:
        """Training steps that are done."""
        return self._steps[-1][0] if self._steps else 0

    @property
    def hasLosses(self) -> bool:
        """Whether there is anything to draw a chart of."""
        return bool(self._steps)

    @property
    def done(self) -> int:
        """Units of the present stage that are done."""
        return self._last.done if self._last else 0

    @property
    def total(self) -> int:
        """Units of the present stage; 0 where nobody knows."""
        return self._last.total if self._last else 0

    def remainingSeconds(self) -> float | None:
        """How long the steps will still take; ``None`` before the first few, and in other stages."""
        if self._last is None or self._last.stage != TRAINING_STAGE:
            return None
        recent = self._steps[-_PACE_OVER:]
        pairs = [
            (step - before, seconds - earlier)
            for (before, earlier), (step, seconds) in pairwise(recent)
            if step > before and seconds - earlier < _PAUSE
        ]
        if len(pairs) < 3:
            return None
        return (self.total - self.done) * sum(s for _n, s in pairs) / sum(n for n, _s in pairs)

    def line(self) -> str:
        """How it stands, in one line; empty where nothing is known yet."""
        if self._last is None:
            return ""
        event = self._last
        words = _STAGE_WORDS.get(event.stage, event.stage)
        text = f"{words} {event.done}/{event.total}" if event.total else words
        loss = next((value for name, value in event.metrics.items() if name.endswith("loss")), None)
        if loss is not None:
            text += " · " + _("loss {0}").format(f"{loss:.3g}")
        remaining = self.remainingSeconds()
        if remaining is not None:
            text += " · " + _("about {0} left").format(durationText(remaining))
        return text


_STAGE_WORDS = {
    "prepare": _("Preparing the cases"),
    "encode": _("Encoding the images"),
    TRAINING_STAGE: _("Training, step"),
    "compare": _("Comparing with the model before"),
    "bundle": _("Writing the model"),
}
