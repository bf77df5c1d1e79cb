"""Segmentations of other programs become masks in a bundle's labels, and nothing is lost silently."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MAISILib.anatomy.label_sets import LABEL_SETS, label_set
from MAISILib.anatomy.labels import LabelTable, default_table
from MAISILib.anatomy.mask_conversion import Conversion, convert
from MAISILib.errors import MaskError
from MAISILib.files.segmentations import Segment, Segmentation
from Testing.anatomy.phantoms import label_map, many_organs, sheared, tilted, turned

HEAD_NECK = LabelTable.read(
    Path(__file__).parents[2] / "Resources/bundles/head-neck-mini/labels.csv", base=default_table()
)


def numbered(array: np.ndarray, affine: np.ndarray | None = None) -> Segmentation:
    """A label map without names, as its reader gives it."""
    segments = tuple(Segment(str(v), int(v), is_named=False, number=int(v)) for v in np.unique(array) if v)
    return Segmentation(array[..., None], np.eye(4) if affine is None else affine, segments)


def in_numbers_of(name: str) -> np.ndarray:
    """The phantom with many organs in another program's numbers."""
    number_of = {s.label: number for number, s in label_set(name).by_number.items() if s.label}
    lookup = np.zeros(256, np.uint8)
    for label in default_table():
        lookup[label.value] = number_of.get(label.name, 0)
    return lookup[many_organs().array]


def became(conversion: Conversion) -> dict[str, str]:
    return {s.name: s.label_name for s in conversion.structures}


@given(
    name=st.sampled_from(sorted(LABEL_SETS)),
    seed=st.integers(0, 10_000),
    order=st.permutations([0, 1, 2]),
    flips=st.tuples(*[st.integers(0, 1)] * 3),
    angle=st.sampled_from([0.0, 17.0]),
    spacing=st.tuples(*[st.floats(0.3, 6.0)] * 3),
    shear=st.floats(-0.0009, 0.0009),
)
@settings(max_examples=40, deadline=None)
def test_convert_and_back_is_the_identity(name, seed, order, flips, angle, spacing, shear):
    rng = np.random.default_rng(seed)
    numbers = [n for n, s in label_set(name).by_number.items() if s.label_in(default_table())]
    numbers = {label_set(name).by_number[n].label: n for n in numbers}.values()  # one of those that merge
    array = rng.choice([0, *numbers], (6, 5, 4)).astype(np.uint8)
    array[0, 0, 0] = next(iter(numbers))
    source = sheared(tilted(turned(label_map(array, np.diag([*spacing, 1.0])), tuple(order), flips), angle), shear)
    mask, conversion = convert(numbered(source.array, source.affine), default_table(), "random", name)
    back = np.zeros(256, np.uint8)
    for structure in conversion.structures:
        assert structure.label is not None
        assert structure.number is not None
        assert structure.kept == structure.voxels > 0
        back[structure.label] = structure.number
    assert (back[mask.array] == source.array).all()
    assert mask.grid.same_as(source.grid, 0)
    assert conversion.conflicts == conversion.left_out == []


@given(
    name=st.sampled_from(sorted(LABEL_SETS)),
    seed=st.integers(0, 10_000),
    table=st.sampled_from([default_table(), HEAD_NECK]),
)
@settings(max_examples=40, deadline=None)
def test_every_voxel_is_accounted_for_whatever_the_numbers(name, seed, table):
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 160, (6, 5, 4)).astype(np.uint8)
    esophagus = label_set(name).named("esophagus")
    assert esophagus is not None
    array[0, 0, 0] = esophagus.number or 0
    mask, conversion = convert(numbered(array), table, "random", name)
    assert sum(s.voxels for s in conversion.structures) == np.count_nonzero(array)
    assert sum(s.kept for s in conversion.structures if s.label) == np.count_nonzero(mask.array)
    assert {s.number for s in conversion.left_out} == set(np.unique(array[(mask.array == 0) & (array > 0)]).tolist())
    assert set(mask.labels) <= {label.value for label in table if not label.is_unused}
    assert json.loads(json.dumps(conversion.to_dict()))["table"] == table.name


@pytest.mark.parametrize("name", [*LABEL_SETS])
def test_numbers_without_names_are_told_by_where_they_lie(name: str):
    phantom = many_organs()
    mask, conversion = convert(numbered(in_numbers_of(name), phantom.affine), default_table(), "phantom")
    shown = mask.array > 0
    assert (mask.array[shown] == phantom.array[shown]).all()
    assert len(mask.labels) > 10
    assert "structures in place" in conversion.read_as


def test_mirrored_numbers_are_still_told():
    phantom = many_organs()
    mirrored = np.ascontiguousarray(in_numbers_of("totalsegmentator")[::-1])
    mask, conversion = convert(numbered(mirrored, phantom.affine), default_table(), "phantom")
    assert "left and right swapped" in conversion.read_as
    assert (mask.array[::-1] == phantom.array).all()


