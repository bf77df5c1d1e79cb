"""What the user drew, wherever it was, becomes the engine's mask file, and what was changed is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")

from MAISILib.anatomy.labels import LabelTable
from MAISILib.errors import MaskError, OutputError
from MAISILib.files.images import read_image, read_mask
from MAISILib.scene import show, show_mask
from MAISILib.scene.mrml import slicer
from MAISILib.scene.storage import read_volume_file, write_volume_file
from MAISILib.scene.users_masks import write_users_mask
from MAISILib.volumes import Volume
from Testing.scene.test_segments import ORIENTATIONS, add_segment, block

Make = Callable[..., Any]
RAS = np.diag([1.5, 1.5, 2.0, 1.0])


@pytest.fixture
def reference(scene: Any) -> Callable[..., Any]:
    """Adds a volume that the user has: an MR, which shows nothing about the body in HU."""

    def make(affine: np.ndarray, shape: tuple[int, int, int] = (20, 24, 18), value: int = 100) -> Any:
        return show(scene, Volume(np.full(shape, value, np.int16), affine, "arbitrary"), None, "mine", modality="MR")[0]

    return make


@pytest.mark.parametrize("affine", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def test_the_file_has_the_labels_and_the_exact_grid_of_the_reference(
    scene: Any, tmp_path: Path, make_mask: Make, reference: Make, affine: np.ndarray
) -> None:
    mask = make_mask(affine, [1, 3, 14, 137, 200])
    written = write_users_mask(show_mask(scene, mask, "drawn"), mask.table, tmp_path / "Ordner ä", reference(affine))
    read = read_mask(written.mask, mask.table)
    np.testing.assert_array_equal(read.array, mask.array)
    np.testing.assert_allclose(read.affine, affine, rtol=0, atol=1e-9)
    assert read.grid.same_as(written.grid, tolerance=1e-9)
    assert written.ct is None


def test_a_plain_mask_needs_no_notes(scene: Any, tmp_path: Path, make_mask: Make, reference: Make) -> None:
    mask = make_mask(RAS, [1, 200])
    assert write_users_mask(show_mask(scene, mask, "drawn"), mask.table, tmp_path, reference(RAS)).notes == ()


def test_the_volume_that_it_was_drawn_on_is_the_reference(
    scene: Any, tmp_path: Path, make_mask: Make, reference: Make
) -> None:
    mask, volume = make_mask(RAS, [1, 200]), reference(RAS)
    node = show_mask(scene, mask, "drawn", reference=volume)
    assert write_users_mask(node, mask.table, tmp_path).place is volume
    scene.RemoveNode(volume)
    written = write_users_mask(node, mask.table, tmp_path)
    assert written.place is node
    assert written.grid.same_as(mask.grid)


def test_an_oblique_grid_is_mentioned(scene: Any, tmp_path: Path, make_mask: Make, reference: Make) -> None:
    affine = ORIENTATIONS["oblique"]
    mask = make_mask(affine, [1, 200])
    written = write_users_mask(show_mask(scene, mask, "drawn"), mask.table, tmp_path, reference(affine))
    assert any("oblique" in note for note in written.notes)


def test_another_grid_is_mentioned(scene: Any, tmp_path: Path, make_mask: Make, reference: Make) -> None:
    mask = make_mask(RAS, [1, 200])
    volume = reference(np.diag([1.0, 1.0, 1.0, 1.0]), (28, 34, 34))
    written = write_users_mask(show_mask(scene, mask, "drawn"), mask.table, tmp_path, volume)
    assert any("sampled by nearest neighbour" in note for note in written.notes)
    assert read_mask(written.mask, mask.table).array.shape == (28, 34, 34)


@pytest.mark.parametrize("spacing", [1.5, 1.0], ids=["same voxels", "other voxels"])
def test_what_lies_outside_is_counted(
    scene: Any, tmp_path: Path, table: LabelTable, reference: Make, spacing: float
) -> None:
    node = scene.AddNode(slicer.vtkMRMLSegmentationNode())
    node.SetName("drawn")
    grid = np.diag([1.5, 1.5, 1.5, 1.0])
    add_segment(node, block((20, 20, 20), (0, 16), (4, 12), (4, 12)), grid, "liver")
    volume = reference(np.diag([spacing, spacing, spacing, 1.0]), (round(18 / spacing), 30, 30))  # ends at 18 mm of 24
    written = write_users_mask(node, table, tmp_path, volume)
    (note,) = [note for note in written.notes if "outside" in note]
    assert note.startswith("0.864 mL (25 %)"), note


def test_a_segmentation_inside_loses_nothing(scene: Any, tmp_path: Path, table: LabelTable, reference: Make) -> None:
    node = scene.AddNode(slicer.vtkMRMLSegmentationNode())
    add_segment(node, block((20, 20, 20), (4, 15), (4, 12), (4, 12)), np.diag([1.5, 1.5, 1.5, 1.0]), "liver")
    written = write_users_mask(node, table, tmp_path, reference(np.diag([1.0, 1.0, 1.0, 1.0]), (26, 26, 26)))
    assert not any("outside" in note for note in written.notes)


def test_overlaps_are_mentioned(scene: Any, tmp_path: Path, table: LabelTable, reference: Make) -> None:
    node = scene.AddNode(slicer.vtkMRMLSegmentationNode())
    add_segment(node, block((20, 24, 18), (2, 9), (2, 9), (2, 9)), RAS, "liver")
    add_segment(node, block((20, 24, 18), (6, 12), (2, 9), (2, 9)), RAS, "spleen")
    written = write_users_mask(node, table, tmp_path, reference(RAS))
    assert any("'liver' and in 'spleen'" in note for note in written.notes)


def test_without_a_body_a_ct_shows_where_it_is(scene: Any, tmp_path: Path, make_mask: Make, make_image: Make) -> None:
    mask, image = make_mask(RAS, [1, 3]), make_image(RAS)
    volume, _ = show(scene, image, None, "Kopf-CT")
    written = write_users_mask(show_mask(scene, mask, "drawn"), mask.table, tmp_path, volume)
    assert written.ct is not None
    np.testing.assert_array_equal(read_image(written.ct).array, image.array)
    assert any("taken from 'Kopf-CT'" in note for note in written.notes)


def test_without_a_body_and_a_ct_it_is_guessed(scene: Any, tmp_path: Path, make_mask: Make, reference: Make) -> None:
    mask = make_mask(RAS, [1, 3])
    written = write_users_mask(show_mask(scene, mask, "drawn"), mask.table, tmp_path, reference(RAS))
    assert written.ct is None
    assert any("guessed" in note for note in written.notes)


def test_a_model_without_a_body_needs_none(scene: Any, tmp_path: Path, make_mask: Make, reference: Make) -> None:
    mask = make_mask(RAS, [1])
    small = LabelTable("organs", [mask.table[1]])
    assert write_users_mask(show_mask(scene, mask, "drawn"), small, tmp_path, reference(RAS)).notes == ()


def test_nothing_inside_is_refused(scene: Any, tmp_path: Path, make_mask: Make, reference: Make) -> None:
    mask = make_mask(RAS, [1])
    far = RAS.copy()
    far[:3, 3] = 500
    with pytest.raises(MaskError, match="lies inside the volume 'mine'"):
        write_users_mask(show_mask(scene, mask, "drawn"), mask.table, tmp_path, reference(far))
    node = scene.AddNode(slicer.vtkMRMLSegmentationNode())
    add_segment(node, np.zeros((4, 4, 4)), RAS, "liver")
    with pytest.raises(MaskError, match="Draw something first"):
        write_users_mask(node, mask.table, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(scene: Any, tmp_path: Path, make_mask: Make) -> None:
    mask = make_mask(RAS, [1, 200])
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="Cannot write"):
        write_users_mask(show_mask(scene, mask, "drawn"), mask.table, tmp_path / "file")


@pytest.mark.parametrize("suffix", [".nrrd", ".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_volume_files_come_back(tmp_path: Path, suffix: str, kind: Any) -> None:
    affine = ORIENTATIONS["oblique, left-handed"]
    array = np.random.default_rng(0).integers(0, 250, (7, 8, 9)).astype(kind)
    write_volume_file(array, affine, tmp_path / f"Größe 1{suffix}")
    volume = read_image(tmp_path / f"Größe 1{suffix}")
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)
    node = read_volume_file(tmp_path / f"Größe 1{suffix}")
    assert node.GetImageData().GetDimensions() == (7, 8, 9)
