"""The preview shows the right planes the right way round, and says what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from MAISILib.anatomy.labels import LabelTable
from MAISILib.files import preview
from MAISILib.files.preview import draw_preview, write_preview
from MAISILib.resampling import to_canonical
from MAISILib.volumes import LabelMap, Volume

AFFINE = np.diag([4.0, 4.0, 8.0, 1.0])


def sample(table: LabelTable) -> tuple[Volume, LabelMap]:
    """A body with a bright spot at its right, front and top, and two organs."""
    array = np.full((60, 50, 30), -1000, np.int16)
    array[5:55, 5:45, 2:28] = 0
    array[47:53, 37:43, 22:27] = 1000
    labels = np.where(array > -1000, 200, 0).astype(np.uint8)
    labels[46:54, 36:44, 21:28] = 1
    labels[10:14, 10:14, 5:8] = 3
    return Volume(array, AFFINE), LabelMap(labels, AFFINE, table)


def brightest(plane: np.ndarray) -> tuple[float, float]:
    """Column and row, each from 0 to 1, of the middle of the bright spot."""
    rows, columns = np.nonzero(plane == 1000)
    return float(columns.mean() / plane.shape[1]), float(rows.mean() / plane.shape[0])


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_right_is_left_and_front_and_top_are_up(table: LabelTable, flips: tuple[int, int, int]) -> None:
    image, _ = sample(table)
    turned = Volume(image.array[:: flips[0], :: flips[1], :: flips[2]], AFFINE @ np.diag([*flips, 1.0]))
    spot = LabelMap((turned.array == 1000).astype(np.uint8), turned.affine, table)
    for name, (column, row) in {"Axial": (0.17, 0.2), "Coronal": (0.17, 0.18), "Sagittal": (0.2, 0.18)}.items():
        assert brightest(_plane_through(spot, turned, name)) == pytest.approx((column, row), abs=0.06), name


def _plane_through(spot: LabelMap, image: Volume, name: str) -> np.ndarray:
    """A whole plane through the spot, as the preview turns it."""
    values, _ = to_canonical(image.array, image.affine)
    labels, _ = to_canonical(spot.array, spot.affine)
    center = preview._center(values, labels, spot)
    return preview._plane(values, name, center[preview._PLANES[name][0]])


def test_the_planes_have_the_shape_of_the_patient(table: LabelTable) -> None:
    image, _ = sample(table)
    sizes = preview._panel_sizes(image.grid)
    for name, (across, down) in {"Axial": (240, 200), "Coronal": (240, 240), "Sagittal": (200, 240)}.items():
        assert sizes[name][0] / sizes[name][1] == pytest.approx(across / down, rel=0.02)


def test_a_preview_is_a_png_with_legend_and_mask(tmp_path: Path, table: LabelTable) -> None:
    from PIL import Image

    image, mask = sample(table)
    write_preview(tmp_path / "new" / "preview.png", image, mask, "bundle · sample 0", (-160, 240))
    with Image.open(tmp_path / "new" / "preview.png") as picture:
        assert picture.format == "PNG"
        assert picture.width == 1200
        colors = {color for _, color in picture.getcolors(2**24)}
    for value in mask.labels:
        assert table[value].color in colors
    assert table[22].color not in colors


@pytest.mark.parametrize("kind", ["empty", "other grid", "all labels", "one voxel", "oblique", "huge spacing"])
def test_any_sample_can_be_shown(table: LabelTable, kind: str) -> None:
    image, mask = sample(table)
    array = np.zeros_like(mask.array)
    if kind == "empty":
        mask = mask.with_array(array)
    elif kind == "other grid":
        mask = LabelMap(mask.array[::2, ::2, ::2].copy(), AFFINE @ np.diag([2.0, 2, 2, 1]), table)
    elif kind == "all labels":
        array.flat[:256] = np.arange(256)
        mask = mask.with_array(array)
    elif kind == "one voxel":
        image, mask = Volume(np.zeros((1, 1, 1)), AFFINE), LabelMap(np.ones((1, 1, 1), np.uint8), AFFINE, table)
    elif kind == "oblique":
        turn = np.eye(4)
        turn[1:3, 1:3] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
        image, mask = Volume(image.array, turn @ AFFINE), LabelMap(mask.array, turn @ AFFINE, table)
    else:
        tall = np.diag([1.0, 1.0, 60.0, 1.0])
        image, mask = Volume(image.array, tall), LabelMap(mask.array, tall, table)
    picture = draw_preview(image, mask, "x" * 200)
    assert picture.width == 1200
    assert picture.height < 2600


def test_an_mr_is_shown_by_its_percentiles(table: LabelTable) -> None:
    image, _ = sample(table)
    picture = np.asarray(draw_preview(Volume((image.array + 1000.0) / 7000, AFFINE, "arbitrary")))
    assert picture[200:400].max() > 250
    assert draw_preview(Volume(np.zeros((9, 9, 9), np.float32), AFFINE, "arbitrary")).width == 1200