def test_numbers_that_nothing_tells_are_the_bundles_own_where_the_user_says_so():
    array = np.zeros((6, 5, 4), np.uint8)
    array[2:4] = 1
    with pytest.raises(MaskError, match=r"cannot be told.*vista3d, bundle \(the bundle's own numbers\), or a csv"):
        convert(numbered(array), default_table(), "lonely")
    mask, conversion = convert(numbered(array), default_table(), "lonely", "bundle")
    assert (mask.array == array).all()
    assert "read as MAISI's own numbers" in str(conversion)


def test_bundles_own_numbers_are_recognized():
    phantom = many_organs()
    mask, conversion = convert(numbered(phantom.array, phantom.affine), default_table(), "phantom")
    assert (mask.array == phantom.array).all()
    assert conversion.read_as.startswith("MAISI, guessed: bundle")


def test_numbers_that_tell_nothing_are_refused_with_the_way_out():
    array = np.zeros((6, 6, 6), np.uint8)
    array[1:3, 1:3, 1:3], array[4:6, 1:3, 1:3] = 1, 2
    with pytest.raises(MaskError, match=r"cannot be told .* Say it: --from totalsegmentator, .*csv"):
        convert(numbered(array), default_table(), "two.nii.gz")


def test_numbers_that_are_in_no_list_are_refused():
    with pytest.raises(MaskError, match="cannot be told"):
        convert(numbered(np.full((3, 3, 3), 177, np.uint8)), default_table(), "one.nii.gz")


def named(*segments: Segment, layers: np.ndarray) -> Segmentation:
    return Segmentation(layers, np.eye(4), segments)


def test_names_win_over_numbers():
    array = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    segments = (Segment("urinary_bladder", 1), Segment("rib_left_4", 2))
    for read_as in ("auto", "totalsegmentator"):
        mask, conversion = convert(named(*segments, layers=array), default_table(), "header", read_as)
        assert mask.array.ravel().tolist() == [0, 15, 66]
        assert became(conversion) == {"urinary_bladder": "bladder", "rib_left_4": "left rib 4"}


def test_codes_win_over_names_in_a_foreign_language():
    words = "c~SCT^123037004^Anatomical Structure~SCT^181674001^Gluteus maximus muscle~SCT^24028007^Right~r~^^~^^"
    array = np.array([0, 1], np.uint8).reshape(2, 1, 1, 1)
    mask, conversion = convert(named(Segment("Gesäß", 1, terminology=words), layers=array), default_table(), "seg")
    assert mask.array.ravel().tolist() == [0, 99]
    assert conversion.structures[0].found == "code"


def test_segments_of_our_own_keep_their_label_whatever_their_name():
    array = np.array([0, 1], np.uint8).reshape(2, 1, 1, 1)
    mask, _ = convert(named(Segment("renamed", 1, tag="26"), layers=array), default_table(), "seg")
    assert mask.array.max() == 26


def test_chambers_merge_into_the_heart_and_the_report_says_so():
    array = np.array([0, 44, 45, 46, 5], np.uint8).reshape(5, 1, 1)
    mask, conversion = convert(numbered(array), default_table(), "v1", "totalsegmentator-v1")
    assert mask.array.ravel().tolist() == [0, 115, 115, 115, 1]
    assert conversion.merges == {"heart": ["heart_myocardium", "heart_atrium_left", "heart_ventricle_left"]}
    assert "merged     heart <- heart_myocardium" in str(conversion)


def test_bones_merge_into_the_one_label_of_a_small_bundle():
    array = np.array([0, 27, 91, 79], np.uint8).reshape(4, 1, 1)
    mask, _ = convert(numbered(array), HEAD_NECK, "mask", "totalsegmentator")
    assert mask.array.ravel().tolist() == [0, 138, 138, 121]


def test_structures_without_a_label_are_named_and_become_background():
    array = np.array([0, 5, 118, 117], np.uint8).reshape(4, 1, 1)
    mask, conversion = convert(numbered(array), default_table(), "mask", "totalsegmentator")
    assert mask.array.ravel().tolist() == [0, 1, 0, 114]
    assert [s.name for s in conversion.left_out] == ["118"]
    assert "left out   118 (1)" in str(conversion)


def test_structures_without_a_label_become_body_where_there_is_one():
    layers = np.array([[1, 1, 1, 0], [0, 2, 3, 0]], np.uint8).T.reshape(4, 1, 1, 2)
    segments = (Segment("body", 1), Segment("tibia", 2, 1), Segment("liver", 3, 1))
    mask, conversion = convert(named(*segments, layers=layers), default_table(), "seg")
    assert mask.array.ravel().tolist() == [200, 200, 1, 0]
    assert conversion.left_out[0].name == "tibia"
    assert "Structures without a label became body." in conversion.notes


