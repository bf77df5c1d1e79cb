"""On which grid a bundle's networks see a user's mask, in generating and in training alike."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from MAISILib.anatomy.grids import Box, model_grid
from MAISILib.errors import MaskError
from MAISILib.resampling import canonical_grid
from MAISILib.volumes import Grid

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle

#: No mask of a patient is smaller (mm); one whose header counts in meters is.
_LEAST_EXTENT_MM = 3.0
#: Air around the patient in a model grid made for a user's mask: a head-and-neck CT shows about that much.
_MARGIN_MM = 10.0

Size = tuple[int, int, int]
Spacing = tuple[float, float, float]


def grid_for_mask(
    bundle: Bundle,
    mask_grid: Grid,
    content: Box,
    *,
    recommended: Size,
    spacing: Spacing | None,
    size: Size | None = None,
    regions: Iterable[str] = (),
) -> Grid:
    """The smallest grid that is legal for the bundle and covers the labels of a mask, with some air around them.

    Args:
        bundle: Whose limits hold.
        mask_grid: The user's grid, in any orientation.
        content: Where its labels lie.
        recommended: The bundle's recommended size.
        spacing: Voxel size in mm along R, A, S; ``None`` keeps the mask's own, within the bundle's limits.
        size: Exactly this size, where it is given.
        regions: Body regions that are shown, for the least field of view.

    Raises:
        MaskError: No legal size covers the labels; the message says the nearest. Or the mask is as small as none is.
        RequestError: The field of view is too small for the bundle.
    """
    limits = bundle.manifest.limits
    extent = mask_grid.field_of_view
    if max(extent) < _LEAST_EXTENT_MM:
        raise MaskError(
            f"The mask spans {' × '.join(f'{mm:.2g}' for mm in extent)} mm, smaller than any patient. If its header "
            "counts in meters, set it to millimeters and export the mask again."
        )
    spacing = spacing or own_spacing(bundle, mask_grid)

    def fitted(sizes: list[list[int]] | None, triples: list[Size] | None = None) -> Grid:
        return model_grid(
            mask_grid,
            content,
            spacing,
            divisor=bundle.size_divisor,
            allowed_sizes=sizes,
            allowed_triples=triples,
            equal_xy=limits.equal_xy,
            margin_mm=_MARGIN_MM,
        )

    # A model that was trained on one size is never given a smaller one: the air belongs to it.
    least = recommended if bundle.manifest.mask_spacing == "recommended" else (1, 1, 1)
    if size:
        grid = fitted([[n] for n in size])
    elif limits.size_triples is not None:
        grid = fitted(None, limits.size_triples)
    else:
        sizes = [list(axis) for axis in (limits.size_x, limits.size_y, limits.size_z)]
        if not all(sizes):  # an axis without a list may have any length
            free = fitted(None).shape
            sizes = [axis or [max(n, r)] for axis, n, r in zip(sizes, free, least, strict=True)]
        grid = fitted([[n for n in axis if n >= r] or axis for axis, r in zip(sizes, least, strict=True)])
    limits.check_field_of_view(grid.shape, grid.spacing, regions)
    return grid


def own_spacing(bundle: Bundle, mask_grid: Grid) -> Spacing:
    """The voxel size (mm along R, A, S) of a grid, moved into the bundle's limits."""
    limits = bundle.manifest.limits
    own = canonical_grid(mask_grid).spacing  # along R, A, S, whatever the order of the file's axes
    x, y, z = (min(max(s, a), b) for s, a, b in zip(own, limits.spacing_min, limits.spacing_max, strict=True))
    return (x, x, z) if limits.equal_spacing_xy else (x, y, z)


def largest_size(bundle: Bundle) -> tuple[float, float, float]:
    """The most voxels that the bundle takes along each axis; infinite where any number is legal."""
    limits, divisor = bundle.manifest.limits, bundle.size_divisor
    if limits.size_triples is not None:
        return max((triple for triple in limits.size_triples if not any(n % divisor for n in triple)), key=math.prod)
    axes = (limits.size_x, limits.size_y, limits.size_z)
    x, y, z = (max((n for n in axis if n % divisor == 0), default=math.inf) for axis in axes)
    return (min(x, y), min(x, y), z) if limits.equal_xy else (x, y, z)
