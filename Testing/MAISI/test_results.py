"""What can be done with results in the scene, in the stand-in application with its slice views."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")

from MAISILib.errors import FileFormatError, MaskError, OutputError
from MAISILib.scene import read_mask, read_volume
from MAISILib.scene.mrml import slicer
from MAISILib.scene.results import pair_steps, result_steps, run
from Testing.imports import ROOT
from Testing.MAISI.scripted_process import makeSample

BUNDLE = ROOT / "Resources" / "bundles" / "head-neck-mini"


@pytest.fixture
def results(scene: Any) -> Any:
    from MAISIPanel.Results import ResultList

    return ResultList(scene)


@pytest.fixture
def add(results: Any, tmp_path: Path) -> Callable[..., Any]:
    """Puts a sample into the scene, as a generation does."""

    def make(seed: int = 7, **changes: Any) -> Any:
        from MAISIPanel.Results import ResultEntry

        folder = tmp_path / "Ergebnisse ä" / str(seed)
        makeSample(BUNDLE, seed=seed, **changes).save(folder)
        entry = ResultEntry(run(result_steps(results.scene, folder)).volume)
        entry.keep(["The grid is oblique."])
        return entry

    return make


def backgrounds() -> list[str]:
    """The volume in each slice view, by name."""
    app = slicer.app
    names = []
    for name in app.layoutManager().sliceViewNames():
        composite = app.layoutManager().sliceWidget(name).sliceLogic().GetSliceCompositeNode()
        node = slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID() or "")
        names.append(node.GetName() if node is not None else "")
    return names


def test_an_entry_says_what_the_table_shows(results: Any, add: Any) -> None:
    entry = add(seed=3)
    assert results.entries == [entry]
    assert (entry.name, entry.seed, entry.bundle) == ("head-neck-mini seed 3", 3, "head-neck-mini")
    assert (entry.verdict, entry.seconds) == ("failed", 5.75)
    assert (entry.qualityStory, entry.checkedOrgans) == (["failed: soft tissue is too bright"], 2)
    assert entry.notes == ["The grid is oblique."]


def test_other_volumes_of_the_scene_are_no_results(results: Any, add: Any) -> None:
    slicer.mrmlScene.AddNode(slicer.vtkMRMLScalarVolumeNode())
    add()
    assert len(results.entries) == 1


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[1]",
        '{"quality": 3, "request": [], "seconds": "x", "bundle": null}',
        '{"quality": {"verdict": ["failed"], "findings": "x", "hu": {"organs": 3}}}',
    ],
)
def test_a_strange_provenance_makes_a_poor_entry_but_no_error(results: Any, add: Any, text: str | None) -> None:
    entry = add()
    entry.volumeNode.SetAttribute("MAISI.Provenance", text)
    assert (entry.seed, entry.bundle, entry.seconds) == (None, "", None)
    assert (entry.verdict, entry.qualityStory, entry.checkedOrgans) == ("not checked", ["not checked"], 0)
    with pytest.raises(FileFormatError, match="only generated images"):
        entry.writeReplay(Path("unused"))


def test_an_unusual_image_is_told_with_its_reasons_and_an_old_one_by_its_organs(results: Any, add: Any) -> None:
    entry = add()
    provenance = entry.provenance
    organs = provenance["quality"]["hu"]["organs"]
    reasons = ["bone of the mask and of the image overlap little (Dice 0.31)", "target can hardly be told"]
    provenance["quality"] = {"verdict": "unusual", "findings": reasons, "hu": {"passed": True, "organs": organs[:1]}}
    entry.volumeNode.SetAttribute("MAISI.Provenance", json.dumps(provenance))
    assert (entry.verdict, entry.qualityStory) == ("unusual", [f"unusual: {reasons[0]}", reasons[1]])
    provenance["quality"] = {"passed": False, "organs": organs}  # before image and mask were compared
    entry.volumeNode.SetAttribute("MAISI.Provenance", json.dumps(provenance))
    assert (entry.verdict, entry.qualityStory) == ("failed", ["failed: outside the expected HU: soft tissue"])
    provenance["quality"] = {"passed": True, "organs": organs[:1]}
    entry.volumeNode.SetAttribute("MAISI.Provenance", json.dumps(provenance))
    assert entry.qualityStory == ["passed (1 organ with known HU)"]


def test_showing_a_result_puts_it_into_all_views_and_hides_the_other_segmentations(results: Any, add: Any) -> None:
    first, second = add(1), add(2)
    results.show(first)
    assert set(backgrounds()) == {"head-neck-mini seed 1"}
    assert first.segmentationNode.GetDisplayNode().GetVisibility()
    assert not second.segmentationNode.GetDisplayNode().GetVisibility()
    results.show(second)
    assert set(backgrounds()) == {"head-neck-mini seed 2"}
    assert second.segmentationNode.GetDisplayNode().GetVisibility()


def test_comparing_shows_two_side_by_side_and_says_how_they_differ(results: Any, add: Any) -> None:
    first, second, coarse = add(1), add(2), add(3, affine=np.diag([4.0, 4.0, 4.0, 1.0]))
    told = results.compare(first, second)
    shown = dict(zip(slicer.app.layoutManager().sliceViewNames(), backgrounds(), strict=True))
    assert (shown["Red"], shown["Yellow"]) == ("head-neck-mini seed 1", "head-neck-mini seed 2")
    planes = [slicer.mrmlScene.GetNodeByID(f"vtkMRMLSliceNode{name}").GetSliceToRAS() for name in ("Red", "Yellow")]
    assert [planes[0].GetElement(row, 2) for row in range(3)] == [planes[1].GetElement(row, 2) for row in range(3)]
    arrays = [read_volume(each.volumeNode).array.astype(float) for each in (first, second)]
    assert told.startswith(f"{100 * np.mean(arrays[0] != arrays[1]):.3g} % of the voxels differ")
    assert f"{np.abs(arrays[0] - arrays[1]).max():.3g} at most" in told
    assert results.compare(first, first.volumeNode) == "The images have identical voxels."
    assert results.compare(first, coarse) == "The images have different grids."


def test_the_chart_is_shown_in_a_plot_view(results: Any, add: Any) -> None:
    chart = results.chart(add())
    view = slicer.app.layoutManager().plotWidget(0).mrmlPlotViewNode()
    assert view.GetPlotChartNodeID() == chart.GetID()


def test_a_saved_result_comes_back_with_its_labels_and_provenance(results: Any, add: Any, tmp_path: Path) -> None:
    entry = add()
    folder = tmp_path / "gespeichert ä"
    files = results.save(entry, folder)
    assert [path.name for path in files] == ["image.nii.gz", "labels.csv", "mask.nii.gz", "provenance.json"]
    provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    provenance["bundle"] = {"name": "gone", "folder": "/gone"}  # another computer
    (folder / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    again = run(result_steps(results.scene, folder))
    np.testing.assert_array_equal(read_volume(again.volume).array, read_volume(entry.volumeNode).array)
    assert again.segmentation.GetSegmentation().GetSegment("MAISI_137").GetName() == "mandible"
    results.save(entry, folder)  # once more, over it
    (folder / "image.nii.gz").unlink()
    with pytest.raises(OutputError, match="holds other files"):
        results.save(entry, folder)


def test_a_pair_keeps_the_labels_that_it_was_loaded_with_also_in_a_saved_scene(
    results: Any, add: Any, tmp_path: Path
) -> None:
    from MAISIPanel.Results import ResultEntry, ResultList

    from MAISILib.scene import load, save
    from MAISILib.scene.label_tables import table_of_bundle

    folder = tmp_path / "Ergebnisse ä" / "7"
    add()
    image, mask = folder / "image.nii.gz", folder / "mask.nii.gz"
    pair = run(pair_steps(results.scene, image, mask, table=table_of_bundle(BUNDLE)))
    (folder / "labels.csv").unlink(missing_ok=True)
    save(results.scene, tmp_path / "scene.mrb")
    for scene, node in ((results.scene, pair.volume), (load(tmp_path / "scene.mrb"), None)):
        node = node or scene.GetNodeByID(pair.volume.GetID())
        list_, entry = ResultList(scene), ResultEntry(node)
        assert "labels.csv" in [path.name for path in list_.save(entry, tmp_path / f"saved-{id(scene)}")]
        list_.makeChart(entry)
        table = node.GetNthNodeReference("MAISI.Chart", 0).GetTable()
        assert "mandible" in [table.GetValue(row, 0).ToString() for row in range(table.GetNumberOfRows())]


def test_what_the_user_edited_is_saved_as_edited(results: Any, add: Any, tmp_path: Path) -> None:
    from MAISILib.files.images import read_mask as read_mask_file
    from MAISILib.scene.label_tables import table_of_bundle

    entry = add()
    entry.segmentationNode.GetSegmentation().RemoveSegment("MAISI_137")
    results.save(entry, tmp_path / "saved")
    table = table_of_bundle(BUNDLE)
    assert read_mask_file(tmp_path / "saved" / "mask.nii.gz", table).labels == [200]
    assert read_mask(entry.segmentationNode, table).labels == [200]


def test_a_new_segment_without_a_label_is_named_when_saving(results: Any, add: Any, tmp_path: Path) -> None:
    entry = add()
    segment = entry.segmentationNode.GetSegmentation().GetSegment("MAISI_137")
    for change in (lambda: segment.RemoveTag("MAISI.Label"), lambda: segment.SetTerminology("")):
        change()
    segment.SetName("Tumor?")
    with pytest.raises(MaskError, match=r"Tumor\?"):
        results.save(entry, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_deleting_leaves_nothing_of_a_result(results: Any, add: Any) -> None:
    kept = add(1)
    results.chart(kept)
    counts = {kind: slicer.mrmlScene.GetNumberOfNodesByClass(kind) for kind in KINDS}
    gone = add(2)
    results.chart(gone)
    results.delete(gone)
    assert results.entries == [kept]
    assert {kind: slicer.mrmlScene.GetNumberOfNodesByClass(kind) for kind in KINDS} == counts
    results.delete(kept)
    assert results.entries == []


KINDS = [
    f"vtkMRML{name}Node"
    for name in ("ScalarVolume", "Segmentation", "SegmentationDisplay", "Table", "PlotChart", "PlotSeries")
]
