"""Notices a loss that runs away."""

from __future__ import annotations

from collections import deque
from statistics import median

from MAISILib.errors import FailedTrainingError

#: Means over so many steps are compared.
WINDOW = 20
#: Above so many times its value at the start, a loss has diverged; above half of that it is doubtful.
DIVERGED = 3.0


class LossWatch:
    """Compares the loss of the last steps with that of the first ones.

    Attributes:
        first: Losses of the first steps of the run; they outlive a resume.
    """

    def __init__(self) -> None:
        self.first: list[float] = []
        self._recent: deque[float] = deque(maxlen=WINDOW)

    def add(self, loss: float, where: str) -> None:
        """Takes the loss of a step.

        It has diverged where its mean and its median have risen: where some items weigh a hundred times (a rare
        lesion), a few of them raise the mean alone.

        Raises:
            FailedTrainingError: The loss has diverged.
        """
        if len(self.first) < WINDOW:
            self.first.append(loss)
        self._recent.append(loss)
        if self._rise() > DIVERGED and median(self._recent) > DIVERGED * abs(median(self.first)):
            now, start = sum(self._recent) / WINDOW, sum(self.first) / len(self.first)
            raise FailedTrainingError(
                f"{where}: the loss has diverged. It was {start:.4g} at the start and {now:.4g} over the last {WINDOW} "
                "steps. Lower the rate and start anew, or --resume from the last checkpoint, which is kept."
            )

    @property
    def is_doubtful(self) -> bool:
        """Whether a checkpoint of now had better not replace an earlier one."""
        return self._rise() > DIVERGED / 2

    def _rise(self) -> float:
        if len(self._recent) < WINDOW or len(self.first) < WINDOW:
            return 1.0
        return max(0.0, sum(self._recent)) / max(1e-12, abs(sum(self.first)))
