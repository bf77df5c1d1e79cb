"""Where each label of a mask lies and how much of it there is, counted in one pass over the voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LabelProfiles:
    """How many voxels of each label lie in each plane of a volume.

    Args:
        x, y, z: ``(labels, n)``: voxels of a label in the planes across each voxel axis.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Voxels of each label, ``(labels,)``."""
        return self.x.sum(axis=1)

    @property
    def present(self) -> list[int]:
        """Labels with at least one voxel, ascending, without background."""
        return [int(value) for value in np.flatnonzero(self.counts) if value]

    def centers(self, affine: np.ndarray) -> dict[int, np.ndarray]:
        """The center of gravity of each label present, in RAS+ mm.

        Args:
            affine: ``(4, 4)``, voxel index to RAS+ mm.
        """
        present = self.present
        index = np.ones((len(present), 4))
        for axis, profile in enumerate((self.x, self.y, self.z)):
            weights = profile[present].astype(float)
            index[:, axis] = weights @ np.arange(profile.shape[1]) / weights.sum(axis=1)
        return dict(zip(present, (index @ affine.T)[:, :3], strict=True))


def label_profiles(array: np.ndarray, labels: int = 256) -> LabelProfiles:
    """Counts the labels of a volume plane by plane.

    Args:
        array: ``(X, Y, Z)``, whole numbers from 0 to ``labels - 1``.
        labels: How many labels there can be.
    """
    turned = array.flags.f_contiguous and not array.flags.c_contiguous
    planes = array.T if turned else array  # planes along the slowest axis lie in one piece in memory
    first = np.zeros((labels, planes.shape[0]), np.int64)
    second = np.zeros(labels * planes.shape[1], np.int64)
    third = np.zeros(labels * planes.shape[2], np.int64)
    row = np.arange(planes.shape[1])[:, None]
    column = np.arange(planes.shape[2])[None, :]
    for index, plane in enumerate(planes):
        wide = plane.astype(np.int64)
        first[:, index] = np.bincount(wide.ravel(), minlength=labels)
        second += np.bincount((wide * planes.shape[1] + row).ravel(), minlength=second.size)
        third += np.bincount((wide * planes.shape[2] + column).ravel(), minlength=third.size)
    axes = (first, second.reshape(labels, -1), third.reshape(labels, -1))
    return LabelProfiles(*(axes[::-1] if turned else axes))
