"""How near is an image to its reference? PSNR, SSIM and mean absolute error, in the body and per label.

Both images are clipped to the autoencoder's range, [−1000, 1000] HU by default, whose width is the peak of PSNR and the
dynamic range of SSIM (MAISI, arXiv:2409.11169, measures its autoencoder on the same range).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from MAISILib.errors import RequestError

#: SSIM's Gaussian window: edge in voxels and standard deviation (Wang et al., IEEE TIP 13(4), 2004).
SSIM_WINDOW, SSIM_DEVIATION = 11, 1.5


@dataclass(frozen=True)
class Fidelity:
    """How an image differs from its reference. NaN where there is no voxel to measure.

    Attributes:
        psnr_db: Peak signal-to-noise ratio over the whole volume; infinite for equal images.
        psnr_body_db: The same over the body.
        ssim: Mean structural similarity over the volume, 1 for equal images.
        ssim_body: Mean over the voxels of the body.
        mae_hu: Mean absolute error in HU over the whole volume.
        mae_body_hu: The same over the body.
        mae_label_hu: The same for each label of the mask.
    """

    psnr_db: float
    psnr_body_db: float
    ssim: float
    ssim_body: float
    mae_hu: float
    mae_body_hu: float
    mae_label_hu: dict[int, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, which has neither NaN nor infinity: both become ``None``."""
        plain = asdict(self)
        labels = plain.pop("mae_label_hu")
        finite = {name: value if math.isfinite(value) else None for name, value in plain.items()}
        return finite | {"mae_label_hu": {str(label): value for label, value in labels.items()}}


def compare(
    image: np.ndarray, reference: np.ndarray, labels: np.ndarray, low: float = -1000.0, high: float = 1000.0
) -> Fidelity:
    """Compares an image with its reference.

    Args:
        image: ``(X, Y, Z)`` in HU, a reconstruction for example.
        reference: ``(X, Y, Z)`` in HU on the same grid.
        labels: ``(X, Y, Z)`` integers on the same grid; the body is everything that is not 0.
        low: HU below it count as it.
        high: HU above it count as it.

    Raises:
        RequestError: The arrays differ in shape, an axis is shorter than SSIM's window, or a value is not finite.
    """
    _check(image, reference, labels)
    image, reference = (array.astype(np.float64).clip(low, high) for array in (image, reference))
    error, body = image - reference, labels > 0
    similarity = ssim_map((image - low) / (high - low), (reference - low) / (high - low))
    margin = (SSIM_WINDOW - 1) // 2
    inner = body[margin:-margin, margin:-margin, margin:-margin]
    return Fidelity(
        psnr_db=_psnr(error, high - low),
        psnr_body_db=_psnr(error[body], high - low),
        ssim=float(similarity.mean()),
        ssim_body=_mean(similarity[inner]),
        mae_hu=_mean(np.abs(error)),
        mae_body_hu=_mean(np.abs(error[body])),
        mae_label_hu={int(label): _mean(np.abs(error[labels == label])) for label in np.unique(labels[body])},
    )


def ssim_map(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Structural similarity at every voxel that SSIM's window fits around: ``(X − 10, Y − 10, Z − 10)``.

    Args:
        image: ``(X, Y, Z)``, from 0 to 1.
        reference: ``(X, Y, Z)``, from 0 to 1.
    """
    import torch
    from monai.metrics.regression import compute_ssim_and_cs

    first, second = (torch.from_numpy(array)[None, None].float() for array in (image, reference))
    similarity, _ = compute_ssim_and_cs(first, second, 3, [SSIM_WINDOW] * 3, [SSIM_DEVIATION] * 3, data_range=1.0)
    return similarity[0, 0].double().numpy()


def _psnr(error: np.ndarray, peak: float) -> float:
    if not error.size:
        return math.nan
    squared = float((error**2).mean())
    return 10 * math.log10(peak**2 / squared) if squared else math.inf


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _check(image: np.ndarray, reference: np.ndarray, labels: np.ndarray) -> None:
    if not image.shape == reference.shape == labels.shape:
        raise RequestError(
            f"Image {image.shape}, reference {reference.shape} and mask {labels.shape} differ in size. Resample them "
            "to one grid first."
        )
    if min(image.shape) < SSIM_WINDOW:
        raise RequestError(f"A volume of {image.shape} is too small: SSIM needs {SSIM_WINDOW} voxels along each axis.")
    for name, array in (("image", image), ("reference", reference)):
        if not np.isfinite(array).all():
            raise RequestError(f"The {name} holds NaN or infinity, which no error can be measured against.")
