"""The grid of an image from its header alone, and one channel of an image with several."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest

from MAISILib.errors import FileFormatError
from MAISILib.files.images import read_grid, read_image

SHAPE = (5, 4, 3)


def nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)  # type: ignore[attr-defined]
    return path


def test_a_header_tells_where_the_image_lies(tmp_path: Path, oblique: np.ndarray) -> None:
    path = nifti(tmp_path / "image.nii.gz", np.zeros(SHAPE, np.int16), oblique)
    grid = read_grid(path)
    assert grid.shape == SHAPE
    np.testing.assert_allclose(grid.affine, oblique, atol=1e-4)
    image = read_image(path)
    assert grid.same_as(image.grid)


def test_a_header_is_enough_where_the_voxels_are_cut_off(tmp_path: Path) -> None:
    path = nifti(tmp_path / "image.nii", np.zeros(SHAPE, np.int16), np.eye(4))
    path.write_bytes(path.read_bytes()[:360])
    assert read_grid(path).shape == SHAPE
    with pytest.raises(FileFormatError, match="cut short"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"no image at all"])
def test_a_file_without_a_header_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.nii"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"image\.nii"):
        read_grid(path)
    path = tmp_path / "image.nrrd"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"image\.nrrd"):
        read_grid(path)


def test_one_channel_of_several_is_read_from_nifti(tmp_path: Path) -> None:
    array = np.arange(5 * 4 * 3 * 2, dtype=np.int16).reshape(5, 4, 3, 2)
    path = nifti(tmp_path / "image.nii.gz", array, np.eye(4))
    assert read_grid(path).shape == SHAPE
    np.testing.assert_array_equal(read_image(path, channel=1).array, array[..., 1])
    with pytest.raises(FileFormatError, match=r"2 channels.*no channel 2"):
        read_image(path, channel=2)
    with pytest.raises(FileFormatError, match="4 axes"):
        read_image(path)


def test_one_entry_of_a_list_axis_is_read_from_nrrd(tmp_path: Path) -> None:
    array = np.arange(2 * 5 * 4 * 3, dtype=np.int16).reshape(2, 5, 4, 3)
    header = {
        "space": "left-posterior-superior",
        "kinds": ["list", "domain", "domain", "domain"],
        "space directions": np.vstack([np.full(3, np.nan), np.eye(3)]),
        "space origin": [1.0, 2.0, 3.0],
    }
    nrrd.write(str(tmp_path / "image.nrrd"), array, header)
    grid = read_grid(tmp_path / "image.nrrd")
    assert grid.shape == SHAPE
    np.testing.assert_allclose(grid.affine, [[-1, 0, 0, -1], [0, -1, 0, -2], [0, 0, 1, 3], [0, 0, 0, 1]])
    np.testing.assert_array_equal(read_image(tmp_path / "image.nrrd", channel=1).array, array[1])


def test_an_image_with_one_channel_has_no_need_to_choose(tmp_path: Path) -> None:
    path = nifti(tmp_path / "image.nii.gz", np.ones(SHAPE, np.int16), np.eye(4))
    assert read_image(path, channel=3).array.shape == SHAPE
