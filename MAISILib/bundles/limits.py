"""What output sizes, spacings and fields of view a bundle's networks may be asked for.

Sizes are voxels ``(X, Y, Z)``, spacings and fields of view mm along the same axes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict, model_validator

from MAISILib.errors import RequestError

#: Spacings come from files and scanners; two that differ by less than this (mm) are equal.
_SAME_SPACING = 1e-3
#: What a region is called in requests → in limit tables.
_REGION_SYNONYMS = {"thorax": "chest", "pelvis": "lower"}


class Limits(BaseModel):
    """Legal outputs of a bundle.

    Attributes:
        size_x, size_y, size_z: Allowed number of voxels along each axis; empty for any.
        equal_xy: x and y must be the same number.
        size_triples: When given, only these ``(X, Y, Z)`` are legal.
        spacing_min, spacing_max: Bounds in mm, inclusive.
        equal_spacing_xy: x and y spacing must be the same.
        min_field_of_view_xy: Body region to the smallest legal extent along x and along y in mm; ``""`` for any region
            that is not listed. When several regions are asked for, the largest of their minima holds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size_x: list[int] = []
    size_y: list[int] = []
    size_z: list[int] = []
    equal_xy: bool = False
    size_triples: list[tuple[int, int, int]] | None = None
    spacing_min: tuple[float, float, float] = (0.1, 0.1, 0.1)
    spacing_max: tuple[float, float, float] = (20.0, 20.0, 20.0)
    equal_spacing_xy: bool = False
    min_field_of_view_xy: dict[str, float] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Limits:
        if any(n <= 0 for axis in (self.size_x, self.size_y, self.size_z, *(self.size_triples or ())) for n in axis):
            raise ValueError("sizes must be positive numbers of voxels")
        if any(not 0 < low <= high for low, high in zip(self.spacing_min, self.spacing_max, strict=True)):
            raise ValueError("spacing_min must be positive and not above spacing_max")
        return self

    def check_size(self, size: Sequence[int], divisor: int = 1) -> None:
        """Accepts a legal output size.

        Args:
            size: Voxels ``(X, Y, Z)``.
            divisor: Every axis must be divisible by it (``Bundle.size_divisor``).

        Raises:
            RequestError: Not legal; the message names the rule and the nearest legal size.
        """
        problem = self._size_problem(size, divisor)
        if problem:
            raise RequestError(
                f"Output size {_times(size)} {problem}. Nearest: {_times(self.nearest_size(size, divisor))}."
            )

    def nearest_size(self, size: Sequence[int], divisor: int = 1) -> tuple[int, int, int]:
        """The legal size nearest to ``size`` (smallest sum of relative differences); the larger of two equally near.

        Raises:
            RequestError: These limits and this divisor leave no size at all.
        """
        candidates = [c for c in self._candidates(size, divisor) if self._size_problem(c, divisor) is None]
        if not candidates:
            raise RequestError(f"No output size divisible by {divisor} is legal for this bundle.")

        def distance(candidate: tuple[int, int, int]) -> tuple[float, int]:
            off = sum(abs(c - max(1, s)) / max(1, s) for c, s in zip(candidate, size, strict=True))
            return round(off, 9), -sum(candidate)

        return min(candidates, key=distance)

    def check_spacing(self, spacing: Sequence[float]) -> None:
        """Accepts a legal voxel spacing ``(x, y, z)`` in mm.

        Raises:
            RequestError: Not legal; the message names the rule and the nearest legal spacing.
        """
        bounds = list(zip("xyz", spacing, self.spacing_min, self.spacing_max, strict=True))
        outside = [
            f"{axis} must lie in {low:g}–{high:g} mm"
            for axis, value, low, high in bounds
            if not low - _SAME_SPACING <= value <= high + _SAME_SPACING
        ]
        if self.equal_spacing_xy and abs(spacing[0] - spacing[1]) > _SAME_SPACING:
            outside.append("x and y must be equal")
        if outside:
            nearest = [min(max(value, low), high) if value == value else low for _, value, low, high in bounds]
            if self.equal_spacing_xy:
                mean = (nearest[0] + nearest[1]) / 2
                nearest[:2] = [mean, mean]
            raise RequestError(f"Spacing {_times(spacing)} mm: {', '.join(outside)}. Nearest: {_times(nearest)} mm.")

    def check_field_of_view(self, size: Sequence[int], spacing: Sequence[float], regions: Iterable[str] = ()) -> None:
        """Accepts an output whose extent along x and y suits the body regions asked for.

        Args:
            size: Voxels ``(X, Y, Z)``.
            spacing: mm ``(x, y, z)``.
            regions: Names of body regions; empty when none is known.

        Raises:
            RequestError: Too small; the message gives the smallest spacing that this size needs.
        """
        needed, region = self.minimum_field_of_view(regions)
        extent = [size[axis] * spacing[axis] for axis in (0, 1)]
        if min(extent) < needed - _SAME_SPACING * max(size[:2]):
            enough = [max(spacing[axis], needed / size[axis]) for axis in (0, 1)]
            raise RequestError(
                f"The field of view is {extent[0]:.0f}×{extent[1]:.0f} mm in x and y; "
                f"{region or 'this bundle'} needs at least {needed:.0f} mm. "
                f"Nearest for {_times(size)} voxels: spacing {_times((*enough, spacing[2]))} mm."
            )

    def minimum_field_of_view(self, regions: Iterable[str] = ()) -> tuple[float, str]:
        """Smallest legal extent along x and y in mm for these regions, and the region that asks for it."""
        names = [_REGION_SYNONYMS.get(name.lower(), name.lower()) for name in regions] or [""]
        general = self.min_field_of_view_xy.get("", 0.0)
        return max((self.min_field_of_view_xy.get(name, general), name) for name in names)

    def _size_problem(self, size: Sequence[int], divisor: int) -> str | None:
        for axis, value, allowed in zip("xyz", size, (self.size_x, self.size_y, self.size_z), strict=True):
            if value <= 0:
                return f"has {value} voxels along {axis}; at least {divisor} are needed"
            if allowed and value not in allowed:
                return f"is not legal: {axis} must be one of {', '.join(map(str, sorted(allowed)))}"
            if value % divisor:
                return f"is not legal: {axis} must be divisible by {divisor}"
        if self.equal_xy and size[0] != size[1]:
            return "is not legal: x and y must be equal"
        if self.size_triples is not None and tuple(size) not in self.size_triples:
            return "is not one of the sizes this bundle makes"
        return None

    def _candidates(self, size: Sequence[int], divisor: int) -> Iterable[tuple[int, int, int]]:
        if self.size_triples is not None:
            return list(self.size_triples)
        axes = []
        for value, allowed in zip(size, (self.size_x, self.size_y, self.size_z), strict=True):
            below = max(value, divisor) // divisor * divisor
            axes.append(allowed or [below, below + divisor])
        if self.equal_xy:
            axes[0] = axes[1] = sorted({*axes[0], *axes[1]})
            return [(x, x, z) for x in axes[0] for z in axes[2]]
        return list(itertools.product(*axes))


def _times(values: Sequence[float]) -> str:
    return "×".join(f"{value:.4g}" for value in values)
