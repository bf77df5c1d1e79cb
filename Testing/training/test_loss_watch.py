from __future__ import annotations

import random

import pytest

from MAISILib.errors import TrainingError
from MAISILib.training.loss_watch import DIVERGED, WINDOW, LossWatch


def feed(watch: LossWatch, *losses: float) -> LossWatch:
    for loss in losses:
        watch.add(loss, "RUN")
    return watch


def test_a_loss_that_grows_beyond_measure_ends_the_run() -> None:
    watch = feed(LossWatch(), *[1.0] * WINDOW)
    with pytest.raises(TrainingError, match=r"RUN: the loss has diverged\. It was 1 at the start and 3\.1 over"):
        feed(watch, *[DIVERGED + 0.1] * WINDOW)


def test_one_wild_step_is_no_divergence() -> None:
    watch = feed(LossWatch(), *[1.0] * WINDOW, 30.0)
    assert watch.is_doubtful  # but not a moment for a checkpoint
    assert not feed(watch, *[1.0] * WINDOW).is_doubtful


def test_rare_items_that_weigh_a_hundred_times_are_no_divergence() -> None:
    feed(LossWatch(), *[0.3] * WINDOW, *[0.3, 0.3, 0.3, 6.2] * 50)


def test_noise_is_no_divergence() -> None:
    rng = random.Random(1)
    watch = feed(LossWatch(), *(rng.uniform(0.3, 1.0) for _ in range(500)))
    assert not watch.is_doubtful


def test_nothing_is_judged_before_there_is_enough_to_compare() -> None:
    assert not feed(LossWatch(), *[2.0**i for i in range(WINDOW)]).is_doubtful


def test_the_start_outlives_a_resume() -> None:
    before = feed(LossWatch(), *[1.0] * WINDOW)
    resumed = LossWatch()
    resumed.first = list(before.first)
    assert not feed(resumed, *[2.0] * (WINDOW - 1)).is_doubtful  # too few yet
    assert feed(resumed, 2.0).is_doubtful
    with pytest.raises(TrainingError, match="diverged"):
        feed(resumed, *[4.0] * WINDOW)


def test_a_loss_below_zero_is_watched_too() -> None:
    watch = feed(LossWatch(), *[-0.5] * WINDOW, *[-1.0] * WINDOW)
    assert not watch.is_doubtful
    with pytest.raises(TrainingError, match="diverged"):
        feed(watch, *[2.0] * WINDOW)
