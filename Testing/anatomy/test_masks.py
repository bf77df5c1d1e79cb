"""Checking masks, finding body regions, removing tumors, and telling a model about labels."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from MAISILib.anatomy.labels import Label, LabelTable, default_table
from MAISILib.anatomy.masks import check_mask, label_bits, region_name, regions_of, remove_tumors
from MAISILib.errors import MaskError, RequestError
from MAISILib.volumes import LabelMap
from Testing.anatomy.phantoms import label_map, tilted, torso, turned


@given(arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3)))
def test_bits_give_the_labels_back(labels: np.ndarray):
    bits = label_bits(labels)
    assert bits.shape == (8, *labels.shape)
    assert set(np.unique(bits)) <= {0, 1}
    weights = 2 ** np.arange(8).reshape(8, 1, 1, 1)
    assert ((bits * weights).sum(axis=0) == labels).all()


def test_body_label_sets_bits_three_six_and_seven():
    assert label_bits(np.full((1, 1, 1), 200, np.uint8)).ravel().tolist() == [0, 0, 0, 1, 0, 0, 1, 1]


def test_bits_of_other_integers_are_refused():
    with pytest.raises(MaskError, match="int16"):
        label_bits(np.zeros((1, 1, 1), np.int16))


def test_empty_mask_is_refused():
    with pytest.raises(MaskError, match="'my scan' is empty"):
        check_mask(label_map(np.zeros((3, 3, 3)), source="my scan"), default_table())


def test_unknown_labels_are_listed_with_voxel_counts_and_the_known_ones():
    array = np.zeros((3, 3, 3))
    array[0], array[1, 0], array[2, 0, 0] = 1, 150, 255
    with pytest.raises(MaskError, match=r"150 \(3 voxels\), 255 \(1 voxels\).*Known ones in it: 1 \(liver\)"):
        check_mask(label_map(array), default_table())


def test_mask_of_place_holders_only_is_refused_and_beside_organs_is_not():
    array = np.zeros((2, 2, 2))
    array[0] = 16
    with pytest.raises(MaskError, match=r"16 \(dummy2\)"):
        check_mask(label_map(array), default_table())
    array[1] = 4
    check_mask(label_map(array), default_table())


def test_voxels_of_labels_are_counted_in_any_order_of_memory():
    array = np.zeros((4, 4, 4))
    array[0], array[1, 0] = 1, 200
    for order in (array, np.asfortranarray(array), array[::-1]):
        mask = label_map(order)
        assert {v: int(mask.counts[v]) for v in (0, *mask.labels)} == {0: 44, 1: 16, 200: 4}


def test_regions_of_a_whole_patient_reach_from_head_to_legs():
    assert regions_of(torso()) == ("head", "lower")


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product((0, 1), repeat=3)))
def test_regions_do_not_depend_on_the_order_of_the_voxels(order: tuple[int, int, int], flips: tuple[int, int, int]):
    mask = torso()
    mask = mask.with_array(np.where(np.isin(mask.array, (22, 93, 94)), 200, mask.array).astype(np.uint8))
    assert regions_of(turned(mask, order, flips)) == ("chest", "abdomen")
    assert regions_of(tilted(turned(mask, order, flips), 25)) == ("chest", "abdomen")


def test_region_that_reaches_higher_is_the_top_whatever_its_size():
    array = np.zeros((6, 6, 10))
    array[2:4, 2:4, 0:9], array[5, 5, 9] = 1, 28
    assert regions_of(label_map(array)) == ("chest", "abdomen")


def test_regions_that_end_in_the_same_slice_are_told_by_anatomy():
    array = np.zeros((6, 6, 4))
    array[:3], array[3:] = 1, 28
    assert regions_of(label_map(array)) == ("chest", "abdomen")


def test_other_structures_tell_the_region_where_the_published_ones_are_missing():
    array = np.full((6, 6, 12), 200)
    array[2:4, 2:4, 0:3], array[2:4, 2:4, 4:7], array[2:4, 2:4, 9:12] = 95, 116, 115  # hip, cyst of a kidney, heart
    assert regions_of(label_map(array)) == ("chest", "lower")
    array[2:4, 2:4, 9:12], array[0, 0, :] = 200, 121  # a spinal cord lies anywhere
    assert regions_of(label_map(array)) == ("abdomen", "lower")


def outline(parts: str, step: float = 10.0) -> LabelMap:
    """A body from top to bottom: ``h`` is a slice of the head, ``a`` of a head between raised arms, ``t`` of the trunk
    and ``l`` of the legs, ``step`` mm thick."""
    array = np.zeros((50, 36, len(parts)), np.uint8)
    for z, part in enumerate(reversed(parts)):
        if part in "ha":
            array[17:33, 8:26, z] = 200
        if part == "a":
            array[3:12, 8:20, z] = array[38:47, 8:20, z] = 200
        if part == "t":
            array[6:44, 6:30, z] = 200
        if part == "l":
            array[8:22, 8:24, z] = array[28:42, 8:24, z] = 200
    return label_map(array, np.diag([10.0, 10.0, step, 1.0]))


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ("h" * 20, ("head", "head")),
        ("h" * 20 + "t" * 20, ("head", "chest")),
        ("a" * 20 + "t" * 40, ("head", "abdomen")),
        ("h" * 20 + "t" * 60 + "l" * 30, ("head", "lower")),
        ("t" * 30, ("chest", "abdomen")),
        ("t" * 60, ("chest", "lower")),
        ("t" * 20 + "l" * 20, ("lower", "lower")),
        ("t" * 40 + "l" * 20, ("abdomen", "lower")),
        ("l" * 40, ("lower", "lower")),
        ("t" * 3, None),
    ],
)
def test_outline_of_a_body_alone_tells_its_regions(parts: str, expected: tuple[str, str] | None):
    mask = outline(parts)
    assert regions_of(mask) == expected
    assert regions_of(turned(mask, (2, 0, 1), (1, 0, 1))) == expected


@pytest.mark.parametrize("value", [0, 200, 121])
def test_mask_that_tells_no_region_has_none(value: int):
    assert regions_of(label_map(np.full((3, 3, 3), value))) is None


def test_region_words_have_synonyms():
    assert [region_name(word) for word in ("Thorax", "pelvis", "head")] == ["chest", "lower", "head"]
    with pytest.raises(RequestError, match="Did you mean 'abdomen'"):
        region_name("abdomn")


def test_tumors_become_the_tissue_around_them():
    array = np.arange(256).reshape(4, 8, 8)
    free = remove_tumors(label_map(array))
    changed = {int(a): int(b) for a, b in zip(array.ravel(), free.array.ravel(), strict=True) if a != b}
    assert changed == {23: 28, 24: 4, 26: 1, 27: 62, 128: 200}
    assert "lung tumor" in free.notes[-1]


def test_mask_without_tumors_stays_as_it_is():
    mask = torso()
    assert (remove_tumors(mask).array == mask.array).all()
    assert remove_tumors(mask).notes == mask.notes


def test_lesion_within_a_lesion_goes_with_it_or_alone():
    rows = [Label(150, "core", "tumors", (1, 2, 3), 23), *default_table()]
    mask = LabelMap(np.array([[[150, 23, 26, 1]]], np.uint8), np.eye(4), LabelTable("mine", rows))
    assert remove_tumors(mask).array.ravel().tolist() == [28, 28, 1, 1]
    assert remove_tumors(mask, [150]).array.ravel().tolist() == [23, 23, 26, 1]
    assert remove_tumors(mask, [150, 23, 1]).array.ravel().tolist() == [28, 28, 26, 1]
