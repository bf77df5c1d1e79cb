"""Runs as the panel shows them: progress, cancel, errors, and the scene changing meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from Testing.MAISI.panel_user import PanelUser, preview, write_result


def test_a_run_shows_how_it_goes_and_ends_in_a_row(user: PanelUser) -> None:
    sent = user.generate()
    assert user.reads("generateButton") == "Cancel"
    sent.progress("diffusion", 12, 30, message="step 12", sample=0, remaining_seconds=21.4, preview=preview())
    assert user.reads("stageLabel") == "Sampling"
    assert (user.find("runProgressBar").value, user.find("runProgressBar").maximum) == (12, 30)
    assert user.reads("remainingLabel") == "21 s left"
    assert user.sees("previewLabel")
    user.finish(sent, seed=7)
    assert user.rows() == [["head-neck-mini seed 7", "7", "passed", "4 s"]]
    assert not user.sees("runFrame")
    assert user.message == ""


def test_a_second_click_on_generate_is_no_cancel_and_no_second_run(user: PanelUser) -> None:
    sent = user.generate()
    user.find("generateButton").click()
    assert len(user.client.all("generate")) == 1
    assert not sent.isCancelled
    assert user.reads("generateButton") == "Cancel"


def test_cancel_ends_the_run(user: PanelUser, monkeypatch: pytest.MonkeyPatch) -> None:
    from MAISIPanel import RunControls

    monkeypatch.setattr(RunControls, "DOUBLE_CLICK_SECONDS", -1.0)
    sent = user.generate()
    user.press("generateButton")
    assert sent.isCancelled
    assert user.reads("generateButton") == "Cancelling…"
    assert not user.find("generateButton").enabled
    sent.cancelled()
    assert user.reads("generateButton") == "Generate"
    assert user.find("generateButton").enabled
    assert user.rows() == []


def test_a_run_that_the_console_or_the_effect_has_begun_is_shown_and_can_be_cancelled(
    user: PanelUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    from MAISIPanel import RunControls

    monkeypatch.setattr(RunControls, "DOUBLE_CLICK_SECONDS", -1.0)
    done: list[Any] = []
    job = user.panel.logic.generateAsync(seed=3, count=2, onCancelled=lambda: done.append("cancelled"))
    sent = user.client.last("generate")
    sent.progress("diffusion", 3, 30, sample=1)
    assert user.reads("generateButton") == "Cancel"
    assert user.reads("stageLabel") == "Image 2 of 2: Sampling"
    user.press("generateButton")
    assert sent.isCancelled
    sent.cancelled()
    assert (done, job.isRunning) == (["cancelled"], False)
    assert user.reads("generateButton") == "Generate"


def test_a_panel_that_is_opened_during_a_run_shows_it(user: PanelUser) -> None:
    import qt
    from MAISIPanel.PanelWidget import PanelWidget

    user.panel.cleanup()
    user.panel.logic.generateAsync(seed=3)
    frame = qt.QWidget()
    frame.setLayout(qt.QVBoxLayout())
    panel = PanelWidget(frame, user.panel.logic)
    assert frame.findChild(qt.QWidget, "generateButton").text == "Cancel"
    user.client.last("generate").fail("The library is empty.", "MaskError")
    assert frame.findChild(qt.QWidget, "generateButton").text == "Generate"
    panel.cleanup()


def test_an_error_is_told_in_the_panel_and_not_in_a_window(user: PanelUser, dialogs: Any) -> None:
    user.generate().fail("No mask of the library holds all of: mandible, heart. Leave one out.", "MaskError")
    assert user.message.startswith("No mask of the library")
    assert dialogs.messages == []
    assert user.reads("generateButton") == "Generate"
    user.press("messageCloseButton")
    assert user.message == ""


def test_a_crash_is_told_with_its_last_lines_and_the_engine_can_be_started_again(user: PanelUser) -> None:
    user.generate()
    user.client.crash("The engine stopped unexpectedly (exit code 9).\nKilled")
    assert "Killed" in user.message
    assert user.reads("generateButton") == "Generate"
    asked = len(user.client.all("bundles"))
    user.press("messageActionButton")
    assert len(user.client.all("bundles")) == asked + 1
    assert user.message == ""


def test_the_engine_is_not_changed_during_a_run(user: PanelUser) -> None:
    from MAISIPanel.EngineProcess import externalPython

    sent = user.generate()
    user.type("pythonEdit", "/opt/python")
    assert "at work" in user.message
    assert (user.reads("pythonEdit"), externalPython()) == ("", None)
    sent.cancelled()
    assert user.reads("generateButton") == "Generate"


def test_only_the_first_image_of_a_run_takes_the_views(user: PanelUser, scene: Any, tmp_path: Path) -> None:
    user.find("countSpinBox").value = 2
    sent = user.generate()
    for seed in (1, 2):
        sent.sample(folder=str(write_result(tmp_path / f"sample-{seed}", seed)), seed=seed, index=seed - 1)
        user.waitUntil(lambda seed=seed: len(user.rows()) == seed)
    shown = scene.GetNodeByID("vtkMRMLSliceCompositeNodeRed").GetBackgroundVolumeID()
    assert scene.GetNodeByID(shown).GetName() == user.rows()[0][0]
    assert user.panel.results.selected[0].name == user.rows()[1][0]


def test_the_scene_is_closed_during_a_run(user: PanelUser, scene: Any) -> None:
    user.type("seedEdit", "5")
    sent = user.generate()
    scene.Clear(0)
    sent.progress("decode", 1, 2)
    assert user.reads("generateButton") == "Cancel"
    user.finish(sent, seed=5)
    assert [row[1] for row in user.rows()] == ["5"]
    assert user.reads("seedEdit") == "5"
    assert user.generate().fields["request"]["seed"] == 5


def test_parameters_come_back_with_a_saved_scene(user: PanelUser, scene: Any, tmp_path: Path) -> None:
    user.choose("bundleComboBox", "whole-body")
    user.type("sizeZSpinBox", "384")
    user.type("seedEdit", "4711")
    user.check("larynx")
    user.find("guidanceSpinBox").value = 2.5
    scene.SetURL(str(tmp_path / "scene.mrml"))
    scene.Commit()
    scene.Clear(0)
    user.choose("bundleComboBox", "head-neck-mini")
    user.type("seedEdit", "1")
    scene.SetURL(str(tmp_path / "scene.mrml"))
    scene.Connect()
    assert user.find("bundleComboBox").currentData == "whole-body"
    fields = user.generate().fields
    assert fields["bundle"] == "whole-body"
    assert fields["request"]["output_size"] == [256, 256, 384]
    assert (fields["request"]["seed"], fields["request"]["anatomy"]) == (4711, ["larynx"])
    assert fields["request"]["guidance_scale"] == 2.5


def test_a_scene_without_parameters_leaves_the_settings(user: PanelUser, scene: Any, tmp_path: Path) -> None:
    from MAISILib.scene import new_scene

    other = new_scene()
    other.AddNewNodeByClass("vtkMRMLSegmentationNode", "Somebody's")
    other.SetURL(str(tmp_path / "other.mrml"))
    other.Commit()
    user.type("seedEdit", "31")
    scene.SetURL(str(tmp_path / "other.mrml"))
    scene.Connect()
    assert user.reads("seedEdit") == "31"
    assert user.generate().fields["request"]["seed"] == 31


def test_a_scene_that_asks_for_an_unknown_bundle_is_told(user: PanelUser, scene: Any) -> None:
    from MAISIPanel.Parameters import GenerateParameters

    user.panel.logic.parameterNode.set(GenerateParameters(bundle="somebodys-model"))
    scene.InvokeEvent(scene.EndImportEvent)
    assert "somebodys-model" in user.message
    assert user.find("bundleComboBox").currentData == "head-neck-mini"
    assert user.find("generateButton").enabled
