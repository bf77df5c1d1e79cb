"""The module's logic with the real engine and the embedded model, as a user at the Python console meets it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")

from MAISILib.errors import Cancelled, RequestError
from MAISILib.resources import resource
from MAISILib.scene import grid_of, load, read_mask, read_volume, save, show_mask
from MAISILib.scene.label_tables import table_of_bundle
from MAISILib.volumes import LabelMap

pytestmark = pytest.mark.slow

#: As few voxels as the embedded model takes.
SIZE = {"output_size": (80, 56, 64), "spacing": (6.0, 6.0, 4.0)}


@pytest.fixture
def logic(scene: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Just what ``MAISILogic()`` is in Slicer: Qt's processes, timers and event loop."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    from MAISIPanel.Logic import MAISILogic

    logic = MAISILogic()
    yield logic
    logic.shutdown()


@pytest.fixture
def table() -> Any:
    return table_of_bundle(resource("bundles", "head-neck-mini"))


def test_from_the_console_to_a_saved_scene(logic: Any, table: Any, tmp_path: Path) -> None:
    volume, segmentation = logic.generate(bundle="head-neck-mini", anatomy=["mandible"], seed=7, steps=2, **SIZE)

    image, mask = read_volume(volume), read_mask(segmentation, table, volume)
    assert image.array.shape == (80, 56, 64)
    np.testing.assert_allclose(image.spacing, (6.0, 6.0, 4.0))
    assert table.find("mandible").value in mask.labels
    assert set(np.unique(image.array[mask.array == 0])) == {-1000}
    for segmentID in segmentation.GetSegmentation().GetSegmentIDs():
        segment = segmentation.GetSegmentation().GetSegment(segmentID)
        label = table.find(segment.GetName())
        assert segment.GetLabelValue() == label.value
        assert label.terminology() in ("", segment.GetTerminology())
        np.testing.assert_allclose(segment.GetColor(), np.array(label.color) / 255)
    (entry,) = logic.results.entries
    assert (entry.seed, entry.verdict != "not checked") == (7, True)
    assert logic.scene.GetNumberOfNodesByClass("vtkMRMLPlotChartNode") == 1

    again, _ = logic.replay(volume)
    assert logic.results.compare(volume, again) == "The images have identical voxels."

    save(logic.scene, tmp_path / "Szene ä.mrb")
    restored = load(tmp_path / "Szene ä.mrb")
    node = restored.GetNodeByID(volume.GetID())
    np.testing.assert_array_equal(read_volume(node).array, image.array)
    np.testing.assert_array_equal(read_mask(node.GetNodeReference("MAISI.Mask"), table, node).array, mask.array)


def test_an_image_for_a_drawn_segmentation_lies_on_it_and_can_be_replayed(logic: Any, table: Any) -> None:
    """Oblique, with a mandible and no body."""
    turn = np.linalg.qr(np.array([[1.0, 0.2, 0.1], [-0.2, 1.0, 0.15], [-0.1, -0.15, 1.0]]))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn * np.sign(np.diag(turn)) * [3.0, 3.0, 3.0]
    affine[:3, 3] = (-90.0, -75.25, 800.5)
    labels = np.zeros((60, 50, 40), np.uint8)
    labels[18:42, 20:32, 12:24] = table.find("mandible").value
    drawn = show_mask(logic.scene, LabelMap(labels, affine, table), "Kiefer")
    notes: list[str] = []
    job = logic.generateAsync(segmentationNode=drawn, seed=1, steps=2, onNote=notes.append)
    logic._wait(lambda: not job.isRunning)
    assert job.error is None, job.error
    ((volume, segmentation),) = job.nodes
    assert grid_of(volume).same_as(LabelMap(labels, affine, table).grid, tolerance=1e-9)
    shown = read_mask(segmentation, table, volume).array
    np.testing.assert_array_equal(shown == table.find("mandible").value, labels > 0)
    assert any("oblique" in note for note in notes)
    assert any("guessed" in note for note in notes)
    again, _ = logic.replay(volume)
    assert logic.results.compare(volume, again) == "The images have identical voxels."


def test_errors_reach_the_console_and_a_cancel_ends_the_run_at_once(logic: Any) -> None:
    with pytest.raises(RequestError, match="mandibel"):
        logic.generate(anatomy=["mandibel"])
    assert "1 volume" in logic.ask("plan", bundle="head-neck-mini", request={"seed": 1, "steps": 5})["text"]

    stages: list[str] = []
    job = logic.generateAsync(seed=1, steps=1000, onProgress=lambda event: stages.append(event["stage"]), **SIZE)
    logic._wait(lambda: "diffusion" in stages)
    pid, started = logic.client.ready["pid"], time.monotonic()
    job.cancel()
    logic._wait(lambda: not job.isRunning)
    assert time.monotonic() - started < 2.5
    assert isinstance(job.error, Cancelled)
    assert logic.results.entries == []

    logic.shutdown()
    while time.monotonic() - started < 10 and _runs(pid):
        logic._processEvents()
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
