"""Stops a training run as a power cut would, with a checkpoint on the disk."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from MAISILib.training.checkpoints import Run


class PowerCut(Exception):
    pass


def cut_power_after(step: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object], unsaved: int = 0) -> None:
    """Runs ``work`` until ``step``; the checkpoint is from ``unsaved`` steps before."""
    advance = Run.advance

    def stop(run: Run, metrics: dict[str, float]) -> None:
        advance(run, metrics)
        if run.step == step - unsaved:
            run.save()
        if run.step == step:
            raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(Run, "advance", stop)
        with pytest.raises(PowerCut):
            work()
