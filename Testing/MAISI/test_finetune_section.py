"""The *Fine-tune* section: cases of the scene, labels, and trainings that are watched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from MAISILib.errors import BundleError, RequestError
from MAISILib.jobs.folder import Event
from Testing.MAISI.drawn_cases import draw_case, engine, paint
from Testing.MAISI.scripted_trainings import ScriptedTrainings, events


class Bench:
    """A section with everything that it needs, and what it did."""

    def __init__(self, scene: Any, work: Path) -> None:
        import slicer
        from MAISIPanel.FineTuneSection import FineTuneSection

        path = Path(__file__).resolve().parents[2] / "MAISI" / "Resources" / "UI" / "MAISIFineTune.ui"
        self.widget = slicer.util.loadUI(str(path))
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self.widget.setMRMLScene(scene)
        self.client, self.trainings = engine(), ScriptedTrainings(work)
        self.started: list[dict[str, Any]] = []
        self.told: list[str] = []
        self.made: list[str] = []
        logic = SimpleNamespace(scene=scene, client=self.client, trainingJobs=self.trainings, fineTune=self._fineTune)
        dialogs = SimpleNamespace(confirm=lambda text: True)
        self.section = FineTuneSection(logic, self.ui, self.told.append, dialogs, self.made.append)

    def _fineTune(self, pairs: Any, onCase: Any, **wish: Any) -> Any:
        onCase(1, len(pairs))
        self.started.append({"pairs": pairs, **wish})
        return self.trainings.add(wish["name"])

    def rows(self) -> list[tuple[str, str, str]]:
        table = self.ui.mappingTable
        return [
            (table.item(row, 0).text(), table.cellWidget(row, 1).currentText, table.item(row, 2).text())
            for row in range(table.rowCount)
        ]


@pytest.fixture
def bench(scene: Any, tmp_path: Path) -> Any:
    made = Bench(scene, tmp_path)
    yield made
    made.section.cleanup()
    made.widget.delete()  # else Python does it at some later time, in the middle of another test


def begun(bench: Bench, scene: Any, waitUntil: Callable[..., None]) -> None:
    """One case with a painted segment, and the model of the script."""
    bench.section.setBundle("tiny")
    bench.section.addPair(*draw_case(scene))
    waitUntil(lambda: bench.ui.startButton.enabled)


def test_what_is_missing_is_told_step_by_step(bench: Bench, scene: Any, waitUntil: Callable[..., None]) -> None:
    assert bench.ui.messageLabel.text == "Add a volume with its segmentation."
    volume, segmentation = draw_case(scene)
    assert not bench.ui.addPairButton.enabled
    bench.ui.volumeSelector.setCurrentNode(volume)
    bench.ui.segmentationSelector.setCurrentNode(segmentation)
    bench.ui.addPairButton.click()
    assert bench.ui.messageLabel.text == "Choose a model in the section Model."
    assert not bench.ui.startButton.enabled
    bench.section.setBundle("tiny")
    waitUntil(lambda: bench.ui.startButton.enabled)
    assert bench.ui.messageLabel.text == ""


def test_the_one_unknown_segment_is_proposed_as_the_new_label(
    bench: Bench, scene: Any, waitUntil: Callable[..., None]
) -> None:
    begun(bench, scene, waitUntil)
    assert bench.ui.newLabelEdit.text == "Segment_1"
    assert ("Segment_1", "Segment_1", "new label") in bench.rows()
    assert ("liver", "liver", "name") in bench.rows()
    assert bench.ui.hostComboBox.currentText == "body"
    assert bench.ui.focusComboBox.currentText == "Segment_1"
    assert bench.ui.nameEdit.text == "tiny-Segment_1"
    assert bench.ui.durationComboBox.currentText == "Normal: 150 steps, about 5 min"


def test_a_new_label_with_another_name_takes_the_painted_segment(
    bench: Bench, scene: Any, waitUntil: Callable[..., None]
) -> None:
    begun(bench, scene, waitUntil)
    bench.ui.newLabelEdit.setText("lesion")
    bench.ui.newLabelEdit.textEdited.emit("lesion")
    bench.ui.hostComboBox.setCurrentIndex(bench.ui.hostComboBox.findData("liver"))
    bench.ui.valueSpinBox.setValue(150)
    waitUntil(lambda: ("Segment_1", "lesion", "new label") in bench.rows())
    bench.ui.durationComboBox.setCurrentIndex(0)
    bench.ui.startButton.click()
    waitUntil(lambda: bench.started)
    wish = bench.started[0]
    assert wish["newLabels"] == ["lesion=150:liver"]
    assert (wish["focus"], wish["edits"]) == (["lesion"], {"Segment_1": "lesion"})
    assert (wish["name"], wish["bundle"], wish["duration"]) == ("tiny-lesion", "tiny", "quick")
    assert [pair.volumeNode.GetName() for pair in wish["pairs"]] == ["Anna"]


def test_the_users_decisions_about_segments_win(bench: Bench, scene: Any, waitUntil: Callable[..., None]) -> None:
    begun(bench, scene, waitUntil)
    row = [name for name, _label, _how in bench.rows()].index("left lung upper lobe")
    box = bench.ui.mappingTable.cellWidget(row, 1)
    box.setCurrentIndex(box.findData("ignore"))
    waitUntil(lambda: ("left lung upper lobe", "leave out", "left out") in bench.rows())
    bench.ui.startButton.click()
    waitUntil(lambda: bench.started)
    assert bench.started[0]["edits"] == {"left lung upper lobe": "ignore"}


def test_a_known_label_alone_needs_a_focus_and_no_new_label(
    bench: Bench, scene: Any, waitUntil: Callable[..., None]
) -> None:
    volume, segmentation = draw_case(scene)
    segmentation.GetSegmentation().RemoveSegment("painted_Segment_1")
    bench.section.setBundle("tiny")
    bench.section.addPair(volume, segmentation)
    waitUntil(lambda: bench.rows())
    assert "Say what is to be learned" in bench.ui.messageLabel.text
    bench.ui.focusComboBox.setCurrentIndex(bench.ui.focusComboBox.findData("liver"))
    assert bench.ui.startButton.enabled
    bench.ui.startButton.click()
    waitUntil(lambda: bench.started)
    assert (bench.started[0]["newLabels"], bench.started[0]["focus"]) == ([], ["liver"])


def test_what_the_engine_refuses_is_shown_and_keeps_the_training_from_starting(
    bench: Bench, scene: Any, waitUntil: Callable[..., None]
) -> None:
    begun(bench, scene, waitUntil)
    bench.client.answers["map_segments"] = RequestError("'liver' is label 1 already. Choose another name.")
    bench.ui.newLabelEdit.textEdited.emit("liver")
    waitUntil(lambda: "is label 1 already" in bench.ui.messageLabel.text)
    assert not bench.ui.startButton.enabled


def test_a_model_that_cannot_be_fine_tuned_says_so_at_once(
    bench: Bench, scene: Any, waitUntil: Callable[..., None]
) -> None:
    bench.client.answers["finetune_estimate"] = BundleError("Bundle 'tiny' has no controlnet network.")
    bench.section.setBundle("tiny")
    bench.section.addPair(*draw_case(scene))
    waitUntil(lambda: bench.ui.messageLabel.text == "Bundle 'tiny' has no controlnet network.")
    assert not bench.ui.startButton.enabled


def test_what_was_drawn_after_the_last_look_counts_at_the_start(
    bench: Bench, scene: Any, waitUntil: Callable[..., None]
) -> None:
    begun(bench, scene, waitUntil)
    segmentation = bench.section.pairs()[0].segmentationNode
    voxels = np.zeros((16, 16, 16), bool)
    voxels[2:4, 2:4, 2:4] = True
    paint(segmentation, "mystery", voxels, np.diag([4.0, 4, 4, 1]))
    bench.ui.startButton.click()
    assert bench.started == []
    assert "No label is known for 'mystery'" in bench.ui.messageLabel.text


def test_a_deleted_node_takes_its_case_off_the_list(bench: Bench, scene: Any, waitUntil: Callable[..., None]) -> None:
    begun(bench, scene, waitUntil)
    scene.RemoveNode(bench.section.pairs()[0].volumeNode)
    bench.ui.startButton.click()
    assert bench.started == []
    assert "was deleted" in bench.ui.messageLabel.text
    assert bench.ui.pairsTable.rowCount == 0


def test_closing_the_scene_empties_the_cases_and_leaves_trainings(
    bench: Bench, scene: Any, waitUntil: Callable[..., None]
) -> None:
    bench.trainings.add("mine")
    bench.section.refresh()
    begun(bench, scene, waitUntil)
    scene.Clear(0)
    bench.section.onSceneClosed()
    assert bench.ui.pairsTable.rowCount == 0
    assert bench.rows() == []
    assert bench.ui.jobComboBox.currentText == "mine – running"
    begun(bench, scene, waitUntil)
    assert bench.section.wish().newLabels == ("Segment_1:body",)


def test_another_model_starts_from_what_it_knows_itself(
    bench: Bench, scene: Any, waitUntil: Callable[..., None]
) -> None:
    begun(bench, scene, waitUntil)
    row = [name for name, _label, _how in bench.rows()].index("liver")
    box = bench.ui.mappingTable.cellWidget(row, 1)
    box.setCurrentIndex(box.findData("left lung upper lobe"))
    waitUntil(lambda: ("liver", "left lung upper lobe", "name") in bench.rows())
    bench.client.answers.update(engine(("trunk", "liver")).answers)
    bench.section.setBundle("other")
    waitUntil(lambda: ("left lung upper lobe", "choose…", "not found") in bench.rows())
    assert ("liver", "liver", "name") in bench.rows()
    assert bench.ui.hostComboBox.currentText == "liver"
    assert bench.section.wish().bundle == "other"
    assert not bench.ui.startButton.enabled


def test_opening_attaches_to_a_training_that_runs(bench: Bench) -> None:
    bench.trainings.add("old", "done")
    bench.trainings.add("mine", events=events())
    bench.trainings.add("newer", "failed")
    bench.section.refresh()
    assert bench.ui.jobComboBox.currentText == "mine – running"
    assert bench.ui.stateLabel.text == "Training, step 39/600 · loss 0.0256 · about 19 min left"
    assert (bench.ui.progressBar.maximum, bench.ui.progressBar.value) == (600, 39)
    assert bench.ui.stopButton.enabled
    assert not bench.ui.resumeButton.enabled
    bench.ui.stopButton.click()
    assert bench.trainings.calls == [("stop", "mine")]


def test_a_training_that_ends_while_nobody_has_selected_it_brings_its_model(
    bench: Bench, waitUntil: Callable[..., None]
) -> None:
    bench.trainings.add("mine", events=(Event("controlnet", 40, 40, metrics={"loss": 0.5}), Event("bundle", 1, 1)))
    bench.trainings.add("other")
    bench.section.refresh()
    assert bench.ui.jobComboBox.currentText == "other – running"
    bench.trainings.states["mine"] = "done"
    waitUntil(lambda: bench.made)
    assert bench.made == ["mine"]
    assert "is finished" in bench.told[0]
    bench.section.refresh()
    assert bench.made == ["mine"], "told once"
    bench.ui.jobComboBox.setCurrentIndex(bench.ui.jobComboBox.findData("mine"))
    assert bench.ui.stateLabel.text == "Finished after 40 steps."


def test_a_training_that_the_effect_has_started_brings_its_model_too(bench: Bench) -> None:
    bench.trainings.add("long ago", "done")
    bench.section.refresh()
    bench.trainings.add("mine", "done")
    bench.section.refresh()
    assert bench.made == ["mine"]


def test_a_training_that_stops_says_so_until_it_has(bench: Bench) -> None:
    bench.trainings.add("mine", events=events())
    bench.section.refresh()
    bench.ui.stopButton.click()
    bench.section.trainings.poll()
    assert bench.ui.stateLabel.text == "Stopping after the present step…"
    assert not bench.ui.stopButton.enabled
    bench.trainings.states["mine"] = "cancelled"
    bench.section.trainings.poll()
    assert bench.ui.stateLabel.text == "Stopped at step 39. Resume goes on from there."
    assert bench.ui.resumeButton.enabled


def test_a_started_training_draws_its_loss_by_itself(bench: Bench, scene: Any, waitUntil: Callable[..., None]) -> None:
    begun(bench, scene, waitUntil)
    bench.ui.startButton.click()
    waitUntil(lambda: bench.started)
    assert bench.ui.jobComboBox.currentText == "tiny-Segment_1 – running"
    assert bench.ui.nameEdit.text == "tiny-Segment_1-2", "the next one needs another name"
    bench.trainings.events["tiny-Segment_1"] += events(10)
    bench.section.trainings.poll()
    assert [chart.GetName() for chart in scene.GetNodesByClass("vtkMRMLPlotChartNode")] == ["tiny-Segment_1 loss"]


def test_a_failed_training_says_why_and_can_be_resumed(bench: Bench) -> None:
    bench.trainings.add("mine", "failed")
    bench.section.refresh()
    assert bench.ui.stateLabel.text == "Failed: the disk is full."
    bench.ui.resumeButton.click()
    assert bench.trainings.calls == [("resume", "mine")]
    assert bench.ui.jobComboBox.currentText == "mine – running"


def test_the_loss_is_a_chart_that_goes_on_and_is_found_again_in_the_scene(bench: Bench, scene: Any) -> None:
    bench.trainings.add("mine", events=events(30))
    bench.section.refresh()
    bench.ui.chartButton.click()
    charts = list(scene.GetNodesByClass("vtkMRMLPlotChartNode"))
    assert [chart.GetName() for chart in charts] == ["mine loss"]
    tables = {table.GetName(): table for table in scene.GetNodesByClass("vtkMRMLTableNode")}
    assert tables["mine loss"].GetNumberOfRows() == 29
    bench.trainings.events["mine"] += [Event("validation", 29, 600, metrics={"region_loss": 0.5}), *events(50)[30:]]
    bench.section.trainings.poll()
    assert tables["mine loss"].GetNumberOfRows() == 49
    series = [charts[0].GetNthPlotSeriesNode(number).GetName() for number in range(3)]
    assert series == ["each step", "mean of 20 steps", "held-out cases"]
    bench.ui.jobComboBox.currentIndexChanged.emit(0)
    bench.ui.chartButton.click()
    assert len(list(scene.GetNodesByClass("vtkMRMLPlotChartNode"))) == 1


def test_steps_that_come_again_after_resuming_replace_the_earlier_ones(bench: Bench, scene: Any) -> None:
    bench.trainings.add("mine", events=(*events(30), *events(20)[10:]))
    bench.section.refresh()
    bench.ui.chartButton.click()
    table = next(iter(scene.GetNodesByClass("vtkMRMLTableNode")))
    assert table.GetNumberOfRows() == 19


def test_pictures_come_as_they_are_made_and_can_be_leafed_through(bench: Bench, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("step-1.png", "step-2.png", "comparison.png"):
        Image.new("RGB", (300, 100), "red").save(tmp_path / name)
    shown = [Event("picture", step, 600, file=f"step-{step}.png") for step in (1, 2)]
    bench.trainings.add("mine", events=(*events(5), shown[0]))
    bench.section.refresh()
    assert bench.ui.pictureCaption.text == "step 1 (1/1)"
    assert bench.ui.pictureLabel.pixmap.width() == 420
    bench.trainings.events["mine"].append(shown[1])
    bench.section.trainings.poll()
    assert bench.ui.pictureCaption.text == "step 2 (2/2)", "the newest is shown"
    bench.ui.previousPictureButton.click()
    assert bench.ui.pictureCaption.text == "step 1 (1/2)"
    bench.trainings.events["mine"].append(Event("picture", 1, 1, file="comparison.png"))
    bench.section.trainings.poll()
    assert bench.ui.pictureCaption.text == "step 1 (1/3)", "an earlier one that is looked at stays"


def test_the_log_is_shown_on_demand_and_deleting_asks_first(bench: Bench) -> None:
    bench.trainings.add("mine", "done")
    bench.section.refresh()
    bench.ui.logButton.setChecked(True)
    assert bench.ui.logText.plainText == "log of mine"
    bench.ui.deleteButton.click()
    assert bench.trainings.calls == [("delete", "mine")]
    assert bench.ui.stateLabel.text == "No trainings yet."
