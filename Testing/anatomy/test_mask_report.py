"""The mask doctor: what it finds in masks that are well, and in masks that are not."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MAISILib.anatomy.envelope import add_body
from MAISILib.anatomy.label_sets import label_set
from MAISILib.anatomy.labels import Label, LabelTable, default_table
from MAISILib.anatomy.mask_report import MaskReport, examine
from MAISILib.volumes import LabelMap
from Testing.anatomy.phantoms import label_map, many_organs, tilted, torso, turned

KIDNEYS = (14, 5)
LIVER, SPLEEN, LUNG_TUMOR, HEPATIC_TUMOR, BONE_LESION, RIGHT_LUNG, BODY = 1, 3, 23, 26, 128, 30, 200


def told(report: MaskReport, topic: str, level: str = "warning") -> str:
    """All messages of a topic and level."""
    return " ".join(f.message for f in report.findings if f.topic == topic and f.level == level)


def with_box(mask: LabelMap, label: int, box: tuple[slice, slice, slice]) -> LabelMap:
    array = mask.array.copy()
    array[box] = label
    return mask.with_array(array)


def healthy() -> LabelMap:
    """The phantom with a body around it; it has liver and right lung at the patient's right, as patients do."""
    return add_body(torso())


def test_sound_mask_is_usable_without_a_warning():
    report = examine(healthy())
    assert report.is_usable
    assert [f for f in report.findings if f.level != "note"] == []
    assert report.regions == ("head", "lower")
    lungs = {"left lung upper lobe", "right lung upper lobe"}
    assert {e.name for e in report.labels} == {"left femur", "right femur", "liver", "spleen", "brain", "body", *lungs}


def test_volumes_are_in_milliliters_and_agree_with_the_voxels():
    entry = next(e for e in examine(healthy()).labels if e.value == LIVER)
    assert entry.milliliters == pytest.approx(entry.voxels * 4 * 4 * 5 / 1000)
    assert entry.voxels == int((torso().array == LIVER).sum())


def test_empty_mask_is_an_error():
    report = examine(label_map(np.zeros((4, 4, 4))))
    assert not report.is_usable
    assert "empty" in told(report, "labels", "error")


def test_unknown_labels_are_an_error_that_points_to_conversion():
    report = examine(with_box(healthy(), 177, (slice(0, 2), slice(0, 2), slice(0, 2))))
    assert not report.is_usable
    assert "177 (8 voxels)" in told(report, "labels", "error")
    assert "maisi mask convert" in told(report, "labels", "error")
    assert [e.state for e in report.labels if e.value == 177] == ["unknown"]


@pytest.mark.parametrize("name", ["totalsegmentator", "totalsegmentator-v1"])
def test_numbers_of_another_program_are_recognized_though_the_table_has_them_all(name: str):
    phantom = many_organs()
    lookup = np.zeros(256, np.uint8)
    for number, structure in label_set(name).by_number.items():
        if structure.label:
            lookup[default_table().find(structure.label).value] = number
    report = examine(phantom.with_array(lookup[phantom.array]))
    assert not report.is_usable
    assert f"maisi mask convert --from {name}." in told(report, "labels", "error")
    assert examine(phantom).is_usable


def test_place_holders_are_told_and_alone_an_error():
    assert "2 (dummy1)" in told(
        examine(with_box(healthy(), 2, (slice(10, 12), slice(10, 12), slice(10, 12)))), "labels"
    )
    assert not examine(label_map(np.full((3, 3, 3), 2))).is_usable


def test_free_numbers_are_place_holders_and_gaps():
    report = examine(healthy())
    assert "2, 16, 18, 20–21, 129–131, 133–199, 201–255." in str(report)


def test_mask_without_a_body_is_told_how_to_get_one():
    message = told(examine(torso()), "body")
    assert "maisi mask envelope" in message
    assert examine(torso()).is_usable


def test_organ_in_the_air_lies_outside_of_the_body():
    report = examine(with_box(healthy(), SPLEEN, (slice(0, 1), slice(0, 2), slice(5, 8))))
    assert "spleen" in told(report, "body")
    assert "liver" not in told(report, "body")


def test_body_that_covers_half_of_the_patient_is_noticed():
    mask = healthy()
    array = mask.array.copy()
    array[..., 8:][array[..., 8:] == BODY] = 0
    message = told(examine(mask.with_array(array)), "body")
    assert "brain (100%)" in message
    assert "femur" not in message


def test_specks_are_warned_of_and_large_pieces_noted():
    mask = healthy()
    array = mask.array.copy()
    array[2, 10, 10] = LIVER
    array[3:7, 13:19, 12:16] = SPLEEN
    array[0, 0, 15] = SPLEEN
    report = examine(mask.with_array(array))
    assert "liver (1, 1 voxels)" in told(report, "fragments")
    assert "spleen" not in told(report, "fragments"), "of what is in pieces anyway, small ones are no surprise"
    assert "spleen (2 and 1 small ones)" in told(report, "fragments", "note")


