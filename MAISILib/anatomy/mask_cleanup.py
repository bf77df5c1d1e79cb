"""Tidies what a mask generator draws: loose pieces, pinholes, lesions outside of their hosts, organs nobody wanted.

Connected components come from one pass over the volume and everything else from lookups, so that a mask of 256³ voxels
takes seconds. A lesion inside of its host stays, however small it is.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from MAISILib.anatomy.labels import LabelTable
from MAISILib.anatomy.mask_pieces import Pieces, pieces_of, surroundings
from MAISILib.anatomy.masks import remove_tumors, tissues_around
from MAISILib.anatomy.nearest_label import replace_by_nearest
from MAISILib.volumes import LabelMap

#: A piece of a lesion that shares less of its surface than this with tissue that may host it lies outside.
_IN_HOST = 0.1


def clean_up(
    mask: LabelMap,
    *,
    one_piece: Collection[int] = (),
    unwanted: Collection[int] = (),
    lesions_in_hosts: bool = True,
) -> LabelMap:
    """A mask without what cannot be.

    - Labels that are not wanted become what lies nearest to them (a lesion: its host).
    - A patient is one piece: what floats beside the largest one becomes background.
    - Background that the patient encloses becomes body, where the mask has a body.
    - An organ of one piece keeps its largest one; the others become what lies nearest to them.
    - So does a piece of a lesion that hardly touches a tissue that may host it.
    - Gaps and notches of a voxel in a lesion are closed, where its host or body lies in them. Nothing is taken away.
    - Body and background that an organ of one piece encloses become the organ.

    Args:
        mask: As drawn.
        one_piece: Labels of organs that consist of one connected piece (of voxels that share at least a corner).
        unwanted: Labels to remove.
        lesions_in_hosts: Whether lesions outside of their hosts are removed.

    Returns:
        A new mask; its ``notes`` say how many voxels were changed, and which lesions were removed.
    """
    array = remove_tumors(mask, unwanted).array
    array = replace_by_nearest(array, _is_one_of(unwanted)[array], mask.spacing)
    array = _one_patient(array)
    pieces = pieces_of(mask.with_array(array))
    removed = _loose_pieces(pieces, one_piece)
    outside = _lesions_outside(mask.with_array(array), pieces) if lesions_in_hosts else []
    removed[outside] = True
    array = replace_by_nearest(array, removed[pieces.numbers], mask.spacing)
    _close_lesions(array, mask.table)
    _fill_holes(array, one_piece)
    changed = int(np.count_nonzero(array != mask.array))
    notes = [f"Cleaned up: {changed} of {array.size} voxels changed."] if changed else []
    if outside:
        voxels = np.bincount(pieces.labels[outside], pieces.sizes[outside]).astype(int)
        named = (f"{mask.table[int(label)].name} ({voxels[label]} voxels)" for label in np.flatnonzero(voxels))
        notes.append(f"Removed, because it lay outside of its host: {', '.join(named)}.")
    return mask.with_array(array, notes=(*mask.notes, *notes))


def _is_one_of(labels: Collection[int]) -> np.ndarray:
    """``(256,)`` bool, to be indexed with labels."""
    return np.isin(np.arange(256), list(labels))


def _one_patient(array: np.ndarray) -> np.ndarray:
    """The largest connected piece of everything, with its enclosed background filled by body."""
    import cc3d

    inside = array != 0
    if not inside.any():
        return array
    pieces = cc3d.connected_components(inside, connectivity=6)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    patient = pieces == sizes.argmax()
    array = np.where(patient, array, 0).astype(np.uint8)
    if (array == LabelTable.BODY).any():
        array[_enclosed(patient)] = LabelTable.BODY
    return array


def _enclosed(inside: np.ndarray) -> np.ndarray:
    """What ``inside`` shuts off from the border of the volume, ``(X, Y, Z)`` bool."""
    import cc3d

    pieces = cc3d.connected_components(~inside, connectivity=6)
    is_open = np.zeros(int(pieces.max()) + 1, bool)
    is_open[0] = True  # this is what shuts off
    for axis in range(3):
        for end in (0, -1):
            is_open[np.take(pieces, end, axis=axis)] = True
    return ~is_open[pieces]


def _loose_pieces(pieces: Pieces, one_piece: Collection[int]) -> np.ndarray:
    """Which pieces lie beside the largest one of their label, of the given labels: ``(pieces + 1,)`` bool."""
    order = np.argsort(pieces.sizes, kind="stable")
    largest = np.zeros(256, np.int64)
    largest[pieces.labels[order]] = order  # the last one that is written, the largest, stays
    is_loose = _is_one_of(one_piece)[pieces.labels] & (largest[pieces.labels] != np.arange(len(pieces.sizes)))
    is_loose[0] = False
    return is_loose


def _lesions_outside(mask: LabelMap, pieces: Pieces) -> list[int]:
    """The pieces of lesions that hardly touch a tissue that may host them."""
    tissues = {lesion: tissues_around(lesion, mask.table) for lesion in mask.table.hosts()}
    which = np.flatnonzero(_is_one_of(tissues)[pieces.labels] & (pieces.sizes > 0))
    outside = []
    for piece, faces in surroundings(mask, pieces, map(int, which)).items():
        at_home, shared = tissues[int(pieces.labels[piece])], faces.sum()
        # Where the body is a host, every tissue is.
        touched = shared - faces[0] if LabelTable.BODY in at_home else faces[at_home].sum()
        if shared and touched < _IN_HOST * shared:
            outside.append(piece)
    return outside


def _close_lesions(array: np.ndarray, table: LabelTable) -> None:
    """Closes each lesion with a cube of three voxels (dilation, then erosion), in place."""
    from scipy import ndimage

    boxes = ndimage.find_objects(array, max_label=255)
    for lesion in table.hosts():
        if boxes[lesion - 1] is None:
            continue
        part = array[tuple(slice(max(0, s.start - 2), s.stop + 2) for s in boxes[lesion - 1])]
        padded = np.pad(part == lesion, 1)  # what lies beyond the border is no lesion
        closed = ndimage.binary_closing(padded, np.ones((3, 3, 3)))[1:-1, 1:-1, 1:-1]
        part[closed & _is_one_of([*tissues_around(lesion, table), LabelTable.BODY])[part]] = lesion


def _fill_holes(array: np.ndarray, one_piece: Collection[int]) -> None:
    """Body and background inside of organs become the organ, in place."""
    from scipy import ndimage

    boxes = ndimage.find_objects(array, max_label=255)
    for label in one_piece:
        box = boxes[label - 1]
        if box is None:
            continue
        part = array[box]
        part[_enclosed(part == label) & _is_one_of([0, LabelTable.BODY])[part]] = label
