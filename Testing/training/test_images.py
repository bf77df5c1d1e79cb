"""Images for training: what networks get to see, and which files are refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from MAISILib.anatomy.labels import default_table
from MAISILib.errors import FileFormatError, MaisiError, MaskError, RequestError
from MAISILib.training.datalist import DataItem, read_datalist
from MAISILib.training.images import ImageDataset, ImageSettings
from Testing.training.patients import write_patient

PLAIN = ImageSettings(random_aug=False, patch_size=(16, 16, 16))


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)  # type: ignore[attr-defined]
    return path


def dataset(items: Any, settings: ImageSettings = PLAIN, *, training: bool = False, **more: Any) -> ImageDataset:
    return ImageDataset(items, settings, default_table(), training=training, **more)


def one(tmp_path: Path, array: np.ndarray, label: np.ndarray | None = None, **fields: Any) -> list[DataItem]:
    seg = None if label is None else save(tmp_path / "a_seg.nii.gz", label)
    return [DataItem("a", save(tmp_path / "a.nii.gz", array), seg, **fields)]


def test_ct_is_clipped_and_mapped_to_0_1(tmp_path: Path) -> None:
    array = np.full((8, 8, 8), 0, np.int16)
    array[0], array[1], array[2] = -1024, 3000, 500
    sample = dataset(one(tmp_path, array)).load(0, random.Random(0))
    assert sample.image.dtype == torch.float32
    assert sample.image.shape == (1, 8, 8, 8)
    assert [float(sample.image[0, i, 0, 0]) for i in range(4)] == pytest.approx([0.0, 1.0, 0.75, 0.5])
    assert (sample.label, sample.modality_code) == (None, 1)


def test_mr_is_mapped_by_percentiles_and_not_clipped_above(tmp_path: Path) -> None:
    array = np.arange(1000, dtype=np.float32).reshape(10, 10, 10) + 50
    array[-1, -1, -1] = 5000.0
    settings = ImageSettings(random_aug=False, divisor=1)
    sample = dataset(one(tmp_path, array, modality="mri_t1"), settings).load(0, random.Random(0))
    assert sample.modality_code == 9
    low, high = np.percentile(array, (0, 99.5))
    np.testing.assert_allclose(sample.image[0].numpy(), (array - low) / (high - low), atol=1e-5)
    assert float(sample.image.max()) > 4


def test_images_of_any_orientation_are_seen_in_ras_order(tmp_path: Path) -> None:
    for axes in ("RAS", "LPS"):
        (tmp_path / axes).mkdir()
        write_patient(tmp_path / axes, "pt_1", axes=axes)
    settings = ImageSettings(random_aug=False)
    ras, lps = (
        dataset(read_datalist(tmp_path / axes).training, settings).load(0, random.Random(0)) for axes in ("RAS", "LPS")
    )
    assert torch.equal(ras.image, lps.image)
    assert ras.label is not None
    assert lps.label is not None
    assert torch.equal(ras.label, lps.label)
    assert ras.label.dtype == torch.uint8
    assert ras.spacing == pytest.approx((4, 4, 4))


def test_a_fixed_spacing_resamples_image_and_label(patients: Path) -> None:
    settings = ImageSettings(random_aug=False, spacing_type="fixed", spacing=(8.0, 8.0, 2.0))
    sample = dataset(read_datalist(patients).training, settings).load(0, random.Random(0))
    assert sample.image.shape == (1, 16, 16, 64)
    assert sample.spacing == pytest.approx((8, 8, 2))
    assert sample.label is not None
    assert sample.label.shape == sample.image.shape
    assert set(sample.label.unique().tolist()) <= {0, 2, 3, 4, 8}


def test_a_channel_is_chosen(tmp_path: Path) -> None:
    array = np.stack([np.zeros((8, 8, 8)), np.full((8, 8, 8), 1000.0)], axis=-1).astype(np.float32)
    settings = ImageSettings(random_aug=False, select_channel=1)
    assert float(dataset(one(tmp_path, array), settings).load(0, random.Random(0)).image.min()) == 1.0


def test_held_out_images_are_whole_or_centred(tmp_path: Path) -> None:
    array = np.full((9, 20, 8), -1000, np.int16)
    array[4, 10, 4] = 1000
    items = one(tmp_path, array)
    assert dataset(items).load(0, random.Random(0)).image.shape == (1, 12, 20, 8)
    settings = ImageSettings(random_aug=False, val_patch_size=(12, 12, 8))
    first, second = (dataset(items, settings).load(0, random.Random(seed)) for seed in (0, 1))
    assert first.image.shape == (1, 12, 12, 8)
    assert float(first.image.max()) == 1.0
    assert torch.equal(first.image, second.image)


def test_the_same_random_numbers_give_the_same_patch(patients: Path) -> None:
    items, settings = read_datalist(patients).training, ImageSettings(patch_size=(16, 16, 16))
    kept, read = dataset(items, settings, training=True), dataset(items, settings, training=True, cache=0)
    read.load(1, random.Random(9))  # what was drawn before does not matter
    for seed in range(6):
        one_way, other_way = kept.load(0, random.Random(seed)), read.load(0, random.Random(seed))
        assert torch.equal(one_way.image, other_way.image)
        assert one_way.label is not None
        assert other_way.label is not None
        assert torch.equal(one_way.label, other_way.label)
    assert not torch.equal(kept.load(0, random.Random(1)).image, kept.load(0, random.Random(2)).image)


def test_images_are_read_once_as_far_as_the_cache_allows(tmp_path: Path) -> None:
    for name in "ab":
        write_patient(tmp_path, name)
    items = read_datalist(tmp_path).training
    cached, half = dataset(items), dataset(items, cache=1)
    for images in (cached, half):
        for index in range(2):
            images.prepared(index)
    for path in tmp_path.iterdir():
        path.unlink()
    assert len(cached) == 2
    for index in range(2):
        cached.load(index, random.Random(0))
    half.load(0, random.Random(0))
    with pytest.raises(FileFormatError, match="does not exist"):
        half.load(1, random.Random(0))


def bad(kind: str) -> tuple[np.ndarray, np.ndarray | None]:
    image = np.arange(512, dtype=np.float32).reshape(8, 8, 8)
    label = np.zeros((8, 8, 8), np.int16)
    if kind == "nan":
        image[0, 0, 0] = np.nan
    elif kind == "infinite":
        image[0, 0, 0] = np.inf
    elif kind == "above 255":
        label[0] = 256
    elif kind == "broken labels":
        return image, label + 0.5
    elif kind == "size":
        return image, label[1:]
    return image, label


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("nan", FileFormatError, r"a\.nii\.gz has no value \(NaN or infinity\) in 1 of 512"),
        ("infinite", FileFormatError, r"a\.nii\.gz has no value"),
        ("above 255", MaskError, r"a_seg\.nii\.gz holds labels outside 0–255: 256"),
        ("broken labels", MaskError, r"a_seg\.nii\.gz holds 1 values that are no whole numbers"),
        ("size", FileFormatError, r"a\.nii\.gz has 8×8×8.*a_seg\.nii\.gz has 7×8×8"),
    ],
)
def test_bad_voxels_are_refused_by_name(tmp_path: Path, kind: str, error: type[MaisiError], said: str) -> None:
    with pytest.raises(error, match=said):
        dataset(one(tmp_path, *bad(kind))).load(0, random.Random(0))


def test_an_image_without_contrast_is_refused(tmp_path: Path) -> None:
    items = one(tmp_path, np.full((8, 8, 8), 7, np.int16), modality="mri")
    with pytest.raises(FileFormatError, match=r"a\.nii\.gz is 7 nearly everywhere"):
        dataset(items).load(0, random.Random(0))


def test_an_unknown_modality_is_refused_by_name(tmp_path: Path) -> None:
    items = one(tmp_path, np.zeros((8, 8, 8), np.int16), modality="mri_t3")
    with pytest.raises(RequestError, match=r"a: unknown modality 'mri_t3'.*'mri_t1'"):
        dataset(items)


def test_settings_that_contradict_each_other_are_refused() -> None:
    for fields in ({"spacing_type": "fixed"}, {"spacing": (1, 1, 1)}, {"patch_size": (0, 1, 1)}, {"mirror": 2}):
        with pytest.raises(ValidationError):
            ImageSettings.model_validate(fields)
