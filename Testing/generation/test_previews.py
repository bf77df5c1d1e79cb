from __future__ import annotations

import numpy as np
import torch

from MAISILib.generation.previews import image_preview, latent_preview
from MAISILib.volumes import Volume


def test_a_latent_shows_the_middle_coronal_slice_of_its_first_channel() -> None:
    latent = torch.zeros(1, 4, 6, 5, 8)
    latent[0, 0, :, 2, 4:] = 3.0
    latent[0, 1] = 100.0
    picture = latent_preview(latent)
    assert (picture.shape, picture.dtype) == ((6, 8), np.uint8)
    assert (picture[:, 4:] == 255).all()
    assert (picture[:, :4] == 0).all()


def test_a_ct_is_shown_through_a_window_and_an_mr_by_its_own_range() -> None:
    array = np.full((4, 3, 5), -1000, np.int16)
    array[0, 1], array[1, 1] = 100, 3000
    ct = image_preview(Volume(array, np.eye(4), "HU"))
    assert [int(column[0]) for column in ct] == [127, 255, 0, 0]
    mr = image_preview(Volume(np.arange(60).reshape(4, 3, 5).astype(np.int16), np.eye(4), "arbitrary"))
    assert mr.min() == 0
    assert mr.max() == 255


def test_a_slice_without_contrast_is_black() -> None:
    assert not latent_preview(torch.full((1, 1, 4, 4, 4), 2.0)).any()
    assert not image_preview(Volume(np.zeros((4, 4, 4), np.int16), np.eye(4), "arbitrary")).any()
