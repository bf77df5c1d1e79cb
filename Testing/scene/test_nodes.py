"""What a user of Slicer finds in the scene after a sample was shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")

from MAISILib.anatomy.labels import LabelTable
from MAISILib.scene import grid_of, read_mask, read_volume, show, show_mask
from MAISILib.scene.geometry import array_of
from MAISILib.scene.mrml import slicer, vtk
from MAISILib.scene.nodes import table_of_segmentation
from MAISILib.volumes import Grid, LabelMap, Volume

Make = Callable[..., Any]
RAS = np.diag([1.5, 1.5, 2.0, 1.0])


def test_the_volume_has_the_voxels_and_the_place(scene: Any, oblique: np.ndarray, make_image: Make) -> None:
    image = make_image(oblique)
    node, segmentation = show(scene, image, None, "case")
    assert segmentation is None
    np.testing.assert_array_equal(read_volume(node).array, image.array)
    assert read_volume(node).array.dtype == np.int16
    np.testing.assert_allclose(grid_of(node).affine, oblique, atol=1e-12)
    ras = [0.0, 0.0, 0.0, 0.0]
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    matrix.MultiplyPoint([3, 4, 5, 1], ras)
    np.testing.assert_allclose(ras, oblique @ [3, 4, 5, 1])
    assert array_of(node.GetImageData())[3, 4, 5] == image.array[3, 4, 5]


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, np.int64, ">i2", np.bool_])
def test_voxels_of_any_type_arrive(scene: Any, dtype: Any) -> None:
    image = Volume(np.arange(24).reshape(2, 3, 4).astype(dtype), RAS)
    node, _ = show(scene, image, None, "case", modality="MR")
    np.testing.assert_array_equal(read_volume(node).array, image.array)


def test_a_ct_is_shown_with_a_fixed_window_in_grey(scene: Any, make_image: Make) -> None:
    node, _ = show(scene, make_image(RAS), None, "case")
    display = node.GetDisplayNode()
    assert not display.GetAutoWindowLevel()
    assert (display.GetWindow(), display.GetLevel()) == (350, 40)
    assert display.GetColorNode().GetName() == "Grey"
    assert node.GetVoxelValueUnits().GetCodeMeaning() == "Hounsfield unit"
    assert node.GetAttribute("DICOM.Modality") == "CT"


def test_a_window_can_be_chosen(scene: Any, make_image: Make) -> None:
    node, _ = show(scene, make_image(RAS), None, "case", window_level=(2000, 300))
    assert (node.GetDisplayNode().GetWindow(), node.GetDisplayNode().GetLevel()) == (2000, 300)


def test_an_mr_gets_an_automatic_window(scene: Any, make_image: Make) -> None:
    node, _ = show(scene, make_image(RAS), None, "case", modality="MR")
    assert node.GetDisplayNode().GetAutoWindowLevel()
    assert node.GetVoxelValueUnits() is None


def test_nodes_say_that_they_are_synthetic(scene: Any, make_image: Make, make_mask: Make) -> None:
    provenance = {"seed": 7, "bundle": "head-neck-mini", "name": "Kopf/Hals ä"}
    nodes = show(scene, make_image(RAS), make_mask(RAS, [1, 200]), "case", provenance=provenance)
    for node in nodes:
        assert node.GetAttribute("MAISI.Synthetic") == "1"
        assert "Not a patient" in node.GetDescription()
    assert json.loads(nodes[0].GetAttribute("MAISI.Provenance")) == provenance


def test_a_sample_lies_in_one_folder(scene: Any, make_image: Make, make_mask: Make) -> None:
    for name in ("first", "second"):
        nodes = show(scene, make_image(RAS), make_mask(RAS, [1, 200]), name)
        hierarchy = scene.GetSubjectHierarchyNode()
        parents = {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) for node in nodes}
        assert [hierarchy.GetItemName(parent) for parent in parents] == [name]
        assert [node.GetName() for node in nodes] == [name, f"{name} mask"]


def test_the_application_may_have_listed_the_nodes_already(scene: Any, make_image: Make, make_mask: Make) -> None:
    """In Slicer every node gets a subject hierarchy item as soon as it is added."""
    hierarchy = scene.GetSubjectHierarchyNode()

    def list_node(caller: Any, event: str, node: Any) -> None:
        if node.IsA("vtkMRMLDisplayableNode"):
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    list_node.CallDataType = vtk.VTK_OBJECT  # type: ignore[attr-defined]
    scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, list_node)
    nodes = show(scene, make_image(RAS), make_mask(RAS, [1, 200]), "case")
    items = [hierarchy.GetItemByDataNode(node) for node in nodes]
    assert all(items)
    assert {hierarchy.GetItemName(hierarchy.GetItemParent(item)) for item in items} == {"case"}
    everything = vtk.vtkIdList()
    hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), everything, True)
    assert everything.GetNumberOfIds() == 3


def test_segments_have_names_colors_terminology_and_values(scene: Any, make_mask: Make, table: LabelTable) -> None:
    labels = [1, 5, 14, 26, 200]
    segmentation = show_mask(scene, make_mask(RAS, labels), "mask").GetSegmentation()
    assert segmentation.GetNumberOfSegments() == len(labels)
    for value in labels:
        segment = segmentation.GetSegment(segmentation.GetSegmentIdBySegmentName(table[value].name))
        assert segment.GetLabelValue() == value
        tag = vtk.reference("")
        assert segment.GetTag("MAISI.Label", tag)
        assert str(tag) == str(value)
        np.testing.assert_allclose(segment.GetColor(), np.array(table[value].color) / 255)
        assert segment.GetTerminology() == table[value].terminology()


def test_a_label_that_the_table_lacks_is_shown_all_the_same(scene: Any, table: LabelTable) -> None:
    small = LabelTable("small", [table[1]])
    array = np.zeros((4, 4, 4), np.uint8)
    array[1], array[2] = 1, 77
    segmentation = show_mask(scene, LabelMap(array, RAS, small), "mask").GetSegmentation()
    assert [segmentation.GetNthSegment(n).GetName() for n in range(2)] == ["liver", "label 77"]


def test_the_body_is_an_outline_so_that_the_image_stays_visible(scene: Any, make_mask: Make) -> None:
    node = show_mask(scene, make_mask(RAS, [1, 200]), "mask")
    display = node.GetDisplayNode()
    assert display.GetSegmentOpacity2DFill("MAISI_200") == 0
    assert display.GetSegmentOpacity2DFill("MAISI_1") == 1
    assert display.GetSegmentOpacity2DOutline("MAISI_200") == 1


def test_the_reference_geometry_is_the_volume(
    scene: Any, oblique: np.ndarray, make_image: Make, make_mask: Make
) -> None:
    volume, segmentation = show(scene, make_image(oblique), make_mask(oblique, [1]), "case")
    role = segmentation.GetReferenceImageGeometryReferenceRole()
    assert segmentation.GetNodeReference(role) is volume
    read = read_mask(segmentation, LabelTable("liver", [next(iter(make_mask(oblique, [1]).table))]))
    assert read.grid.same_as(Grid((20, 24, 18), oblique))


def test_export_in_slicer_keeps_the_values(scene: Any, oblique: np.ndarray, make_image: Make, make_mask: Make) -> None:
    """As the Segmentations module exports with the segmentation's colour table, and read back by others."""
    mask = make_mask(oblique, [3, 14, 132, 200, 255])
    volume, segmentation = show(scene, make_image(oblique), mask, "case")
    labels = slicer.vtkMRMLLabelMapVolumeNode()
    scene.AddNode(labels)
    ids = vtk.vtkStringArray()
    colors = segmentation.GetLabelmapConversionColorTableNode()
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    for segment_id in segmentation.GetSegmentation().GetSegmentIDs():
        ids.InsertNextValue(segment_id)
    assert logic.ExportSegmentsToLabelmapNode(segmentation, ids, labels, volume, 0, colors)
    np.testing.assert_array_equal(array_of(labels.GetImageData()), mask.array)
    np.testing.assert_allclose(grid_of(labels).affine, oblique, atol=1e-9)


def test_one_color_table_serves_all_samples(scene: Any, make_mask: Make) -> None:
    nodes = [show_mask(scene, make_mask(RAS, [1]), name) for name in ("a", "b")]
    assert len({node.GetLabelmapConversionColorTableNodeID() for node in nodes}) == 1


def test_a_label_table_of_the_same_name_with_other_labels_is_another_one(
    scene: Any, make_mask: Make, table: LabelTable
) -> None:
    small = LabelTable(table.name, [table[1]])
    nodes = [show_mask(scene, mask, "a") for mask in (make_mask(RAS, [1]), replace(make_mask(RAS, [1]), table=small))]
    assert [table_of_segmentation(node, {}) for node in nodes] == [table, small]
