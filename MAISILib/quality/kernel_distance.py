"""Kernel inception distance: how far two small sets are apart, without the bias that FID has there.

KID (Bińkowski et al., arXiv:1801.01401) is the squared maximum mean discrepancy of features with the kernel
(x·y / F + 1)³. Slices of one volume are alike, so that pairs from one volume would pull the estimate up; only
pairs of different volumes are taken here, which keeps it unbiased: around 0 for two sets of the same patients' kind,
negative as often as positive.
"""

from __future__ import annotations

import hashlib

import numpy as np

from MAISILib.quality.feature_store import FeatureSet
from MAISILib.quality.fid import PLANES

#: At most so many slices of each plane are kept.
SLICES = 1000


def kernel_distance(first: FeatureSet, second: FeatureSet) -> dict[str, float]:
    """2.5D KID between two sets: ``xy``, ``yz``, ``zx`` and their ``mean``.

    Of more than :data:`SLICES` slices of a plane, those are taken whose name has the smallest hash: by chance, but the
    same in whatever order volumes come. Memory does not grow with the sets.

    Args:
        first: At least two volumes.
        second: At least two volumes.
    """
    ones, twos = _sampled(first), _sampled(second)
    found = {plane: _squared_discrepancy(*ones[plane], *twos[plane]) for plane in PLANES}
    return found | {"mean": float(np.mean(list(found.values())))}


def _sampled(volumes: FeatureSet) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Plane → features ``(S, F)`` and the number of the volume of each ``(S,)``, in an order that names decide."""
    kept: dict[str, list[tuple[bytes, int, np.ndarray]]] = {plane: [] for plane in PLANES}
    for number, (name, features) in enumerate(zip(volumes.names, volumes, strict=True)):
        for plane, vectors in features.items():
            kept[plane] += [
                (hashlib.sha256(f"{name} {plane} {place}".encode()).digest(), number, vector)
                for place, vector in enumerate(vectors)
            ]
            kept[plane] = sorted(kept[plane], key=lambda item: item[0])[:SLICES]
    return {
        plane: (np.stack([vector for _, _, vector in items]), np.array([number for _, number, _ in items]))
        for plane, items in kept.items()
    }


def _squared_discrepancy(x: np.ndarray, of_x: np.ndarray, y: np.ndarray, of_y: np.ndarray) -> float:
    return float(_mean_between(x, of_x) + _mean_between(y, of_y) - 2 * _kernel(x, y).mean())


def _mean_between(x: np.ndarray, volumes: np.ndarray) -> float:
    """The mean kernel of pairs of different volumes; NaN where all slices are of one."""
    different = volumes[:, None] != volumes[None]
    return float(_kernel(x, x)[different].mean()) if different.any() else float("nan")


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3
