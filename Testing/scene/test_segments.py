"""A segmentation node comes back as the label map that the user sees, whatever was done to it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")

from MAISILib.anatomy.labels import LabelTable, default_table
from MAISILib.errors import MaskError
from MAISILib.scene import read_mask, show, show_mask
from MAISILib.scene.geometry import fill_image, matrix_of
from MAISILib.scene.mrml import slicer, vtk
from MAISILib.volumes import Grid, LabelMap
from Testing.scene.conftest import affine_of_angles

Make = Callable[..., Any]
RAS = np.diag([1.5, 1.5, 2.0, 1.0])
ORIENTATIONS = {
    "RAS": RAS,
    "LPS": np.diag([-0.9, -0.9, 3.0, 1.0]),
    "SAR": np.array([[0, 0, 2.0, -5], [0, 1, 0, 7], [3, 0, 0, 900], [0, 0, 0, 1]]),
    "LAS": affine_of_angles((0.0, 0.0, 0.0), (-1.0, 1.0, 1.0), (100.0, 20.0, -3.0)),
    "oblique": affine_of_angles((0.3, -0.2, 0.7), (1.5, 2.0, 3.0), (11.0, -42.5, 903.25)),
    "oblique, left-handed": affine_of_angles((1.3, 0.4, -0.6), (0.7, 0.7, -5.0), (-110.0, 42.5, -903.25)),
}


def add_segment(node: Any, array: np.ndarray, affine: np.ndarray, name: str, terminology: str = "") -> str:
    """Draws a segment as the Segment Editor does: in a layer of its own, label value 1."""
    image = slicer.vtkOrientedImageData()
    fill_image(image, array.astype(np.uint8))
    image.SetImageToWorldMatrix(matrix_of(affine))
    segment = slicer.vtkSegment()
    segment.SetName(name)
    if terminology:
        segment.SetTerminology(terminology)
    segment.AddRepresentation("Binary labelmap", image)
    node.GetSegmentation().AddSegment(segment)
    return node.GetSegmentation().GetSegmentIdBySegment(segment)


def block(shape: tuple[int, int, int], *ranges: tuple[int, int]) -> np.ndarray:
    array = np.zeros(shape, bool)
    array[tuple(slice(*r) for r in ranges)] = True
    return array


def edit(node: Any, segment_id: str, array: np.ndarray, reference: Any) -> None:
    """Replaces a segment's voxels with slicer.util's own function, which asks the application for the volumes logic."""
    from slicer import util

    logic = slicer.vtkSlicerVolumesLogic()
    logic.SetMRMLScene(node.GetScene())
    modules = SimpleNamespace(
        volumes=SimpleNamespace(logic=lambda: logic),
        segmentations=SimpleNamespace(logic=slicer.vtkSlicerSegmentationsModuleLogic),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slicer, "modules", modules, raising=False)
        patch.setattr(slicer, "mrmlScene", node.GetScene(), raising=False)
        util.updateSegmentBinaryLabelmapFromArray(np.transpose(array).astype(np.uint8), node, segment_id, reference)


@pytest.mark.parametrize("affine", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
@pytest.mark.parametrize("seed", [0, 1])
def test_every_voxel_comes_back(scene: Any, make_image: Make, make_mask: Make, affine: np.ndarray, seed: int) -> None:
    labels = sorted(np.random.default_rng(seed).choice(np.arange(1, 256), 12, replace=False).tolist())
    mask = make_mask(affine, labels, seed=seed)
    volume, node = show(scene, make_image(affine), mask, "case")
    for reference in (volume, Grid(mask.array.shape, affine), None):
        read = read_mask(node, mask.table, reference)
        np.testing.assert_array_equal(read.array, mask.array)
        np.testing.assert_allclose(read.affine, affine, atol=1e-9)
        assert read.array.dtype == np.uint8
        assert read.notes == ()


def test_all_255_labels_come_back(scene: Any, make_mask: Make) -> None:
    mask = make_mask(RAS, list(range(1, 256)))
    node = show_mask(scene, mask, "mask")
    np.testing.assert_array_equal(read_mask(node, mask.table).array, mask.array)


def test_an_imported_label_map_is_read_by_its_names(scene: Any, make_mask: Make) -> None:
    """A label map that the user imported in Slicer with a colour table has names, but no tags of ours."""
    mask = make_mask(RAS, [1, 3, 200])
    colors = show_mask(scene, mask, "mask").GetLabelmapConversionColorTableNode()
    labels = slicer.vtkMRMLLabelMapVolumeNode()
    scene.AddNode(labels)
    image = vtk.vtkImageData()
    fill_image(image, mask.array.astype(np.int16))
    labels.SetAndObserveImageData(image)
    labels.SetIJKToRASMatrix(matrix_of(RAS))
    labels.CreateDefaultDisplayNodes()
    labels.GetDisplayNode().SetAndObserveColorNodeID(colors.GetID())
    node = slicer.vtkMRMLSegmentationNode()
    scene.AddNode(node)
    assert slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(labels, node, "")
    np.testing.assert_array_equal(read_mask(node, mask.table, labels).array, mask.array)


def test_an_edited_segment_is_read_as_edited(scene: Any, make_image: Make, make_mask: Make) -> None:
    mask = make_mask(RAS, [1, 3, 200])
    volume, node = show(scene, make_image(RAS), mask, "case")
    moved = np.roll(mask.array == 3, 2, axis=1)
    edit(node, "MAISI_3", moved, volume)
    expected = np.where(mask.array == 3, 0, mask.array)
    expected[moved] = 3
    read = read_mask(node, mask.table, volume)
    np.testing.assert_array_equal(read.array[moved], 3)
    np.testing.assert_array_equal(read.array[~moved], expected[~moved])


def test_where_segments_overlap_the_later_wins_with_a_note(scene: Any, table: LabelTable) -> None:
    node = slicer.vtkMRMLSegmentationNode()
    scene.AddNode(node)
    shape = (10, 10, 10)
    first, second = block(shape, (0, 6), (0, 10), (0, 10)), block(shape, (4, 10), (0, 10), (0, 10))
    add_segment(node, first, RAS, "Liver")
    add_segment(node, second, RAS, "SPLEEN")
    read = read_mask(node, table, Grid(shape, RAS))
    np.testing.assert_array_equal(read.array, np.where(second, 3, np.where(first, 1, 0)))
    assert read.notes == ("200 voxels are in 'Liver' and in 'SPLEEN'; the later, 'SPLEEN', wins.",)

    node.GetSegmentation().SetSegmentIndex(node.GetSegmentation().GetNthSegmentID(1), 0)
    read = read_mask(node, table, Grid(shape, RAS))
    np.testing.assert_array_equal(read.array, np.where(first, 1, np.where(second, 3, 0)))


def test_the_body_gives_way_to_organs_wherever_it_stands(scene: Any, table: LabelTable) -> None:
    node = slicer.vtkMRMLSegmentationNode()
    scene.AddNode(node)
    organ = block((8, 8, 8), (2, 5), (2, 5), (2, 5))
    add_segment(node, organ, RAS, "liver")
    add_segment(node, np.ones((8, 8, 8)), RAS, "body")
    read = read_mask(node, table, Grid((8, 8, 8), RAS))
    np.testing.assert_array_equal(read.array, np.where(organ, 1, 200))
    assert read.notes == ()


def test_a_renamed_segment_keeps_its_label_and_says_so(scene: Any, make_mask: Make) -> None:
    mask = make_mask(RAS, [1])
    node = show_mask(scene, mask, "mask")
    node.GetSegmentation().GetSegment("MAISI_1").SetName("Leber")
    read = read_mask(node, mask.table)
    assert read.labels == [1]
    assert read.notes == ("Segment 'Leber' was read as label 1, 'liver'.",)


def test_terminology_counts_more_than_a_name_in_another_language(scene: Any, table: LabelTable) -> None:
    node = slicer.vtkMRMLSegmentationNode()
    scene.AddNode(node)
    terminology = table.find("left kidney").terminology().replace("^Left~", "^Links~")
    add_segment(node, block((5, 5, 5), (1, 3), (1, 3), (1, 3)), RAS, "linke Niere", terminology)
    assert read_mask(node, table).labels == [table.find("left kidney").value]


def test_unknown_segments_are_named(scene: Any, table: LabelTable) -> None:
    node = slicer.vtkMRMLSegmentationNode()
    node.SetName("drawn")
    scene.AddNode(node)
    ones = np.ones((3, 3, 3))
    add_segment(node, ones, RAS, "spleeen")
    add_segment(node, ones, RAS, "Segment_2")
    add_segment(node, np.zeros((3, 3, 3)), RAS, "Segment_3")  # empty: of no interest
    with pytest.raises(MaskError, match="'spleeen', 'Segment_2'") as caught:
        read_mask(node, table)
    assert "Segment_3" not in str(caught.value)
    assert "Did you mean 'spleen'" in str(caught.value)


def test_a_segmentation_without_segments_is_refused(scene: Any, table: LabelTable) -> None:
    node = slicer.vtkMRMLSegmentationNode()
    scene.AddNode(node)
    with pytest.raises(MaskError, match="no segments"):
        read_mask(node, table)


def test_segments_with_one_meaning_are_joined(scene: Any, table: LabelTable) -> None:
    node = slicer.vtkMRMLSegmentationNode()
    scene.AddNode(node)
    add_segment(node, block((4, 4, 4), (0, 1), (0, 4), (0, 4)), RAS, "liver")
    add_segment(node, block((4, 4, 4), (3, 4), (0, 4), (0, 4)), RAS, "Liver")
    read = read_mask(node, table, Grid((4, 4, 4), RAS))
    assert read.array[:, 0, 0].tolist() == [1, 0, 0, 1]
    assert "Several segments are 'liver'; they were joined." in read.notes


def test_segments_beyond_the_reference_are_cut(scene: Any, table: LabelTable) -> None:
    node = slicer.vtkMRMLSegmentationNode()
    scene.AddNode(node)
    far = RAS.copy()
    far[:3, 3] = RAS[:3, :3] @ [-2, 3, 0]
    add_segment(node, np.ones((4, 4, 4)), far, "liver")
    read = read_mask(node, table, Grid((5, 5, 5), RAS))
    np.testing.assert_array_equal(read.array, block((5, 5, 5), (0, 2), (3, 5), (0, 4)))


def test_other_voxels_are_sampled_at_their_nearest(scene: Any, make_mask: Make) -> None:
    mask = make_mask(RAS, [1, 200])
    node = show_mask(scene, mask, "mask")
    fine = RAS @ np.diag([0.5, 0.5, 0.5, 1.0])
    fine[:3, 3] = RAS[:3, :3] @ np.full(3, -0.25)
    read = read_mask(node, mask.table, Grid((40, 48, 36), fine))
    np.testing.assert_array_equal(read.array, mask.array.repeat(2, 0).repeat(2, 1).repeat(2, 2))
    assert any("nearest" in note for note in read.notes)


def test_a_linear_transform_is_applied(scene: Any, make_image: Make, make_mask: Make) -> None:
    mask = make_mask(RAS, [1, 200])
    volume, node = show(scene, make_image(RAS), mask, "case")
    transform = slicer.vtkMRMLLinearTransformNode()
    scene.AddNode(transform)
    shift = np.eye(4)
    shift[:3, 3] = RAS[:3, :3] @ [2, 0, -1]
    transform.SetMatrixTransformToParent(matrix_of(shift))
    node.SetAndObserveTransformNodeID(transform.GetID())
    read = read_mask(node, mask.table, volume)
    np.testing.assert_array_equal(read.array[2:, :, :-1], mask.array[:-2, :, 1:])
    volume.SetAndObserveTransformNodeID(transform.GetID())  # both move together: nothing changes
    np.testing.assert_array_equal(read_mask(node, mask.table, volume).array, mask.array)
    world = Grid(mask.array.shape, shift @ RAS)
    np.testing.assert_array_equal(read_mask(node, mask.table, world).array, mask.array)


def test_a_bent_transform_is_refused(scene: Any, make_mask: Make) -> None:
    mask = make_mask(RAS, [1])
    node = show_mask(scene, mask, "mask")
    bent = vtk.vtkThinPlateSplineTransform()
    points, moved = vtk.vtkPoints(), vtk.vtkPoints()
    for point in ((0, 0, 0), (9, 0, 0), (0, 9, 0), (0, 0, 9), (5, 5, 5)):
        points.InsertNextPoint(*point)
        moved.InsertNextPoint(point[0] + point[1] ** 2, point[1], point[2])
    bent.SetSourceLandmarks(points)
    bent.SetTargetLandmarks(moved)
    transform = slicer.vtkMRMLTransformNode()
    transform.SetAndObserveTransformToParent(bent)
    scene.AddNode(transform)
    node.SetAndObserveTransformNodeID(transform.GetID())
    with pytest.raises(MaskError, match="non-linear transform"):
        read_mask(node, mask.table, mask.grid)


def test_surfaces_are_turned_into_voxels(scene: Any, table: LabelTable, make_image: Make) -> None:
    volume, _ = show(scene, make_image(np.eye(4), (30, 30, 30)), None, "case")
    sphere = vtk.vtkSphereSource()
    sphere.SetCenter(15, 15, 15)
    sphere.SetRadius(8)
    sphere.SetPhiResolution(32)
    sphere.SetThetaResolution(32)
    sphere.Update()
    node = slicer.vtkMRMLSegmentationNode()
    scene.AddNode(node)
    segment = slicer.vtkSegment()
    segment.SetName("liver")
    segment.AddRepresentation("Closed surface", sphere.GetOutput())
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    node.GetSegmentation().AddSegment(segment)
    read = read_mask(node, table, volume)
    assert read.array[15, 15, 15] == 1
    assert read.array.sum() == pytest.approx(4 / 3 * np.pi * 8**3, rel=0.06)
    assert not node.GetSegmentation().ContainsRepresentation("Binary labelmap")


def test_the_public_table_reads_its_own_terminology_back(scene: Any) -> None:
    """Without tags, each label with codes is found by codes or, where two share them, by name."""
    table = default_table()
    array = np.zeros((len(table) + 1, 2, 2), np.uint8)
    for position, label in enumerate(table):
        array[position] = label.value
    node = show_mask(scene, LabelMap(array, np.eye(4), table), "mask")
    for segment_id in node.GetSegmentation().GetSegmentIDs():
        node.GetSegmentation().GetSegment(segment_id).RemoveTag("MAISI.Label")
    np.testing.assert_array_equal(read_mask(node, table).array, array)
