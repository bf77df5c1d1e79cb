"""The command line as a user meets it: arguments in, messages, exit codes and files out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from MAISILib.cli.app import main
from Testing.imports import ROOT
from Testing.tiny_bundle import make_tiny_bundle


@dataclass
class Outcome:
    """What a command left: exit code, what it printed, and the files in its working folder."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Maisi = Callable[..., Outcome]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a bundle; not to be changed."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny", with_masks=2)


@pytest.fixture
def own_tiny(tiny: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny, tmp_path / "bundles" / "tiny"))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def maisi(work: Path, capsys: pytest.CaptureFixture[str]) -> Maisi:
    """Runs a command in this process."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Outcome(code, str(printed.out), str(printed.err))

    return run


@pytest.fixture
def refused(maisi: Maisi, work: Path) -> Maisi:
    """Runs a command that must fail as bad input: exit code 2, one line or list on stderr, nothing written."""

    def run(*arguments: object) -> Outcome:
        before = sorted(work.rglob("*"))
        outcome = maisi(*arguments)
        assert outcome.code == 2, outcome
        assert outcome.err.startswith("maisi: ")
        lines = outcome.err.splitlines()
        assert len(lines) == 1 or lines[0].endswith(":")  # a list of what is wrong
        assert "Traceback" not in outcome.err
        assert outcome.out == ""
        assert sorted(work.rglob("*")) == before
        return outcome

    return run


def interrupted(process: subprocess.Popen[str], line: str, sign: signal.Signals) -> str:
    """Sends a signal once standard error has such a line, and waits for the cancelled end; the rest of the errors."""
    assert process.stderr is not None
    for told in process.stderr:
        if told.startswith(line):
            break
    process.send_signal(sign)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err
    return err


@pytest.fixture
def start(work: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a command as a process of its own."""

    def run(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "MAISILib", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return run
