"""The *Results* and *Load* sections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from Testing.MAISI.panel_user import PanelUser, write_result


def test_a_result_is_shown_compared_made_again_saved_and_deleted(
    user: PanelUser, scene: Any, dialogs: Any, tmp_path: Path
) -> None:
    for seed in (1, 2):
        user.finish(user.generate(), seed=seed, passed=seed == 1)
    assert [row[2] for row in user.rows()] == ["passed", "failed"]
    assert user.reads("resultLabel").startswith("failed: mandible is too bright: median 900 HU")
    assert user.find("resultsTable").item(1, 2).toolTip() == user.reads("resultLabel").splitlines()[0]
    user.select(0, 1)
    user.press("compareButton")
    assert "100 % of the voxels differ" in user.message
    user.select(0)
    user.press("replayButton")
    assert Path(user.client.last("generate").fields["replay"]).name == "provenance.json"
    user.finish(user.client.last("generate"), seed=1)
    user.select(0)
    dialogs.paths = [str(tmp_path)]
    user.press("saveButton")
    assert (tmp_path / "head-neck-mini-seed-1" / "image.nii.gz").is_file()
    user.select(0, 2)
    user.press("deleteButton")
    assert [row[1] for row in user.rows()] == ["2"]
    assert scene.GetNodesByClass("vtkMRMLSegmentationNode").GetNumberOfItems() == 1


def test_saving_never_replaces_what_was_saved_before(user: PanelUser, dialogs: Any, tmp_path: Path) -> None:
    user.finish(user.generate(), seed=1)
    for _ in range(2):  # as with a result of the same name from another scene
        dialogs.paths = [str(tmp_path)]
        user.press("saveButton")
    for name in ("head-neck-mini-seed-1", "head-neck-mini-seed-1-2"):
        assert (tmp_path / name / "image.nii.gz").is_file()
    assert "head-neck-mini-seed-1-2" in user.message


def test_a_replay_during_a_run_is_told_to_wait(user: PanelUser) -> None:
    user.finish(user.generate(), seed=1)
    sent = user.generate()
    user.press("replayButton")
    assert user.client.last("generate") is sent
    assert "already" in user.message


def test_a_volume_that_was_deleted_elsewhere_leaves_the_table(user: PanelUser, scene: Any) -> None:
    user.finish(user.generate(), seed=3)
    scene.RemoveNode(scene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode"))
    user.press("showButton")  # at once
    assert user.rows() == []


def test_what_the_console_made_is_listed_too(user: PanelUser, tmp_path: Path) -> None:
    user.panel.logic.loadResult(write_result(tmp_path / "sample-0000", seed=4))
    user.waitUntil(lambda: [row[1] for row in user.rows()] == ["4"])


def test_results_come_back_with_a_saved_scene(user: PanelUser, scene: Any, tmp_path: Path) -> None:
    user.finish(user.generate(), seed=8)
    scene.SetRootDirectory(str(tmp_path))
    scene.SetURL(str(tmp_path / "scene.mrml"))
    for node in (*scene.GetNodesByClass("vtkMRMLScalarVolumeNode"), *scene.GetNodesByClass("vtkMRMLSegmentationNode")):
        node.AddDefaultStorageNode()
        suffix = ".nrrd" if node.IsA("vtkMRMLScalarVolumeNode") else ".seg.nrrd"
        node.GetStorageNode().SetFileName(str(tmp_path / f"{node.GetID()}{suffix}"))
        node.GetStorageNode().WriteData(node)
    scene.Commit()
    scene.Clear(0)
    assert user.rows() == []
    scene.Connect()
    assert [row[1] for row in user.rows()] == ["8"]


def test_a_result_folder_is_loaded(user: PanelUser, dialogs: Any, tmp_path: Path) -> None:
    write_result(tmp_path / "früher" / "sample-0000", seed=9)
    dialogs.paths = [str(tmp_path / "früher")]
    user.press("loadResultButton")
    user.waitUntil(lambda: user.rows())
    assert [row[1] for row in user.rows()] == ["9"]
    user.waitUntil(lambda: user.find("loadResultButton").enabled)


def test_a_pair_that_cannot_be_read_is_told(user: PanelUser, tmp_path: Path) -> None:
    assert not user.find("loadPairButton").enabled
    user.find("imageFileEdit").text = str(tmp_path / "nothing.nii.gz")
    user.press("loadPairButton")
    user.waitUntil(lambda: "nothing.nii.gz" in user.message and "Loading" not in user.message)
    assert user.find("loadPairButton").enabled


def test_a_path_may_be_pasted_in_quotes(user: PanelUser, tmp_path: Path) -> None:
    folder = write_result(tmp_path / "Ordner mit ä", seed=4)
    user.find("imageFileEdit").text = f' "{folder / "image.nii.gz"}" '
    user.find("maskFileEdit").text = f"'{folder / 'mask.nii.gz'}'"
    user.press("loadPairButton")
    user.waitUntil(lambda: len(user.rows()) == 1)
    assert user.message == ""
