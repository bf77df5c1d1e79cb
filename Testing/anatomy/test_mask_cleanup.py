from __future__ import annotations

import time

import numpy as np
import pytest

from MAISILib.anatomy.labels import default_table
from MAISILib.anatomy.mask_cleanup import clean_up
from MAISILib.volumes import LabelMap

LIVER, LUNG_TUMOR, HEPATIC_TUMOR, LUNG, AIRWAY, BODY = 1, 23, 26, 28, 132, 200


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


@pytest.mark.parametrize("edge", [96])
def test_clean_up_is_fast(edge: int) -> None:
    """The published scripts take 15 s and more for 96³ voxels."""
    array = np.kron(trunk(), np.ones((4, 4, 4), np.uint8))
    array[::7, ::7, ::7] = LIVER
    start = time.process_time()
    cleaned(array)
    assert array.shape == (edge,) * 3
    assert time.process_time() - start < 0.75
