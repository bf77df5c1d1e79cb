"""The connected pieces of labels, and what surrounds the pieces of lesions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from MAISILib.volumes import LabelMap


@dataclass(frozen=True)
class Pieces:
    """Connected pieces of a label map; voxels of one label that share at least a corner belong together.

    Args:
        numbers: ``(X, Y, Z)``: the piece of each voxel, 0 in the background.
        labels: ``(pieces + 1,)``: the label of each piece.
        sizes: ``(pieces + 1,)``: its voxels.
        centers: ``(pieces + 1, 3)``: its center of gravity, in voxel indices.
    """

    numbers: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    centers: np.ndarray

    def of(self, label: int) -> np.ndarray:
        """The numbers of a label's pieces, the largest first."""
        numbers = np.flatnonzero(self.labels == label)
        return numbers[np.argsort(-self.sizes[numbers], kind="stable")]


def pieces_of(mask: LabelMap) -> Pieces:
    """Finds the connected pieces of every label at once."""
    import cc3d

    numbers = cc3d.connected_components(mask.array, connectivity=26)
    statistics = cc3d.statistics(numbers, no_slice_conversion=True)
    sizes = np.asarray(statistics["voxel_counts"], np.int64)
    sizes[0] = 0
    labels = np.zeros(len(sizes), np.uint8)
    order = "F" if mask.array.flags.f_contiguous and not mask.array.flags.c_contiguous else "C"  # without a copy
    labels[numbers.ravel(order)] = mask.array.ravel(order)
    labels[0] = 0
    return Pieces(numbers, labels, sizes, np.asarray(statistics["centroids"], float))


def surroundings(mask: LabelMap, pieces: Pieces, which: Iterable[int]) -> dict[int, np.ndarray]:
    """What lies around some pieces.

    Returns:
        Piece → ``(256,)``: how many faces its voxels share with voxels of each other label
        (0: background). What the border of the volume cuts off is not known and does not count.
    """
    wanted = np.zeros(len(pieces.sizes), bool)
    wanted[list(which)] = True
    inside = np.nonzero(wanted[pieces.numbers])
    numbers = pieces.numbers[inside].astype(np.int64)
    own, rank = np.unique(numbers, return_inverse=True)
    counts = np.zeros((len(own), 256), np.int64)
    labels_inside = mask.array[inside]
    for axis in range(3):
        for step in (-1, 1):
            place = list(inside)
            place[axis] = (inside[axis] + step).clip(0, mask.array.shape[axis] - 1)
            beside = mask.array[tuple(place)]
            other = beside != labels_inside  # never beyond the border: there a voxel is its own neighbor
            counts += np.bincount(rank[other] * 256 + beside[other], minlength=counts.size).reshape(counts.shape)
    return dict(zip(own.tolist(), counts, strict=True))
