from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from MAISILib.training.crops import Crop, pick, prepare_crops
from Testing.training.conftest import SHAPE, SPACING


def test_every_patient_gives_a_crop_per_spacing(crops: list[Crop]) -> None:
    assert [c.path.name for c in crops] == [f"pt_{n}-{v}.npz" for n in (1, 2, 10) for v in (0, 1)]
    assert [c.case for c in crops] == ["pt_1", "pt_1", "pt_2", "pt_2", "pt_10", "pt_10"]
    for crop in crops:
        ct, labels = crop.load()
        assert ct.shape == labels.shape == SHAPE
        assert (ct.dtype, labels.dtype) == (np.float32, np.uint8)
        assert crop.spacing == SPACING
        assert crop.body_voxels == (labels > 0).sum()


def test_crops_hold_what_the_patient_holds(crops: list[Crop]) -> None:
    """Soft tissue is 10 HU brighter per patient number; interpolation may not move its median."""
    for crop, expected in zip(crops[::2], (50, 60, 140), strict=True):
        ct, labels = crop.load()
        assert np.median(ct[labels == 200]) == pytest.approx(expected, abs=2)
        assert ct[labels == 138].min() > 180
        assert ct[labels == 139].max() < -300


def test_prepared_crops_are_not_cut_again(crops: list[Crop], patients: Path) -> None:
    before = {c.path: c.path.stat().st_mtime_ns for c in crops}
    again = prepare_crops(patients / "no longer there", crops[0].path.parent, SHAPE, [SPACING])
    assert again == crops
    assert {c.path: c.path.stat().st_mtime_ns for c in again} == before


def test_same_seed_cuts_the_same_crops(crops: list[Crop], patients: Path, tmp_path: Path) -> None:
    low = [(7.0, 7.0, 3.5)] * 2
    one, two, other = (prepare_crops(patients, tmp_path / str(n), SHAPE, low, seed=n // 2) for n in (2, 3, 4))
    labels, same, different = ([crop.load()[1] for crop in some] for some in (one, two, other))
    assert all(np.array_equal(a, b) for a, b in zip(labels, same, strict=True))
    agreeing = [np.array_equal(a, b) for a, b in zip(labels, different, strict=True)]
    assert all(agreeing[::2])  # the first crop is centred, whatever the seed
    assert not all(agreeing[1::2])


def test_crop_that_holds_hardly_any_patient_is_left_out(patients: Path, tmp_path: Path) -> None:
    assert prepare_crops(patients, tmp_path, SHAPE, [(20.0, 20.0, 20.0)]) == []


def test_fuller_crops_are_picked_more_often(tmp_path: Path) -> None:
    full, sparse = (Crop(tmp_path / n, n, SPACING, voxels) for n, voxels in (("full", 90_000), ("sparse", 10_000)))
    rng = random.Random(1)
    picked = [pick([full, sparse], rng).case for _ in range(2000)]
    assert picked.count("full") / picked.count("sparse") == pytest.approx(3, rel=0.2)
