"""Result folders and pairs of files become nodes, in short steps, with Slicer's own readers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")

from MAISILib.anatomy.labels import LabelTable, default_table
from MAISILib.errors import FileFormatError, MaskError
from MAISILib.files.nifti import write_labels, write_volume
from MAISILib.scene import grid_of, read_mask, read_volume, show_mask
from MAISILib.scene.label_tables import table_of_bundle, table_of_result
from MAISILib.scene.mrml import slicer
from MAISILib.scene.results import find_results, pair_steps, remove_result, result_steps, run
from MAISILib.scene.storage import write_volume_file
from MAISILib.volumes import Grid, LabelMap, Volume
from Testing.scene.test_segments import ORIENTATIONS

Make = Callable[..., Any]
RAS = np.diag([1.5, 1.5, 2.0, 1.0])


def write_result(folder: Path, image: Volume, mask: LabelMap | None, **provenance: Any) -> Path:
    """A result as the engine writes it, by its own writers."""
    write_volume(image, folder / "image.nii.gz")
    if mask is not None:
        write_labels(mask, folder / "mask.nii.gz")
    if provenance:
        (folder / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    return folder


@pytest.mark.parametrize("affine", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def test_a_result_arrives_voxel_by_voxel(
    scene: Any, tmp_path: Path, make_image: Make, make_mask: Make, affine: np.ndarray
) -> None:
    image, mask = make_image(affine), make_mask(affine, [1, 3, 14, 200])
    folder = write_result(tmp_path / "Ergebnis ä 1", image, mask, seed=1)
    shown = run(result_steps(scene, folder))
    np.testing.assert_array_equal(read_volume(shown.volume).array, image.array)
    np.testing.assert_array_equal(read_mask(shown.segmentation, mask.table, shown.volume).array, mask.array)
    np.testing.assert_allclose(grid_of(shown.volume).affine, affine, atol=1e-4)
    assert shown.volume.GetNodeReference("MAISI.Mask") is shown.segmentation


def test_a_grid_that_is_known_exactly_is_taken(scene: Any, tmp_path: Path, make_image: Make, make_mask: Make) -> None:
    affine = ORIENTATIONS["oblique"]
    folder = write_result(tmp_path, make_image(affine), make_mask(affine, [1]))
    shown = run(result_steps(scene, folder, grid=Grid((20, 24, 18), affine)))
    np.testing.assert_allclose(grid_of(shown.volume).affine, affine, rtol=0, atol=1e-12)
    elsewhere = affine.copy()
    elsewhere[0, 3] += 5
    shown = run(result_steps(scene, folder, grid=Grid((20, 24, 18), elsewhere)))
    np.testing.assert_allclose(grid_of(shown.volume).affine, affine, atol=1e-4)


def test_names_and_marks_come_from_the_provenance(scene: Any, tmp_path: Path, make_image: Make) -> None:
    provenance = {
        "bundle": {"name": "head-neck-mini"},
        "request": {"seed": 7},
        "sample": {"index": 2},
        "settings": {"modality": "mr_t1"},
    }
    folder = write_result(tmp_path, make_image(RAS), None, **provenance)
    shown = run(result_steps(scene, folder, suffix=" (replay)"))
    assert shown.volume.GetName() == "head-neck-mini seed 7 #3 (replay)"
    assert shown.volume.GetAttribute("MAISI.Synthetic") == "1"
    assert shown.volume.GetAttribute("DICOM.Modality") == "MR_T1"
    assert json.loads(shown.volume.GetAttribute("MAISI.Provenance")) == provenance
    assert shown.segmentation is None
    assert run(result_steps(scene, folder)).volume.GetName() == "head-neck-mini seed 7 #3"
    assert run(result_steps(scene, folder)).volume.GetName() != "head-neck-mini seed 7 #3"


def test_labels_are_those_of_the_bundle_or_of_the_result_itself(
    scene: Any, tmp_path: Path, make_image: Make, make_mask: Make
) -> None:
    embedded = {"bundle": {"name": "head-neck-mini", "folder": str(tmp_path / "gone")}}
    folder = write_result(tmp_path / "a", make_image(RAS), make_mask(RAS, [137]), **embedded)
    segmentation = run(result_steps(scene, folder)).segmentation.GetSegmentation()
    assert segmentation.GetNthSegment(0).GetName() == "mandible"

    own = LabelTable("own", [default_table()[1], default_table()[200]])
    own.write(folder / "labels.csv")
    segmentation = run(result_steps(scene, folder)).segmentation.GetSegmentation()
    assert segmentation.GetNthSegment(0).GetName() == "label 137"


def test_tables_are_found_without_the_engine(tmp_path: Path, repository: Path) -> None:
    embedded = repository / "Resources" / "bundles" / "head-neck-mini"
    assert table_of_bundle(embedded).find("mandible").value == 137
    assert table_of_result(None, {"bundle": {"name": "x", "folder": str(embedded)}}).find("mandible").value == 137
    for strange in ({}, {"bundle": 3}, {"bundle": {"name": "../../etc", "folder": str(tmp_path)}}):
        assert table_of_result(tmp_path, strange) == default_table()


def test_a_pair_may_be_of_a_patient_and_is_not_marked_as_synthetic(
    scene: Any, tmp_path: Path, make_image: Make, make_mask: Make
) -> None:
    write_volume(make_image(RAS), tmp_path / "Anna.nii.gz")
    write_labels(make_mask(RAS, [1, 3]), tmp_path / "Anna_seg.nii.gz")
    shown = run(pair_steps(scene, tmp_path / "Anna.nii.gz", tmp_path / "Anna_seg.nii.gz"))
    for node in (shown.volume, shown.segmentation):
        assert node.GetAttribute("MAISI.Synthetic") is None
        assert "ynthetic" not in (node.GetDescription() or "")
    assert shown.volume.GetName() == "Anna"
    assert shown.volume.GetAttribute("DICOM.Modality") == "CT"


def test_a_pair_on_two_grids_lies_where_its_files_say(
    scene: Any, tmp_path: Path, make_image: Make, make_mask: Make
) -> None:
    write_volume(make_image(ORIENTATIONS["oblique"]), tmp_path / "ct.nii")
    mask = make_mask(RAS, [1, 3])
    write_volume_file(mask.array.astype(np.int16), RAS, tmp_path / "labels.nrrd")
    shown = run(pair_steps(scene, tmp_path / "ct.nii", tmp_path / "labels.nrrd"))
    np.testing.assert_array_equal(read_mask(shown.segmentation, mask.table, mask.grid).array, mask.array)


def test_a_segmentation_file_keeps_its_own_names(scene: Any, tmp_path: Path, make_image: Make, make_mask: Make) -> None:
    write_volume(make_image(RAS), tmp_path / "ct.nii.gz")
    node = show_mask(scene, make_mask(RAS, [1, 3]), "mask")
    node.GetSegmentation().GetNthSegment(0).SetName("Leber")
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(tmp_path / "ct.seg.nrrd"))
    assert storage.WriteData(node)
    (steps,) = find_results(tmp_path)
    shown = run(steps(scene))
    assert shown.segmentation.GetSegmentation().GetNthSegment(0).GetName() == "Leber"
    assert shown.volume.GetNodeReference("MAISI.Mask") is shown.segmentation


def test_a_folder_may_hold_results_or_pairs(tmp_path: Path, make_image: Make, make_mask: Make) -> None:
    results, pairs = tmp_path / "results", tmp_path / "pairs"
    for number in range(3):
        write_result(results / f"sample-{number:04d}", make_image(RAS), None, seed=1)
        write_volume(make_image(RAS), pairs / f"case {number}.nii.gz")
    write_labels(make_mask(RAS, [1]), pairs / "case 1-mask.nii.gz")
    assert len(find_results(results)) == 3
    assert len(find_results(results / "sample-0001")) == 1
    assert len(find_results(results / "sample-0001" / "provenance.json")) == 1
    assert len(find_results(pairs / "case 1.nii.gz")) == 1
    found = find_results(pairs)
    assert [each.keywords["mask"] is not None for each in found] == [False, True, False]  # type: ignore[attr-defined]
    with pytest.raises(FileFormatError, match="holds no results"):
        find_results(tmp_path)
    for nothing in (tmp_path / "none", tmp_path / "none.nii.gz"):
        with pytest.raises(FileFormatError, match="does not exist"):
            find_results(nothing)


def test_damaged_files_are_named_and_leave_the_scene_as_it_was(
    scene: Any, tmp_path: Path, make_image: Make, make_mask: Make
) -> None:
    folder = write_result(tmp_path, make_image(RAS), make_mask(RAS, [1]), seed=1)
    before = scene.GetNumberOfNodes()
    content = (folder / "mask.nii.gz").read_bytes()
    (folder / "mask.nii.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(FileFormatError, match=r"mask\.nii\.gz cannot be read"):
        run(result_steps(scene, folder))
    (folder / "mask.nii.gz").write_bytes(content)
    (folder / "provenance.json").write_text("{", encoding="utf-8")
    with pytest.raises(FileFormatError, match=r"provenance\.json"):
        run(result_steps(scene, folder))
    (folder / "image.nii.gz").unlink()
    (folder / "provenance.json").unlink()
    with pytest.raises(FileFormatError, match="does not exist"):
        run(result_steps(scene, folder))
    assert scene.GetNumberOfNodes() == before


def test_a_packed_file_is_called_by_its_own_name(scene: Any, tmp_path: Path) -> None:
    write_volume_file(np.zeros((8, 8, 1), np.int16), RAS, tmp_path / "slice.nii.gz")
    with pytest.raises(FileFormatError) as error:
        run(pair_steps(scene, tmp_path / "slice.nii.gz", None))
    assert str(error.value).startswith(str(tmp_path / "slice.nii.gz"))


def test_a_label_map_that_shows_nothing_of_the_image_is_pointed_out(
    scene: Any, tmp_path: Path, make_image: Make, make_mask: Make
) -> None:
    write_volume(make_image(RAS), tmp_path / "image.nii.gz")
    far = RAS.copy()
    far[:3, 3] = 5000
    write_labels(make_mask(far, [1]), tmp_path / "far.nii.gz")
    write_volume_file(np.zeros((20, 24, 18), np.uint8), RAS, tmp_path / "empty.nii.gz")
    for name, said in (("far.nii.gz", "lies elsewhere than the image"), ("empty.nii.gz", "is empty")):
        notes = run(pair_steps(scene, tmp_path / "image.nii.gz", tmp_path / name)).notes
        assert any(said in note and name in note for note in notes)


def test_an_image_is_no_label_map(scene: Any, tmp_path: Path, make_image: Make) -> None:
    write_volume(make_image(RAS), tmp_path / "image.nii.gz")
    write_volume(make_image(RAS), tmp_path / "mask.nii.gz")
    before = scene.GetNumberOfNodes()
    with pytest.raises(MaskError, match="outside 0–255"):
        run(result_steps(scene, tmp_path))
    assert scene.GetNumberOfNodes() == before


def test_leaving_off_between_two_steps_leaves_neither_files_nor_half_a_result(
    scene: Any, tmp_path: Path, make_image: Make, make_mask: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_result(tmp_path / "result", make_image(RAS), make_mask(RAS, [1]))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    volumes = 0
    for count in range(9):
        steps = result_steps(scene, folder)
        for _ in range(count):
            next(steps, None)
        steps.close()
        assert list(temporary.iterdir()) == []
        volumes, segmentations = (
            scene.GetNumberOfNodesByClass(f"vtkMRML{kind}Node") for kind in ("ScalarVolume", "Segmentation")
        )
        assert volumes == segmentations
    assert volumes == 1  # the last one came through


def test_removing_a_result_leaves_others_and_what_the_user_put_beside_it(
    scene: Any, tmp_path: Path, make_image: Make, make_mask: Make
) -> None:
    folder = write_result(tmp_path, make_image(RAS), make_mask(RAS, [1]), seed=1)
    before = scene.GetNumberOfNodes()
    first, second = (run(result_steps(scene, folder)) for _ in range(2))
    hierarchy = scene.GetSubjectHierarchyNode()
    place = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(second.volume))
    marked = scene.AddNode(slicer.vtkMRMLLinearTransformNode())
    hierarchy.CreateItem(place, marked)
    for shown in (first, second):
        remove_result(scene, shown.volume)
    # The users' node stays in its folder; the colour table serves further results.
    assert scene.GetNumberOfNodes() == before + 2
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(marked)) == place


@pytest.mark.slow
def test_a_large_result_blocks_for_less_than_a_second_at_a_time(scene: Any, tmp_path: Path) -> None:
    """512 × 512 × 256 voxels with 100 labels; processor time, as the test may share the machine."""
    values = np.add.outer(np.arange(512), np.arange(256) % 7).astype(np.int16)
    write_volume_file(np.broadcast_to(values[:, None], (512, 512, 256)), np.eye(4), tmp_path / "image.nii.gz")
    coarse = (np.arange(32 * 32 * 16) % 101).astype(np.uint8).reshape(32, 32, 16)
    labels = coarse.repeat(16, 0).repeat(16, 1).repeat(16, 2)
    write_volume_file(labels, np.eye(4), tmp_path / "mask.nii.gz")
    steps, longest, started = result_steps(scene, tmp_path), 0.0, time.process_time()
    while True:
        before = time.process_time()
        if next(steps, None) is None:
            break
        longest = max(longest, time.process_time() - before)
    assert longest < 1.0
    assert time.process_time() - started < 30.0


def test_slicers_python_needs_no_package_of_the_engine(
    tmp_path: Path, repository: Path, make_image: Make, make_mask: Make
) -> None:
    """In Slicer there are numpy, scipy and vtk, but none of these."""
    write_result(tmp_path / "result", make_image(RAS), make_mask(RAS, [1, 200]), seed=1)
    program = f"""
import sys
for name in ("nibabel", "nrrd", "pydantic", "psutil", "torch", "monai", "cc3d", "PIL", "matplotlib", "platformdirs"):
    sys.modules[name] = None
from pathlib import Path
from MAISILib.scene import new_scene, read_mask
from MAISILib.scene.charts import show_hu_chart
from MAISILib.scene.results import result_steps, run
from MAISILib.scene.users_masks import write_users_mask
from MAISILib.anatomy.labels import default_table
folder = Path({str(tmp_path)!r})
scene = new_scene()
shown = run(result_steps(scene, folder / "result"))
written = write_users_mask(shown.segmentation, default_table(), folder, shown.volume)
assert written.mask.is_file()
show_hu_chart(scene, shown.volume, shown.segmentation)
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
