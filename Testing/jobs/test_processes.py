from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from MAISILib.jobs import processes
from MAISILib.jobs.processes import end_descendants, end_group, is_running, members_of_group, started_at

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(SLEEP, start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.fixture(params=["psutil", "standard library"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where is known from what runs: Slicer's own Python has no psutil."""
    if request.param == "standard library":
        monkeypatch.setitem(sys.modules, "psutil", None)
    return request.param


@pytest.mark.usefixtures("source")
def test_a_process_runs_until_it_ends(sleeper: subprocess.Popen[bytes]) -> None:
    now = time.time()
    assert is_running(sleeper.pid, now)
    assert started_at(sleeper.pid) == pytest.approx(now, abs=20)
    assert is_running(os.getpid(), now)
    sleeper.kill()
    deadline = time.monotonic() + 10
    while is_running(sleeper.pid, now):  # a zombie from now on: nobody has waited for it
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sleeper.wait()
    assert not is_running(sleeper.pid, now)


@pytest.mark.usefixtures("source")
def test_a_number_that_was_given_again_is_another_process(sleeper: subprocess.Popen[bytes]) -> None:
    assert not is_running(sleeper.pid, time.time() - 3600)


@pytest.mark.usefixtures("source")
@pytest.mark.parametrize("pid", [2**22 + 7, 2**40])
def test_a_number_that_nobody_has_is_no_process(pid: int) -> None:
    assert not is_running(pid, time.time())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no ps")
def test_ps_tells_the_same_where_there_is_no_proc(sleeper: subprocess.Popen[bytes]) -> None:
    started = processes._started_by_ps(sleeper.pid)
    assert started == pytest.approx(started_at(sleeper.pid), abs=20)
    sleeper.kill()
    sleeper.wait()
    assert processes._started_by_ps(sleeper.pid) is None


@pytest.mark.skipif(sys.platform == "win32", reason="uses process groups")
@pytest.mark.parametrize("has_proc", [True, False])
def test_a_group_is_ended_with_all_that_it_has_started(has_proc: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_proc:
        monkeypatch.setattr(processes, "_HAS_PROC", False)
    program = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"child = subprocess.Popen({SLEEP!r})\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-S", "-c", program]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert set(members_of_group(process.pid)) == {process.pid, child}
    before = time.monotonic()
    end_group(process.pid)
    assert time.monotonic() - before < 2
    assert members_of_group(process.pid) == []
    process.wait()
    assert not is_running(child, time.time())
    end_group(process.pid)  # nothing is left to be ended, which is no error


def test_the_number_of_no_process_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: ended.append(pid))
    end_descendants(0)  # else the children of the system's first process, which is 0's
    assert ended == []


@pytest.mark.skipif(sys.platform == "win32", reason="there the process itself ends, too")
@pytest.mark.parametrize("has_proc", [True, False])
def test_what_a_launcher_has_started_is_ended_down_to_the_last_one(
    has_proc: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_proc:
        monkeypatch.setattr(processes, "_HAS_PROC", False)
    program = "import subprocess, sys\nchild = subprocess.Popen({!r}{})\nprint(child.pid, flush=True)\nchild.wait()\n"
    inner = [sys.executable, "-S", "-c", program.format(SLEEP, "")]
    outer = [sys.executable, "-S", "-c", program.format(inner, ", stdout=sys.stdout") + "print('ended', flush=True)"]
    launcher = subprocess.Popen(outer, stdout=subprocess.PIPE)
    assert launcher.stdout is not None
    child, grandchild = (int(launcher.stdout.readline()) for _ in range(2))
    end_descendants(launcher.pid)
    assert launcher.stdout.readline() == b"ended\n"  # it has gone on
    launcher.wait()
    assert not is_running(child, time.time())
    end = time.monotonic() + 20  # without /proc it counts as running until the system has taken its exit code
    while is_running(grandchild, time.time()):
        assert time.monotonic() < end
        time.sleep(0.01)
