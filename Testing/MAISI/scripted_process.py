"""A process, an event loop and an engine that the test plays, in place of real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from MAISILib.anatomy.labels import LabelTable, default_table
from MAISILib.generation.result import Sample
from MAISILib.quality.case_check import CaseCheck, Finding
from MAISILib.quality.hu_check import OrganCheck, QualityReport
from MAISILib.volumes import LabelMap, Volume

READY = {"event": "ready", "protocol": 1, "version": "0.1.0", "python": "3.12.10", "pid": 4711}


class ScriptedProcess:
    """`MAISIPanel.WorkerClient.Process` that does what the test says."""

    def __init__(self) -> None:
        self.onOutput: Callable[[bytes], None] = print
        self.onError: Callable[[bytes], None] = print
        self.onFinished: Callable[[int | None], None] = print
        self.started: tuple[str, list[str], dict[str, str]] | None = None
        self.isRunning = False
        self.wasKilled = False
        self.reasonNotToStart = ""
        self.sent: list[dict[str, Any]] = []

    def start(self, program: str, arguments: list[str], environment: dict[str, str]) -> None:
        self.started, self.isRunning = (program, arguments, environment), True
        if self.reasonNotToStart:
            self.complain(self.reasonNotToStart)
            self.end(None)

    def write(self, data: bytes) -> None:
        assert self.isRunning
        assert data.endswith(b"\n")
        self.sent += [json.loads(line) for line in data.decode("utf-8").splitlines()]

    def closeInput(self) -> None:
        pass

    def kill(self) -> None:
        self.wasKilled = True
        self.isRunning = False

    def say(self, **event: Any) -> None:
        self.onOutput(json.dumps(event, ensure_ascii=False).encode() + b"\n")

    def complain(self, text: str) -> None:
        self.onError(text.encode() + b"\n")

    def end(self, exitCode: int | None) -> None:
        self.isRunning = False
        self.onFinished(exitCode)

    def all(self, command: str) -> list[dict[str, Any]]:
        return [message for message in self.sent if message["command"] == command]


class EventLoop:
    """Does later what it is told to do later, when the test lets it."""

    def __init__(self) -> None:
        self._now = 0
        self._waiting: list[tuple[int, int, Callable[[], Any]]] = []
        self._number = 0

    def later(self, milliseconds: int, function: Callable[[], Any]) -> None:
        self._number += 1
        self._waiting.append((self._now + milliseconds, self._number, function))

    def step(self) -> bool:
        """Does one thing that is due."""
        due = sorted(each[:2] for each in self._waiting if each[0] <= self._now)
        if not due:
            return False
        entry = next(each for each in self._waiting if each[:2] == due[0])
        self._waiting.remove(entry)
        entry[2]()
        return True

    def run(self) -> None:
        while self.step():
            pass

    def advance(self, milliseconds: int) -> None:
        self._now += milliseconds
        self.run()


class ScriptedEngine:
    """The engine's side of a `WorkerClient`: its processes, and results as the engine writes them.

    Attributes:
        processes: All that were started, the last one last.
    """

    def __init__(self, bundleFolder: Path) -> None:
        self.processes: list[ScriptedProcess] = []
        self.bundleFolder = bundleFolder

    def makeProcess(self) -> ScriptedProcess:
        self.processes.append(ScriptedProcess())
        return self.processes[-1]

    @property
    def process(self) -> ScriptedProcess:
        return self.processes[-1]

    def last(self, command: str) -> dict[str, Any]:
        return self.process.all(command)[-1]

    def listBundles(self) -> None:
        bundles = [{"name": "head-neck-mini", "state": "embedded", "folder": str(self.bundleFolder)}]
        self.process.say(event="result", id=self.last("bundles")["id"], data={"bundles": bundles})

    def sample(self, index: int = 0, seed: int = 7, **changes: Any) -> Path:
        """Writes a sample for the last generate, and announces it."""
        asked = self.last("generate")
        folder = Path(asked["out"]) / f"sample-{index:04d}"
        written = makeSample(self.bundleFolder, index, seed, **changes)
        written.save(folder)
        self.process.say(event="sample", id=asked["id"], folder=str(folder), seed=seed, index=index, passed=True)
        return folder

    def finish(self) -> None:
        self.process.say(event="result", id=self.last("generate")["id"], data={"samples": [], "seconds": 1.5})


def makeSample(
    bundleFolder: Path,
    index: int = 0,
    seed: int = 7,
    affine: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    source: dict[str, Any] | None = None,
) -> Sample:
    """A sample of head-neck-mini as the pipeline gives it: a mandible in a body."""
    affine = np.diag([-2.0, -2.0, 3.0, 1.0]) if affine is None else affine
    table = LabelTable.read(bundleFolder / "labels.csv", base=default_table())
    if labels is None:
        labels = np.zeros((20, 24, 18), np.uint8)
        labels[2:18, 3:20, 2:16] = LabelTable.BODY
        labels[8:12, 8:14, 6:12] = table.find("mandible").value
    noise = np.random.default_rng(seed + index).integers(-40, 40, labels.shape)
    image = np.where(labels == 0, -1000, np.where(labels == LabelTable.BODY, 20, 600) + noise).astype(np.int16)
    checks = (
        OrganCheck("mandible", (137,), 144, 601.0, 200.0, 1000.0),
        OrganCheck("soft tissue", (200,), 3664, 220.0, -140.0, 119.0),
    )
    quality = CaseCheck("", (Finding("failed", "soft tissue is too bright"),), QualityReport(checks))
    provenance = {
        "format": "maisi-provenance",
        "format_version": 1,
        "synthetic": True,
        "bundle": {"name": "head-neck-mini", "folder": str(bundleFolder), "weights_sha256": {}},
        "request": {"seed": seed, "mask": "file" if source else "library", "mask_ct": None},
        "sample": {"index": index, "seed": 99, "attempts": 1},
        "mask_source": source or {"kind": "library", "notes": []},
        "settings": {"modality": "ct", "solver": "euler", "steps": 10},
        "seconds": {"diffusion": 4.25, "decode": 1.5},
        "quality": quality.to_dict(),
    }
    return Sample(index, 99, Volume(image, affine), LabelMap(labels, affine, table), quality, 1, provenance)
