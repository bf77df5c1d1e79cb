"""What a computer is known to do in a second: measured once, kept, and corrected by real runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from MAISILib.generation import speed as speeds
from MAISILib.generation.speed import ASSUMED, Machine, Speed
from MAISILib.generation.workload import Work

TASK = "tiny: diffusion"


@pytest.fixture(autouse=True)
def probes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Devices that were measured; the measurement itself is replaced."""
    made: list[str] = []

    def probe(device: str, precision: torch.dtype) -> Speed:
        made.append(device)
        return Speed({16: 1e9, 64: 4e9}, {1000: 1e8}, 1e-6)

    monkeypatch.setattr(speeds, "probe", probe)
    speeds.forget()
    yield made
    speeds.forget()


def test_a_computer_is_measured_once_for_all_processes(probes: list[str], data_folder: Path) -> None:
    first = speeds.machine("cpu", torch.float32)
    assert speeds.machine("cpu", torch.float32) is first
    speeds.forget()  # as another process would
    assert speeds.machine("cpu", torch.float32).speed == first.speed
    assert probes == ["cpu"]
    assert (data_folder / "speed.json").is_file()
    speeds.machine("cpu", torch.bfloat16)
    assert len(probes) == 2  # another arithmetic has another speed


def test_time_is_read_between_what_was_measured() -> None:
    speed = Speed({16: 1e9, 64: 4e9}, {100: 1e8, 10000: 1e6}, 1e-3)
    assert speed.seconds(Work({16: 1e9, 64: 4e9}, {100: 1e8}, 1000)) == pytest.approx(4)
    assert speed.seconds(Work({32: 2e9})) == pytest.approx(1)
    assert speed.seconds(Work({4: 1e9, 1000: 4e9})) == pytest.approx(2)  # beyond, as at the ends
    assert speed.seconds(Work(moved={1000: 1e7, 1e9: 1e6})) == pytest.approx(2)


def test_real_runs_correct_the_estimate_and_the_best_of_the_last_counts(data_folder: Path) -> None:
    machine = Machine("cpu", torch.float32, data_folder / "speed.json")
    assert machine.correction(TASK) == 1
    for seconds in (30.0, 13.0, 50.0):  # twice the computer was busy
        machine.learn(TASK, 10.0, seconds)
    assert machine.correction(TASK) == pytest.approx(1.3)
    again = Machine("cpu", torch.float32, data_folder / "speed.json")
    assert again.correction(TASK) == pytest.approx(1.3)
    for _ in range(5):  # it stays busy
        again.learn(TASK, 10.0, 20.0)
    assert again.correction(TASK) == pytest.approx(2)


def test_a_measurement_on_a_busy_computer_is_corrected_by_the_first_run(data_folder: Path) -> None:
    machine = Machine("cpu", torch.float32, data_folder / "speed.json")
    machine.learn(TASK, 10.0, 4.0)
    assert machine.correction(TASK) == machine.correction("another task") == pytest.approx(0.4)


def test_runs_too_short_to_tell_are_not_remembered(data_folder: Path) -> None:
    machine = Machine("cpu", torch.float32, data_folder / "speed.json")
    machine.learn(TASK, 0.001, 0.1)
    assert machine.correction(TASK) == 1


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": 99, "devices": {}}', '{"format": 3, "devices": []}', "[" * 100_000],
)
def test_a_file_of_another_kind_is_measured_over(probes: list[str], data_folder: Path, content: str) -> None:
    data_folder.mkdir()
    path = data_folder / "speed.json"
    path.write_text(content)
    Machine("cpu", torch.float32, path)
    assert probes == ["cpu"]
    assert json.loads(path.read_text())["format"] == 3


@pytest.mark.parametrize(
    ("was", "became"),
    [
        ('"moved"', '"mved"'),
        ('"64": 4000000000.0', '"64": 0'),
        ('"64": 4000000000.0', '"64": NaN'),
        ('"call": 1e-06', '"call": -1'),
        ('"call": 1e-06', '"call": Infinity'),
        ("0.4", "-5"),
        ("0.4", "0.0"),
    ],
)
def test_a_damaged_entry_is_measured_over(probes: list[str], data_folder: Path, was: str, became: str) -> None:
    path = data_folder / "speed.json"
    Machine("cpu", torch.float32, path).learn(TASK, 10.0, 4.0)
    probes.clear()
    text = path.read_text()
    assert was in text
    path.write_text(text.replace(was, became))
    again = Machine("cpu", torch.float32, path)
    assert probes == ["cpu"]
    assert again.correction(TASK) == 1


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    machine = Machine("cpu", torch.float32, tmp_path / "file" / "speed.json")
    machine.learn(TASK, 10.0, 20.0)
    assert machine.correction(TASK) == pytest.approx(2)


def test_a_device_that_cannot_be_measured_is_assumed(monkeypatch: pytest.MonkeyPatch, data_folder: Path) -> None:
    monkeypatch.undo()  # the real probe

    def full(*arguments: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(speeds, "_measured", full)
    path = data_folder / "speed.json"
    assert Machine("cpu", torch.float32, path).speed == ASSUMED["cpu"]
    assert not path.exists()  # so that the next process tries again


def test_the_probe_is_plausible_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    speed = speeds.probe("cpu", torch.float32)
    assert speed.measured
    assert all(1e8 < rate < 1e14 for rate in speed.products.values())
    assert all(1e8 < rate < 1e13 for rate in speed.moved.values())
    assert 1e-8 < speed.call < 1e-2
