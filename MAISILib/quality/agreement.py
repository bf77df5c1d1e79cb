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

#: Tissue is above so many HU; gas, lung and the air around the patient are below.
TISSUE_HU = -300.0


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


def boundary_contrast(image: np.ndarray, labels: np.ndarray, step: int = 1) -> float:
    """How much steeper the image is where labels meet than elsewhere in the mask.

    The mean absolute difference of neighbouring voxels of different labels, divided by that of neighbours of one label.
    A mask that does not belong to the image comes to about 1; borders that lie on edges of the image to several.

    Args:
        image: ``(X, Y, Z)`` in HU.
        labels: ``(X, Y, Z)`` integers on the same grid.
        step: Look along one in so many rows of voxels of each plane only, in both of its directions.

    Returns:
        The ratio; NaN where no labels meet or the image is flat elsewhere.

    Raises:
        RequestError: The arrays differ in shape.
    """
    _check_same_shape(image, labels)
    across, pairs = np.zeros(2), np.zeros(2, np.int64)  # within a label, and between labels
    for axis in range(3):
        rows = tuple(slice(None, None, 1 if other == axis else step) for other in range(3))
        slopes = np.abs(np.diff(image[rows].astype(np.float32), axis=axis))
        before, after = (np.take(labels[rows], places, axis) for places in _neighbours(labels.shape[axis]))
        inside = (before > 0) | (after > 0)
        for kind, chosen in enumerate((inside & (before == after), inside & (before != after))):
            across[kind] += slopes[chosen].sum(dtype=np.float64)
            pairs[kind] += chosen.sum()
    if not pairs.all() or not across[0]:
        return math.nan
    within, between = across / pairs
    return float(between / within)


def explained_variance(image: np.ndarray, labels: np.ndarray) -> float:
    """Which part of the image's variance the labels explain, 0 to 1.

    The correlation ratio (Roche et al., MICCAI 1998, LNCS 1496): 1 − variance about each label's own mean / variance
    about the common mean, over the voxels that have a label or are brighter than −300 HU.

    Args:
        image: ``(X, Y, Z)`` in HU.
        labels: ``(X, Y, Z)`` uint8 on the same grid.

    Returns:
        The part; NaN where nothing is there or it is all of one value.

    Raises:
        RequestError: The arrays differ in shape.
    """
    _check_same_shape(image, labels)
    there = (labels > 0) | (image > TISSUE_HU)
    values, found = image[there].astype(np.float64), labels[there]
    if not values.size or not values.var():
        return math.nan
    counts = np.bincount(found, minlength=256)
    means = np.bincount(found, values, 256) / np.maximum(counts, 1)
    return float((counts * (means - values.mean()) ** 2).sum() / values.size / values.var())


def mirrored(labels: np.ndarray) -> list[np.ndarray]:
    """A mask mirrored left to right, in the two ways in which that happens: in its array, and about its own middle.

    Args:
        labels: ``(X, Y, Z)`` integers, X from left to right or from right to left.
    """
    flipped = labels[::-1]
    filled = np.flatnonzero((labels > 0).any(axis=(1, 2)))
    if not filled.size:
        return [flipped]
    shift = int(filled[0] + filled[-1] - (len(labels) - 1))
    return [flipped, np.roll(flipped, shift, axis=0)] if shift else [flipped]


def contrast_to_host(image: np.ndarray, labels: np.ndarray, lesion: int, host: int) -> tuple[float, float]:
    """How a lesion differs from the tissue around it: medians in HU, and in deviations of that tissue.

    Args:
        image: ``(X, Y, Z)`` in HU.
        labels: ``(X, Y, Z)`` integers on the same grid.
        lesion: Label of the lesion.
        host: Label of the tissue.

    Returns:
        Median of the lesion − median of the host, and the same divided by 1.4826 × the median absolute deviation of the
        host; NaN where one of the two is not in the mask.

    Raises:
        RequestError: The arrays differ in shape.
    """
    _check_same_shape(image, labels)
    inside, around = image[labels == lesion], image[labels == host]
    if not (inside.size and around.size):
        return math.nan, math.nan
    median = float(np.median(around))
    difference = float(np.median(inside)) - median
    deviation = 1.4826 * float(np.median(np.abs(around - median)))
    return difference, difference / max(deviation, 1.0)


def _neighbours(length: int) -> tuple[range, range]:
    return range(length - 1), range(1, length)


def _check_same_shape(image: np.ndarray, labels: np.ndarray) -> None:
    if image.shape != labels.shape:
        raise RequestError(
            f"Image {image.shape} and mask {labels.shape} differ in size. Resample one to the other's grid first."
        )
