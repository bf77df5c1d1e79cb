"""New lesions in a mask: of the size and shape that was asked for, in their host, or a reason why not."""

from __future__ import annotations

import math
from typing import Any

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MAISILib.anatomy.lesion_insertion import SHAPES, insert_lesion
from MAISILib.errors import MaskError, RequestError
from MAISILib.volumes import LabelMap
from Testing.anatomy.phantoms import label_map, turned
from Testing.tiny_bundle import BODY, LIVER, LUNG, tiny_patient

HEPATIC_TUMOR = 26


def patient() -> LabelMap:
    return tiny_patient(shape=(48, 40, 36), spacing=(2.0, 2.5, 3.0))


@given(
    st.sampled_from(SHAPES),
    st.floats(2, 28),
    st.integers(0, 2**40),
    st.permutations([0, 1, 2]),
    st.tuples(*[st.integers(0, 1)] * 3),
)
@settings(deadline=None, max_examples=40)
def test_lesion_has_its_volume_in_its_host_and_is_one_piece(
    shape: str, diameter: float, seed: int, order: list[int], flips: tuple[int, int, int]
) -> None:
    mask = turned(patient(), tuple(order), flips)  # type: ignore[arg-type]
    made, told = insert_lesion(mask, "hepatic tumor", diameter, shape=shape, seed=seed)
    new = made.array != mask.array
    assert (made.array[new] == HEPATIC_TUMOR).all()
    assert (mask.array[new] == LIVER).all()
    assert new.sum() == told.voxels == max(1, round(math.pi / 6 * diameter**3 / 15))
    assert cc3d.connected_components(new, connectivity=26).max() == 1
    place = (mask.affine @ np.append(np.argwhere(new).mean(axis=0), 1))[:3]
    np.testing.assert_allclose(place, told.center_mm, atol=0.1)


def test_same_seed_same_lesion() -> None:
    first, again, other = (insert_lesion(patient(), 26, 15, seed=seed).mask.array for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_round_lesions_are_the_most_compact() -> None:
    def spread(shape: str) -> float:
        places = np.argwhere(insert_lesion(patient(), 26, 20, shape=shape, center_mm=(0, 0, -25)).mask.array == 26)
        return float((((places - places.mean(axis=0)) * (2.0, 2.5, 3.0)) ** 2).sum(axis=1).mean())

    assert all(spread(shape) > 1.02 * spread("round") for shape in SHAPES[1:])


def test_host_and_place_can_be_chosen() -> None:
    made, told = insert_lesion(patient(), "lung tumor", 10, host="left lung upper lobe", center_mm=(4, -5, 20))
    assert told.host == "left lung upper lobe"
    assert math.dist(told.center_mm, (4, -5, 20)) < 4
    assert made.notes[-1].startswith("Inserted: lung tumor of 10.0 mm (asked for: 10 mm; 35 voxels) in left lung")
    unusual = insert_lesion(patient(), "lung tumor", 10, host="liver").mask
    assert "usually lies in left lung upper lobe, left lung lower lobe" in unusual.notes[-1]


def test_a_lesion_may_lie_in_any_tissue_of_its_region_unless_one_is_named() -> None:
    mask = patient()
    halves = mask.array.copy()
    halves[:24][halves[:24] == LUNG] = 31
    mask = mask.with_array(halves)
    hosts = {insert_lesion(mask, "lung tumor", 8, seed=seed).insertion.host for seed in range(8)}
    assert hosts == {"left lung upper lobe", "right lung middle lobe"}
    mask = mask.with_array(np.where(halves == LUNG, LIVER, halves).astype(np.uint8))
    assert insert_lesion(mask, "lung tumor", 8).insertion.host == "right lung middle lobe"
    with pytest.raises(MaskError, match=r"no left lung upper lobe.*may also lie in right lung middle lobe"):
        insert_lesion(mask, "lung tumor", 8, host="left lung upper lobe")


def test_several_lesions_do_not_overlap() -> None:
    mask = patient()
    for seed in range(3):
        mask = insert_lesion(mask, 26, 10, seed=seed).mask
    assert mask.counts[26] == 3 * 35


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lesion": "hepatic tumr"}, r"has no anatomy 'hepatic tumr'. Did you mean 'hepatic tumor'"),
        ({"lesion": "liver"}, r"'liver' is no lesion.*Lesions there: lung tumor"),
        ({"host": "livr"}, "has no anatomy 'livr'"),
        ({"host": "hepatic tumor"}, "cannot lie in itself"),
        ({"shape": "square"}, "'square' is no shape of a lesion.*round, ellipsoid"),
        ({"diameter_mm": 0.0}, "more than 0 mm"),
        ({"diameter_mm": math.nan}, "more than 0 mm"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        insert_lesion(patient(), **{"lesion": "hepatic tumor", "diameter_mm": 10.0, **given})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"host": "spleen"}, r"has no spleen, in which the hepatic tumor was to lie\. It may also lie in liver"),
        ({"lesion": "pancreatic tumor"}, r"has no pancreas.*Name another host"),
        ({"diameter_mm": 200.0}, r"larger than liver, whose volume is that of a sphere of \d+\.\d mm"),
        ({"center_mm": (0, 0, 40)}, r"there is 28 \(left lung upper lobe\), not liver"),
        ({"center_mm": (0, 0, 400)}, "lies outside of the mask"),
    ],
)
def test_masks_that_cannot_take_the_lesion_say_why(given: dict[str, Any], said: str) -> None:
    with pytest.raises(MaskError, match=said):
        insert_lesion(patient(), **{"lesion": "hepatic tumor", "diameter_mm": 10.0, **given})


def test_lesion_wider_than_a_flat_host_is_refused() -> None:
    array = np.full((60, 60, 9), BODY, np.uint8)
    array[:, :, 4] = LIVER
    with pytest.raises(MaskError, match=r"larger than liver at its widest place: \d+% of it would lie inside"):
        insert_lesion(label_map(array), "hepatic tumor", 12)
    array[:, :, 4] = LUNG
    array[30, 30, 4] = LIVER
    with pytest.raises(MaskError, match="Nothing would be left of liver"):
        insert_lesion(label_map(array), "hepatic tumor", 1)
