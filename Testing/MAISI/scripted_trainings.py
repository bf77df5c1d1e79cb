"""Trainings without processes, for tests of what shows them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from MAISILib.jobs.folder import Event


class ScriptedTrainings:
    """Trainings that go as the test says."""

    def __init__(self, work: Path) -> None:
        self.work, self.states, self.events, self.calls = work, {}, {}, []

    def add(self, name: str, state: str = "running", events: tuple[Event, ...] = ()) -> Any:
        self.states[name], self.events[name] = state, list(events)
        return SimpleNamespace(name=name, work=self.work)

    def find(self) -> list[Any]:
        return [SimpleNamespace(name=name, work=self.work) for name in reversed(self.states)]

    def running(self) -> list[Any]:
        return [training for training in self.find() if self.state(training) == "running"]

    def state(self, training: Any) -> str:
        return self.states[training.name]

    def follow(self, training: Any) -> Any:
        seen = 0

        def read() -> list[Event]:
            nonlocal seen
            events = self.events[training.name][seen:]
            seen += len(events)
            return events

        return SimpleNamespace(read=read)

    def log(self, training: Any, lines: int) -> str:
        return f"log of {training.name}"

    def problem(self, training: Any) -> str:
        return "the disk is full."

    def takenNames(self) -> set[str]:
        return set(self.states)

    def stop(self, training: Any) -> None:
        self.calls.append(("stop", training.name))

    def resume(self, training: Any) -> Any:
        self.calls.append(("resume", training.name))
        self.states[training.name] = "running"
        return training

    def delete(self, training: Any) -> None:
        self.calls.append(("delete", training.name))
        del self.states[training.name]


def events(count: int = 40) -> tuple[Event, ...]:
    prepare = Event("prepare", 1, 1, "Anna", time=100.0)
    steps = [
        Event("controlnet", step, 600, metrics={"loss": 1 / step}, time=100.0 + 2 * step) for step in range(1, count)
    ]
    return (prepare, *steps)
