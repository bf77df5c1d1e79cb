"""Bends a mask as a whole. One map from each voxel to where its label comes from keeps labels disjoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from MAISILib.anatomy.labels import LabelTable
from MAISILib.volumes import LabelMap

#: How often another map is drawn, each milder than the one before.
TRIES = 6
_MILDER = 0.7
#: Distance of the control points that bend everything. Cubic B-splines whose coefficients stay below 0.4 of it do not
#: fold (Choi and Lee 2000, Injectivity conditions of 2D and 3D uniform cubic B-spline functions).
_CONTROL_MM = 32.0
#: Organs are scaled about their centers on points so far apart, and the scaling fades over such a distance.
_NODE_MM, _FADE_MM = 6.0, 8.0
#: However long an organ is, its scaling moves nothing farther.
_MOST_MM = 10.0
#: So near to a border that the patient does not touch, nothing moves towards it or away from it any more.
_BORDER_MM = 40.0
#: The map shrinks or stretches no place by more than this factor in volume: it never folds.
_LEAST_DETERMINANT = 0.25
_SLAB_VOXELS = 1 << 21


def vary_shape(
    mask: LabelMap, rng: np.random.Generator, *, rotation: float, scale: float, bend: float, organs: float
) -> LabelMap:
    """The patient turned, scaled, bent, and with organs of other sizes; see :class:`.variation.Variation`.

    The patient never leaves the grid through a border that he did not touch. A map that loses a label is drawn again,
    milder; after :data:`TRIES` the mask stays as it is.

    Args:
        mask: In any orientation.
        rng: Where the random numbers come from.
        rotation: Degrees.
        scale: Part.
        bend: Millimeters.
        organs: Part.

    Returns:
        A mask on the same grid. Beyond a border that he touches, the patient goes on as there.
    """
    if not (rotation or scale or bend or organs) or not mask.array.any() or min(mask.array.shape) < 2:
        return mask
    before = mask.labels
    for attempt in range(TRIES):
        mild = _MILDER**attempt
        drawn = _draw(mask, rng, rotation * mild, scale * mild, bend * mild, organs * mild)
        varied = mask.with_array(drawn.applied_to(mask.array))
        if varied.labels == before:
            return varied
    note = f"The shape stays as it was: {TRIES} variations of it lost a structure."
    return mask.with_array(mask.array, notes=(*mask.notes, note))


@dataclass(frozen=True)
class _Map:
    """Where the label of each voxel comes from: turned about the middle, plus two smooth displacements.

    Args:
        spacing: ``(3,)`` mm.
        windows: For each axis how much of the way along it is gone at each voxel, 0 at borders that must stay.
        strength: Part of all ways that is gone.
        matrix: ``(3, 3)``, about the middle of the grid, mm to mm.
        coefficients: ``(3, a, b, c)`` mm, of cubic B-splines.
        nodes: ``(3, i, j, k)`` mm, between which displacements are linear.
    """

    spacing: np.ndarray
    windows: list[np.ndarray]
    strength: float
    matrix: np.ndarray
    coefficients: np.ndarray
    nodes: np.ndarray

    def sources(self, shape: Sequence[int], where: Sequence[np.ndarray]) -> np.ndarray:
        """``(3, …)`` voxel indices, not rounded, for the voxels at the given indices along each axis."""
        bases = [
            [kind(at, n, points) for at, n, points in zip(where, shape, of.shape[1:], strict=True)]
            for kind, of in ((_spline_basis, self.coefficients), (_linear_basis, self.nodes))
        ]
        bent, scaled = (
            np.einsum("dabc,xa,yb,zc->dxyz", of, *basis, optimize=True)
            for of, basis in zip((self.coefficients, self.nodes), bases, strict=True)
        )
        moved = bent + scaled
        middle = (np.asarray(shape) - 1) / 2 * self.spacing
        places = [at * step - mid for at, step, mid in zip(where, self.spacing, middle, strict=True)]
        for row, (at, step) in enumerate(zip(where, self.spacing, strict=True)):
            x, y, z = (weight * place for weight, place in zip(self.matrix[row] - np.eye(3)[row], places, strict=True))
            moved[row] += x[:, None, None] + y[None, :, None] + z[None, None, :]
            part = np.interp(at, np.arange(shape[row]), self.windows[row]) * self.strength / step
            across = [axis for axis in range(3) if axis != row]
            moved[row] = moved[row] * np.expand_dims(part, across) + np.expand_dims(at, across)
        return moved

    def applied_to(self, array: np.ndarray) -> np.ndarray:
        """The labels at the sources of all voxels, slab by slab."""
        shape = array.shape
        result = np.empty(shape, np.uint8)
        thickness = max(1, _SLAB_VOXELS // math.prod(shape[1:]))
        y, z = np.arange(shape[1]), np.arange(shape[2])
        for start in range(0, shape[0], thickness):
            x = np.arange(start, min(start + thickness, shape[0]))
            indices = np.rint(self.sources(shape, (x, y, z))).astype(np.int32)
            for axis in range(3):
                np.clip(indices[axis], 0, shape[axis] - 1, out=indices[axis])
            result[x[0] : x[-1] + 1] = array[tuple(indices)]
        return result

    def least_determinant(self, shape: Sequence[int]) -> float:
        """The smallest factor by which volumes change anywhere, on a coarse grid."""
        where = [
            np.linspace(0, n - 1, max(2, min(n, int(n * s / 5)))) for n, s in zip(shape, self.spacing, strict=True)
        ]
        sources = self.sources(shape, where)
        rows = [np.gradient(sources[row], *where) for row in range(3)]
        return float(np.linalg.det(np.moveaxis(np.asarray(rows), (0, 1), (-2, -1))).min())


def _draw(mask: LabelMap, rng: np.random.Generator, rotation: float, scale: float, bend: float, organs: float) -> _Map:
    spacing, shape = np.asarray(mask.spacing), mask.array.shape
    extent = [(n - 1) * s for n, s in zip(shape, spacing, strict=True)]
    angles = np.radians(rng.uniform(-rotation, rotation, 3))
    matrix = _rotation(angles) @ np.diag(1 / (1 + rng.uniform(-scale, scale, 3)))
    points = [max(1, math.ceil(mm / _CONTROL_MM)) + 3 for mm in extent]
    coefficients = rng.uniform(-bend, bend, (3, *points))
    nodes = _organ_nodes(mask, rng, organs)
    windows, strength = _border_windows(mask.array, spacing), 1.0
    while True:  # weaker and weaker, until nothing folds: with no strength at all, nothing does
        drawn = _Map(spacing, windows, strength, matrix, coefficients.astype(np.float32), nodes.astype(np.float32))
        if strength < 0.01 or drawn.least_determinant(shape) >= _LEAST_DETERMINANT:
            return drawn
        strength *= 0.8


def _border_windows(array: np.ndarray, spacing: np.ndarray) -> list[np.ndarray]:
    """For each axis ``(n,)``: 0 at a border that the patient does not touch, rising to 1 away from it."""
    windows = []
    for axis, step in enumerate(spacing):
        n = array.shape[axis]
        reach = min(_BORDER_MM, (n - 1) * step / 3)
        ways = [np.arange(n) * step / reach, np.arange(n)[::-1] * step / reach]
        free = [way for way, end in zip(ways, (0, -1), strict=True) if not np.take(array, end, axis=axis).any()]
        windows.append(np.minimum.reduce([np.ones(n), *free]))
    return windows


def _organ_nodes(mask: LabelMap, rng: np.random.Generator, most: float) -> np.ndarray:
    """Displacements ``(3, i, j, k)`` in mm that scale each organ about its center of gravity.

    The weights of all organs add up to 1 at most, because no voxel belongs to two of them.
    """
    from scipy import ndimage

    spacing, shape = np.asarray(mask.spacing), mask.array.shape
    counts = [max(2, min(n, math.ceil((n - 1) * s / _NODE_MM) + 1)) for n, s in zip(shape, spacing, strict=True)]
    where = [np.linspace(0, n - 1, count) for n, count in zip(shape, counts, strict=True)]
    moved = np.zeros((3, *counts))
    coarse = mask.array[np.ix_(*(np.rint(at).astype(int) for at in where))]
    places = [at * step for at, step in zip(where, spacing, strict=True)]
    steps = [place[1] - place[0] for place in places]
    hosted = mask.table.hosts()
    for label, box in enumerate(ndimage.find_objects(coarse, max_label=255), start=1):
        if box is None or label == LabelTable.BODY or label in hosted:  # lesions go with their hosts
            continue
        factor = 1 + rng.uniform(-most, most)
        room = [math.ceil(3 * _FADE_MM / step) for step in steps]
        part = tuple(slice(max(0, s.start - r), s.stop + r) for s, r in zip(box, room, strict=True))
        inside = (coarse[part] == label).astype(np.float32)
        weight = ndimage.gaussian_filter(inside, [_FADE_MM / step for step in steps], truncate=3.0)
        for axis in range(3):
            along = np.moveaxis(inside, axis, 0).sum(axis=(1, 2))
            place = places[axis][part[axis]]
            offset = (1 / factor - 1) * (place - (along * place).sum() / along.sum())
            offset = _MOST_MM * np.tanh(offset / _MOST_MM)
            moved[axis][part] += weight * np.expand_dims(offset, [a for a in range(3) if a != axis])
    return moved


def _rotation(angles: np.ndarray) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[second, first] = math.sin(angle)
        turn[first, second] = -math.sin(angle)
        matrix = turn @ matrix
    return matrix


def _spline_basis(at: np.ndarray, n: int, points: int) -> np.ndarray:
    """``(len(at), points)``: cubic B-splines on a uniform grid of control points, one of them beyond each end."""
    position = at / (n - 1) * (points - 3)
    distance = np.abs(position[:, None] - (np.arange(points) - 1)[None, :])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def _linear_basis(at: np.ndarray, n: int, points: int) -> np.ndarray:
    """``(len(at), points)``: linear interpolation between points that span the grid."""
    position = at / (n - 1) * (points - 1)
    return np.clip(1 - np.abs(position[:, None] - np.arange(points)[None, :]), 0, None).astype(np.float32)