def test_lesion_outside_of_its_host_is_told_with_its_place():
    report = examine(with_box(healthy(), HEPATIC_TUMOR, (slice(6, 8), slice(8, 10), slice(5, 7))))
    message = told(report, "lesions")
    assert "hepatic tumor" in message
    assert "beside spleen" in message
    center = torso().affine @ [6.5, 8.5, 5.5, 1]
    assert f"R {center[0]:.0f}, A {center[1]:.0f}, S {center[2]:.0f} mm (8 voxels)" in message


@pytest.mark.parametrize(
    ("label", "box"),
    [
        (HEPATIC_TUMOR, (slice(14, 16), slice(8, 10), slice(5, 7))),
        (LUNG_TUMOR, (slice(15, 17), slice(7, 9), slice(9, 11))),  # the table's host is a lobe of the other side
        (BONE_LESION, (slice(5, 7), slice(9, 11), slice(1, 3))),  # its host is the body: anywhere inside
    ],
    ids=["in its host", "in another lobe", "in a bone"],
)
def test_lesion_in_its_host_is_well(label: int, box: tuple[slice, slice, slice]):
    report = examine(with_box(healthy(), label, box))
    assert label in {e.value for e in report.labels}
    assert told(report, "lesions") == ""


def test_lesion_of_the_body_must_not_float_in_the_air():
    report = examine(with_box(healthy(), BONE_LESION, (slice(0, 1), slice(0, 1), slice(3, 4))))
    assert "bone lesion" in told(report, "lesions")
    assert "beside background" in told(report, "lesions")


def test_thousands_of_lesion_specks_are_summed_up():
    rng = np.random.default_rng(0)
    array = np.where(rng.random((24, 20, 16)) < 0.05, HEPATIC_TUMOR, healthy().array)
    report = examine(label_map(array, healthy().affine))
    lesions = [f for f in report.findings if f.topic == "lesions"]
    assert 1 < len(lesions) <= 9
    assert "more of this kind" in lesions[-1].message


def test_swapped_kidneys_are_told():
    mask = healthy()
    array = mask.array.copy()
    array[5:7, 13:15, 5:7], array[17:19, 13:15, 5:7] = KIDNEYS[1], KIDNEYS[0]  # the left one on the right
    message = told(examine(mask.with_array(array)), "sides")
    assert "left kidney lies on the right of right kidney" in message
    assert "1 of 4 structures" in message


def test_mirrored_mask_is_told_as_a_whole():
    mask = healthy()
    report = examine(mask.with_array(np.ascontiguousarray(mask.array[::-1])))
    assert "The mask is mirrored" in told(report, "sides")


def test_mask_that_stands_on_its_head_is_an_error():
    array = np.zeros((9, 9, 30), np.uint8)
    for index, label in enumerate((38, 39, 40, 41)):  # T12 at the top
        array[3:6, 3:6, 20 - 3 * index : 22 - 3 * index] = label
    report = examine(label_map(array))
    assert "upside down" in told(report, "sides", "error")


def test_oblique_axes_are_noted():
    assert "lean 20°" in told(examine(tilted(healthy(), 20.0)), "orientation", "note")
    assert told(examine(healthy()), "orientation", "note") == ""


@given(order=st.permutations([0, 1, 2]), flips=st.tuples(*[st.integers(0, 1)] * 3), fortran=st.booleans())
@settings(max_examples=20, deadline=None)
def test_findings_do_not_depend_on_how_the_file_orders_its_voxels(order, flips, fortran):
    mask = with_box(healthy(), HEPATIC_TUMOR, (slice(6, 8), slice(8, 10), slice(5, 7)))
    mask = with_box(mask, SPLEEN, (slice(0, 1), slice(0, 2), slice(5, 8)))
    other = turned(mask, tuple(order), flips)
    if fortran:
        other = other.with_array(np.asfortranarray(other.array))
    first, second = examine(mask), examine(other)
    assert second.findings == first.findings
    assert second.labels == first.labels
    assert second.regions == first.regions


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_report_counts_every_voxel_of_any_label_map(seed: int):
    array = np.random.default_rng(seed).integers(0, 256, (7, 6, 5)).astype(np.uint8)
    report = examine(label_map(array))
    assert {e.value: e.voxels for e in report.labels} == {
        int(v): int((array == v).sum()) for v in np.unique(array) if v
    }
    assert json.loads(json.dumps(report.to_dict()))["is_usable"] == report.is_usable
    assert str(report)


def test_table_without_a_body_asks_for_none():
    table = LabelTable("mr", [Label(1, "brain", "head", (0, 0, 0))])
    report = examine(LabelMap(np.ones((3, 3, 3), np.uint8), np.eye(4), table))
    assert report.is_usable
    assert told(report, "body") == ""


@pytest.mark.slow
def test_mask_of_256_cubed_is_checked_within_five_seconds():
    array = np.repeat(np.repeat(np.repeat(healthy().array, 11, 0), 13, 1), 16, 2)[:256, :256]
    array = np.pad(array, [(0, 256 - n) for n in array.shape])
    rng = np.random.default_rng(0)
    array[tuple(rng.integers(0, 256, (3, 20_000)))] = rng.integers(1, 133, 20_000)  # a noisy segmentation
    mask = label_map(array)
    start = time.process_time()
    report = examine(mask)
    assert time.process_time() - start < 5
    assert len(report.labels) > 120
