"""Where a model works on a user's mask: a grid of legal size around the labels, and the way back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from MAISILib.errors import MaskError, RequestError
from MAISILib.resampling import canonical_grid, nearest, resample_labels, resample_volume
from MAISILib.volumes import Grid, LabelMap, Volume

#: Voxel sizes that differ by less (relative) are the same: scanners and files write them with float32 noise.
SPACING_TOLERANCE = 1e-4
_Result = TypeVar("_Result", Volume, LabelMap)
_AXES = ("left–right", "front–back", "head–foot")


class Box(NamedTuple):
    """First and last voxel index, both inside, along each of the three axes of a grid."""

    first: tuple[int, int, int]
    last: tuple[int, int, int]


class Loss(NamedTuple):
    """A structure of which a model's grid keeps less than half.

    Args:
        name: Of the structure.
        label: Its number.
        voxels: How many it has in the mask.
        kept: How many of these show the structure where they are looked up on the model's grid.
    """

    name: str
    label: int
    voxels: int
    kept: int

    def __str__(self) -> str:
        return f"{self.name} ({self.kept} of {self.voxels} voxels kept)"


def losses(mask: LabelMap, model: LabelMap) -> list[Loss]:
    """The structures of which a model's grid keeps less than half, by looking up each of the mask's voxels there.

    Args:
        mask: On the user's grid.
        model: The same mask on the model's grid.
    """
    back = nearest(model.array, model.grid, mask.grid)
    voxels, kept = mask.counts, mask.with_array(np.where(back == mask.array, mask.array, 0)).counts
    few = [int(value) for value in np.flatnonzero(2 * kept[1:] < voxels[1:]) + 1]
    names = {value: mask.table[value].name if value in mask.table else str(value) for value in few}
    return [Loss(names[value], value, int(voxels[value]), int(kept[value])) for value in few]


def content_box(mask: LabelMap) -> Box:
    """The smallest box around all labels, in voxel indices of the mask.

    Raises:
        MaskError: The mask is empty.
    """
    filled = mask.array != 0
    spans = [np.flatnonzero(filled.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if not len(spans[0]):
        raise MaskError("The mask is empty: it has no labels to put a grid around. Segment at least one structure.")
    return Box(tuple(int(s[0]) for s in spans), tuple(int(s[-1]) for s in spans))  # type: ignore[arg-type]


def model_grid(
    mask_grid: Grid,
    content: Box,
    spacing: tuple[float, float, float],
    *,
    divisor: int,
    allowed_sizes: Sequence[Sequence[int]] | None = None,
    allowed_triples: Sequence[tuple[int, int, int]] | None = None,
    equal_xy: bool = False,
    margin_mm: float = 0.0,
) -> Grid:
    """The smallest legal grid that covers the labels of a mask, centered on them.

    Its axes are those of the mask, renumbered so that they run most nearly along R, A and S; an oblique mask stays
    oblique. Where the voxel size is the mask's own, voxels fall on voxels, and the way there and back is exact.

    Args:
        mask_grid: The user's grid, in any orientation.
        content: What must be inside, in voxel indices of ``mask_grid`` (see :func:`content_box`).
        spacing: Voxel size in mm along R, A, S.
        divisor: Sizes must be multiples of this (the bundle's ``size_divisor``).
        allowed_sizes: Legal numbers of voxels per axis; ``None`` allows every multiple of ``divisor``.
        allowed_triples: Legal ``(x, y, z)`` where only certain combinations are; used instead of ``allowed_sizes``.
        equal_xy: Whether x and y must be equal.
        margin_mm: Wanted room around the content; given up where only that does not fit.

    Raises:
        RequestError: The voxel size, the divisor or the legal sizes make no sense.
        MaskError: The content does not fit; the message says the nearest legal size and voxel size.
    """
    if divisor < 1 or margin_mm < 0 or not all(math.isfinite(step) and step > 0 for step in spacing):
        raise RequestError(
            f"A model grid needs a positive voxel size, a divisor from 1 and a margin from 0; got "
            f"voxels of {spacing} mm, divisor {divisor}, margin {margin_mm} mm."
        )
    canonical = canonical_grid(mask_grid)
    first, last = _canonical_box(mask_grid, canonical, content)
    own = np.asarray(canonical.spacing)
    step = np.where(np.abs(np.asarray(spacing) / own - 1) < SPACING_TOLERANCE, own, spacing)
    extent = (last - first + 1) * own
    triples = None if allowed_triples is None else [t for t in allowed_triples if all(n % divisor == 0 for n in t)]
    axes = None if allowed_sizes is None else [sorted(n for n in axis if n % divisor == 0) for axis in allowed_sizes]
    if triples == [] or (triples is None and axes is not None and not all(axes)):
        raise RequestError(f"No legal size is a multiple of {divisor}: {allowed_triples or allowed_sizes}.")
    size = None
    for margin in (margin_mm, 0.0):
        needed = [math.ceil(mm / s - SPACING_TOLERANCE) for mm, s in zip(extent + 2 * margin, step, strict=True)]
        size = _smallest(needed, divisor, axes, triples, equal_xy)
        if size is not None:
            break
    if size is None:
        raise MaskError(_misfit(extent, step, axes, triples))
    origin = np.empty(3)
    for axis in range(3):
        n, t, s = size[axis], step[axis], own[axis]
        if t == s:  # voxel on voxel; an odd voxel of room goes to the far side
            origin[axis] = first[axis] - (n - (last[axis] - first[axis] + 1)) // 2
        else:
            origin[axis] = (first[axis] + last[axis]) / 2 - (n - 1) / 2 * t / s
    affine = canonical.affine.copy()
    affine[:3, :3] = canonical.affine[:3, :3] * (step / own)
    affine[:3, 3] = (canonical.affine @ np.append(origin, 1.0))[:3]
    return Grid(size, affine)


def back_to(result: _Result, grid: Grid, *, fill: float = -1000.0) -> _Result:
    """A result of the model grid on the user's grid: images linearly, labels by nearest neighbor.

    Args:
        result: Image or mask.
        grid: The user's grid.
        fill: Value of an image outside the model grid, in its units.
    """
    if isinstance(result, LabelMap):
        return resample_labels(result, grid)
    return resample_volume(result, grid, fill=fill)


def _canonical_box(source: Grid, canonical: Grid, content: Box) -> tuple[np.ndarray, np.ndarray]:
    """First and last index of ``content`` on the canonical grid, which has the same voxels in another order."""
    corners = np.array([[*content.first, 1.0], [*content.last, 1.0]]).T
    indices = np.rint(np.linalg.solve(canonical.affine, source.affine @ corners)[:3]).astype(int)
    return indices.min(axis=1), indices.max(axis=1)


def _smallest(
    needed: list[int],
    divisor: int,
    axes: list[list[int]] | None,
    triples: list[tuple[int, int, int]] | None,
    equal_xy: bool,
) -> tuple[int, int, int] | None:
    """The legal size with the fewest voxels that has at least ``needed`` of them along each axis."""
    if triples is not None:
        options = list(triples)
    elif axes is None:
        size = [math.ceil(n / divisor) * divisor for n in needed]
        if equal_xy:
            size[:2] = [max(size[:2])] * 2
        options = [tuple(size)]
    else:
        options = [(x, y, z) for x in axes[0] for y in axes[1] for z in axes[2]]
    fitting = [
        option
        for option in options
        if all(n >= want for n, want in zip(option, needed, strict=True)) and (not equal_xy or option[0] == option[1])
    ]
    return min(fitting, key=lambda option: (math.prod(option), option), default=None)  # type: ignore[return-value]


def _misfit(
    extent: np.ndarray, step: np.ndarray, axes: list[list[int]] | None, triples: list[tuple[int, int, int]] | None
) -> str:
    """Why labels of this extent (mm) do not fit at this voxel size (mm), and what would."""
    if triples is not None:
        largest = max(triples, key=lambda t: (min(n * s / mm for n, s, mm in zip(t, step, extent, strict=True)), t))
    else:
        largest = tuple(axis[-1] for axis in axes or [])
    needed = [math.ceil(mm / s - SPACING_TOLERANCE) for mm, s in zip(extent, step, strict=True)]
    long = [axis for axis in range(3) if needed[axis] > largest[axis]] or [0, 1]
    coarser = [max(s, math.ceil(mm / n * 1000) / 1000) for mm, s, n in zip(extent, step, largest, strict=True)]
    return (
        f"The labels span {_times(extent, '.0f')} mm. At a voxel size of {_times(step, '.4g')} mm that needs "
        f"{_times(needed, 'd')} voxels, but the nearest legal size is {_times(largest, 'd')} "
        f"(too short {' and '.join(_AXES[axis] for axis in long)}). "
        f"Use a voxel size of at least {_times(coarser, '.4g')} mm, or crop the mask."
    )


def _times(values: Sequence[float] | np.ndarray, form: str) -> str:
    return " × ".join(format(value, form) for value in values)
