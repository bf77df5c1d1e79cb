"""Does an image show what its mask says? Median HU of groups of labels, and structures found again by their HU.

A structure that is defined by Hounsfield units (bone, gas) can be found in the image without looking at the mask; how
well what is found overlaps with the mask's label says whether the image follows the mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from MAISILib.errors import RequestError


@dataclass(frozen=True)
class ThresholdStructure:
    """A structure that Hounsfield units find again.

    Args:
        labels: The mask's labels of it.
        within: Labels in which voxels are looked at: those that a voxel could have had instead, and ``labels`` itself.
            Labels that were drawn over the threshold's outcome (contoured organs) are left out, for their voxels can
            lie on either side of it without anything being wrong.
        above: A voxel belongs to it above so many HU; ``None`` has no lower bound.
        below: A voxel belongs to it below so many HU; ``None`` has no upper bound.
    """

    labels: tuple[int, ...]
    within: tuple[int, ...]
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        if self.above is None and self.below is None:
            raise RequestError(f"A structure of labels {self.labels} needs a HU threshold: give above, below or both.")
        if not set(self.labels) <= set(self.within):
            raise RequestError(f"Labels {self.labels} must be among the labels {self.within} that are looked at.")


def threshold_dice(image: np.ndarray, labels: np.ndarray, structure: ThresholdStructure) -> float:
    """Dice overlap of a structure in the mask and the voxels that its threshold finds in the image.

    Args:
        image: ``(X, Y, Z)`` in HU.
        labels: ``(X, Y, Z)`` integers on the same grid.
        structure: Labels and thresholds.

    Returns:
        2·|found ∩ mask| / (|found| + |mask|), 0 to 1; NaN where neither has a voxel.

    Raises:
        RequestError: The arrays differ in shape.
    """
    _check_same_shape(image, labels)
    found = np.isin(labels, structure.within)
    if structure.above is not None:
        found &= image > structure.above
    if structure.below is not None:
        found &= image < structure.below
    drawn = np.isin(labels, structure.labels)
    voxels = int(found.sum() + drawn.sum())
    return float(2 * (found & drawn).sum() / voxels) if voxels else math.nan


def median_hu(image: np.ndarray, labels: np.ndarray, groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Median HU inside each group of labels; NaN for a group that the mask does not hold.

    Args:
        image: ``(X, Y, Z)`` in HU.
        labels: ``(X, Y, Z)`` integers on the same grid.
        groups: Name → labels that are measured as one.

    Raises:
        RequestError: The arrays differ in shape.
    """
    _check_same_shape(image, labels)
    inside = {name: image[np.isin(labels, values)] for name, values in groups.items()}
    return {name: float(np.median(values)) if values.size else math.nan for name, values in inside.items()}


def largest_hu_outside(image: np.ndarray, labels: np.ndarray) -> float:
    """The largest HU where the mask has no label; NaN for a mask that fills the grid.

    Raises:
        RequestError: The arrays differ in shape.
    """
    _check_same_shape(image, labels)
    outside = image[labels == 0]
    return float(outside.max()) if outside.size else math.nan


def _check_same_shape(image: np.ndarray, labels: np.ndarray) -> None:
    if image.shape != labels.shape:
        raise RequestError(
            f"Image {image.shape} and mask {labels.shape} differ in size. Resample one to the other's grid first."
        )
