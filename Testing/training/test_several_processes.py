from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from MAISILib.errors import Cancelled, RequestError
from MAISILib.jobs.folder import read_events, read_state
from MAISILib.training.processes import Processes
from Testing.imports import ROOT
from Testing.training.tiny_task import TinyTask, losses_of, state_of, train

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="gloo is not built into PyTorch here")

ASKED: dict[str, Any] = {"steps": 4, "seed": 3, "rate": 0.01, "save_minutes": 1000, "validate_every": 2}
LONG: dict[str, Any] = {**ASKED, "steps": 400, "validate_every": 0, "save_minutes": 1e-9}


def run(name: str, recipe: dict[str, Any], *, judged: bool = False, seconds: float = 0.0) -> dict[str, Any]:
    return {"name": name, "judged": judged, "seconds": seconds, "recipe": recipe}


def torchrun(folder: Path, *runs: dict[str, Any]) -> subprocess.Popen[str]:
    """Two processes on this machine, in a group of their own."""
    script = ROOT / "Testing" / "training" / "two_processes.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    # Without GPUs, "auto" (which people leave as it is) must find the companions on the CPU.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*command, str(folder), json.dumps(runs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "waited too long"
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.05)


def steps_of(folder: Path) -> int:
    return max((event.done for event in read_events(folder)), default=0)


def assert_same_weights(one: Path, two: Path) -> None:
    first, second = state_of(one), state_of(two)
    assert (first["step"], first["position"]) == (second["step"], second["position"])
    for part in ("networks", "averages"):
        for network, weights in first[part].items():
            for key, value in weights.items():
                torch.testing.assert_close(second[part][network][key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_two_processes_do_what_one_does_with_the_doubled_batch(tmp_path: Path) -> None:
    judged = {**ASKED, "accumulate": 2, "clip": 0.1}
    with torchrun(tmp_path, run("plain", ASKED), run("judged", judged, judged=True)) as process:
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    for name, recipe, in_phases in (("plain", ASKED, False), ("judged", judged, True)):
        alone = tmp_path / f"{name} alone"
        train(alone, TinyTask(6, judged=in_phases, validation=3), **{**recipe, "batch": 2})
        assert_same_weights(tmp_path / name, alone)
        for step, metrics in losses_of(alone).items():
            assert losses_of(tmp_path / name)[step] == pytest.approx(metrics, rel=1e-3)
        mine, theirs = read_events(tmp_path / name), read_events(alone)
        assert [(e.stage, e.done) for e in mine] == [(e.stage, e.done) for e in theirs]  # one process writes
        figures = [e.metrics for e in mine if e.stage == "validation"]
        assert figures[-1] == pytest.approx([e.metrics for e in theirs if e.stage == "validation"][-1], rel=1e-3)
        assert set(figures[-1]) == {"loss", "seen"}
        assert len(list((tmp_path / name / "tensorboard").iterdir())) == 1
        assert read_state(tmp_path / name) == "done"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_process_ends_the_others_and_the_run_goes_on_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with torchrun(tmp_path, run("run", LONG, seconds=0.05)) as process:
        wait_until(lambda: steps_of(folder) >= 3, process)
        os.kill(int((tmp_path / "process-1").read_text()), signal.SIGKILL)
        killed = time.monotonic()
        output, _ = process.communicate(timeout=60)
        assert time.monotonic() - killed < 20
    assert process.returncode != 0, output
    assert read_state(folder) == "failed"
    assert "Another process" in output
    saved = state_of(folder)["step"]
    assert steps_of(folder) - saved <= 1
    # Resumed by one process: how many there are may change, the place in the data does not.
    with pytest.raises(Cancelled, match=f"Stopped at step {saved + 2}"):
        train(folder, TinyTask(6, validation=3), **LONG, cancel_at=saved + 2)
    assert state_of(folder)["position"] == 2 * saved + 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for a group of processes")
def test_ctrl_c_saves_the_step_in_all_processes(tmp_path: Path) -> None:
    """The terminal interrupts all processes, and torchrun then tells its own once more."""
    folder = tmp_path / "run"
    with torchrun(tmp_path, run("run", {**LONG, "save_minutes": 1000}, seconds=0.2)) as process:
        wait_until(lambda: steps_of(folder) >= 2, process)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert read_state(folder) == "cancelled", output
    assert state_of(folder)["step"] == steps_of(folder)


def test_each_process_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RequestError, match=r"GPUs for 1 of 2 processes\. Start torchrun with --nproc_per_node=1"):
        Processes("auto", "float32", in_phases=False)
    with pytest.raises(RequestError, match="cannot share the device 'cuda:0'"):
        Processes("cuda:0", "float32", in_phases=False)
