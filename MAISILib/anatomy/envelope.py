"""The body envelope: label 200 wherever the patient is and no organ is labeled.

Models have learned that 0 is outside the patient and 200 inside. A mask of organs alone tells them that the organs
hang in the air, and the picture turns bad. Where a CT of the patient is at hand, the envelope is measured; otherwise it
is a smooth hull of the labels.
"""

from __future__ import annotations

import numpy as np

from MAISILib.anatomy.body_in_ct import TISSUE_HU, body_from_ct, superior_axis
from MAISILib.anatomy.labels import LabelTable
from MAISILib.errors import MaskError
from MAISILib.volumes import LabelMap, Volume

#: Room between the outermost labels and the skin where no CT tells it (mm).
MARGIN_MM = 10.0
#: Bones that lie alone in an arm or a leg.
LIMB_BONES = ("left humerus", "right humerus", "left femur", "right femur")
#: Room around such a bone, as a multiple of its radius: an arm of 33 cm around a bone of 24 mm across has 3.4, a thigh
#: of 50 cm around one of 28 mm 4.7. Somewhat less: a guess shall not be fatter than the patient.
LIMB_TO_BONE = 3.0
#: Slices this near (mm) share one outline, so that the hull has no steps.
SMOOTHING_MM = 12.0
#: Directions in which the hull is measured; 72 leave less than 0.1 % between a circle and its polygon.
_DIRECTIONS = 72


def has_body(mask: LabelMap) -> bool:
    """Whether the mask says where the body is (label 200)."""
    return bool((mask.array == LabelTable.BODY).any())


def add_body(mask: LabelMap, ct: Volume | None = None, *, margin_mm: float = MARGIN_MM) -> LabelMap:
    """The mask with label 200 wherever the patient is and no organ is labeled. Organs are never overwritten.

    Args:
        mask: Organs, in any orientation.
        ct: A CT of the same patient in HU, on any grid; its outline is used where it is given.
        margin_mm: Without a CT, how far the skin lies outside the outermost labels; more around bones of arms and legs.

    Returns:
        A new mask; its ``notes`` say what was done. Without a CT, a mask that has a body already comes back as it is.

    Raises:
        MaskError: The mask is empty, its label table has no body label, or the CT shows no tissue where the mask lies.
    """
    if LabelTable.BODY not in mask.table:
        raise MaskError(
            f"The label table {mask.table.name!r} has no label {LabelTable.BODY} (body): this model needs no envelope."
        )
    if ct is not None:
        inside = body_from_ct(ct, mask)
        how = f"the CT above {TISSUE_HU:.0f} HU"
    elif has_body(mask):
        return mask.with_array(mask.array, notes=(*mask.notes, "The mask has a body (label 200); it was kept."))
    else:
        inside = body_from_labels(mask, margin_mm)
        how = f"a smooth hull {margin_mm:g} mm around the labels, a guess (give a CT for the real outline)"
    array = mask.array.copy()
    new = inside & (array == 0)
    array[new] = LabelTable.BODY
    milliliters = np.count_nonzero(new) * float(np.prod(mask.spacing)) / 1000
    return mask.with_array(array, notes=(*mask.notes, f"Body (label 200) added from {how}: {milliliters:.0f} mL."))


def body_from_labels(mask: LabelMap, margin_mm: float = MARGIN_MM) -> np.ndarray:
    """A smooth hull of the labels, on the mask's grid. Each label lies inside.

    Arms and legs whose bones are labeled (``LIMB_BONES``) have hulls of their own: no web spans between them and the
    trunk.

    Returns:
        ``(X, Y, Z)`` bool.

    Raises:
        MaskError: The mask is empty.
    """
    present = np.flatnonzero(mask.counts)
    if not present.any():
        raise MaskError("The mask is empty, so there is nothing to put a body around. Segment at least one structure.")
    limbs = [v for v in map(int, present) if v in mask.table and mask.table[v].name in LIMB_BONES]
    axis = superior_axis(mask)
    array = np.ascontiguousarray(np.moveaxis(mask.array, axis, 2))
    spacing = np.array([*np.delete(mask.spacing, axis), mask.spacing[axis]])
    inside = array != 0
    lookup = np.isin(np.arange(256), [0, *limbs], invert=True)
    for labeled, in_limb in [(lookup[array] if limbs else inside, False), *((array == bone, True) for bone in limbs)]:
        if labeled.any():
            room = max(margin_mm, LIMB_TO_BONE * _radius(labeled, spacing)) if in_limb and margin_mm else margin_mm
            _add_hull(labeled, spacing, room, inside)
    return np.moveaxis(inside, 2, axis)


