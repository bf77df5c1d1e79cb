"""The panel with the real engine in a process of its own, and the embedded model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from Testing.MAISI.panel_user import PanelUser, opened_panel

pytestmark = pytest.mark.slow


@pytest.fixture
def user(scene: Any, loadedModule: Any, waitUntil: Any, tmp_path: Path, monkeypatch: Any) -> Iterator[PanelUser]:
    with opened_panel(scene, loadedModule, waitUntil, tmp_path, monkeypatch, "engine") as user:
        waitUntil(lambda: user.sees("settingsFrame"), seconds=120)
        yield user


class Pulse:
    """A timer of the event loop: how long it was kept from running.

    Seconds of processor time of this thread, because other programs of the computer cannot be told from a blocked loop
    by the clock; and seconds by the clock, for waiting that takes no processor time.
    """

    def __init__(self) -> None:
        import qt

        self.busiest = self.longest = 0.0
        self._processor, self._clock = time.thread_time(), time.monotonic()
        self._timer = qt.QTimer()
        self._timer.setInterval(10)
        self._timer.connect("timeout()", self._tick)
        self._timer.start()

    def _tick(self) -> None:
        processor, clock = time.thread_time(), time.monotonic()
        self.busiest = max(self.busiest, processor - self._processor)
        self.longest = max(self.longest, clock - self._clock)
        self._processor, self._clock = processor, clock

    def stop(self) -> None:
        self._timer.stop()


def small(user: PanelUser, steps: int) -> None:
    """The smallest image that the embedded model makes."""
    for axis, size, spacing in zip("XYZ", ("48", "48", "32"), ("6", "6", "5"), strict=True):
        user.type(f"size{axis}SpinBox", size)
        user.type(f"spacing{axis}SpinBox", spacing)
    user.find("stepsSpinBox").value = steps


def test_generate_gives_volume_segmentation_table_and_chart_while_the_window_answers(
    user: PanelUser, scene: Any
) -> None:
    user.waitUntil(lambda: "GB" in user.reads("costLabel"), seconds=120)
    small(user, steps=2)
    user.check("mandible")
    user.type("seedEdit", "7")
    pulse, stages = Pulse(), set()
    user.press("generateButton")

    def isOver() -> bool:
        stages.add(user.reads("stageLabel"))
        return user.reads("generateButton") == "Generate"

    user.waitUntil(isOver, seconds=240)
    pulse.stop()
    assert user.message == ""
    assert "Sampling" in stages
    assert len(stages) >= 3
    assert pulse.busiest < 0.1
    assert pulse.longest < 1.0
    name, seed, quality, _ = user.rows()[0]
    assert seed == "7"
    assert quality in ("passed", "unusual", "failed")
    volume = scene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
    assert volume.GetName() == name
    assert tuple(volume.GetImageData().GetDimensions()) == (48, 48, 32)
    assert volume.GetSpacing() == pytest.approx((6, 6, 5))
    segmentation = scene.GetFirstNodeByClass("vtkMRMLSegmentationNode").GetSegmentation()
    mandible = segmentation.GetSegment(segmentation.GetSegmentIdBySegmentName("mandible"))
    assert "91609006" in mandible.GetTerminology()
    user.press("chartButton")
    chart = scene.GetFirstNodeByClass("vtkMRMLPlotChartNode")
    table = scene.GetFirstNodeByClass("vtkMRMLTableNode")
    assert chart.GetNumberOfPlotSeriesNodes() >= 1
    assert table.GetNumberOfRows() >= 3

    # The second run starts at once, and ends within 2 s of a cancel.
    user.find("stepsSpinBox").value = 400
    user.press("generateButton")
    user.waitUntil(lambda: user.reads("stageLabel") == "Sampling", seconds=60)
    time.sleep(0.7)  # beyond what counts as a double click
    user.press("generateButton")
    start = time.monotonic()
    user.waitUntil(lambda: user.reads("generateButton") == "Generate", seconds=30)
    assert time.monotonic() - start < 4.0  # 1.5 s for the engine to answer, then it is ended; this machine may be busy
    assert len(user.rows()) == 1

    # Made again: the same voxels.
    user.select(0)
    user.press("replayButton")
    user.waitUntil(lambda: len(user.rows()) == 2 and user.reads("generateButton") == "Generate", seconds=240)
    user.select(0, 1)
    user.press("compareButton")
    assert user.message == "The images have identical voxels."


def test_the_self_test_of_the_module_generates(user: PanelUser, dialogs: Any) -> None:
    import MAISI

    test = MAISI.MAISITest()
    test.setUp()
    test.test_generate()
    assert dialogs.texts("info") == ["Test passed"]
    assert len(user.panel.logic.results.entries) == 1


def test_setup_tells_what_the_engine_found(user: PanelUser) -> None:
    user.waitUntil(lambda: "PyTorch" in user.reads("checksLabel"), seconds=120)
    assert "[ok] Python" in user.panel.setup.report()
