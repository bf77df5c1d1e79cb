"""How different from one another are the volumes of a set? Multi-scale structural similarity of pairs.

MS-SSIM (Wang, Simoncelli and Bovik, Asilomar 2003) is 1 for two equal images. Its mean over pairs of different volumes
says how alike the set is; beside the same figure of real patients, it shows a generator that makes one image over and
over (mode collapse).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from MAISILib.errors import RequestError

#: Wang's weights of the scales; small volumes have room for the first of them only, which are then scaled to sum 1.
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
#: Voxels of its window along each axis; volumes have as many at least.
WINDOW, _DEVIATION = 7, 1.5


@dataclass(frozen=True)
class Diversity:
    """Similarity of the pairs of a set.

    Attributes:
        mean: Mean MS-SSIM; the lower, the more diverse.
        deviation: Standard deviation over pairs.
        pairs: Number of pairs.
        scales: Number of scales that the volumes have room for, up to 5.
    """

    mean: float
    deviation: float
    pairs: int
    scales: int


def pairwise_similarity(
    volumes: Sequence[np.ndarray],
    *,
    pairs: int = 100,
    seed: int = 0,
    low: float = -1000.0,
    high: float = 1000.0,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> Diversity:
    """Mean MS-SSIM over pairs of volumes.

    Args:
        volumes: Each ``(X, Y, Z)`` in HU, all of one shape.
        pairs: At most so many, drawn by chance.
        seed: Of the draw.
        low: HU that counts as 0.
        high: HU that counts as 1.
        on_done: Called after each pair; may raise to stop.

    Raises:
        RequestError: Fewer than two volumes, or an axis shorter than the window.
    """
    import torch
    from monai.metrics.regression import compute_ms_ssim

    if len(volumes) < 2:
        raise RequestError("One volume has no pair to be unlike. Give two at least.")
    scales = _scales(min(volumes[0].shape))
    weights = np.array(_WEIGHTS[:scales]) / sum(_WEIGHTS[:scales])
    every = [(i, j) for i in range(len(volumes)) for j in range(i)]
    chosen = np.random.default_rng(seed).permutation(len(every))[:pairs]
    found = []
    for number, place in enumerate(chosen, 1):
        first, second = (
            torch.from_numpy((volumes[k].astype(np.float32).clip(low, high) - low) / (high - low))[None, None]
            for k in every[place]
        )
        value = compute_ms_ssim(first, second, 3, kernel_size=WINDOW, kernel_sigma=_DEVIATION, weights=weights.tolist())
        found.append(float(value))
        on_done(number, len(chosen))
    return Diversity(float(np.mean(found)), float(np.std(found)), len(found), scales)


def _scales(shortest: int) -> int:
    """How many scales have room for the window; MONAI wants a little more room than halving takes."""
    if shortest < WINDOW:
        raise RequestError(f"An axis of {shortest} voxels is too short: MS-SSIM needs {WINDOW}. Take a finer grid.")
    return max(n for n in range(1, len(_WEIGHTS) + 1) if shortest // max((n - 1) ** 2, 2 ** (n - 1)) >= WINDOW)
