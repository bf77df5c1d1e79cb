"""What may go wrong between a click and the image in the scene: it is told, and nothing is lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")

from MAISILib.errors import Cancelled, OutputError
from MAISILib.scene import read_mask
from Testing.MAISI.logic_bench import Bench, opened_bench
from Testing.MAISI.scripted_process import makeSample


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with opened_bench(tmp_path, monkeypatch) as bench:
        yield bench


def test_a_second_click_is_told_and_the_first_run_goes_on(bench: Bench) -> None:
    first = bench.generate()
    second = bench.generate()
    assert not second.isRunning
    assert bench.ends == [
        ("onFailed", "A generation is running already. Wait for it, or cancel it first.", "RequestError")
    ]
    bench.engine.sample()
    bench.engine.finish()
    bench.loop.run()
    assert len(first.nodes) == 1


def test_cancelling_keeps_what_is_in_the_scene(bench: Bench) -> None:
    job = bench.generate(count=2)
    bench.engine.sample()
    bench.loop.run()
    job.cancel()
    bench.engine.process.say(event="cancelled", id=bench.engine.last("generate")["id"])
    assert [told[0] for told in bench.told] == ["onSample", "onCancelled"]
    assert len(bench.logic.results.entries) == 1
    assert isinstance(job.error, Cancelled)


@pytest.mark.parametrize("steps", range(12))
def test_a_cancel_between_any_two_steps_leaves_no_files(bench: Bench, steps: int) -> None:
    job = bench.generate()
    bench.engine.sample()
    for _ in range(steps):
        bench.loop.step()
    job.cancel()
    bench.engine.process.say(event="cancelled", id=bench.engine.last("generate")["id"])
    bench.loop.run()
    assert [told[0] for told in bench.ends] == ["onCancelled"]
    entries = bench.logic.results.entries
    assert bench.scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == len(entries)
    assert bench.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == len(entries)


def test_a_killed_engine_is_told_with_its_last_lines_and_the_next_run_works(bench: Bench) -> None:
    bench.generate()
    bench.engine.process.complain("Killed")
    bench.engine.process.end(-9)
    (end,) = bench.ends
    assert end[0] == "onFailed"
    assert "Killed" in end[1]
    assert end[2] == "Crash"
    bench.generate()
    bench.engine.sample()
    bench.engine.finish()
    bench.loop.run()
    assert bench.ends[-1][0] == "onDone"


def test_samples_that_came_before_a_failure_stay(bench: Bench) -> None:
    bench.generate(count=2)
    bench.engine.sample()
    bench.engine.process.end(-9)
    bench.loop.run()
    assert [told[0] for told in bench.told] == ["onSample", "onFailed"]


@pytest.mark.parametrize("steps", range(12))
def test_a_scene_closed_while_a_sample_comes_has_the_sample_afterwards(bench: Bench, steps: int) -> None:
    bench.generate()
    bench.engine.sample()
    for _ in range(steps):
        bench.loop.step()
    wasThere = bool(bench.logic.results.entries) and not bench.logic.job._arrivals  # type: ignore[union-attr]
    bench.scene.Clear(0)
    bench.loop.run()
    bench.engine.finish()
    bench.loop.run()
    assert bench.ends[0][0] == "onDone"
    assert len(bench.logic.results.entries) == (0 if wasThere else 1)
    for entry in bench.logic.results.entries:
        np.testing.assert_array_equal(
            read_mask(entry.segmentationNode, bench.table).array,
            makeSample(bench.bundleFolder).mask.array,  # type: ignore[union-attr]
        )


@pytest.mark.parametrize("before", [0, 1])
def test_a_scene_closed_during_the_run_is_mentioned(bench: Bench, before: int) -> None:
    """Before the first sample, and between two."""
    bench.generate(count=2)
    for number in range(before):
        bench.engine.sample(number)
        bench.loop.run()
    bench.scene.Clear(0)
    for number in range(before, 2):
        bench.engine.sample(number)
    bench.engine.finish()
    bench.loop.run()
    assert any("scene was closed" in told[1] for told in bench.told if told[0] == "onNote")
    assert [len(told[1]) for told in bench.ends] == [2 - before]


@pytest.mark.parametrize("kind", ["vtkMRMLScalarVolumeNode", "vtkMRMLSegmentationNode"])
@pytest.mark.parametrize("steps", range(3, 12, 2))
def test_nodes_deleted_while_they_come_end_no_run(bench: Bench, steps: int, kind: str) -> None:
    bench.generate(count=2)
    bench.engine.sample(0)
    for _ in range(steps):
        bench.loop.step()
    for node in list(bench.scene.GetNodesByClass(kind)):
        bench.scene.RemoveNode(node)
    bench.engine.sample(1)
    bench.engine.finish()
    bench.loop.run()
    assert bench.ends[0][0] == "onDone"
    assert any(entry.name.endswith("#2") for entry in bench.logic.results.entries)


def test_the_users_nodes_may_be_deleted_during_the_run(bench: Bench) -> None:
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    reference, segmentation = bench.volume(affine), bench.segmentation(affine)
    bench.generate(segmentationNode=segmentation, referenceVolumeNode=reference)
    bench.engine.listBundles()
    bench.scene.RemoveNode(reference)
    bench.scene.RemoveNode(segmentation)
    bench.engine.sample()
    bench.engine.finish()
    bench.loop.run()
    assert bench.ends[0][0] == "onDone"


def test_a_segmentation_deleted_before_the_engine_had_it_is_told(bench: Bench) -> None:
    segmentation = bench.segmentation(np.eye(4))
    bench.generate(segmentationNode=segmentation)
    bench.scene.RemoveNode(segmentation)
    bench.engine.listBundles()
    assert bench.ends[0][2] == "MaskError"
    assert "was deleted" in bench.ends[0][1]


def test_a_bundle_that_was_removed_is_told(bench: Bench) -> None:
    bench.generate(bundle="my-lesion", segmentationNode=bench.segmentation(np.eye(4)))
    bench.engine.listBundles()
    assert bench.ends == [
        ("onFailed", "The model 'my-lesion' is not installed. Choose another one, or download it first.", "BundleError")
    ]


def test_a_full_disk_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    bench.generate()
    assert bench.ends[0][2] == "OutputError"
    assert "disk is full" in bench.ends[0][1]
    with pytest.raises(OutputError, match="disk is full"):
        bench.logic.generate()


def test_a_result_that_cannot_be_read_is_kept_and_named(bench: Bench) -> None:
    bench.generate()
    folder = bench.engine.sample()
    (folder / "mask.nii.gz").write_bytes(b"\x1f\x8b nothing")
    bench.engine.finish()
    bench.loop.run()
    assert bench.ends[0][0] == "onFailed"
    kept = Path(bench.ends[0][1].partition("kept in ")[2].rstrip("."))
    assert list(kept.rglob("image.nii.gz"))
    shutil.rmtree(kept)


def test_quitting_ends_the_engine_and_removes_the_files(bench: Bench) -> None:
    bench.generate()
    bench.engine.sample()
    bench.loop.step()
    bench.logic.shutdown()
    assert bench.engine.process.wasKilled
    bench.loop.run()
    assert bench.ends == []
