from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from MAISILib.anatomy.labels import default_table
from MAISILib.anatomy.mask_cleanup import clean_up
from MAISILib.anatomy.nearest_label import replace_by_nearest
from MAISILib.volumes import LabelMap

LIVER, LUNG_TUMOR, HEPATIC_TUMOR, LUNG, AIRWAY, BODY = 1, 23, 26, 28, 132, 200
VEIN, BONE_LESION = 17, 128


def trunk() -> np.ndarray:
    array = np.zeros((24, 24, 24), np.uint8)
    array[2:-2, 2:-2, 2:-2] = BODY
    array[5:12, 5:12, 5:12] = LIVER
    array[13:19, 5:19, 5:19] = LUNG
    return array


def cleaned(array: np.ndarray, **options: object) -> LabelMap:
    return clean_up(LabelMap(array, np.eye(4), default_table()), one_piece=[LIVER, LUNG], **options)  # type: ignore[arg-type]


def test_a_clean_mask_is_left_alone() -> None:
    result = cleaned(trunk())
    assert np.array_equal(result.array, trunk())
    assert result.notes == ()


def test_loose_pieces_become_what_is_around_them() -> None:
    array = trunk()
    array[15:17, 15:17, 15:17] = LIVER  # in the lung
    array[8, 15, 15] = LIVER  # in the body
    result = cleaned(array)
    assert np.array_equal(result.array, trunk())
    assert "9 of 13824 voxels" in result.notes[0]


def test_labels_of_several_pieces_keep_them_all() -> None:
    array = trunk()
    array[4, 4, 4] = array[20, 20, 20] = AIRWAY
    assert np.array_equal(cleaned(array).array, array)


def test_a_small_lesion_stays() -> None:
    array = trunk()
    grid = np.indices(array.shape) - np.array([8, 8, 8]).reshape(3, 1, 1, 1)
    array[(grid**2).sum(0) <= 1.5**2] = HEPATIC_TUMOR
    array[16, 10, 10] = LUNG_TUMOR
    assert np.array_equal(cleaned(array).array, array)


def test_holes_in_an_organ_are_filled_but_not_what_lies_in_it() -> None:
    array = trunk()
    array[7, 7, 7], array[9, 9, 9] = BODY, 0
    array[7, 9, 7] = HEPATIC_TUMOR
    expected = trunk()
    expected[7, 9, 7] = HEPATIC_TUMOR
    assert np.array_equal(cleaned(array).array, expected)


def test_a_patient_is_one_piece_without_holes() -> None:
    array = trunk()
    array[0, 0, 0] = BODY
    array[20, 20, 20] = 0
    assert np.array_equal(cleaned(array).array, trunk())


def test_unwanted_labels_vanish() -> None:
    array = trunk()
    array[8, 8, 8] = HEPATIC_TUMOR
    assert np.array_equal(cleaned(array, unwanted=[HEPATIC_TUMOR]).array, trunk())
    without_liver = cleaned(array, unwanted=[LIVER, HEPATIC_TUMOR]).array
    assert not np.isin(without_liver, [LIVER, HEPATIC_TUMOR]).any()
    assert ((without_liver > 0) == (trunk() > 0)).all()


def test_an_empty_mask_stays_empty() -> None:
    assert not cleaned(np.zeros((4, 4, 4), np.uint8), unwanted=[LIVER]).array.any()


def test_lesion_outside_of_its_host_is_removed_and_named() -> None:
    array = trunk()
    array[3:5, 3:5, 3:5] = HEPATIC_TUMOR  # in the body
    array[8, 8, 8] = HEPATIC_TUMOR
    result = cleaned(array)
    expected = trunk()
    expected[8, 8, 8] = HEPATIC_TUMOR
    assert np.array_equal(result.array, expected)
    assert result.notes[1] == "Removed, because it lay outside of its host: hepatic tumor (8 voxels)."
    assert np.array_equal(cleaned(array, lesions_in_hosts=False).array, array)


def test_lesion_of_the_body_may_lie_anywhere_in_the_patient() -> None:
    array = trunk()
    array[8, 8, 8] = array[20, 20, 20] = BONE_LESION
    assert np.array_equal(cleaned(array).array, array)


def test_gaps_in_a_lesion_are_closed_with_its_host_only() -> None:
    array = trunk()
    array[6:11, 6:11, 6:11] = HEPATIC_TUMOR
    expected = array.copy()
    array[8, 8, 8] = array[8, 8, 10] = LIVER  # a hole and a notch
    assert np.array_equal(cleaned(array).array, expected)
    array[8, 8, 8] = expected[8, 8, 8] = VEIN
    assert np.array_equal(cleaned(array).array, expected)


@given(
    arrays(np.uint8, (7, 6, 8), elements=st.integers(0, 4)),
    st.tuples(*[st.sampled_from([0.7, 1.0, 2.5])] * 3),
    st.sets(st.integers(0, 4), max_size=3),
)
@settings(deadline=None)
def test_removed_voxels_become_what_is_nearest_in_millimeters(
    array: np.ndarray, spacing: tuple[float, float, float], gone: set[int]
) -> None:
    removed = np.isin(array, list(gone))
    result = replace_by_nearest(array, removed, spacing)
    assert np.array_equal(result[~removed], array[~removed])
    if removed.any() and not removed.all():
        places = np.argwhere(~removed)
        for voxel in np.argwhere(removed)[:20]:
            distances = (((places - voxel) * spacing) ** 2).sum(axis=1)
            nearest = array[tuple(places[distances <= distances.min() + 1e-9].T)]
            assert result[tuple(voxel)] in nearest


@given(
    arrays(
        np.uint8,
        st.tuples(*[st.integers(1, 8)] * 3),
        elements=st.sampled_from([0, LIVER, LUNG_TUMOR, HEPATIC_TUMOR, LUNG, AIRWAY, BODY]),
    )
)
@settings(deadline=None, max_examples=60)
def test_no_label_is_made_and_no_lesion_of_the_patient_made_smaller(array: np.ndarray) -> None:
    kept = cleaned(array, lesions_in_hosts=False).array
    assert set(np.unique(kept)) <= set(np.unique(array)) | {0}
    for lesion in (LUNG_TUMOR, HEPATIC_TUMOR):
        assert (kept[(array == lesion) & (kept != 0)] == lesion).all()
    assert set(np.unique(cleaned(array).array)) <= set(np.unique(array)) | {0}


@pytest.mark.parametrize("edge", [96])
def test_clean_up_is_fast(edge: int) -> None:
    """The published scripts take 15 s and more for 96³ voxels."""
    array = np.kron(trunk(), np.ones((4, 4, 4), np.uint8))
    array[::7, ::7, ::7] = LIVER
    cleaned(trunk())  # what is imported at first use does not count
    start = time.process_time()
    cleaned(array)
    assert array.shape == (edge,) * 3
    assert time.process_time() - start < 0.75
