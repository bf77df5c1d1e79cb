"""The patient in a CT: without table, headrest and covers, with lungs and bowel gas."""

from __future__ import annotations

import numpy as np

from MAISILib.anatomy.labels import LabelTable
from MAISILib.errors import MaskError
from MAISILib.resampling import resample_volume
from MAISILib.volumes import Grid, LabelMap, Volume

#: Above is tissue, below is gas or air. Between lung (−900 to −600 HU) and fat (−120 to −80 HU).
TISSUE_HU = -300.0
#: Sheets thinner than twice this do not belong to the patient: table tops, cables, blankets (mm).
OPENING_MM = 3.0
#: Voxels are cut within slices until they are no larger than this (mm).
COARSEST_MM = 3.0
#: A part smaller than this fraction of the patient is not his, unless an organ lies in it; a forearm is 2 % of a trunk.
SMALLEST_PART = 0.01
#: Area over squared thickness within slices: 0.8 for a disc, 2 for a trunk with shoulders, 10 and more for table tops.
_SLENDER = 5.0
#: What the opening took away and is longer than this in a slice (mm) is a sheet; an ear or a nose is shorter.
_SHEET_MM = 80.0
#: Parts whose front lies no further than this (mm) before the patient's back lie behind him.
_BEHIND_MM = 10.0
#: A part that lies behind the patient in more of its slices than this is one of the table's.
_MOSTLY = 0.8


def body_from_ct(ct: Volume, mask: LabelMap) -> np.ndarray:
    """The patient in a CT, on a mask's grid.

    Tissue is opened within slices, which cuts thin sheets off. Of the parts that are left, those are the patient's that
    hold an organ, or are large, thick and not wholly behind or before him: arms and legs stay, and pieces of the table
    go, however many there are. Holes in a slice are lungs, airways and bowel gas.

    Args:
        ct: In HU, on any grid.
        mask: Says where to look and which way the patient lies; all its organs count as patient.

    Returns:
        ``(X, Y, Z)`` bool, on the mask's grid.

    Raises:
        MaskError: No tissue there, or a CT that is not in HU.
    """
    import cc3d
    from scipy import ndimage

    if float(ct.array.min()) >= 0:
        raise MaskError(
            "The CT shows nothing below 0 HU, where air and fat lie. Check that it is a CT in HU and no label map, or "
            "make the envelope without a CT."
        )
    axis = superior_axis(mask)
    # Cut within slices: a chest wall may be as thin as a coarse voxel, and so is a table.
    factors = np.ceil(np.asarray(mask.spacing) / COARSEST_MM - 0.01).astype(int)
    factors[axis] = 1
    hounsfield = np.moveaxis(
        resample_volume(ct, _finer(mask.grid, factors), fill=-1000.0).array, axis, 0
    )  # slices first
    tissue = np.ascontiguousarray(hounsfield > TISSUE_HU)
    labels = np.ascontiguousarray(np.moveaxis(mask.array, axis, 0))
    factors, spacing = np.delete(factors, axis), np.delete(mask.spacing / factors, axis)
    organs = labels.repeat(factors[0], axis=1).repeat(factors[1], axis=2)
    steps = (OPENING_MM / spacing).astype(int)
    core = _opened(tissue, steps)
    parts = cc3d.connected_components(core, connectivity=6)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    if not sizes.any():
        raise MaskError(
            f"The CT shows no tissue above {TISSUE_HU:.0f} HU where the mask lies. "
            "Check that it is in HU and belongs to the same patient, or make the envelope without a CT."
        )
    with_organs = np.bincount(parts[(organs > 0) & (organs != LabelTable.BODY)], minlength=len(sizes)) > 0
    front_back = int(np.argmax(np.abs(np.delete(mask.affine[1, :3] / mask.spacing, axis))))
    kept = _patients_parts(parts, sizes, with_organs, spacing, front_back)
    patient = kept[parts]
    # Ears, nose and fingers went with the opening: give back the tissue near the parts that stayed, but no sheets.
    near = patient
    for index, step in enumerate(steps):
        near = ndimage.maximum_filter1d(near.view(np.uint8), 2 * int(step) + 3, axis=index + 1, mode="constant") > 0
    body = patient | (near & _without_sheets(tissue & ~core, spacing)) | (organs > 0)
    cross = ndimage.generate_binary_structure(2, 1)[None]
    closed = np.asarray(ndimage.binary_closing(np.pad(body, ((0, 0), (2, 2), (2, 2))), cross))[:, 2:-2, 2:-2] | body
    for index in range(len(closed)):  # lungs, bowel gas and airway: enclosed within a slice
        closed[index] = ndimage.binary_fill_holes(closed[index])
    blocks = closed.reshape(len(closed), labels.shape[1], factors[0], labels.shape[2], factors[1])
    inside = closed if (factors == 1).all() else blocks.mean(axis=(2, 4)) >= 0.5
    return np.moveaxis(inside | (labels > 0), 0, axis)


