"""The worker as a process: what another program sees of it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from Testing.imports import ROOT

#: A run that is not over before it is cancelled.
LONG = {"mask": "none", "output_size": [32, 32, 32], "steps": 1000}
#: What a busy computer may take to start a process and load PyTorch.
PATIENCE = 300.0


class Client:
    """The other end of a worker's line."""

    def __init__(self, work: Path, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.errors = work / "errors.txt"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *arguments, "-m", "MAISILib", "worker"],
                cwd=work, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.ready = self.event()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._events.put(json.loads(line))
        self._events.put(None)

    def send(self, id: str | None = None, command: str = "", **fields: Any) -> None:
        self.write(json.dumps({**({"id": id} if id else {}), "command": command, **fields}).encode() + b"\n")

    def write(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def event(self) -> dict[str, Any]:
        try:
            event = self._events.get(timeout=PATIENCE)
        except queue.Empty:
            self.process.send_signal(signal.SIGABRT)  # it says where it is
            event = None
            self.process.wait()
        assert event is not None, self.errors.read_text()
        return event

    def until(self, *events: str, stage: str = "") -> dict[str, Any]:
        while True:
            event = self.event()
            if event["event"] in events and (not stage or event.get("stage") == stage):
                return event
            assert event["event"] != "failed", event

    def ended(self, seconds: float) -> int:
        return self.process.wait(timeout=seconds)


@pytest.fixture
def client(work: Path) -> Iterator[Client]:
    client = Client(work)
    yield client
    with contextlib.suppress(OSError):
        client.close()
    client.process.kill()
    client.process.wait()


def test_a_worker_generates_cancels_and_quits(client: Client, tiny: Path, work: Path) -> None:
    assert client.ready["event"] == "ready"
    assert client.ready["protocol"] == 1
    assert client.ready["pid"] == client.process.pid
    out = str(work / "Ergebnisse µ 头")
    client.send("0", "plan", bundle=str(tiny), request={})  # both load PyTorch, at the same time
    client.send("1", "generate", bundle=str(tiny), request={"steps": 2, "seed": 5}, out=out)
    ends = [client.until("result", "failed", "sample") for _ in range(3)]
    sample = next(event for event in ends if event["event"] == "sample")
    result = next(event for event in ends if event["event"] != "sample" and event["id"] == "1")
    assert next(event for event in ends if event["id"] == "0")["data"]["fits"]
    assert result["data"]["samples"] == [{k: v for k, v in sample.items() if k not in ("event", "id")}]
    assert Path(sample["folder"], "image.nii.gz").is_file()

    client.send("2", "generate", bundle=str(tiny), request=LONG, out=out)
    client.until("progress", stage="diffusion")
    client.send("3", "bundles")
    assert client.until("result", "failed")["id"] == "3"  # while the other one runs
    client.send("2", "cancel")
    asked = time.monotonic()
    assert client.until("cancelled", "result", "failed") == {"event": "cancelled", "id": "2"}
    assert time.monotonic() - asked < 2
    assert [path.name for path in Path(out).iterdir()] == ["sample-0000"]

    client.send(command="quit")
    assert client.ended(10) == 0
    assert b"Traceback" not in client.errors.read_bytes()


def test_garbage_is_refused_and_the_next_command_is_done(client: Client) -> None:
    client.write(b"\xff\xfe not json\n[]\n{}\n")
    client.send("1", "genrate")
    client.send("2", "plan", bundle="nowhere", request={})
    client.send("3", "bundles")
    told = [client.event() for _ in range(6)]
    assert [event["kind"] for event in told[:5]] == [*["ProtocolError"] * 3, "RequestError", "BundleError"]
    assert [event["id"] for event in told] == [None, None, None, "1", "2", "3"]
    assert "Did you mean 'generate'" in told[3]["error"]
    assert told[5]["event"] == "result"


def test_the_end_of_input_ends_a_run(client: Client, tiny: Path, work: Path) -> None:
    client.send("1", "generate", bundle=str(tiny), request=LONG, out=str(work / "out"))
    client.until("progress", stage="diffusion")
    client.close()
    assert client.ended(7) == 0
    assert not (work / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_sigterm_ends_a_run(client: Client, tiny: Path, work: Path) -> None:
    client.send("1", "generate", bundle=str(tiny), request=LONG, out=str(work / "out"))
    client.until("progress", stage="diffusion")
    client.process.terminate()
    assert client.until("cancelled")["id"] == "1"
    assert client.ended(7) == 0


def test_a_killed_worker_leaves_no_file_and_no_process(client: Client, tiny: Path, work: Path) -> None:
    client.send("1", "generate", bundle=str(tiny), request=LONG, out=str(work / "out"))
    client.until("progress", stage="diffusion")
    children = psutil.Process(client.process.pid).children(recursive=True)
    client.process.kill()
    client.ended(5)
    assert not (work / "out").exists()
    assert [child for child in children if child.is_running()] == []


@pytest.mark.skipif(sys.platform == "win32", reason="uses fork")
def test_a_worker_whose_owner_was_killed_ends_by_itself(work: Path) -> None:
    owner = (
        "import subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-m', 'MAISILib', 'worker'], stdin=subprocess.PIPE)\n"
        "time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", owner], cwd=work, env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    worker = psutil.Process(json.loads(process.stdout.readline())["pid"])
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_any_package_a_worker_says_what_is_missing(work: Path) -> None:
    client = Client(work, "-S")  # no site-packages
    client.send("1", "preflight")
    checks = {check["name"]: check for check in client.event()["data"]["checks"]}
    assert checks["Python"]["state"] == "ok"
    assert checks["packages"]["state"] == "problem"
    assert "torch is missing" in checks["packages"]["found"]
    assert "Setup" in checks["packages"]["advice"]
    assert checks["PyTorch"]["found"] == "cannot be looked at without torch"
    client.send("2", "bundles")
    told = client.event()
    assert (told["event"], told["kind"]) == ("failed", "MissingPackage")
    client.send("3", "describe", bundle="head-neck-mini")
    assert client.event()["kind"] == "MissingPackage"
    client.send(command="quit")
    assert client.ended(10) == 0


def test_the_command_line_lists_it(work: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "MAISILib", "worker", "--help"]
    told = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert told.returncode == 0
    assert "JSON lines" in told.stdout
