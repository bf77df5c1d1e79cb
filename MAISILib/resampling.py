"""Moves images and label maps from one grid to another, with exact geometry.

Both ways of looking up a voxel use the same mapping: index on the target grid → RAS+ mm → index on the source grid.
"""

from __future__ import annotations

import numpy as np

from MAISILib.volumes import Grid, LabelMap, Volume


def index_mapping(source: Grid, target: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The matrix ``(3, 3)`` and offset ``(3,)`` that take target voxel indices to source voxel indices."""
    mapping = np.linalg.solve(source.affine, target.affine)
    return mapping[:3, :3], mapping[:3, 3]


def canonical_grid(grid: Grid) -> Grid:
    """The grid with its axes permuted and flipped so that they run most nearly along R, A and S.

    No voxel moves: only their numbering changes (as nibabel's ``as_closest_canonical``).
    """
    return Grid(*_reorient(np.empty(grid.shape, dtype=np.bool_), grid.affine)[0::2])  # type: ignore[arg-type]


def to_canonical(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``array`` and ``affine`` with axes along R, A and S, as nearly as without interpolation."""
    _, reoriented, new_affine = _reorient(array, affine)
    return reoriented, new_affine


def _reorient(array: np.ndarray, affine: np.ndarray) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    orientation = io_orientation(affine)
    reoriented = np.ascontiguousarray(apply_orientation(array, orientation))
    return reoriented.shape, reoriented, affine @ inv_ornt_aff(orientation, array.shape)


def resample_volume(volume: Volume, target: Grid, *, fill: float = -1000.0, antialias: bool = True) -> Volume:
    """Samples an image on another grid, linearly.

    Args:
        volume: The image.
        target: Where to sample it.
        fill: Value outside the image, in its units.
        antialias: Smooth first along the axes that get coarser (Gaussian, standard deviation ``(factor − 1) / 2``
            voxels, which keeps frequencies below the new Nyquist limit nearly untouched).
    """
    from scipy import ndimage

    if volume.grid.same_as(target):
        return volume
    matrix, offset = index_mapping(volume.grid, target)
    array = volume.array.astype(np.float32)
    if antialias:
        step = np.sqrt((matrix**2).sum(axis=1))
        sigma = np.maximum(step - 1.0, 0.0) / 2
        if (sigma > 0.05).any():
            array = ndimage.gaussian_filter(array, sigma, mode="nearest")
    sampled = ndimage.affine_transform(
        array, matrix, offset, output_shape=target.shape, order=1, mode="constant", cval=fill, prefilter=False
    )
    return Volume(sampled, target.affine, volume.units)


def resample_labels(mask: LabelMap, target: Grid) -> LabelMap:
    """Samples a label map on another grid by nearest neighbour; outside it is background."""
    return mask.with_array(nearest(mask.array, mask.grid, target), affine=target.affine)


def nearest(array: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """``array`` of ``source`` sampled on ``target`` by nearest neighbour, 0 outside; a copy where the grids agree."""
    from scipy import ndimage

    if source.same_as(target):
        return array.copy()
    matrix, offset = index_mapping(source, target)
    # A target voxel that lies exactly between two source voxels must not depend on rounding noise.
    matrix, offset = np.round(matrix, 9), np.round(offset, 9) - 1e-7
    return ndimage.affine_transform(
        array, matrix, offset, output_shape=target.shape, order=0, mode="grid-constant", cval=0, prefilter=False
    )