def _finer(grid: Grid, factors: np.ndarray) -> Grid:
    """The grid with each voxel cut into so many along each axis."""
    affine = grid.affine.copy()
    affine[:3, :3] /= factors
    affine[:3, 3] -= affine[:3, :3] @ ((factors - 1) / 2)
    return Grid(tuple(int(n) for n in np.asarray(grid.shape) * factors), affine)  # type: ignore[arg-type]


def superior_axis(mask: LabelMap) -> int:
    """The voxel axis that runs most nearly along the patient."""
    return int(np.argmax(np.abs(mask.affine[2, :3]) / np.asarray(mask.spacing)))


def _opened(tissue: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Opening of each slice ``(N, A, B)`` by a rectangle of ``2 × steps + 1`` voxels.

    The picture may end inside the patient: its border counts as going on.
    """
    from scipy import ndimage

    opened = tissue.view(np.uint8)
    for filter1d in (ndimage.minimum_filter1d, ndimage.maximum_filter1d):
        for index, step in enumerate(steps):
            opened = filter1d(opened, 2 * int(step) + 1, axis=index + 1, mode="nearest")
    return opened > 0


def _patients_parts(
    parts: np.ndarray, sizes: np.ndarray, with_organs: np.ndarray, spacing: np.ndarray, front_back: int
) -> np.ndarray:
    """Which parts are the patient's, ``(parts + 1,)`` bool.

    Args:
        parts: ``(N, A, B)``: the part of each voxel, 0 where there is none.
        sizes: Voxels of each part.
        with_organs: Whether an organ of the mask lies in it.
        spacing: Of A and B in mm.
        front_back: 0 if A runs along the patient's front and back, 1 if B does.
    """
    slender = _slenderness(parts, sizes, spacing) > _SLENDER
    sturdy = np.where(slender, 0, sizes)
    largest = int(np.argmax(sturdy if sturdy.any() else sizes))
    kept = ~slender & (sizes >= SMALLEST_PART * sizes[largest])
    patients = _extents(parts == largest, front_back)
    tolerance = _BEHIND_MM / spacing[front_back]
    for part in np.flatnonzero(kept & ~with_organs):
        if part in (0, largest):
            continue
        first, last = _extents(parts == part, front_back)
        beside = (last >= 0) & (patients[1] >= 0)
        apart = (first > patients[1] - tolerance) | (last < patients[0] + tolerance)
        kept[part] = not beside.any() or apart[beside].mean() < _MOSTLY
    kept |= with_organs
    kept[largest], kept[0] = True, False
    return kept


def _slenderness(parts: np.ndarray, sizes: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Area over squared thickness of each part, both summed over its slices; 0 for parts too small to matter."""
    from scipy import ndimage

    squares = np.zeros(len(sizes))
    candidates = np.flatnonzero(sizes >= SMALLEST_PART * sizes.max())
    if len(candidates) == 1:  # nothing to choose from
        return squares
    for plane in parts:
        present = np.intersect1d(candidates, np.unique(plane), assume_unique=True)
        for part in present:  # filled: a chest is thick, although its walls are thin
            depth = ndimage.distance_transform_edt(ndimage.binary_fill_holes(plane == part), sampling=spacing)
            squares[part] += (2 * depth.max()) ** 2
    areas = sizes * float(np.prod(spacing))
    return np.divide(areas, squares, out=np.zeros(len(sizes)), where=squares > 0)


def _extents(inside: np.ndarray, front_back: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last voxel along front and back in each slice, ``(N,)`` each; the last is −1 where there is none."""
    rows = np.logical_or.reduce(inside, axis=2 - front_back)
    last = rows.shape[1] - 1 - rows[:, ::-1].argmax(axis=1)
    return rows.argmax(axis=1), np.where(rows.any(axis=1), last, -1)


def _without_sheets(residue: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """What an opening took away, ``(N, A, B)``, without pieces that are long within a slice."""
    import cc3d

    compact = np.zeros_like(residue)
    for index, plane in enumerate(residue):
        pieces = cc3d.connected_components(plane, connectivity=8)
        boxes = np.asarray(cc3d.statistics(pieces, no_slice_conversion=True)["bounding_boxes"], float)
        boxes = boxes.reshape(len(boxes), -1, 2)[:, :2]
        lengths = np.hypot(*((boxes[..., 1] - boxes[..., 0] + 1) * spacing).T)
        short = lengths < _SHEET_MM
        short[0] = False
        compact[index] = short[pieces]
    return compact
