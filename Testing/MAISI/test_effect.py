"""The Segment Editor effect: what its two buttons start, and that clones come and go without harm."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from MAISILib.errors import MaisiError, MaskError
from Testing.MAISI.drawn_cases import draw_case, engine
from Testing.MAISI.scripted_trainings import ScriptedTrainings, events

ROOT = Path(__file__).resolve().parents[2]


class ScriptedLogic:
    """Stands in for the logic of the module MAISI."""

    def __init__(self, scene: Any, work: Path) -> None:
        self.scene, self.client = scene, engine()
        self.trainingJobs = ScriptedTrainings(work)
        self.parameterNode = SimpleNamespace(get=lambda: SimpleNamespace(bundle="tiny", seed=42, device="cpu"))
        self.generations: list[Any] = []
        self.started: list[dict[str, Any]] = []
        self.whileWriting: Callable[[], object] = lambda: None

    def generateAsync(self, **fields: Any) -> Any:
        job = SimpleNamespace(isRunning=True, fields=fields, cancel=lambda: fields["onCancelled"]())
        self.generations.append(job)
        return job

    def fineTune(self, pairs: Any, onCase: Callable[[int, int], Any], **wish: Any) -> Any:
        onCase(1, 1)
        self.whileWriting()
        self.started.append({"pairs": pairs, **wish})
        return self.trainingJobs.add(wish["name"], events=events())


class Editor:
    """A Segment Editor with a case in it."""

    def __init__(self, scene: Any) -> None:
        import slicer as _slicer

        slicer: Any = _slicer
        self.widget = slicer.qMRMLSegmentEditorWidget()
        self.widget.setMRMLScene(scene)
        self.node = scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
        self.widget.setMRMLSegmentEditorNode(self.node)

    def edit(self, volume: Any, segmentation: Any, segment: str) -> None:
        self.widget.setSegmentationNode(segmentation)
        self.widget.setSourceVolumeNode(volume)
        self.node.SetSelectedSegmentID(segment)

    def close(self) -> None:
        """Ends the effects, and deletes the widget before Python would at some later time."""
        self.widget.discard()
        self.widget.delete()

    @property
    def options(self) -> Any:
        return self.widget.activeEffect().self().options


@pytest.fixture
def logic(scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedLogic:
    from MAISIPanel.Logic import MAISILogic

    made = ScriptedLogic(scene, tmp_path)
    monkeypatch.setattr(MAISILogic, "shared", classmethod(lambda cls: made))
    return made


@pytest.fixture
def editor(scene: Any, logic: ScriptedLogic, loadedModule: Callable[..., Any]) -> Iterator[Editor]:
    loadedModule("SegmentEditorMAISI/SegmentEditorMAISI.py")
    made = Editor(scene)
    yield made
    made.close()


@pytest.fixture
def painted(scene: Any, editor: Editor) -> tuple[Any, Any]:
    """The effect is active on a case whose painted segment is selected."""
    volume, segmentation = draw_case(scene)
    editor.edit(volume, segmentation, "painted_Segment_1")
    editor.widget.setActiveEffectByName("MAISI")
    return volume, segmentation


def test_without_a_segmentation_nothing_can_be_started(editor: Editor) -> None:
    editor.widget.setActiveEffectByName("MAISI")
    options = editor.options
    assert not options.generateButton.enabled
    assert not options.fineTuneButton.enabled
    assert options.segmentLabel.text == "none selected"


def test_the_image_is_made_for_what_is_edited(editor: Editor, logic: ScriptedLogic, painted: tuple[Any, Any]) -> None:
    editor.options.generateButton.click()
    fields = logic.generations[0].fields
    assert (fields["bundle"], fields["segmentationNode"], fields["referenceVolumeNode"]) == ("tiny", *painted[::-1])
    assert editor.options.generateButton.text == "Cancel"
    fields["onProgress"]({"done": 3, "total": 30})
    assert (editor.options.progressBar.value, editor.options.progressBar.maximum) == (3, 30)
    fields["onNote"]("Segment 'Segment_1' was left out.")
    fields["onDone"]([])
    assert editor.options.messageLabel.text == "The image is in the scene. Segment 'Segment_1' was left out."
    assert editor.options.generateButton.text == "Generate image for this segmentation"


def test_a_second_click_on_generate_is_no_cancel(
    editor: Editor, logic: ScriptedLogic, painted: tuple[Any, Any]
) -> None:
    for _ in range(2):
        editor.options.generateButton.click()
    assert len(logic.generations) == 1
    assert editor.options.messageLabel.text == ""
    assert editor.options.generateButton.text == "Cancel"


def test_the_seed_and_the_device_are_those_of_the_panel(
    editor: Editor, logic: ScriptedLogic, painted: tuple[Any, Any]
) -> None:
    editor.options.generateButton.click()
    fields = logic.generations[0].fields
    assert (fields["seed"], fields["device"]) == (42, "cpu")


def test_generate_becomes_cancel(
    editor: Editor, logic: ScriptedLogic, painted: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from MAISIPanel import RunControls

    monkeypatch.setattr(RunControls, "DOUBLE_CLICK_SECONDS", -1.0)
    editor.options.generateButton.click()
    editor.options.generateButton.click()
    assert len(logic.generations) == 1
    assert editor.options.messageLabel.text == "Cancelled."
    editor.options.generateButton.click()
    logic.generations[1].fields["onFailed"]("The worker has crashed.", "Crash")
    assert editor.options.messageLabel.text == "The worker has crashed."


def test_the_painted_segment_becomes_a_new_label_in_its_host(
    editor: Editor, logic: ScriptedLogic, painted: tuple[Any, Any]
) -> None:
    options = editor.options
    assert options.segmentLabel.text == "Segment_1"
    options.hostComboBox.setCurrentIndex(options.hostComboBox.findData("liver"))
    options.durationComboBox.setCurrentIndex(options.durationComboBox.findData("normal"))
    said: list[str] = []
    logic.whileWriting = lambda: said.append(options.stateLabel.text)
    options.fineTuneButton.click()
    assert "Writing the volume" in said[0]
    wish = logic.started[0]
    assert (wish["newLabels"], wish["focus"]) == (["Segment_1:liver"], ["Segment_1"])
    assert (wish["bundle"], wish["name"], wish["duration"]) == ("tiny", "tiny-Segment_1", "normal")
    assert (wish["pairs"][0].volumeNode, wish["pairs"][0].segmentationNode) == painted
    assert options.stateLabel.text.startswith("tiny-Segment_1: Training, step 39/600")
    options.stopButton.click()
    assert logic.trainingJobs.calls == [("stop", "tiny-Segment_1")]


def test_a_segment_that_the_model_knows_is_improved_and_unknown_ones_are_left_out(
    editor: Editor, logic: ScriptedLogic, scene: Any
) -> None:
    volume, segmentation = draw_case(scene)
    segmentId = segmentation.GetSegmentation().GetSegmentIdBySegmentName("liver")
    editor.edit(volume, segmentation, segmentId)
    editor.widget.setActiveEffectByName("MAISI")
    editor.options.fineTuneButton.click()
    wish = logic.started[0]
    assert (wish["newLabels"], wish["focus"], wish["edits"]) == ([], ["liver"], {"Segment_1": "ignore"})


def test_what_cannot_be_learned_is_said(editor: Editor, logic: ScriptedLogic, painted: tuple[Any, Any]) -> None:
    painted[1].GetSegmentation().AddEmptySegment("empty", "empty")
    editor.node.SetSelectedSegmentID("empty")
    editor.options.fineTuneButton.click()
    assert editor.options.stateLabel.text == "The segment 'empty' is empty. Draw it first."
    editor.node.SetSelectedSegmentID("painted_Segment_1")
    logic.client.answers["map_segments"] = MaskError("Two segments are 'liver'.")
    editor.options.fineTuneButton.click()
    assert editor.options.stateLabel.text == "Two segments are 'liver'."
    assert logic.started == []


def test_choices_are_kept_with_the_segment_editor_node(
    editor: Editor, logic: ScriptedLogic, painted: tuple[Any, Any]
) -> None:
    editor.options.hostComboBox.setCurrentIndex(editor.options.hostComboBox.findData("liver"))
    assert editor.node.GetAttribute("MAISI.Host") == "liver"
    assert editor.node.GetAttribute("MAISI.Duration") == "quick"


def test_drawing_on_while_a_training_runs_looks_at_no_process(
    editor: Editor, logic: ScriptedLogic, painted: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    editor.options.fineTuneButton.click()
    looked: list[Any] = []
    monkeypatch.setattr(logic.trainingJobs, "state", looked.append)
    editor.node.Modified()
    assert looked == []
    assert editor.options.stopButton.enabled


def test_a_training_that_has_ended_meanwhile_is_told_when_the_effect_is_chosen_again(
    editor: Editor, logic: ScriptedLogic, painted: tuple[Any, Any]
) -> None:
    editor.options.fineTuneButton.click()
    editor.widget.setActiveEffect(None)
    logic.trainingJobs.states["tiny-Segment_1"] = "done"
    editor.widget.setActiveEffectByName("MAISI")
    assert "is finished" in editor.options.stateLabel.text
    assert not editor.options.stopButton.enabled


def test_a_clone_finds_the_training_that_another_one_has_started(
    editor: Editor, logic: ScriptedLogic, painted: tuple[Any, Any], scene: Any
) -> None:
    editor.options.fineTuneButton.click()
    editor.options.generateButton.click()
    editor.widget.discard()
    logic.generations[0].fields["onDone"]([])  # the clone is gone; what it has begun ends all the same
    other = Editor(scene)
    other.edit(*painted, "painted_Segment_1")
    other.widget.setActiveEffectByName("MAISI")
    assert other.options.stateLabel.text.startswith("tiny-Segment_1: Training, step 39/600")
    logic.trainingJobs.states["tiny-Segment_1"] = "done"
    other.options._poll()
    assert "is finished" in other.options.stateLabel.text
    other.close()


def test_widgets_that_were_destroyed_without_a_word_are_left_alone(
    editor: Editor, logic: ScriptedLogic, painted: tuple[Any, Any]
) -> None:
    options = editor.options
    options.fineTuneButton.click()
    options.generateButton.click()
    options.widget.delete()
    logic.generations[0].fields["onProgress"]({"done": 1, "total": 2})
    logic.generations[0].fields["onDone"]([])
    options._poll()
    assert not options._timer.isActive()


def test_the_effect_has_an_icon_and_help(editor: Editor) -> None:
    effect = editor.widget.effectByName("MAISI").self()
    assert not effect.icon().isNull()
    assert len(effect.icon().availableSizes()) == 1
    assert "Fine-tune" in effect.helpText()


def test_an_engine_that_is_missing_is_told_with_the_way_to_setup(
    editor: Editor, logic: ScriptedLogic, scene: Any
) -> None:
    logic.client.answers["describe"] = MaisiError("The engine ended at its start: No module named 'torch'.")
    editor.edit(*draw_case(scene), "painted_Segment_1")
    editor.widget.setActiveEffectByName("MAISI")
    assert "No module named 'torch'" in editor.options.messageLabel.text
    assert "section Setup" in editor.options.messageLabel.text
    assert not editor.options.generateButton.enabled
    logic.client.answers.update(engine().answers)
    editor.widget.setActiveEffectByName("")
    editor.widget.setActiveEffectByName("MAISI")
    assert editor.options.generateButton.enabled


def test_slicers_start_does_not_load_numpy(app: Any) -> None:
    """Slicer reads the module and the effect when it starts, whoever needs them."""
    code = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "MAISI")!r}]
from Testing.slicer_standin import install, loadModule
install()
for name in [name for name in sys.modules if name.partition(".")[0] in ("numpy", "MAISILib", "MAISIPanel")]:
    del sys.modules[name]
loadModule({str(ROOT / "MAISI" / "SegmentEditorMAISI" / "SegmentEditorMAISI.py")!r})
print(sorted({{name.partition(".")[0] for name in sys.modules}} & {{"numpy", "torch", "MAISILib", "MAISIPanel"}}))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip().splitlines()[-1:] == ["[]"], run.stderr
