"""The body envelope: label 200 wherever the patient is and no organ is labeled.

Models have learned that 0 is outside the patient and 200 inside. A mask of organs alone tells them that the organs
hang in the air, and the picture turns bad. Where a CT of the patient is at hand, the envelope is measured; otherwise it
is a smooth hull of the labels.
"""

from __future__ import annotations

import numpy as np

from MAISILib.anatomy.labels import LabelTable
from MAISILib.errors import MaskError
from MAISILib.resampling import resample_volume
from MAISILib.volumes import LabelMap, Volume

#: Above is tissue, below is gas or air. Between lung (−900 to −600 HU) and fat (−120 to −80 HU).
TISSUE_HU = -300.0
#: Sheets thinner than twice this do not belong to the patient: table tops, cables, blankets (mm).
OPENING_MM = 3.0
#: A part smaller than this fraction of the largest is not patient, unless an organ lies in it.
SMALLEST_PART = 0.05
#: Room between the outermost labels and the skin where no CT tells it (mm).
MARGIN_MM = 10.0
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
        margin_mm: Without a CT, how far the skin lies outside the outermost labels.

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


# ------------------------------------------------------------------ with a CT


def body_from_ct(ct: Volume, mask: LabelMap) -> np.ndarray:
    """The patient in a CT, on the mask's grid, with lungs and airways filled and without the table.

    Returns:
        ``(X, Y, Z)`` bool, on the mask's grid.

    Raises:
        MaskError: No tissue there.
    """
    from scipy import ndimage

    axis = _superior_axis(mask)
    hounsfield = np.moveaxis(resample_volume(ct, mask.grid, fill=-1000.0).array, axis, 2)
    organs = np.moveaxis(mask.array, axis, 2)
    spacing = np.delete(mask.spacing, axis)
    tissue = hounsfield > TISSUE_HU
    cross = np.zeros((3, 3, 3), dtype=bool)
    cross[:, 1, 1] = cross[1, :, 1] = True  # within a slice: a table is thin across, and long along the patient
    steps = int(OPENING_MM / float(spacing.min()))  # none for coarse voxels: they blur a thin table into air
    rim = steps + 1  # the picture may end inside the patient
    padded = np.pad(tissue, ((rim, rim), (rim, rim), (0, 0)), mode="edge")
    core = (ndimage.binary_opening(padded, cross, iterations=steps) if steps else padded)[rim:-rim, rim:-rim]
    parts: np.ndarray
    parts, count = ndimage.label(core)  # type: ignore[misc]
    if count == 0:
        raise MaskError(
            f"The CT shows no tissue above {TISSUE_HU:.0f} HU where the mask lies. "
            "Check that it is in HU and belongs to the same patient, or make the envelope without a CT."
        )
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept: np.ndarray = sizes >= SMALLEST_PART * sizes.max()
    kept |= np.bincount(parts[(organs > 0) & (organs != LabelTable.BODY)], minlength=count + 1) > 0
    kept[0] = False
    # Ears, nose and fingers went with the opening: give back the tissue near the parts that stayed.
    near: np.ndarray = ndimage.binary_dilation(kept[parts], cross, iterations=rim)
    body = (near & tissue) | (organs > 0)
    closed: np.ndarray = ndimage.binary_closing(np.pad(body, ((2, 2), (2, 2), (0, 0))), cross)[2:-2, 2:-2]
    closed = closed | body
    for k in range(closed.shape[2]):  # lungs, bowel gas and airway: enclosed within a slice
        closed[:, :, k] = ndimage.binary_fill_holes(closed[:, :, k])
    return np.moveaxis(closed, 2, axis)


# --------------------------------------------------------------- without a CT


def body_from_labels(mask: LabelMap, margin_mm: float = MARGIN_MM) -> np.ndarray:
    """A smooth hull of the labels, on the mask's grid.

    Every slice across the patient gets the convex hull of its labels. Hulls are blended along the body and interpolated
    across slices without labels by their support functions (the sum of convex shapes is convex), then grown by a ball
    of ``margin_mm``. Each label lies inside.

    Returns:
        ``(X, Y, Z)`` bool.

    Raises:
        MaskError: The mask is empty.
    """
    from scipy import ndimage

    axis = _superior_axis(mask)
    labeled = np.moveaxis(mask.array, axis, 2) != 0
    slices = np.flatnonzero(labeled.any(axis=(0, 1)))
    if not len(slices):
        raise MaskError("The mask is empty, so there is nothing to put a body around. Segment at least one structure.")
    spacing = np.array([*np.delete(mask.spacing, axis), mask.spacing[axis]])
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
    hull = np.zeros(labeled.shape, dtype=bool)
    hull[:, :, levels] = _fill(support, labeled.shape[:2], spacing, angles)
    return np.moveaxis(hull | labeled, 2, axis)


def hulls_of_slices(inside: np.ndarray, mask: LabelMap) -> np.ndarray:
    """The convex hull of some voxels in every slice across the patient, grown by a voxel; empty where a slice has none.

    Args:
        inside: ``(X, Y, Z)`` bool, on the mask's grid.
        mask: Says which way the patient lies.

    Returns:
        ``(X, Y, Z)`` bool.
    """
    axis = _superior_axis(mask)
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


def _superior_axis(mask: LabelMap) -> int:
    """The voxel axis that runs most nearly along the patient."""
    return int(np.argmax(np.abs(mask.affine[2, :3]) / np.asarray(mask.spacing)))
