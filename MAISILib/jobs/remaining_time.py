"""How long a run will still take: the plan says what each stage costs, the run itself how right the plan is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from MAISILib.generation.plan import Plan
    from MAISILib.generation.progress import Progress

#: The plan weighs as much as this part of the run; after that, what was measured wins.
_TRUST = 0.1


class RemainingTime:
    """Estimates the rest of a run from its progress.

    Args:
        plan: Of the run.
        clock: Gives seconds.
    """

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = {stage.name: stage.seconds for stage in plan.stages}
        self._total = max(plan.seconds, 1e-6)
        self._done: dict[tuple[str, int], float] = {}
        self._clock, self._started = clock, clock()

    def after(self, progress: Progress) -> float:
        """Seconds that are left after this news.

        A sample that fails its check is made again, which the plan cannot know: the time grows then.
        """
        if progress.stage == "load" and not self._done:
            self._started = self._clock()
        if progress.stage in self._seconds and progress.total:
            part = progress.done / progress.total
            self._done[progress.stage, progress.sample] = part * self._seconds[progress.stage]
            if progress.stage == "diffusion":
                self._done.pop(("decode", progress.sample), None)
        done = min(sum(self._done.values()), self._total)
        trust = _TRUST * self._total
        pace = (self._clock() - self._started + trust) / (done + trust)
        return (self._total - done) * pace