@pytest.mark.parametrize("swapped", [False, True])
def test_the_smaller_of_two_overlapping_structures_wins_and_the_loss_is_told(swapped: bool):
    large, small = np.ones(10, np.uint8), np.repeat([0, 1], [7, 3]).astype(np.uint8)
    order = ("small", "large") if swapped else ("large", "small")
    of = {"large": (large, "kidney_left"), "small": (small, "kidney_cyst_left")}
    layers = np.stack([of[one][0] for one in order], -1).reshape(10, 1, 1, 2)
    segments = tuple(Segment(of[one][1], 1, layer) for layer, one in enumerate(order))
    mask, conversion = convert(named(*segments, layers=layers), default_table(), "folder")
    assert mask.array.ravel().tolist() == [14] * 7 + [116] * 3
    (conflict,) = conversion.conflicts
    assert (conflict.name, conflict.voxels, conflict.kept) == ("kidney_left", 10, 7)
    assert conflict.lost_to == (("left kidney cyst", 3),)
    assert "overlap    kidney_left: 3 of 10 voxels went to left kidney cyst (3)" in str(conversion)


def test_a_large_lesion_wins_over_its_small_host():
    layers = np.stack([np.ones(10, np.uint8), np.repeat([0, 1], [6, 4]).astype(np.uint8)], -1).reshape(10, 1, 1, 2)
    segments = (Segment("liver_tumor", 1, 0), Segment("liver", 1, 1))
    mask, conversion = convert(named(*segments, layers=layers), default_table(), "seg")
    assert mask.labels == [26]
    assert conversion.conflicts[0].name == "liver"


def test_parts_of_one_label_may_overlap_without_a_conflict():
    layers = np.ones((4, 1, 1, 2), np.uint8)
    segments = (Segment("heart_atrium_left", 1, 0), Segment("heart_myocardium", 1, 1))
    _, conversion = convert(named(*segments, layers=layers), default_table(), "seg")
    assert conversion.conflicts == []


def test_voxels_of_no_segment_are_told():
    array = np.array([0, 1, 7], np.uint8).reshape(3, 1, 1, 1)
    mask, conversion = convert(named(Segment("liver", 1), layers=array), default_table(), "seg")
    assert mask.array.ravel().tolist() == [0, 1, 0]
    assert any("1 voxels belong to no segment" in note for note in conversion.notes)


def test_users_list_decides_alone(tmp_path: Path):
    path = tmp_path / "names.csv"
    path.write_text("number,name,label\n1000,Leber,liver\n7,Bett,ignore\n8,Ding,\n", encoding="utf-8")
    array = np.array([0, 1000, 7, 8, 9], np.uint16).reshape(5, 1, 1)
    mask, conversion = convert(numbered(array), default_table(), "mask", str(path))
    assert mask.array.ravel().tolist() == [0, 1, 0, 0, 0]
    assert [(s.name, s.found) for s in conversion.structures] == [
        ("Bett", "ignored"), ("Ding", "unknown"), ("9", "not listed"), ("Leber", "number"),
    ]  # fmt: skip
    assert "Bett (1): as you wish" in str(conversion)
    assert "Ding (1): 'MAISI' has no label for them" in str(conversion)
    assert "9 (1): not in names.csv" in str(conversion)


def test_row_that_a_segment_is_named_after_is_not_taken_by_its_number(tmp_path: Path):
    path = tmp_path / "names.csv"
    path.write_text("number,name,label\n1,Leber,liver\n2,Milz,spleen\n3,Niere,left kidney\n", encoding="utf-8")
    array = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    segments = (Segment("Ding", 1, number=1), Segment("Leber", 2, number=2), Segment("Nr. 3", 3, number=3))
    mask, conversion = convert(named(*segments, layers=array), default_table(), "seg", str(path))
    assert mask.array.ravel().tolist() == [0, 0, 1, 14]
    assert [(s.name, s.found) for s in conversion.structures] == [
        ("Ding", "not listed"), ("Leber", "name"), ("Nr. 3", "number"),
    ]  # fmt: skip
    assert conversion.notes == ("Rows of names.csv that match nothing: 2 Milz.",)


def test_segmentation_of_which_nothing_is_known_is_refused():
    array = np.array([0, 1], np.uint8).reshape(2, 1, 1, 1)
    with pytest.raises(MaskError, match=r"no structure has a label in 'MAISI' \(quokka\)"):
        convert(named(Segment("quokka", 1), layers=array), default_table(), "seg")
    with pytest.raises(MaskError, match="it is empty"):
        convert(named(layers=np.zeros((2, 2, 2, 1), np.uint8)), default_table(), "seg")
