"""Cancelling: at every stage, and in the middle of a long computation."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

import MAISILib as maisi
from MAISILib.bundles.bundle import Bundle
from MAISILib.generation import pipeline
from MAISILib.generation.pipeline import generate, generate_samples
from MAISILib.generation.progress import CancelToken, Progress, interruptible
from MAISILib.generation.request import GenerateRequest
from MAISILib.quality.hu_check import OrganRange


@pytest.mark.parametrize("stage", ["mask", "load", "diffusion", "decode", "quality"])
def test_cancel_is_heard_at_each_stage(rflow: Bundle, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    monkeypatch.setattr(Bundle, "quality_path", lambda self: self.folder / "labels.csv")
    monkeypatch.setattr(pipeline, "read_ranges", lambda path: [OrganRange("liver", (1,), -5000.0, 5000.0)])
    token, news = CancelToken(), []

    def on_progress(progress: Progress) -> None:
        news.append(progress.stage)
        if progress.stage == stage:
            token.cancel()

    with pytest.raises(maisi.Cancelled):
        generate(rflow, GenerateRequest(steps=2, count=2), on_progress=on_progress, cancel=token)
    assert stage in news[-2:]
    assert "done" not in news


def test_token_that_is_cancelled_already_stops_at_once(rflow: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bundle, "load", lambda *a: pytest.fail("a network was loaded"))
    token = CancelToken()
    token.cancel()
    with pytest.raises(maisi.Cancelled):
        generate(rflow, GenerateRequest(), cancel=token)


def test_finished_samples_stay_when_the_rest_is_cancelled(
    rflow: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "SAMPLES_PER_VISIT", 1)
    token = CancelToken()
    samples = generate_samples(rflow, GenerateRequest(count=3, steps=1), cancel=token)
    next(samples).save(tmp_path / "sample-0000")
    token.cancel()
    with pytest.raises(maisi.Cancelled):
        next(samples)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(("sample", "."))] == ["sample-0000"]


class Slow(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.1)
        return x


def test_cancel_stops_inside_a_long_forward_pass() -> None:
    network, token = torch.nn.Sequential(*[Slow() for _ in range(200)]), CancelToken()
    threading.Timer(0.3, token.cancel).start()
    start = time.monotonic()
    with pytest.raises(maisi.Cancelled), interruptible(network, token):
        network(torch.zeros(1))
    assert time.monotonic() - start < 2.3
    network[:1](torch.zeros(1))  # and the network works again, without the checks


def test_cancel_stops_a_real_network_within_two_seconds(rflow: Bundle) -> None:
    token, asked = CancelToken(), []

    def ask() -> None:
        asked.append(time.monotonic())
        token.cancel()

    def on_progress(progress: Progress) -> None:
        if progress.stage == "diffusion" and progress.done == 1:
            threading.Timer(0.2, ask).start()

    request = GenerateRequest(mask="none", output_size=(64, 64, 64), steps=500)
    with pytest.raises(maisi.Cancelled):
        generate(rflow, request, on_progress=on_progress, cancel=token)
    assert time.monotonic() - asked[0] < 2
