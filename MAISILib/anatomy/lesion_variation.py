"""Moves, scales and deforms the lesions of a mask, each within the tissue in which it lies."""

from __future__ import annotations

import math

import numpy as np

from MAISILib.anatomy.labels import LabelTable
from MAISILib.anatomy.mask_pieces import pieces_of, surroundings
from MAISILib.anatomy.masks import tissues_around
from MAISILib.anatomy.nearest_label import replace_by_nearest
from MAISILib.volumes import LabelMap

#: Places that are tried for each lesion; then it stays where and as it is.
TRIES = 40
#: Tissue that shares less of a lesion's surface than this is not where it lies.
_AROUND = 0.1
#: So many pieces of a lesion are varied, the largest first.
_MOST_PIECES = 30
#: Of a lesion so much must fit into the tissue; the rest is cut off.
_FITS = 0.95


def vary_lesions(mask: LabelMap, rng: np.random.Generator, *, scale: float, move_mm: float) -> LabelMap:
    """The same patient with lesions of other size, shape and place.

    Each connected piece moves alone, and only in the tissues that it touches now and that may host it; a lesion whose
    host is the body stays in the tissue that most of it touches. Where it was, that tissue takes its place. A lesion
    that hosts another one stays, because it would leave that one behind.

    Args:
        mask: In any orientation.
        rng: Where the random numbers come from.
        scale: Largest change of the diameter, as a part of it.
        move_mm: Farthest way along each axis.

    Returns:
        A new mask; its notes name the lesions that found no other place.
    """
    hosts = mask.table.hosts()
    present = set(mask.labels)
    hosting = {host for lesion, host in hosts.items() if lesion in present}
    lesions = [lesion for lesion in hosts if lesion in present and lesion not in hosting]
    if not lesions or not (scale or move_mm):
        return mask
    pieces = pieces_of(mask)
    numbers = [int(n) for lesion in lesions for n in pieces.of(lesion)[:_MOST_PIECES]]
    around = surroundings(mask, pieces, numbers)
    array, stayed = mask.array.copy(), []
    for number in numbers:
        lesion = int(pieces.labels[number])
        tissues = _where_it_lies(mask.table, lesion, around[number])
        varied = _vary_one(array, pieces.numbers == number, lesion, tissues, mask.spacing, rng, scale, move_mm)
        if varied is None:
            stayed.append(f"{mask.table[lesion].name} ({int(pieces.sizes[number])} voxels)")
        else:
            array = varied
    note = (f"Not moved, for want of another place in {TRIES} tries: {', '.join(stayed)}.",) if stayed else ()
    return mask.with_array(array, notes=(*mask.notes, *note))


def _where_it_lies(table: LabelTable, lesion: int, faces: np.ndarray) -> list[int]:
    """The labels in which a piece lies, by the faces that it shares with each."""
    may_host = tissues_around(lesion, table)
    if LabelTable.BODY in may_host:
        lesions = set(table.hosts()) - set(may_host)
        shared = faces.copy()
        shared[[0, *lesions]] = 0
        return [int(shared.argmax())] if shared.any() else []
    return [label for label in may_host if faces[label] >= max(1, _AROUND * faces.sum())]


def _vary_one(
    array: np.ndarray,
    piece: np.ndarray,
    lesion: int,
    tissues: list[int],
    spacing: tuple[float, float, float],
    rng: np.random.Generator,
    scale: float,
    move_mm: float,
) -> np.ndarray | None:
    """The array with this piece elsewhere; ``None`` where it finds no place."""
    if not tissues:
        return None
    without = replace_by_nearest(array, piece, spacing, tissues)
    free = np.isin(without, tissues)
    left = np.bincount(without[free], minlength=256)
    voxels = np.argwhere(piece)
    center = voxels.mean(axis=0)
    for attempt in range(TRIES):
        mild = 1 - attempt / TRIES  # a place nearby and a shape much the same are found in the end, if there are any
        offsets = _another_shape(voxels - center, spacing, rng, scale * mild)
        shift = rng.uniform(-move_mm, move_mm, 3) * mild / spacing
        places = np.rint(offsets + center + shift).astype(int)
        places = places[((places >= 0) & (places < array.shape)).all(axis=1)]
        places = places[free[tuple(places.T)]]
        taken = np.bincount(without[tuple(places.T)], minlength=256)
        if len(places) >= max(1, _FITS * len(offsets)) and (taken[tissues] < left[tissues]).all():
            without[tuple(places.T)] = lesion
            return without
    return None


def _another_shape(
    offsets: np.ndarray, spacing: tuple[float, float, float], rng: np.random.Generator, scale: float
) -> np.ndarray:
    """The voxels ``(N, 3)`` of a piece, relative to its center, stretched along directions of its own.

    The old shape is blurred a little and looked up at each voxel of the new one, so that it has no gaps; as many voxels
    are taken as the old volume times the three factors.
    """
    from scipy import ndimage

    factors = 1 + rng.uniform(-scale, scale, 3)
    along = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    inverse = along @ np.diag(1 / factors) @ along.T  # mm to mm
    steps = np.asarray(spacing)
    least = np.floor(offsets.min(axis=0)).astype(int) - 2
    old = np.zeros(np.ceil(offsets.max(axis=0)).astype(int) - least + 3, np.float32)
    old[tuple(np.rint(offsets - least).astype(int).T)] = 1
    old = ndimage.gaussian_filter(old, 0.7, mode="constant")
    reach = np.ceil(np.abs(offsets * steps).max() * (1 + scale) / steps + 1).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    sources = grid * steps @ inverse.T / steps - least
    inside = ndimage.map_coordinates(old, sources.T, order=1, mode="constant")
    wanted = max(1, round(len(offsets) * math.prod(factors)))
    return grid[np.argsort(-inside, kind="stable")[:wanted]]
