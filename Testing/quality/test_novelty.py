from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage

from MAISILib.errors import RequestError
from MAISILib.quality.diversity import pairwise_similarity
from MAISILib.quality.novelty import NoveltyReport, _repeated, find_copies
from MAISILib.quality.signatures import Signature
from MAISILib.volumes import Grid, Volume
from Testing.quality.image_folders import SHAPE, SPACING, volume

GRID = Grid.axis_aligned(SHAPE, SPACING)
TRAINED = range(16)


def patient(seed: int) -> np.ndarray:
    """A body with bones and gas where this patient has them."""
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"))
    x, y, _ = places
    image = np.where(((x - 11.5) / 10) ** 2 + ((y - 9.5) / 8) ** 2 < 1, 40.0, -1000.0)
    for value in (700.0,) * 5 + (-900.0,) * 3:
        center = rng.uniform((5, 5, 2), (18, 14, 13))[:, None, None, None]
        image[(((places - center) / rng.uniform(1.5, 3)) ** 2).sum(axis=0) < 1] = value
    return image


def encode(image: np.ndarray) -> np.ndarray:
    """A latent of two channels: the image in half its resolution, and its bone."""
    x, y, z = image.shape
    halves = image.reshape(x // 2, 2, y // 2, 2, z // 2, 2)
    return np.stack([halves.mean((1, 3, 5)), (halves > 300).mean((1, 3, 5)) * 1000])


def signature(image: Volume | np.ndarray) -> Signature:
    return Signature(image if isinstance(image, Volume) else volume(image), GRID, encode)


@pytest.fixture(scope="module")
def training() -> dict[str, Signature]:
    return {f"t{seed}": signature(patient(seed)) for seed in TRAINED}


def compared(training: dict[str, Signature], **images: Volume | np.ndarray) -> NoveltyReport:
    return find_copies({name: signature(image) for name, image in images.items()}, training)


def padded(image: np.ndarray) -> np.ndarray:
    return np.pad(image, 4, constant_values=-1000)


def test_training_patient_is_found_though_shifted_and_noisy(training: dict[str, Signature]) -> None:
    noisy = padded(patient(5)) + np.random.default_rng(0).normal(0, 20, np.array(SHAPE) + 8)
    report = compared(training, copy=np.roll(noisy, (3, -3, 2), axis=(0, 1, 2)), new=patient(50))
    assert [case.name for case in report.copies] == ["copy"]
    copy, new = report.cases
    assert (copy.latent[0].name, copy.image[0].name) == ("t5", "t5")
    assert copy.copied_in == ("latent", "image")
    assert copy.latent[0].distance < 0.3 * report.expected["latent"].copy_below
    assert new.verdict == "new"
    json.dumps(report.to_dict(), allow_nan=False)
    assert "copy: copy; nearest in latent" in str(report)
    assert "vary the masks (--vary)" in str(report)


def test_other_patients_are_new(training: dict[str, Signature]) -> None:
    report = compared(training, **{f"v{seed}": patient(seed) for seed in range(100, 112)})
    assert report.copies == []
    assert "--vary" not in str(report), "no advice where nothing is wrong"
    for space, expected in report.expected.items():
        assert expected.copy_below < expected.low <= expected.median <= expected.high, space


def test_copy_on_another_grid_is_found(training: dict[str, Signature]) -> None:
    fine = ndimage.zoom(padded(patient(2)), 2, order=1, grid_mode=True, mode="nearest")
    turned = volume(fine, (3.0, 3.0, 2.0))
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = len(fine) - 1
    mirrored_file = Volume(fine[::-1], turned.affine @ flip)
    report = compared(training, finer=turned, flipped=mirrored_file)
    assert {case.name: case.latent[0].name for case in report.copies} == {"finer": "t2", "flipped": "t2"}


def test_distance_is_nothing_for_the_same_and_has_no_direction(training: dict[str, Signature]) -> None:
    first, second = training["t0"], training["t1"]
    for space in ("latent", "image"):
        assert first.distance(first, space) == pytest.approx(0, abs=1e-5)
        assert first.distance(second, space) == pytest.approx(second.distance(first, space), abs=1e-5)
        assert 0 < first.distance(second, space) < 1


def test_nearest_come_first_and_as_many_as_asked_for(training: dict[str, Signature]) -> None:
    report = find_copies({"a": signature(patient(60))}, training, neighbours=5)
    distances = [neighbour.distance for neighbour in report.cases[0].image]
    assert len(distances) == 5
    assert distances == sorted(distances)


def test_patients_twice_in_the_training_set_do_not_hide_copies(training: dict[str, Signature]) -> None:
    noise = np.random.default_rng(3).normal(0, 10, (len(TRAINED), *SHAPE))
    again = {f"t{seed} again": signature(patient(seed) + noise[seed]) for seed in TRAINED}
    copy = patient(4) + np.random.default_rng(4).normal(0, 20, SHAPE)
    plain, doubled = (compared(known, copy=copy, new=patient(70)) for known in (training, {**training, **again}))
    assert plain.repeated == {}
    assert doubled.repeated == {f"t{seed} again": f"t{seed}" for seed in TRAINED}
    assert "16 training volumes of a patient who is there already: t0 again = t0" in str(doubled)
    assert [case.name for case in doubled.copies] == ["copy"]
    for space, expected in plain.expected.items():
        assert doubled.expected[space].copy_below == pytest.approx(expected.copy_below, rel=1e-6), space


@pytest.mark.parametrize("scans", [6, 10, 40])
def test_many_scans_of_one_patient_do_not_hide_a_copy(training: dict[str, Signature], scans: int) -> None:
    rng = np.random.default_rng(5)
    several = {f"s{n}": signature(patient(50) + rng.normal(0, 5, SHAPE)) for n in range(scans)}
    few = dict(list(training.items())[:6])
    copy = patient(50) + rng.normal(0, 20, SHAPE)
    report = find_copies({"copy": signature(copy), "new": signature(patient(60))}, {**few, **several})
    assert report.repeated == {f"s{n}": "s0" for n in range(1, scans)}
    assert [case.name for case in report.copies] == ["copy"]
    with pytest.raises(RequestError, match=r"1 training volume of different.*there already"):
        find_copies({}, several)


def test_scans_that_are_alike_in_turn_are_one_patients() -> None:
    near = np.full((3, 3), 0.5)
    near[0, 1] = near[1, 0] = near[1, 2] = near[2, 1] = 1e-4
    assert _repeated([near, near]) == {1: 0, 2: 0}, "2 is like 1, which is like 0"


def test_of_many_training_volumes_some_tell_how_far_apart_patients_are(training: dict[str, Signature]) -> None:
    many = {f"{name} {n}": one for n in range(15) for name, one in training.items()}
    report = find_copies({"new": signature(patient(60))}, many)
    assert (report.training, report.compared) == (240, 120)
    assert "from 120 of the training volumes" in str(report)


def test_with_few_patients_nothing_is_called_new(training: dict[str, Signature]) -> None:
    few = dict(list(training.items())[:6])
    report = compared(few, copy=patient(3) + 0.1, other=patient(50))
    assert {case.name: case.verdict for case in report.cases} == {"copy": "copy", "other": "undecided"}
    assert "fewer than 16 training patients" in str(report)
    assert report.expected["latent"].copy_below < compared(training).expected["latent"].copy_below


def test_what_cannot_be_compared_is_said(training: dict[str, Signature]) -> None:
    with pytest.raises(RequestError, match=r"3 training volumes of different patients do not tell.*4 at least"):
        find_copies({}, dict(list(training.items())[:3]))
    doubled = {name: training[name[:2]] for name in ("t0", "t0 again", "t1", "t1 again")}
    with pytest.raises(
        RequestError, match=r"2 training volumes of different.*2 training volumes.*there already: t0 ag"
    ):
        find_copies({}, doubled)
    with pytest.raises(RequestError, match=r"1 training volume .*Left out: c\.nii is damaged\. Give 4"):
        find_copies({}, {"t0": training["t0"]}, left_out=["c.nii is damaged."])
    with pytest.raises(RequestError, match="NaN"):
        signature(np.where(patient(0) > 300, np.nan, patient(0)))
    with pytest.raises(RequestError, match="blank"):
        signature(np.full(SHAPE, -1000.0))


def test_a_set_of_copies_is_alike_and_real_patients_are_not() -> None:
    rng = np.random.default_rng(0)
    patients = [patient(seed) for seed in range(5)]
    copies = [patients[0] + rng.normal(0, 5, SHAPE) for _ in range(5)]
    unlike, alike = pairwise_similarity(patients), pairwise_similarity(copies)
    assert (unlike.pairs, unlike.scales) == (10, 2)
    assert unlike.pairs == alike.pairs
    assert alike.mean > 0.95
    assert unlike.mean < alike.mean - 0.1
    assert pairwise_similarity([patients[0]] * 2).mean == pytest.approx(1, abs=1e-5)


def test_pairs_are_drawn_by_the_seed_and_one_volume_has_none() -> None:
    patients = [patient(seed) for seed in range(5)]
    assert pairwise_similarity(patients, pairs=3, seed=1) == pairwise_similarity(patients, pairs=3, seed=1)
    assert pairwise_similarity(patients, pairs=3, seed=1).pairs == 3
    with pytest.raises(RequestError, match="two at least"):
        pairwise_similarity(patients[:1])
    with pytest.raises(RequestError, match="6 voxels is too short"):
        pairwise_similarity([np.zeros((6, 9, 9))] * 2)
