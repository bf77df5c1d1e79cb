"""Puts sheared voxels, as of a CT with a tilted gantry, onto a grid whose axes are at right angles. None is lost.

Every voxel moves by whole voxels: what was one slice stays one slice, shifted in its plane. So looking up the nearest
voxel at the old places (`MAISILib.resampling.nearest`) gives back exactly what was there.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from MAISILib.files.checks import check_size
from MAISILib.volumes import Grid, Volume, is_sheared, least_angle

_AIR_HU = -1000


class Straightened(NamedTuple):
    """Voxels on a grid whose axes are at right angles.

    Args:
        array: ``(X, Y, Z)`` or, with layers, ``(X, Y, Z, L)``.
        affine: ``(4, 4)``, voxel index to RAS+ mm.
        notes: What was done; empty where nothing was to do.
    """

    array: np.ndarray
    affine: np.ndarray
    notes: tuple[str, ...]


def straightened(array: np.ndarray, affine: np.ndarray, path: Path, fill: float = 0) -> Straightened:
    """The voxels of a file on the grid of `straight_grid`; as they are where they are not sheared.

    Args:
        array: ``(X, Y, Z)`` or, with layers, ``(X, Y, Z, L)``.
        affine: ``(4, 4)``, voxel index to RAS+ mm.
        path: For messages.
        fill: Value beyond the old grid.

    Raises:
        FileFormatError: The new grid is too large for this computer.
    """
    if not is_sheared(affine):
        return Straightened(array, affine, ())
    grid, places = _places(Grid(array.shape[:3], affine))  # type: ignore[arg-type]
    layers = array.shape[3:]
    voxel_bytes = array.itemsize * int(np.prod(layers))
    check_size(grid.shape, voxel_bytes, path, stored=grid.voxels * voxel_bytes, compressed=False)
    straight = np.full((*grid.shape, *layers), fill, array.dtype, order="C" if array.flags.c_contiguous else "F")
    straight[places] = array
    note = (
        f"{path.name} is sheared (axes meet at {least_angle(affine):.1f}°, as with a tilted gantry). Its voxels were "
        f"moved by whole voxels onto a straight grid of {' × '.join(map(str, grid.shape))}: none is lost, and results "
        "lie on this grid."
    )
    return Straightened(straight, grid.affine, (note,))


def straightened_volume(array: np.ndarray, affine: np.ndarray, units: str, path: Path) -> Volume:
    """An image as `straightened` puts it, to lie beside its mask. Beyond the old grid is air, or the least value.

    Raises:
        FileFormatError: As for `straightened`.
    """
    if not is_sheared(affine):
        return Volume(array, affine, units)
    if units == "HU":
        array = array.astype(np.result_type(array.dtype, np.int16))
    voxels = straightened(array, affine, path, fill=_AIR_HU if units == "HU" else array.min())
    return Volume(voxels.array, voxels.affine, units)


def straight_grid(grid: Grid) -> Grid:
    """The smallest grid with axes at right angles that has a voxel for each one of a sheared grid.

    The axes of a slice keep their directions and voxel sizes where they are at right angles, and the axis along which
    slices are stacked becomes their normal (the QR decomposition of the affine). Slices are taken to lie along the two
    axes that are most nearly at right angles, else those whose voxel sizes are most alike, else the first two.
    """
    return _places(grid)[0] if is_sheared(grid.affine) else grid


def _places(grid: Grid) -> tuple[Grid, tuple[np.ndarray, ...]]:
    """The straight grid, and the indices of each old voxel there, for each axis ``(X, Y, Z)`` or thinner."""
    order = _slice_axes_first(grid)
    directions, steps = np.linalg.qr(grid.affine[:3, order])
    lengths = np.diagonal(steps)  # negative where the decomposition turned a direction around
    affine = grid.affine.copy()
    affine[:3, order] = directions * lengths
    shifts = steps / lengths[:, None]  # [n, m]: by how many voxels along n one step along m moves, for m after n
    # Counted from the voxel at the origin of space, so that parts of one scan come onto one grid.
    anchor = np.rint(np.linalg.solve(grid.affine, [0.0, 0.0, 0.0, 1.0])[:3])
    affine[:3, 3] += grid.affine[:3, :3] @ anchor
    index = [i - a for i, a in zip(np.ogrid[tuple(map(slice, grid.shape))], anchor, strict=True)]
    places, size = list(index), list(grid.shape)
    for n, axis in enumerate(order):
        shift = sum((shifts[n, m] * index[order[m]] for m in range(n + 1, 3)), np.zeros((1, 1, 1)))
        # As `resampling.nearest` rounds, so that each of the old places finds its voxel again.
        moved = index[axis] + np.floor(np.round(shift, 9) - 1e-7 + 0.5)
        first, last = moved.min(), moved.max()
        places[axis] = (moved - first).astype(np.intp)
        size[axis] = int(last - first) + 1
        affine[:3, 3] += first * affine[:3, axis]
    return Grid(tuple(size), affine), tuple(places)  # type: ignore[arg-type]


def _slice_axes_first(grid: Grid) -> list[int]:
    def unlikely(stack: int) -> tuple[float, float]:
        a, b = (axis for axis in range(3) if axis != stack)
        angle = np.dot(grid.affine[:3, a], grid.affine[:3, b]) / (grid.spacing[a] * grid.spacing[b])
        return round(abs(float(angle)), 2), round(abs(math.log(grid.spacing[a] / grid.spacing[b])), 2)

    stack = min((2, 1, 0), key=unlikely)
    return [*(axis for axis in range(3) if axis != stack), stack]
