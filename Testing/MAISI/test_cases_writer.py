"""Cases of the scene as files: what the engine reads is what the scene shows, and there are no half-written lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MAISILib.errors import MaisiError
from MAISILib.files.images import read_image
from MAISILib.scene.geometry import grid_of, matrix_of, read_volume
from MAISILib.training.cases import Case, read_cases, read_segmentation
from Testing.MAISI.drawn_cases import draw_case
from Testing.tiny_bundle import LIVER
from Testing.training.users_cases import LESION, patient

pytestmark = pytest.mark.usefixtures("app")
TURNED = np.array([[0.0, -1, 0, 30], [1, 0, 0, -12.5], [0, 0, 1, 7], [0, 0, 0, 1]])


def written(folder: Path, *pairs: Any) -> list[Case]:
    """Writes pairs and reads them as the engine does."""
    from MAISIPanel.CasesWriter import CasePair, writeCases

    return read_cases(writeCases([CasePair(*pair) for pair in pairs], folder))


def place(scene: Any, node: Any, matrix: np.ndarray) -> None:
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(matrix_of(matrix))
    node.SetAndObserveTransformNodeID(transform.GetID())


def centre(case: Case, name: str) -> np.ndarray:
    """Centre of a segment in RAS mm."""
    segmentation = read_segmentation(case)
    segment = next(segment for segment in segmentation.segments if segment.name == name)
    index = np.argwhere(segmentation.layers[..., segment.layer] == segment.value).mean(axis=0)
    return (segmentation.affine @ [*index, 1])[:3]


def test_image_and_segments_arrive_with_names_tags_and_places(scene: Any, tmp_path: Path) -> None:
    volume, segmentation = draw_case(scene, "Änne: M/1")
    (case,) = written(tmp_path / "Fälle von Station 3", (volume, segmentation))
    ct, mask = patient()
    image = read_image(case.image)
    assert (image.array == ct.array).all()
    assert np.allclose(image.affine, grid_of(volume).affine)
    names = {segment.name: segment for segment in case.segments}
    assert names["liver"].tag == str(LIVER)
    assert names["liver"].terminology
    lesion = np.argwhere(mask.array == LESION).mean(axis=0)
    assert np.allclose(centre(case, "Segment_1"), (mask.affine @ [*lesion, 1])[:3])


def test_cases_have_names_that_files_may_have_and_that_differ(scene: Any, tmp_path: Path) -> None:
    pairs = [draw_case(scene, name) for name in ("Änne: M/1", "bob", "Bob", " . ", 'a"b' * 100)]
    names = [case.name for case in written(tmp_path / "cases", *pairs)]
    assert names[:4] == ["Änne M 1", "bob", "Bob 2", "case"]
    assert len(names[4]) <= 80


def test_transforms_of_both_nodes_count(scene: Any, tmp_path: Path) -> None:
    plain = written(tmp_path / "plain", draw_case(scene, "plain"))[0]
    volume, segmentation = draw_case(scene, "both")
    place(scene, volume, TURNED)
    place(scene, segmentation, TURNED)
    both = written(tmp_path / "both", (volume, segmentation))[0]
    assert np.allclose(read_image(both.image).affine, read_image(plain.image).affine)
    assert np.allclose(centre(both, "Segment_1"), centre(plain, "Segment_1"))
    volume, segmentation = draw_case(scene, "one")
    moved = np.eye(4)
    moved[:3, 3] = 4.0, 0.0, 4.0
    place(scene, segmentation, moved)
    one = written(tmp_path / "one", (volume, segmentation))[0]
    assert np.allclose(centre(one, "Segment_1") - centre(plain, "Segment_1"), (4, 0, 4))
    assert np.allclose(centre(one, "liver") - centre(plain, "liver"), (4, 0, 4))


def test_the_nodes_of_the_scene_stay_as_they_are(scene: Any, tmp_path: Path) -> None:
    volume, segmentation = draw_case(scene)
    moved = np.eye(4)
    moved[0, 3] = 8.0
    place(scene, segmentation, moved)
    image = segmentation.GetSegmentation().GetSegment("painted_Segment_1").GetRepresentation("Binary labelmap")
    before, voxels = image.GetOrigin(), read_volume(volume).array
    written(tmp_path / "cases", (volume, segmentation))
    assert image.GetOrigin() == before
    assert (read_volume(volume).array == voxels).all()
    assert segmentation.GetStorageNode() is None


def test_segments_that_are_surfaces_become_voxels(scene: Any, tmp_path: Path) -> None:
    volume, segmentation = draw_case(scene)
    before = centre(written(tmp_path / "before", (volume, segmentation))[0], "Segment_1")
    assert segmentation.CreateClosedSurfaceRepresentation()
    segmentation.GetSegmentation().SetSourceRepresentationName("Closed surface")
    segmentation.GetSegmentation().RemoveRepresentation("Binary labelmap")
    (case,) = written(tmp_path / "after", (volume, segmentation))
    assert np.allclose(centre(case, "Segment_1"), before, atol=2.0)
    assert not segmentation.GetSegmentation().ContainsRepresentation("Binary labelmap")


def test_empty_segments_are_passed_over(scene: Any) -> None:
    from MAISIPanel.CasesWriter import CasePair, segmentsOf

    volume, segmentation = draw_case(scene)
    segmentation.GetSegmentation().AddEmptySegment("nothing", "nothing")
    names = [segment["name"] for segment in segmentsOf([CasePair(volume, segmentation)])]
    assert "Segment_1" in names
    assert "nothing" not in names


def test_a_list_is_replaced_as_a_whole_or_not_at_all(scene: Any, tmp_path: Path) -> None:
    from MAISIPanel.CasesWriter import CasePair, writeCases

    good = CasePair(*draw_case(scene))
    colours = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "colours")
    colours.SetAndObserveImageData(_colour_image())
    unpainted = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "unpainted")
    writeCases([good, CasePair(*draw_case(scene, "Berta"))], tmp_path / "cases")
    for bad, said in (
        ([good, good], "stands twice"),
        ([], "There are no cases"),
        ([good, CasePair(colours, good.segmentationNode)], "colour image"),
        ([good, CasePair(good.volumeNode, unpainted)], "no segments"),
    ):
        with pytest.raises(MaisiError, match=said):
            writeCases(bad, tmp_path / "cases")
    listed = json.loads((tmp_path / "cases" / "cases.json").read_text(encoding="utf-8"))["cases"]
    assert [case["name"] for case in listed] == ["Anna", "Berta"]
    assert [path.name for path in tmp_path.iterdir()] == ["cases"]
    told: list[tuple[int, int]] = []
    writeCases([good], tmp_path / "cases", lambda number, count: told.append((number, count)))
    names = sorted(path.name for path in (tmp_path / "cases").iterdir())
    assert names == ["case-1.nrrd", "case-1.seg.nrrd", "cases.json"]
    assert told == [(1, 1)]


def _colour_image() -> Any:
    import vtk

    image = vtk.vtkImageData()
    image.SetDimensions(4, 4, 4)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    return image
