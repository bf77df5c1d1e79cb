"""The model's grid around a user's mask, and the way back."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MAISILib.anatomy.grids import Box, back_to, content_box, model_grid
from MAISILib.errors import FileFormatError, MaskError, RequestError
from MAISILib.resampling import resample_labels
from MAISILib.volumes import Grid, LabelMap, Volume
from Testing.anatomy.phantoms import label_map, sheared, tilted, torso, turned

ORDERS = list(permutations(range(3)))
FLIPS = list(product((0, 1), repeat=3))


def inside(mask: LabelMap, grid: Grid) -> bool:
    """Whether the center of each labeled voxel lies in a voxel of the grid."""
    voxels = np.argwhere(mask.array)
    places = mask.affine @ np.c_[voxels, np.ones(len(voxels))].T
    indices = np.linalg.solve(grid.affine, places)[:3].T
    return bool((indices >= -0.5 - 1e-6).all() and (indices <= np.array(grid.shape) - 0.5 + 1e-6).all())


@given(
    order=st.sampled_from(ORDERS),
    flips=st.sampled_from(FLIPS),
    degrees=st.floats(-40, 40),
    spacing=st.tuples(*[st.floats(1.5, 9.0)] * 3),
    divisor=st.sampled_from([1, 4, 16]),
    margin=st.sampled_from([0.0, 12.0]),
)
@settings(max_examples=60, deadline=None)
def test_grid_covers_the_labels_at_any_orientation(order, flips, degrees, spacing, divisor, margin):
    mask = tilted(turned(torso(), order, flips), degrees)
    grid = model_grid(mask.grid, content_box(mask), spacing, divisor=divisor, margin_mm=margin)
    assert inside(mask, grid)
    assert all(n % divisor == 0 for n in grid.shape)
    assert grid.spacing == pytest.approx(spacing, rel=2e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_axes_run_along_right_anterior_and_superior(order: tuple[int, int, int]):
    mask = turned(torso(), order, (1, 0, 1))
    grid = model_grid(mask.grid, content_box(mask), (3.0, 3.0, 4.0), divisor=8)
    directions = grid.affine[:3, :3] / np.array(grid.spacing)
    assert directions == pytest.approx(np.eye(3), abs=1e-9)
    middle = np.array(content_box(torso())).mean(axis=0)
    assert grid.center == pytest.approx((torso().affine @ [*middle, 1])[:3], abs=1e-6)


def test_oblique_mask_stays_oblique():
    mask = tilted(torso(), 30)
    grid = model_grid(mask.grid, content_box(mask), (3.0, 3.0, 4.0), divisor=8)
    assert (grid.affine[:3, :3] / grid.spacing) == pytest.approx(mask.affine[:3, :3] / mask.spacing)


@given(order=st.sampled_from(ORDERS), flips=st.sampled_from(FLIPS), degrees=st.sampled_from([0.0, 17.0]))
@settings(max_examples=30, deadline=None)
def test_mask_comes_back_unchanged_where_the_voxel_size_is_its_own(order, flips, degrees):
    mask = tilted(turned(torso(), order, flips), degrees)
    grid = model_grid(mask.grid, content_box(mask), (4.0, 4.0, 5.00001), divisor=8)
    assert (back_to(resample_labels(mask, grid), mask.grid).array == mask.array).all()


def test_image_comes_back_to_the_users_grid_with_air_around():
    mask = torso()
    box = Box((8, 6, 4), (15, 13, 11))
    grid = model_grid(mask.grid, box, mask.spacing, divisor=8)
    back = back_to(Volume(np.full(grid.shape, 50.0), grid.affine), mask.grid)
    assert back.grid.same_as(mask.grid)
    assert back.array[12, 10, 8] == 50
    assert back.array[0, 0, 0] == -1000


def test_smallest_legal_size_is_chosen():
    grid = Grid.axis_aligned((100, 80, 60), (1.0, 1.0, 1.0))
    box = Box((10, 10, 10), (79, 59, 49))  # 70 × 50 × 40
    sizes = ([64, 96, 128], [64, 96], [32, 48, 64])
    assert model_grid(grid, box, (1, 1, 1), divisor=16, allowed_sizes=sizes).shape == (96, 64, 48)
    assert model_grid(grid, box, (1, 1, 1), divisor=16, allowed_sizes=sizes, equal_xy=True).shape == (96, 96, 48)
    assert model_grid(grid, box, (2, 1, 1), divisor=16, allowed_sizes=sizes).shape == (64, 64, 48)
    assert model_grid(grid, box, (1, 1, 1), divisor=16, equal_xy=True).shape == (80, 80, 48)
    triples = [(64, 64, 128), (128, 128, 64), (256, 256, 256)]
    assert model_grid(grid, box, (1, 1, 1), divisor=16, allowed_triples=triples).shape == (128, 128, 64)


def test_margin_is_given_up_before_the_content():
    grid = Grid.axis_aligned((64, 64, 64), (1.0, 1.0, 1.0))
    box = Box((2, 2, 2), (61, 61, 61))
    assert model_grid(grid, box, (1, 1, 1), divisor=8, allowed_sizes=([64],) * 3, margin_mm=10).shape == (64, 64, 64)


def test_content_that_does_not_fit_is_told_with_the_nearest_legal():
    grid = Grid.axis_aligned((200, 200, 200), (1.0, 1.0, 1.0))
    box = Box((0, 0, 0), (149, 89, 99))
    with pytest.raises(MaskError) as caught:
        model_grid(grid, box, (1, 1, 1), divisor=32, allowed_sizes=([64, 96], [96], [128]))
    said = str(caught.value)
    assert "150 × 90 × 100 mm" in said
    assert "96 × 96 × 128" in said
    assert "left–right" in said
    assert "1.563" in said, "the voxel size at which it would fit"
    coarser = model_grid(grid, box, (1.563, 1, 1), divisor=32, allowed_sizes=([64, 96], [96], [128]))
    assert coarser.shape == (96, 96, 128)


def test_nonsense_is_refused():
    mask = torso()
    box = content_box(mask)
    with pytest.raises(RequestError, match="divisor 0"):
        model_grid(mask.grid, box, (1, 1, 1), divisor=0)
    with pytest.raises(RequestError, match=r"margin -1\.0"):
        model_grid(mask.grid, box, (1, 1, 1), divisor=8, margin_mm=-1.0)
    with pytest.raises(RequestError, match="multiple of 64"):
        model_grid(mask.grid, box, (1, 1, 1), divisor=64, allowed_sizes=([96],) * 3)
    with pytest.raises(RequestError, match="positive"):
        model_grid(mask.grid, content_box(mask), (1, 0, 1), divisor=8)
    with pytest.raises(MaskError, match="empty"):
        content_box(label_map(np.zeros((2, 2, 2))))


def test_mask_whose_axes_lean_is_refused_with_the_angle():
    with pytest.raises(FileFormatError, match=r"sheared \(axes meet at 8[0-9]\.[0-9]°"):
        sheared(torso(), 0.1)
