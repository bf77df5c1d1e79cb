"""A folder with one file for each structure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MAISILib.errors import FileFormatError, MaskError
from MAISILib.files.images import read_segments
from MAISILib.files.segment_folders import read_segment_folder
from Testing.training.users_cases import write_image


def test_each_file_is_a_structure_named_as_the_file(tmp_path: Path, oblique: np.ndarray) -> None:
    liver, spleen = np.zeros((2, 6, 5, 4), np.uint8)
    liver[1:3], spleen[4:5] = 1, 255
    write_image(tmp_path / "liver.nii.gz", liver, oblique)
    write_image(tmp_path / "kidney_left.v2.nrrd", spleen.astype(np.int16), oblique)
    write_image(tmp_path / "colon.nii", np.zeros_like(liver), oblique)
    (tmp_path / "statistics.json").write_text("{}", encoding="utf-8")
    found = read_segment_folder(tmp_path)
    assert [segment.name for segment in found.segments] == ["kidney_left.v2", "liver"]
    assert [int(n) for n in found.voxels().values()] == [20, 40]
    assert [segment.number for segment in found.segments] == [None, None]
    assert found.layers.shape == (6, 5, 4, 1), "what does not overlap shares a layer"
    assert np.allclose(found.affine, oblique, atol=1e-5)
    assert found.notes == ("Empty structures were left out: colon.",)


def test_structures_that_overlap_keep_all_their_voxels(tmp_path: Path) -> None:
    for index in range(3):
        array = np.zeros((5, 4, 3), np.uint8)
        array[index : index + 2] = 1
        write_image(tmp_path / f"part{index}.nii.gz", array, np.eye(4))
    found = read_segment_folder(tmp_path)
    assert found.layers.shape[3] == 2
    assert set(found.voxels().values()) == {24}


@given(seed=st.integers(0, 10_000), count=st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_any_structures_come_back_voxel_for_voxel(
    seed: int, count: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("structures")
    rng = np.random.default_rng(seed)
    truth = {f"s{index}": rng.random((5, 4, 3)) < 0.4 for index in range(count)}
    for name, inside in truth.items():
        write_image(folder / f"{name}.nii.gz", inside.astype(np.uint8), np.eye(4))
    found = read_segment_folder(folder)
    for segment in found.segments:
        assert (found.layers[..., segment.layer] == segment.value).tolist() == truth[segment.name].tolist()
    assert {segment.name for segment in found.segments} == {name for name, inside in truth.items() if inside.any()}


def test_structures_on_different_grids_are_refused(tmp_path: Path) -> None:
    moved = np.eye(4)
    moved[0, 3] = 5
    write_image(tmp_path / "a.nii.gz", np.ones((3, 3, 3), np.uint8), np.eye(4))
    write_image(tmp_path / "b.nii.gz", np.ones((3, 3, 3), np.uint8), moved)
    with pytest.raises(FileFormatError, match=r"b\.nii\.gz lies on another grid than a\.nii\.gz"):
        read_segment_folder(tmp_path)


@pytest.mark.parametrize("values", [[0, 1, 2, 3], [0.0, 0.2, 0.9, 1.0], [-1, 0, 0, 1]])
def test_what_is_no_single_structure_is_refused(tmp_path: Path, values: list[float]) -> None:
    write_image(tmp_path / "prob.nii.gz", np.array(values * 2, np.float32).reshape(2, 2, 2), np.eye(4))
    with pytest.raises(MaskError, match="several values"):
        read_segment_folder(tmp_path)


def test_folder_without_structures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing", encoding="utf-8")
    with pytest.raises(FileFormatError, match="holds no structures"):
        read_segment_folder(tmp_path)
    with pytest.raises(FileFormatError, match="cannot be read as a folder"):
        read_segment_folder(tmp_path / "none")


def test_label_map_with_large_numbers_is_read_where_they_are_allowed(tmp_path: Path) -> None:
    array = np.array([0, 17, 2035, 14175], np.int32).reshape(2, 2, 1)
    path = write_image(tmp_path / "aseg.nii.gz", np.repeat(array, 2, 2), np.eye(4))
    with pytest.raises(MaskError, match="outside 0–255"):
        read_segments(path)
    found = read_segments(path, largest=65535)
    assert [segment.value for segment in found.segments] == [17, 2035, 14175]
    assert found.voxels()[found.segments[-1]] == 2
