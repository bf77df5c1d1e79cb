"""The whole way with the real engine: painted in the Segment Editor, learned in the background, then generated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from MAISILib.jobs import detached
from Testing.MAISI.drawn_cases import draw_case
from Testing.MAISI.test_effect import Editor
from Testing.tiny_bundle import make_tiny_bundle


@pytest.mark.slow
def test_a_painted_label_is_learned_across_a_restart_and_generated(
    scene: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loadedModule: Callable[..., Any],
    waitUntil: Callable[..., None],
) -> None:
    data = tmp_path / "Daten von Öz"
    monkeypatch.setenv("MAISI_DATA", str(data))
    make_tiny_bundle(data / "bundles" / "tiny", with_masks=1)
    from MAISIPanel.Logic import MAISILogic
    from MAISIPanel.Parameters import GenerateParameters
    from MAISIPanel.TrainingJobs import TrainingJobs

    start = TrainingJobs.start
    monkeypatch.setattr(TrainingJobs, "start", lambda self, cases, **wish: start(self, cases, **{**wish, "steps": 3}))
    first = MAISILogic.shared()
    first.parameterNode.set(GenerateParameters(bundle="tiny"))
    loadedModule("SegmentEditorMAISI/SegmentEditorMAISI.py")
    editor = Editor(scene)
    editor.edit(*draw_case(scene, segment="lesion"), "painted_lesion")
    editor.widget.setActiveEffectByName("MAISI")
    options = editor.options
    waitUntil(lambda: options.hostComboBox.findData("liver") >= 0, seconds=120)
    options.hostComboBox.setCurrentIndex(options.hostComboBox.findData("liver"))
    options.fineTuneButton.click()
    waitUntil(lambda: first.trainingJobs.running(), seconds=120)
    editor.close()
    first.shutdown()  # Slicer is closed
    waitUntil(lambda: not first.client.isRunning)
    scene.Clear(0)

    second = MAISILogic.shared()  # and started again
    assert second is not first
    try:
        (training,) = second.trainingJobs.find()
        waitUntil(lambda: second.trainingJobs.state(training) not in ("queued", "running"), seconds=600)
        assert second.trainingJobs.state(training) == "done", second.trainingJobs.log(training)
        assert training.name == "tiny-lesion"
        volume, segmentation = second.generate(bundle="tiny-lesion", anatomy=["lesion"], steps=1, seed=1)
        assert volume.GetImageData().GetNumberOfPoints() > 0
        segments = segmentation.GetSegmentation()
        names = {segments.GetNthSegment(number).GetName() for number in range(segments.GetNumberOfSegments())}
        assert "lesion" in names
    finally:
        for training in second.trainingJobs.running():
            detached.end(training.job)
        second.shutdown()
        waitUntil(lambda: not second.client.isRunning)
