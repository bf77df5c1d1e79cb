"""Tidies what a mask generator draws: loose pieces, pinholes, remains of organs that were not wanted.

Connected components come from one pass over the volume and everything else from lookups, so that a mask of 256³ voxels
takes seconds. Lesions and all other labels that may consist of several pieces stay as they are drawn, however small.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from MAISILib.anatomy.labels import LabelTable
from MAISILib.anatomy.masks import remove_tumors
from MAISILib.volumes import LabelMap


def clean_up(mask: LabelMap, *, one_piece: Collection[int], unwanted: Collection[int] = ()) -> LabelMap:
    """A generated mask without what cannot be.

    - A patient is one piece: what floats beside the largest one becomes background.
    - Background that the patient encloses becomes body, where the mask has a body.
    - An organ of one piece keeps its largest one; the others become what lies nearest to them.
    - Body and background that such an organ encloses become the organ.
    - Labels that are not wanted become what lies nearest to them (a lesion: its host).

    Args:
        mask: As drawn.
        one_piece: Labels of organs that consist of one connected piece (of voxels that share at least a corner).
        unwanted: Labels to remove.

    Returns:
        A new mask; its ``notes`` say how many voxels were changed.
    """
    array = remove_tumors(mask, unwanted).array
    array = _without(array, np.isin(array, list(unwanted)), mask.spacing)
    array = _one_patient(array)
    array = _without(array, _loose_pieces(array, one_piece), mask.spacing)
    array = _without_holes(array, one_piece)
    changed = int(np.count_nonzero(array != mask.array))
    note = (f"Cleaned up: {changed} of {array.size} voxels changed.",) if changed else ()
    return mask.with_array(array, notes=(*mask.notes, *note))


def _without(array: np.ndarray, removed: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """``removed`` voxels take the label of the nearest voxel that stays."""
    from scipy import ndimage

    if not removed.any() or removed.all():
        return array
    nearest: np.ndarray = ndimage.distance_transform_edt(  # type: ignore[assignment]
        removed, sampling=spacing, return_distances=False, return_indices=True
    )
    return array[tuple(nearest)]


def _one_patient(array: np.ndarray) -> np.ndarray:
    """The largest connected piece of everything, with its enclosed background filled by body."""
    import cc3d
    from scipy import ndimage

    inside = array != 0
    if not inside.any():
        return array
    pieces = cc3d.connected_components(inside, connectivity=6)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    patient = pieces == sizes.argmax()
    array = np.where(patient, array, 0).astype(np.uint8)
    if (array == LabelTable.BODY).any():
        array[ndimage.binary_fill_holes(patient) & ~patient] = LabelTable.BODY  # type: ignore[operator]
    return array


def _loose_pieces(array: np.ndarray, one_piece: Collection[int]) -> np.ndarray:
    """Voxels of the given labels outside the largest piece of each, ``(X, Y, Z)`` bool."""
    import cc3d

    wanted = np.isin(np.arange(256), list(one_piece))
    pieces = cc3d.connected_components(np.where(wanted[array], array, 0).astype(np.uint8), connectivity=26)
    sizes = np.bincount(pieces.ravel())
    label_of = np.zeros(len(sizes), np.uint8)
    label_of[pieces.ravel()] = array.ravel()
    order = np.argsort(sizes, kind="stable")
    largest = np.zeros(256, np.int64)
    largest[label_of[order]] = order  # the last one that is written, the largest, stays
    is_loose = largest[label_of] != np.arange(len(sizes))
    is_loose[0] = False
    return is_loose[pieces]


def _without_holes(array: np.ndarray, one_piece: Collection[int]) -> np.ndarray:
    from scipy import ndimage

    array = array.copy()
    boxes = ndimage.find_objects(array, max_label=255)
    for label in one_piece:
        box = boxes[label - 1]
        if box is None:
            continue
        organ = array[box] == label
        filled: np.ndarray = ndimage.binary_fill_holes(organ)  # type: ignore[assignment]
        array[box][filled & np.isin(array[box], (0, LabelTable.BODY))] = label
    return array
