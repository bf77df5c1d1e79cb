"""Which sizes and spacings a bundle takes, from the limits that the engine describes. Plain arithmetic, no widgets."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Size = tuple[int, int, int]
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class LegalGrid:
    """Limits of one bundle.

    Args:
        allowed: Allowed numbers of voxels along x, y and z; empty for every multiple of ``divisor``.
        divisor: Every size is a multiple of it.
        triples: Where given, only these sizes.
        equalXY: Whether x and y have the same number of voxels.
        spacingMin: Smallest spacing in mm.
        spacingMax: Largest spacing in mm.
        equalSpacingXY: Whether x and y have the same spacing.
        minimumFieldOfView: Smallest extent along x and y in mm, by body region; ``""`` for the others.
    """

    allowed: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] = ((), (), ())
    divisor: int = 1
    triples: tuple[Size, ...] = ()
    equalXY: bool = False
    spacingMin: Spacing = (0.1, 0.1, 0.1)
    spacingMax: Spacing = (20.0, 20.0, 20.0)
    equalSpacingXY: bool = False
    minimumFieldOfView: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def fromDescription(cls, description: Mapping[str, Any]) -> LegalGrid:
        """The limits in the engine's ``describe``."""
        limits = description.get("limits") or {}
        return cls(
            allowed=tuple(tuple(sorted(limits.get(f"size_{axis}") or ())) for axis in "xyz"),  # type: ignore[arg-type]
            divisor=int(description.get("divisor") or 1),
            triples=tuple(tuple(triple) for triple in limits.get("size_triples") or ()),  # type: ignore[misc]
            equalXY=bool(limits.get("equal_xy")),
            spacingMin=tuple(limits.get("spacing_min") or cls.spacingMin),  # type: ignore[arg-type]
            spacingMax=tuple(limits.get("spacing_max") or cls.spacingMax),  # type: ignore[arg-type]
            equalSpacingXY=bool(limits.get("equal_spacing_xy")),
            minimumFieldOfView=limits.get("min_field_of_view_xy") or {},
        )

    def values(self, axis: int) -> tuple[int, ...]:
        """Numbers of voxels that one axis may have; empty for every multiple of the divisor."""
        values = self.allowed[axis] or tuple(sorted({triple[axis] for triple in self.triples}))
        return tuple(value for value in values if value % self.divisor == 0)

    def step(self, axis: int) -> int:
        """How far the next legal number of voxels is, at least."""
        values = self.values(axis)
        return min((b - a for a, b in itertools.pairwise(values)), default=self.divisor)

    def nearestSize(self, size: Sequence[int], axis: int) -> Size:
        """The nearest legal size; the axis that the user has just changed leads."""
        x, y, z = (self._nearest(value, each) for each, value in enumerate(size))
        if self.equalXY:
            x = y = y if axis == 1 else x
        if not self.triples:
            return x, y, z
        others = [each for each in range(3) if each != axis]
        return min(
            self.triples,
            key=lambda triple: (abs(triple[axis] - size[axis]), sum(abs(triple[each] - size[each]) for each in others)),
        )

    def nearestSpacing(self, spacing: Sequence[float], axis: int) -> Spacing:
        """The nearest legal spacing in mm; the axis that the user has just changed leads."""
        bounds = zip(spacing, self.spacingMin, self.spacingMax, strict=True)
        x, y, z = (min(max(value, low), high) for value, low, high in bounds)
        if self.equalSpacingXY:
            x = y = y if axis == 1 else x
        return x, y, z

    def neededFieldOfView(self, regions: Sequence[str]) -> float:
        """Smallest legal extent along x and y in mm for these body regions; 0 where everything is legal."""
        general = self.minimumFieldOfView.get("", 0.0)
        return max(self.minimumFieldOfView.get(region, general) for region in (list(regions) or [""]))

    def _nearest(self, value: int, axis: int) -> int:
        values = self.values(axis)
        if not values:
            below = max(value, self.divisor) // self.divisor * self.divisor
            values = (below, below + self.divisor)
        return min(values, key=lambda legal: (abs(legal - value), -legal))
