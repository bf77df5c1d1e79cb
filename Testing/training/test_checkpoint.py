"""Checkpoints on full disks, and files that are none."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.tensorboard.writer import SummaryWriter

from MAISILib.errors import Cancelled, OutputError, TrainingError
from MAISILib.jobs.folder import read_state
from Testing.training.tiny_task import train


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Cancelled):
        train(tmp_path, cancel_at=2)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def write_a_part(state: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("unexpected pos 64 vs 0")  # as PyTorch's writer does

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", write_a_part)
        with pytest.raises(OutputError, match="the disk is full"):
            train(tmp_path, save_minutes=1e-9)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob(".maisi-*"))
    assert read_state(tmp_path) == "failed"
    assert train(tmp_path).step == 7


def test_a_disk_that_is_full_for_tensorboard_is_told_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SummaryWriter, "add_scalar", fail)
    with pytest.raises(OutputError, match="the disk is full"):
        train(tmp_path)
    assert "the disk is full" in (tmp_path / "log.txt").read_text()


def test_what_is_no_full_disk_is_not_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose_the_device(state: Any, path: Path) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "save", lose_the_device)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        train(tmp_path, steps=1)


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("content", ["code", "another checkpoint", "cut off", "text"])
def test_a_file_that_is_no_checkpoint_is_refused_and_not_executed(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run" / "checkpoint.pt"
    train(path.parent, steps=1)
    if content == "code":
        torch.save({"format": 1, "identity": RunsCode()}, path)
    elif content == "another checkpoint":
        torch.save({"epoch": 3, "unet_state_dict": {}}, path)
    elif content == "cut off":
        path.write_bytes(path.read_bytes()[:500])
    else:
        path.write_text("hello")
    with pytest.raises(TrainingError, match="is no checkpoint of this program") as caught:
        train(path.parent, steps=1)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "executed").exists()
