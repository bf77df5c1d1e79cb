"""Other patients of a mask: what may change, what never does, and that it always ends."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from MAISILib.anatomy.labels import Label, LabelTable, default_table
from MAISILib.anatomy.lesion_variation import vary_lesions
from MAISILib.anatomy.masks import remove_tumors
from MAISILib.anatomy.variation import Variation, vary_mask
from MAISILib.errors import RequestError
from MAISILib.volumes import LabelMap
from Testing.anatomy.phantoms import label_map, turned
from Testing.tiny_bundle import BODY, LIVER, LUNG, LUNG_TUMOR, tiny_patient

HEPATIC_TUMOR, BONE_LESION, VERTEBRA = 26, 128, 36


def patient(shape: tuple[int, int, int] = (40, 36, 32), tumor: bool = True) -> LabelMap:
    """Liver below, lung above, with a round tumor in the lung."""
    mask = tiny_patient(shape=shape, spacing=(4.0, 4.0, 5.0))
    array = mask.array.copy()
    if tumor:
        center = np.array([shape[0] // 2, shape[1] // 2, 3 * shape[2] // 4]).reshape(3, 1, 1, 1)
        array[((np.indices(shape) - center) ** 2).sum(0) <= 9] = LUNG_TUMOR
    return mask.with_array(array)


def small_masks() -> st.SearchStrategy[LabelMap]:
    labels = st.sampled_from([0, LIVER, LUNG_TUMOR, HEPATIC_TUMOR, LUNG, BONE_LESION, VERTEBRA, BODY])
    return st.builds(
        lambda array, spacing: label_map(array, np.diag([*spacing, 1.0])),
        arrays(np.uint8, st.tuples(*[st.integers(1, 9)] * 3), elements=labels),
        st.tuples(*[st.sampled_from([0.7, 1.5, 6.0])] * 3),
    )


@given(small_masks(), st.integers(0, 2**40))
@settings(deadline=None, max_examples=60)
def test_variation_adds_and_loses_no_label_and_ends(mask: LabelMap, seed: int) -> None:
    varied = vary_mask(mask, seed, Variation(20, 0.2, 10, 0.3, 0.5, 50))
    assert varied.labels == mask.labels
    assert varied.grid.same_as(mask.grid)


@given(small_masks(), st.integers(0, 2**40))
@settings(deadline=None, max_examples=60)
def test_lesions_move_into_tissue_that_may_host_them_only(mask: LabelMap, seed: int) -> None:
    moved = vary_lesions(mask, np.random.default_rng(seed), scale=0.5, move_mm=20)
    lungs, liver = range(28, 33), [LIVER, 25]
    may_become = {LUNG_TUMOR: lungs, HEPATIC_TUMOR: liver, BONE_LESION: range(1, 256)}
    for lesion, tissues in may_become.items():
        new = moved.array == lesion
        assert np.isin(mask.array[new], [lesion, *tissues]).all()
        left = (mask.array == lesion) & ~new
        assert np.isin(moved.array[left], list(tissues)).all()
    others = ~np.isin(mask.array, [*may_become, *lungs, *liver, VERTEBRA, BODY])
    assert (moved.array[others] == mask.array[others]).all()


@given(st.integers(0, 2**40))
@settings(deadline=None, max_examples=15)
def test_tumor_of_a_varied_patient_is_surrounded_by_its_host(seed: int) -> None:
    varied = vary_mask(patient(), seed)
    tumor = varied.array == LUNG_TUMOR
    around = np.zeros_like(tumor)
    for axis in range(3):
        for step in (-1, 1):
            around |= np.roll(tumor, step, axis)
    assert np.isin(varied.array[around & ~tumor], [LUNG]).mean() > 0.5
    organs = remove_tumors(varied).array
    assert set(np.unique(organs)) == {0, LIVER, LUNG, BODY}


def test_same_seed_same_patient_other_seed_another() -> None:
    first, again, other = (vary_mask(patient(), seed).array for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert np.mean(first != other) > 0.02


@pytest.mark.parametrize("seed", range(4))
def test_patient_stays_himself_within_the_given_limits(seed: int) -> None:
    mask = patient()
    counts, varied = mask.counts, vary_mask(mask, seed).counts
    assert all(0.6 < varied[label] / counts[label] < 1.6 for label in (LIVER, LUNG, BODY))
    assert 0.3 < varied[LUNG_TUMOR] / counts[LUNG_TUMOR] < 2.5


def test_each_change_can_be_left_out() -> None:
    mask = patient()
    assert np.array_equal(vary_mask(mask, 1, Variation(0, 0, 0, 0, 0, 0)).array, mask.array)
    lesion_only = vary_mask(mask, 1, Variation(0, 0, 0, 0, lesions=0.3, move=20)).array
    changed = lesion_only != mask.array
    assert changed.any()
    assert set(np.unique(mask.array[changed])) <= {LUNG, LUNG_TUMOR}
    organs_only = vary_mask(patient(tumor=False), 1, Variation(0, 0, 0, organs=0.3, lesions=0, move=0))
    assert organs_only.counts[LIVER] != mask.counts[LIVER]
    with pytest.raises(RequestError, match="rotation is 0 to 30, not 90"):
        Variation(rotation=90)


def test_patient_is_not_pushed_over_a_border_that_he_did_not_touch() -> None:
    mask = patient()  # one voxel of air all around
    for seed in range(5):
        array = vary_mask(mask, seed, Variation(25, 0.3, 10, 0.3)).array
        assert not any(np.take(array, end, axis=axis).any() for axis in range(3) for end in (0, -1))


def test_patient_that_is_cut_off_goes_on_beyond_the_border() -> None:
    mask = patient()
    cut = mask.with_array(mask.array[:, :, 4:-4])
    array = vary_mask(cut, 2).array
    assert [np.take(array, end, axis=2).any() for end in (0, -1)] == [True, True]


def test_lesion_without_another_place_stays_and_is_named() -> None:
    array = np.full((9, 9, 9), BODY, np.uint8)
    array[4, 4, 2:5] = LIVER
    array[4, 4, 3] = HEPATIC_TUMOR
    array[0, 0, 0] = LUNG_TUMOR  # far from any lung
    moved = vary_lesions(label_map(array), np.random.default_rng(0), scale=0.0, move_mm=200)
    assert "lung tumor (1 voxels)" in moved.notes[-1]
    assert moved.array[0, 0, 0] == LUNG_TUMOR
    assert (moved.array[4, 4, 2:5] == HEPATIC_TUMOR).sum() == 1


def test_bone_lesion_stays_in_its_bone() -> None:
    array = np.full((20, 20, 20), BODY, np.uint8)
    array[4:16, 4:16, 4:16] = VERTEBRA
    array[8:10, 8:10, 8:10] = BONE_LESION
    for seed in range(5):
        moved = vary_lesions(label_map(array), np.random.default_rng(seed), scale=0.2, move_mm=30).array
        assert (array[moved == BONE_LESION] != BODY).all()
        assert (moved == BODY).sum() == (array == BODY).sum()


def test_lesion_within_a_lesion_stays_within_it() -> None:
    table = LabelTable("mine", [Label(150, "core", "tumors", (1, 2, 3), LUNG_TUMOR), *default_table()])
    mask = patient()
    core = np.zeros_like(mask.array)
    core[20, 18, 24] = 1
    nested = LabelMap(np.where(core == 1, 150, mask.array).astype(np.uint8), mask.affine, table)
    moved = vary_lesions(nested, np.random.default_rng(1), scale=0.2, move_mm=30).array
    assert mask.array[moved == 150].tolist() == [LUNG_TUMOR]
    assert np.array_equal((moved == 150) | (moved == LUNG_TUMOR), mask.array == LUNG_TUMOR)


def test_variation_works_in_any_orientation_and_soon_ends() -> None:
    start = time.process_time()
    varied = vary_mask(turned(patient(), (2, 0, 1), (1, 0, 1)), 5)
    assert {LIVER, LUNG, LUNG_TUMOR, BODY} == set(varied.labels)
    assert time.process_time() - start < 3
