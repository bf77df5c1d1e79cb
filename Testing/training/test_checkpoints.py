from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from MAISILib.errors import TrainingError
from MAISILib.training.checkpoints import MovingAverage, Run, averaged_weights, cosine_rate


def make_run(folder: Path, recipe: dict[str, Any] | None = None, **options: Any) -> tuple[Run, nn.Linear]:
    network = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    return Run(folder, {"net": network}, optimizer, {"seed": 1, "rate": 0.1} | (recipe or {}), **options), network


def train_a_step(run: Run, loss: float = 0.5) -> None:
    network = run.networks["net"]
    network(torch.randn(3, 2)).square().sum().backward()
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.advance({"loss": loss})


def test_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    run, network = make_run(tmp_path)
    train_a_step(run)
    train_a_step(run)
    run.save()
    expected = torch.randn(4)
    again, other = make_run(tmp_path)
    assert again.step == 2
    assert again.seconds == run.seconds
    assert torch.equal(other.weight, network.weight)
    assert torch.equal(again.averages["net"].weights["weight"], run.averages["net"].weights["weight"])
    assert again.averages["net"].count == 2
    assert torch.equal(torch.randn(4), expected)  # random numbers go on, too


@pytest.mark.parametrize(
    ("change", "named"), [({"rate": 0.2}, "rate"), ({"batch": 4}, "batch"), ({"seed": 2, "rate": 1}, "rate, seed")]
)
def test_resume_with_another_recipe_is_refused_by_key(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    run, _ = make_run(tmp_path)
    run.save()
    with pytest.raises(TrainingError, match=rf"another recipe \(differing: {named}\).*another --out") as caught:
        make_run(tmp_path, change)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_run_that_diverges_stops_and_keeps_the_last_checkpoint(tmp_path: Path, bad: float) -> None:
    run, network = make_run(tmp_path, minutes_between_saves=0.0)
    train_a_step(run)
    good, log = network.weight.detach().clone(), (tmp_path / "metrics.jsonl").read_text()
    nn.init.constant_(network.weight, math.nan)
    with pytest.raises(TrainingError, match=r"Step 1 .*loss.*last checkpoint is kept"):
        run.advance({"kl": 0.1, "loss": bad})
    again, other = make_run(tmp_path)
    assert again.step == 1
    assert torch.equal(other.weight, good)
    assert torch.isfinite(averaged_weights(tmp_path, "net")["weight"]).all()
    assert (tmp_path / "metrics.jsonl").read_text() == log


def test_checkpoint_is_written_when_it_is_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    run, _ = make_run(tmp_path, minutes_between_saves=2.0)
    now = 219.0
    train_a_step(run)
    assert not (tmp_path / "checkpoint.pt").exists()
    now = 221.0
    train_a_step(run)
    assert (tmp_path / "checkpoint.pt").exists()
    assert run.seconds == pytest.approx(121)


def test_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = make_run(tmp_path)
    run.save()
    before = (tmp_path / "checkpoint.pt").read_bytes()
    train_a_step(run)

    def full_disk(state: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        run.save()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_every_step_is_logged(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path)
    for loss in (0.5, 0.25):
        train_a_step(run, loss)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.5), (2, 0.25)]


def test_data_are_chosen_by_seed_and_step(tmp_path: Path) -> None:
    run, _ = make_run(tmp_path / "a")
    other, _ = make_run(tmp_path / "b", {"seed": 2})
    first = run.random_for_step().random()
    assert run.random_for_step().random() == first
    assert other.random_for_step().random() != first
    train_a_step(run)
    assert run.random_for_step().random() != first


def test_average_follows_early_steps_quickly_and_late_ones_slowly() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 0.0)
    average = MovingAverage(network, decay=0.5)
    nn.init.constant_(network.weight, 1.0)
    expected = 0.0
    for count in range(1, 20):
        average.update(network)
        decay = min(0.5, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay)
        assert average.weights["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert network.weight.item() == 1.0


def test_rate_warms_up_and_falls_to_two_percent() -> None:
    rates = [cosine_rate(step, 1000, 0.01, warmup=50) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01 / 50)
    assert rates[49] == rates[50] == pytest.approx(0.01)
    assert rates[525] == pytest.approx(0.01 * (0.02 + 0.98 / 2))
    assert rates[1000] == pytest.approx(0.0002)
    assert all(a >= b for a, b in pairwise(rates[50:]))


def test_network_that_was_not_trained_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"checkpoint\.pt does not exist"):
        averaged_weights(tmp_path, "autoencoder")
