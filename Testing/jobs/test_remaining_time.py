from __future__ import annotations

import pytest

from MAISILib.generation.plan import Plan, Stage
from MAISILib.generation.progress import Progress
from MAISILib.jobs.remaining_time import RemainingTime


def plan(samples: int = 2) -> Plan:
    """Each sample 90 s of diffusion and 10 s of decoding."""
    stages = (Stage("diffusion", 1.0, 90.0, 1), Stage("decode", 1.0, 10.0, 1))
    return Plan("cpu", "float32", (8, 8, 8), (1, 1, 1), (4, 4, 4, 4), 30, samples, stages, 1, 2)


def test_a_run_as_fast_as_its_plan_counts_down() -> None:
    now = 0.0
    remaining = RemainingTime(plan(), lambda: now)
    assert remaining.after(Progress("mask", 0, 1)) == pytest.approx(200)
    now = 45.0
    assert remaining.after(Progress("diffusion", 5, 10)) == pytest.approx(155)
    now = 190.0
    remaining.after(Progress("diffusion", 10, 10))
    remaining.after(Progress("diffusion", 10, 10, sample=1))
    remaining.after(Progress("decode", 1, 1))
    assert remaining.after(Progress("decode", 0, 1, sample=1)) == pytest.approx(10)
    now = 200.0
    assert remaining.after(Progress("decode", 1, 1, sample=1)) == 0


def test_a_run_slower_than_its_plan_is_believed_more_and_more() -> None:
    now = 0.0
    remaining = RemainingTime(plan(1), lambda: now)
    told = []
    for step in range(1, 11):
        now = 27.0 * step  # three times what was planned
        told.append(remaining.after(Progress("diffusion", step, 10)))
    assert told[0] > 150
    assert told[7] == pytest.approx(3 * 28, rel=0.15)
    assert told[9] == pytest.approx(3 * 10, rel=0.1)


def test_a_sample_that_is_made_again_takes_its_time_again() -> None:
    now = 0.0
    remaining = RemainingTime(plan(1), lambda: now)
    now = 100.0
    remaining.after(Progress("diffusion", 10, 10))
    assert remaining.after(Progress("decode", 1, 1)) == 0
    assert remaining.after(Progress("diffusion", 1, 10)) > 80
