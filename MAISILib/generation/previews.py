"""Small pictures of what is being made: the middle coronal slice, which shows most of a patient and costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from MAISILib.volumes import Volume

#: Percentiles of a slice that become black and white.
_BLACK, _WHITE = 1, 99
#: Of a CT: soft tissue with some of lung and bone (HU).
_CT_WINDOW = (-400.0, 600.0)


def latent_preview(latent: torch.Tensor) -> np.ndarray:
    """What can be seen in a latent without decoding it: its first channel.

    Args:
        latent: ``(1, C, x, y, z)``.

    Returns:
        ``(x, z)`` uint8; the axes run as those of the latent.
    """
    plane = latent[0, 0, :, latent.shape[3] // 2, :].float().cpu().numpy()
    return _grey(plane, *np.percentile(plane, (_BLACK, _WHITE)))


def image_preview(image: Volume) -> np.ndarray:
    """The middle slice of an image along its second axis, ``(X, Z)`` uint8."""
    plane = image.array[:, image.array.shape[1] // 2, :]
    return _grey(plane, *(_CT_WINDOW if image.units == "HU" else np.percentile(plane, (_BLACK, _WHITE))))


def _grey(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    return (np.clip((plane - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
