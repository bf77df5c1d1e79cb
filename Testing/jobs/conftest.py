from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from MAISILib.jobs.protocol import Job, Message, Outbox
from Testing.tiny_bundle import make_tiny_bundle


class Answers:
    """What a worker has said, as the other end of the line reads it."""

    def __init__(self) -> None:
        self.stream = io.BytesIO()
        self.outbox = Outbox(self.stream)

    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().decode("utf-8").splitlines()]

    def of(self, event: str) -> list[dict[str, Any]]:
        return [answer for answer in self.all() if answer["event"] == event]


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def job(answers: Answers) -> Job:
    """A command that somebody has asked for, under the id 7."""
    return Job(Message("test", "7", {}), answers.outbox)


@pytest.fixture
def make_job(answers: Answers) -> Callable[[], Job]:
    return lambda: Job(Message("test", "7", {}), answers.outbox)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a bundle with a mask library; not to be changed."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", with_masks=2)