def _radius(bone: np.ndarray, spacing: np.ndarray) -> float:
    """Of a disc with the median area of the bone's slices, in mm."""
    areas = bone.sum(axis=(0, 1))
    return float(np.sqrt(np.median(areas[areas > 0]) * spacing[0] * spacing[1] / np.pi))


def _add_hull(labeled: np.ndarray, spacing: np.ndarray, margin_mm: float, inside: np.ndarray) -> None:
    """Marks in ``inside`` the smooth hull of the labels ``(A, B, N)``, slices last.

    Every slice gets the convex hull of its labels. Hulls are blended along the body and interpolated across slices
    without labels by their support functions (the sum of convex shapes is convex), then grown by a ball.
    """
    from scipy import ndimage

    slices = np.flatnonzero(labeled.any(axis=(0, 1)))
    angles = np.arange(_DIRECTIONS) * 2 * np.pi / _DIRECTIONS
    first, last = slices[0], slices[-1]
    support = _support(labeled[:, :, slices], spacing, angles)
    every = np.arange(first, last + 1)
    support = np.stack([np.interp(every, slices, row) for row in support])
    # A maximum and then a mean over the same window is smooth and nowhere smaller than what went in.
    window = 2 * round(SMOOTHING_MM / 2 / spacing[2]) + 1
    support = ndimage.maximum_filter1d(support, window, axis=1, mode="nearest")
    support = ndimage.uniform_filter1d(support, window, axis=1, mode="nearest")
    beyond = int(margin_mm / spacing[2])  # the ball reaches over the first and the last slice
    levels = np.arange(max(0, first - beyond), min(labeled.shape[2], last + beyond + 1))
    away = (levels - levels.clip(first, last)) * spacing[2]
    support = support[:, levels.clip(first, last) - first] + np.sqrt(np.maximum(margin_mm**2 - away**2, 0.0))
    inside[:, :, levels[0] : levels[-1] + 1] |= _fill(support, labeled.shape[:2], spacing, angles)


def hulls_of_slices(inside: np.ndarray, mask: LabelMap) -> np.ndarray:
    """The convex hull of some voxels in every slice across the patient, grown by a voxel; empty where a slice has none.

    Args:
        inside: ``(X, Y, Z)`` bool, on the mask's grid.
        mask: Says which way the patient lies.

    Returns:
        ``(X, Y, Z)`` bool.
    """
    axis = superior_axis(mask)
    spacing = np.array([*np.delete(mask.spacing, axis), mask.spacing[axis]])
    angles = np.arange(_DIRECTIONS) * 2 * np.pi / _DIRECTIONS
    slices = np.moveaxis(inside, axis, 2)
    support = _support(slices, spacing, angles) + spacing[:2].max()
    return np.moveaxis(_fill(support, slices.shape[:2], spacing, angles), 2, axis)


def _support(labeled: np.ndarray, spacing: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """How far (mm) the labels ``(A, B, N)`` reach in each direction, per slice: ``(directions, N)``."""
    rows = labeled.any(axis=0)  # (B, N): only the two ends of a row can lie on the hull
    low = labeled.argmax(axis=0) * spacing[0]
    high = (labeled.shape[0] - 1 - labeled[::-1].argmax(axis=0)) * spacing[0]
    across = (np.arange(labeled.shape[1]) * spacing[1])[:, None]
    support = np.empty((len(angles), labeled.shape[2]))
    for index, (cosine, sine) in enumerate(zip(np.cos(angles), np.sin(angles), strict=True)):
        reach = np.maximum(cosine * low, cosine * high) + sine * across
        support[index] = np.where(rows, reach, -np.inf).max(axis=0)
    return support


def _fill(support: np.ndarray, shape: tuple[int, int], spacing: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Voxels ``(A, B, N)`` inside the convex shapes with these support functions ``(directions, N)``, row by row."""
    across = (np.arange(shape[1]) * spacing[1])[:, None]
    low = np.full((shape[1], support.shape[1]), -np.inf)
    high = np.full_like(low, np.inf)
    for reach, cosine, sine in zip(support + 1e-6, np.cos(angles), np.sin(angles), strict=True):
        if abs(cosine) < 1e-9:  # this direction bounds the row itself
            high[sine * across > reach] = -np.inf
        elif cosine > 0:
            high = np.minimum(high, (reach - sine * across) / cosine)
        else:
            low = np.maximum(low, (reach - sine * across) / cosine)
    along = (np.arange(shape[0]) * spacing[0])[:, None, None]
    return (along >= low) & (along <= high)
