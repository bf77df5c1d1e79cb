from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest

from MAISILib.cli import running
from MAISILib.cli.running import cancel_on_interrupt


def test_a_wish_that_arrives_twice_is_one_wish_and_a_later_one_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(running, "time", SimpleNamespace(monotonic=lambda: now))
    before = signal.getsignal(signal.SIGINT)
    with cancel_on_interrupt() as cancel:
        assert not cancel.cancelled
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert cancel.cancelled
        now = 102.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
