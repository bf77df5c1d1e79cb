"""Processes of this computer: is one still running, and ending one with all that it has started.

Needs the standard library only, for Slicer's own Python; where psutil is installed it is asked first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

#: Clocks may be set between the start of a process and the writing of its number (seconds).
_CLOCK_TOLERANCE = 60.0
#: Linux tells in files; macOS by the program ps.
_HAS_PROC = Path("/proc/self/stat").exists()


def is_running(pid: int, recorded_at: float) -> bool:
    """Whether a process runs, and is the one whose number was written down at that time.

    Numbers are given again, after a restart of the computer above all: a process that is younger is another one. One
    that has ended and waits for its parent to notice (a zombie) does not run.

    Args:
        pid: Its number.
        recorded_at: Seconds since 1970.
    """
    started = started_at(pid)
    return started is not None and started <= recorded_at + _CLOCK_TOLERANCE


def started_at(pid: int) -> float | None:
    """When a process was started, in seconds since 1970; ``None`` where it does not run."""
    try:
        import psutil
    except ImportError:
        pass
    else:
        try:
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
        except (psutil.Error, ValueError, OverflowError):
            return None
    if sys.platform == "win32":
        return _started_on_windows(pid)
    return _started_by_proc(pid) if _HAS_PROC else _started_by_ps(pid)


def end_group(pid: int, seconds: float = 2.0) -> None:
    """Ends all processes of a process's group (on Windows: the process and all that it has started) at once.

    Returns when they are gone, or after so many seconds.
    """
    if sys.platform == "win32":
        _end_tree_on_windows(pid, seconds)
        return
    with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        group = os.getpgid(pid)
        os.killpg(group, signal.SIGKILL)
        deadline = time.monotonic() + seconds
        while members_of_group(group) and time.monotonic() < deadline:
            time.sleep(0.02)


def end_descendants(pid: int, seconds: float = 2.0) -> None:
    """Ends all processes that a process has started, and those that they have started, at once.

    The process itself goes on, except on Windows; a launcher ends with what it has launched. 0, which Qt says of a
    process that does not run, has started none.
    """
    if pid <= 0:
        return
    if sys.platform == "win32":
        _end_tree_on_windows(pid, seconds)
        return
    processes = _all_processes()
    parents = {pid}
    while parents:
        parents = {process.pid for process in processes if process.parent in parents}
        for child in parents:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)


def ask_group(pid: int) -> None:
    """Asks all processes of a process's group to end, with SIGTERM: a launcher would not pass it on.

    Windows has nothing like it.
    """
    if sys.platform != "win32":
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(os.getpgid(pid), signal.SIGTERM)


def members_of_group(group: int) -> list[int]:
    """Running processes of a process group; POSIX only."""
    return [process.pid for process in _all_processes() if process.group == group and process.state not in ("Z", "X")]


class _Process(NamedTuple):
    pid: int
    parent: int
    group: int
    state: str  # first letter, as ps tells it: Z for a zombie


def _all_processes() -> list[_Process]:
    """POSIX only."""
    if _HAS_PROC:
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
        rows = [(pid, fields[1], fields[2], fields[0]) for pid in pids if (fields := _proc_fields(pid))]
    else:
        command = ["ps", "-A", "-o", "pid=,ppid=,pgid=,stat="]
        table = subprocess.run(command, capture_output=True, text=True).stdout
        rows = [line.split(None, 3) for line in table.splitlines()]
    return [_Process(int(pid), int(parent), int(group), state[:1]) for pid, parent, group, state in rows]


def _end_tree_on_windows(pid: int, seconds: float) -> None:
    hidden = getattr(subprocess, "CREATE_NO_WINDOW", 0)
    with suppress(OSError, subprocess.SubprocessError):
        command = ["taskkill", "/PID", str(pid), "/T", "/F"]
        subprocess.run(command, capture_output=True, timeout=seconds, creationflags=hidden)


def _proc_fields(pid: int) -> list[str]:
    """``/proc/PID/stat`` from the state on (proc_pid_stat(5)); empty where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name before it may hold spaces and brackets


def _started_by_proc(pid: int) -> float | None:
    fields = _proc_fields(pid)
    if not fields or fields[0] in "ZX":
        return None
    lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
    booted = next(float(line.split()[1]) for line in lines if line.startswith("btime"))
    return booted + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _started_by_ps(pid: int) -> float | None:
    command = ["ps", "-p", str(pid), "-o", "stat=,lstart="]
    environment = {**os.environ, "LC_ALL": "C"}
    told = subprocess.run(command, capture_output=True, text=True, env=environment).stdout.split()
    if len(told) != 6 or told[0].startswith("Z"):
        return None
    return time.mktime(time.strptime(" ".join(told[1:]), "%a %b %d %H:%M:%S %Y"))


def _started_on_windows(pid: int) -> float | None:
    import ctypes
    from ctypes import wintypes

    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
    kernel.OpenProcess.restype = wintypes.HANDLE
    query_limited_information, still_active = 0x1000, 259
    handle = kernel.OpenProcess(query_limited_information, False, pid)
    if not handle:
        return None
    try:
        code, times = wintypes.DWORD(), [wintypes.FILETIME() for _ in range(4)]
        if not kernel.GetExitCodeProcess(wintypes.HANDLE(handle), ctypes.byref(code)) or code.value != still_active:
            return None
        if not kernel.GetProcessTimes(wintypes.HANDLE(handle), *(ctypes.byref(t) for t in times)):
            return None
        ticks = (times[0].dwHighDateTime << 32) + times[0].dwLowDateTime
        return ticks / 1e7 - 11_644_473_600  # from 100 ns since 1601 to seconds since 1970
    finally:
        kernel.CloseHandle(wintypes.HANDLE(handle))
