"""Scene files: what was shown is there again after saving and loading, and bad files are refused."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")

from MAISILib.errors import FileFormatError, OutputError
from MAISILib.resampling import to_canonical
from MAISILib.scene import load, new_scene, read_mask, read_volume, save, show
from MAISILib.scene.mrml import slicer, vtk
from Testing.scene.conftest import affine_of_angles
from Testing.scene.test_segments import add_segment, edit

Make = Callable[..., Any]
RAS = np.diag([1.5, 1.5, 2.0, 1.0])


def nodes_of(scene: Any) -> tuple[Any, Any]:
    return scene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode"), scene.GetFirstNodeByClass("vtkMRMLSegmentationNode")


def test_a_saved_scene_is_the_same_again(scene: Any, tmp_path: Path, make_image: Make, make_mask: Make) -> None:
    oblique = affine_of_angles((0.3, -0.2, 0.7), (1.5, 2.0, 3.0), (11.0, -42.5, 903.25))
    image, mask = make_image(oblique), make_mask(oblique, [1, 5, 14, 26, 132, 137, 200, 255])
    show(scene, image, mask, "Kopf/Hals ä", provenance={"seed": 7})
    path = tmp_path / "Fälle 1" / "case one.mrb"
    save(scene, path)
    assert [p.name for p in path.parent.iterdir()] == ["case one.mrb"]

    loaded = load(path)
    volume, segmentation = nodes_of(loaded)
    np.testing.assert_array_equal(read_volume(volume).array, image.array)
    np.testing.assert_allclose(read_volume(volume).affine, oblique, atol=1e-6)
    read = read_mask(segmentation, mask.table, volume)
    np.testing.assert_array_equal(read.array, mask.array)
    np.testing.assert_array_equal(read_mask(segmentation, mask.table).array, mask.array)
    assert read.notes == ()

    assert volume.GetAttribute("MAISI.Provenance") == '{"seed": 7}'
    assert volume.GetAttribute("MAISI.Synthetic") == segmentation.GetAttribute("MAISI.Synthetic") == "1"
    assert (volume.GetDisplayNode().GetWindow(), volume.GetDisplayNode().GetLevel()) == (350, 40)
    assert not volume.GetDisplayNode().GetAutoWindowLevel()
    assert segmentation.GetNodeReference(segmentation.GetReferenceImageGeometryReferenceRole()) is volume
    hierarchy = loaded.GetSubjectHierarchyNode()
    for node in (volume, segmentation):
        parent = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node))
        assert hierarchy.GetItemName(parent) == "Kopf/Hals ä"

    for label in (mask.table[value] for value in mask.labels):
        segments = segmentation.GetSegmentation()
        segment = segments.GetSegment(segments.GetSegmentIdBySegmentName(label.name))
        tag = vtk.reference("")
        assert segment.GetTag("MAISI.Label", tag)
        assert str(tag) == str(label.value)
        assert segment.GetTerminology() == (label.terminology() or slicer.vtkSegment().GetTerminology())
        assert segment.GetLabelValue() == label.value
        np.testing.assert_allclose(segment.GetColor(), np.array(label.color) / 255, atol=1e-5)


def test_a_left_handed_image_comes_back_in_place(
    scene: Any, tmp_path: Path, oblique: np.ndarray, make_image: Make, make_mask: Make
) -> None:
    """Slicer renumbers the slices of a left-handed volume when it reads it; no voxel may move."""
    image, mask = make_image(oblique), make_mask(oblique, [1, 5, 200])
    show(scene, image, mask, "case")
    save(scene, tmp_path / "case.mrb")
    volume, segmentation = nodes_of(load(tmp_path / "case.mrb"))
    read, labels = read_volume(volume), read_mask(segmentation, mask.table, volume)
    for found, expected in ((read, image), (labels, mask)):
        array, affine = to_canonical(expected.array, expected.affine)
        again, place = to_canonical(found.array, found.affine)
        np.testing.assert_array_equal(again, array)
        np.testing.assert_allclose(place, affine, atol=1e-6)
    assert labels.notes == ()


def test_edited_and_overlapping_segments_survive_saving(
    scene: Any, tmp_path: Path, make_image: Make, make_mask: Make
) -> None:
    """Slicer stores such a segmentation in layers with renumbered values."""
    mask = make_mask(RAS, [1, 3, 14, 200])
    volume, node = show(scene, make_image(RAS), mask, "case")
    edit(node, "MAISI_3", np.roll(mask.array == 3, 3, axis=0), volume)
    add_segment(node, mask.array == 14, RAS, "left adrenal gland")
    before = read_mask(node, mask.table, volume)
    assert before.notes
    save(scene, tmp_path / "scene.mrb")
    volume, node = nodes_of(load(tmp_path / "scene.mrb"))
    after = read_mask(node, mask.table, volume)
    np.testing.assert_array_equal(after.array, before.array)
    assert after.notes == before.notes


def test_loading_adds_to_a_scene(scene: Any, tmp_path: Path, make_image: Make) -> None:
    show(scene, make_image(RAS), None, "first")
    save(scene, tmp_path / "first.mrb")
    other = new_scene()
    show(other, make_image(RAS), None, "second")
    assert load(tmp_path / "first.mrb", other) is other
    assert other.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 2


def test_a_scene_of_the_application_is_left_set_up(scene: Any, tmp_path: Path, make_image: Make) -> None:
    """A scene that can read files keeps its own file reading."""
    remote, data = slicer.vtkMRMLRemoteIOLogic(), slicer.vtkDataIOManagerLogic()
    remote.SetMRMLScene(scene)
    remote.GetCacheManager().SetRemoteCacheDirectory(str(tmp_path))
    data.SetMRMLScene(scene)
    data.SetAndObserveDataIOManager(remote.GetDataIOManager())
    remote.AddDataIOToScene()
    manager = scene.GetDataIOManager()
    show(scene, make_image(RAS), None, "case")
    save(scene, tmp_path / "case.mrb")
    load(tmp_path / "case.mrb", scene)
    assert scene.GetDataIOManager() is manager
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 2


def test_saving_twice_replaces_and_saving_badly_keeps(
    scene: Any, tmp_path: Path, make_image: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scene.mrb"
    save(scene, path)
    show(scene, make_image(RAS), None, "case")
    save(scene, path)
    good = path.read_bytes()

    class FullDisk:
        def WriteToMRB(self, name: str, *_: Any) -> bool:
            Path(name).write_bytes(b"half")
            return False

    with pytest.raises(OutputError, match="could not save the scene"):
        save(FullDisk(), path)
    assert path.read_bytes() == good
    assert [p.name for p in tmp_path.iterdir()] == ["scene.mrb"]


def test_a_scene_file_is_called_mrb(scene: Any, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"must end in \.mrb"):
        save(scene, tmp_path / "scene.mrml")


def test_a_folder_that_cannot_be_made_is_told(scene: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"is a file, not a folder|in the way"):
        save(scene, tmp_path / "file" / "scene.mrb")


def test_bad_scene_files_are_refused(tmp_path: Path, scene: Any, make_image: Make) -> None:
    with pytest.raises(FileFormatError, match="does not exist"):
        load(tmp_path / "none.mrb")
    bad = tmp_path / "bad.mrb"
    bad.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(FileFormatError, match="cannot be read"):
        load(bad)
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(FileFormatError, match="no Slicer scene"):
        load(bad)
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("s/s.mrml", "<MRML></MRML>")
        archive.writestr("../../outside.txt", "x")
    with pytest.raises(FileFormatError, match="outside its folder"):
        load(bad)
    show(scene, make_image(RAS), None, "case")
    save(scene, tmp_path / "good.mrb")
    content = (tmp_path / "good.mrb").read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    with pytest.raises(FileFormatError, match="cannot be read"):
        load(bad)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    bad.write_bytes(flipped)
    with pytest.raises(FileFormatError, match=r"damaged|cannot be read"):
        load(bad)


def test_without_slicer_core_the_message_says_what_to_install(repository: Path) -> None:
    program = (
        "import sys; sys.modules['slicer'] = None\n"
        "from MAISILib.errors import MaisiError\n"
        "try:\n    import MAISILib.scene\n"
        "except MaisiError as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, timeout=60)
    assert "pip install slicer-maisi[scene]" in run.stdout, run.stderr
