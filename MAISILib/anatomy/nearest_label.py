"""What lies around voxels that lose their label."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np


def replace_by_nearest(
    array: np.ndarray, removed: np.ndarray, spacing: Sequence[float], among: Collection[int] = ()
) -> np.ndarray:
    """``removed`` voxels take the label of the nearest voxel that stays.

    The nearest voxel that stays shares a face with a removed one: each step from it towards the removed voxel comes
    nearer, so it lands in what is removed. Only such voxels are looked up, which makes a distance map of the whole
    volume unnecessary.

    Args:
        array: ``(X, Y, Z)`` labels.
        removed: ``(X, Y, Z)`` bool.
        spacing: Voxel size in mm along the three axes.
        among: Only these labels are taken, of the voxels beside the removed ones; all by default.

    Returns:
        A new array; an equal one where nothing, or everything, is removed, or nothing to take lies beside it.
    """
    from scipy import ndimage
    from scipy.spatial import cKDTree

    if not removed.any() or removed.all():
        return array.copy()
    box = tuple(
        slice(max(0, int(where[0]) - 1), int(where[-1]) + 2)
        for where in (np.flatnonzero(removed.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3))
    )
    inside = removed[box]
    is_beside = ndimage.binary_dilation(inside) & ~inside
    beside = np.argwhere(is_beside & np.isin(array[box], list(among)) if among else is_beside)
    wanted = np.argwhere(inside)
    if not len(beside):
        return array.copy()
    _, nearest = cKDTree(beside * np.asarray(spacing)).query(wanted * np.asarray(spacing))
    result = array.copy()
    part = result[box]
    part[tuple(wanted.T)] = part[tuple(beside[nearest].T)]
    return result
