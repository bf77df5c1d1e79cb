from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from monai.metrics.regression import PSNRMetric, SSIMMetric

from MAISILib.errors import RequestError
from MAISILib.quality.fidelity import compare

SHAPE = (26, 24, 12)


def phantom() -> tuple[np.ndarray, np.ndarray]:
    """Air around a body (200) at 40 HU with a bone (33) at 600 HU, textured."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:13, 3:11, 1:11] = 200
    labels[7:9, 6:8, 1:11] = 33
    image = np.select([labels == 33, labels == 200], [600.0, 40.0], -1000.0)
    return image + np.where(labels > 0, np.random.default_rng(0).normal(0, 30, SHAPE), 0), labels


def test_known_error_in_the_body() -> None:
    """20 HU on a range of 2000 HU is 40 dB."""
    image, labels = phantom()
    found = compare(image + np.where(labels > 0, 20.0, 0.0), image, labels)
    part = (labels > 0).mean()
    assert found.psnr_body_db == pytest.approx(40.0)
    assert found.psnr_db == pytest.approx(40.0 - 10 * math.log10(part))
    assert found.mae_body_hu == pytest.approx(20.0)
    assert found.mae_hu == pytest.approx(20.0 * part)
    assert found.mae_label_hu == {33: pytest.approx(20.0), 200: pytest.approx(20.0)}


def test_errors_are_told_apart_by_label() -> None:
    image, labels = phantom()
    found = compare(image - np.where(labels == 33, 100.0, 0.0), image, labels)
    assert found.mae_label_hu == {33: pytest.approx(100.0), 200: 0.0}


def test_psnr_and_ssim_of_the_whole_volume_are_monais() -> None:
    image, labels = phantom()
    other = image + np.random.default_rng(1).normal(0, 50, SHAPE) * (labels > 0)
    first, second = (torch.from_numpy((a.clip(-1000, 1000) + 1000) / 2000)[None, None].float() for a in (other, image))
    found = compare(other, image, labels)
    assert found.psnr_db == pytest.approx(float(PSNRMetric(1.0)(first, second)), rel=1e-5)  # type: ignore[arg-type]
    assert found.ssim == pytest.approx(float(SSIMMetric(3)(first, second)), rel=1e-5)  # type: ignore[arg-type]
    assert found.ssim_body < found.ssim < 1


def test_equal_images_are_perfect() -> None:
    image, labels = phantom()
    found = compare(image, image, labels)
    assert (found.psnr_db, found.psnr_body_db, found.mae_hu) == (math.inf, math.inf, 0.0)
    assert (found.ssim, found.ssim_body) == (pytest.approx(1.0), pytest.approx(1.0))
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["psnr_db"] is None


def test_what_the_autoencoder_cannot_show_is_no_error() -> None:
    """Metal above 1000 HU and padding below −1000 HU are clipped in both images."""
    image, labels = phantom()
    image[7, 6, 5], image[0, 0, 0] = 3000, -1024
    clipped = image.clip(-1000, 1000)
    assert compare(clipped, image, labels).mae_hu == 0
    assert compare(clipped, image, labels, low=-1024, high=3000).mae_hu > 0


def test_an_empty_mask_has_no_body_to_measure() -> None:
    image, labels = phantom()
    found = compare(image + 5, image, np.zeros_like(labels))
    assert math.isnan(found.psnr_body_db)
    assert found.mae_label_hu == {}
    assert found.to_dict()["psnr_body_db"] is None


def test_bad_input_is_refused_with_its_values() -> None:
    image, labels = phantom()
    with pytest.raises(RequestError, match=r"\(26, 24, 11\).*\(26, 24, 12\).*one grid"):
        compare(image[..., 1:], image, labels)
    with pytest.raises(RequestError, match=r"\(26, 24, 10\).*11 voxels"):
        compare(image[..., 2:], image[..., 2:], labels[..., 2:])
    with pytest.raises(RequestError, match="image holds NaN"):
        compare(np.full(SHAPE, np.nan), image, labels)
