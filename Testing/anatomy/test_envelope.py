"""The body envelope, with and without a CT."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from MAISILib.anatomy.envelope import add_body, body_from_labels, has_body
from MAISILib.anatomy.labels import Label, LabelTable
from MAISILib.errors import MaskError
from MAISILib.volumes import Grid, LabelMap, Volume
from Testing.anatomy.phantoms import label_map, sheared, tilted, torso, turned


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 8),
    margin=st.sampled_from([0.0, 3.0, 10.0]),
    order=st.permutations([0, 1, 2]),
    flips=st.tuples(*[st.integers(0, 1)] * 3),
    angle=st.floats(-40, 40),
    spacing=st.tuples(*[st.floats(0.5, 8.0)] * 3),
    shear=st.floats(-0.0009, 0.0009),
    with_ct=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_envelope_contains_every_label_and_overwrites_none(
    seed, count, margin, order, flips, angle, spacing, shear, with_ct
):
    rng = np.random.default_rng(seed)
    array = np.zeros((12, 10, 9), np.uint8)
    for _ in range(count):
        array[tuple(rng.integers(0, n) for n in array.shape)] = rng.integers(1, 120)
    mask = sheared(tilted(turned(label_map(array, np.diag([*spacing, 1.0])), tuple(order), flips), angle), shear)
    array = mask.array
    assert body_from_labels(mask, margin)[array > 0].all()
    hounsfield = rng.choice([-1000.0, 40.0], (11, 8, 7))
    hounsfield[3:8, 2:6, 2:5] = 40
    ct = Volume(hounsfield, np.diag([2.0, 5.0, 4.0, 1.0])) if with_ct else None
    try:
        added = add_body(mask, ct, margin_mm=margin)
    except MaskError:
        reject()  # the CT lies elsewhere
    assert (added.array[array > 0] == array[array > 0]).all()
    assert set(np.unique(added.array[array == 0])) <= {0, 200}


def test_mask_without_body_label_gets_one_around_its_organs():
    mask = torso()
    added = add_body(mask)
    assert not has_body(mask)
    assert has_body(added)
    assert added.array[12, 10, 10] == 200, "between the lungs"
    assert added.array[12, 10, 12] == 200, "in the slice without labels between lungs and brain"
    assert added.array[0, 0, 0] == 0, "the corner is air"
    assert "guess" in added.notes[-1]


def test_margin_is_kept_in_millimeters_in_every_direction():
    array = np.zeros((41, 41, 41))
    array[20, 20, 20] = 1
    spacing = np.array([1.0, 2.0, 2.5])
    body = body_from_labels(label_map(array, np.diag([*spacing, 1.0])), 8.0)
    reach = [np.abs(np.argwhere(body)[:, axis] - 20).max() * spacing[axis] for axis in range(3)]
    assert np.all(np.array(reach) <= 8.0 + 1e-6)
    assert np.all(np.array(reach) > 8.0 - spacing)


def test_hull_spans_slices_without_labels_smoothly():
    array = np.zeros((40, 40, 30))
    array[5:35, 5:35, 2], array[15:25, 15:25, 27] = 1, 1
    areas = body_from_labels(label_map(array), 2.0).sum(axis=(0, 1))[2:28]
    assert (areas > 0).all()
    assert (np.diff(areas) <= 0).all(), "the body narrows from the wide slice to the narrow one"
    assert np.abs(np.diff(areas)).max() < 0.12 * areas.max(), "without a step"


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_envelope_does_not_depend_on_the_order_of_the_voxels(order: tuple[int, int, int]):
    mask = torso()
    expected = turned(add_body(mask), order, (0, 1, 1))
    assert (add_body(turned(mask, order, (0, 1, 1))).array == expected.array).all()


def test_envelope_twice_is_the_same_and_an_existing_body_is_kept():
    mask = torso()
    once = add_body(mask)
    assert (add_body(mask).array == once.array).all()
    again = add_body(once)
    assert (again.array == once.array).all()
    assert "kept" in again.notes[-1]


def test_oblique_mask_gets_an_envelope():
    added = add_body(tilted(torso(), 20))
    assert has_body(added)


def test_empty_mask_and_model_without_body_label_are_refused():
    with pytest.raises(MaskError, match="empty"):
        add_body(label_map(np.zeros((3, 3, 3))))
    table = LabelTable("brain MR", [Label(22, "brain", "head", (1, 2, 3))])
    with pytest.raises(MaskError, match="'brain MR' has no label 200"):
        add_body(LabelMap(np.full((2, 2, 2), 22, np.uint8), np.eye(4), table))


def test_arms_and_legs_get_hulls_of_their_own():
    array = np.zeros((120, 60, 50))
    array[40:80, 15:45, 10:40] = 1
    array[6:12, 27:33, 5:45], array[108:114, 27:33, 5:45] = 88, 87  # arms hang beside the trunk
    body = body_from_labels(label_map(array, np.diag([4.0, 4.0, 8.0, 1.0])), 10.0)
    assert not body[[25, 95], :, :].any(), "air between arms and trunk"
    assert body[60, 30, 25]
    assert body[[9, 111], 22, 25].all(), "an arm is thicker than its bone and the margin"
    assert body[9, 30, 45], "where the trunk has ended"


# ------------------------------------------------------------------ with a CT


def patient_on_a_table() -> tuple[Volume, np.ndarray]:
    """A CT of 2 mm and its body: an oval with two lungs and an ear, on a thin curved table."""
    x, y, _ = np.meshgrid(np.arange(60), np.arange(50), np.arange(12), indexing="ij")
    body = ((x - 30) / 20) ** 2 + ((y - 25) / 15) ** 2 <= 1
    hu = np.where(body, 40.0, -1000.0)
    for center in (22, 38):
        hu[((x - center) / 6) ** 2 + ((y - 26) / 9) ** 2 <= 1] = -850
    table = (np.abs(y - 4 - (x - 30) ** 2 / 150) < 1) & (np.abs(x - 30) < 28)
    hu[table] = 150
    ear = (np.abs(x - 51) <= 1) & (np.abs(y - 25) < 1)
    hu[ear] = 0
    return Volume(hu, Grid.axis_aligned((60, 50, 12), (2.0, 2.0, 4.0)).affine), body | ear


def test_ct_gives_the_outline_with_lungs_and_without_the_table():
    ct, body = patient_on_a_table()
    array = np.zeros(ct.array.shape)
    array[28:32, 24:27] = 115
    added = add_body(label_map(array, ct.affine), ct)
    inside = added.array > 0
    dice = 2 * (inside & body).sum() / (inside.sum() + body.sum())
    assert dice > 0.98
    assert added.array[22, 26, 5] == 200, "lungs belong to the body"
    assert not inside[30, :8].any(), "the table does not"
    assert (added.array[array > 0] == 115).all()
    assert "CT" in added.notes[-1]


def test_ct_on_another_grid_gives_the_same_body():
    ct, body = patient_on_a_table()
    array = np.zeros((20, 16, 12))
    array[9:11, 7:9] = 115
    added = add_body(label_map(array, Grid.axis_aligned((20, 16, 12), (6.0, 6.0, 4.0)).affine), ct)
    wanted, got = (np.count_nonzero(a) * np.prod(s) for a, s in ((body, ct.spacing), (added.array, added.spacing)))
    assert got == pytest.approx(wanted, rel=0.1)


def test_ct_without_tissue_where_the_mask_lies_is_refused():
    mask = torso()
    with pytest.raises(MaskError, match="no tissue above -300 HU"):
        add_body(mask, Volume(np.full(mask.array.shape, -1000.0), mask.affine))
    with pytest.raises(MaskError, match=r"nothing below 0 HU.*label map"):
        add_body(mask, Volume(mask.array.astype(float), mask.affine))


def test_organ_outside_of_the_ct_is_kept():
    ct, _ = patient_on_a_table()
    array = np.zeros(ct.array.shape)
    array[2, 45, 3] = 91
    assert add_body(label_map(array, ct.affine), ct).array[2, 45, 3] == 91


def head_on_a_headrest() -> tuple[Volume, np.ndarray]:
    """A CT of 1 mm: a head with a long nose in a cup that it touches, on a solid table with rails, between its arms."""
    x, y, _ = np.meshgrid(np.arange(300), np.arange(220), np.arange(8), indexing="ij")  # y runs to the front
    head = ((x - 150) / 70) ** 2 + ((y - 130) / 80) ** 2 <= 1
    arms = (((np.abs(x - 150) - 120) / 22) ** 2 + ((y - 90) / 28) ** 2) <= 1
    nose = (np.abs(x - 150) <= 3) & (y >= 205) & (y < 217)
    patient = head | arms | nose
    hu = np.where(patient, 40.0, -1000.0)
    hu[((x - 150) / 30) ** 2 + ((y - 140) / 35) ** 2 <= 1] = -990  # a sinus
    far = np.hypot(x - 150, y - 140)
    hu[(far > 90) & (far <= 94) & (y < 90) & ~patient] = 100  # the cup
    hu[20:280, 8:26] = 120  # solid, 18 mm thick, 4680 mm²: a quarter of the head
    hu[60:90, 28:44], hu[210:240, 28:44] = 200, 200  # rails above the table, behind the head
    return Volume(hu, Grid.axis_aligned((300, 220, 8), (1.0, 1.0, 3.0)).affine), patient


@pytest.mark.parametrize("coarser", [1, 2, 4])
def test_headrest_and_all_pieces_of_the_table_go_and_arms_stay(coarser: int):
    ct, patient = head_on_a_headrest()
    step = (slice(None, None, coarser),) * 2
    affine = ct.affine @ np.diag([coarser, coarser, 1, 1])
    patient = patient[step]
    array = np.zeros(patient.shape)
    array[150 // coarser, 60 // coarser : 70 // coarser] = 22
    inside = add_body(label_map(array, affine), Volume(np.ascontiguousarray(ct.array[step]), affine)).array > 0
    dice = 2 * (inside & patient).sum() / (inside.sum() + patient.sum())
    assert dice > (0.99, 0.98, 0.95)[(1, 2, 4).index(coarser)]
    assert not inside[:, : 44 // coarser].any(), "table and rails"
    assert inside[35 // coarser, 90 // coarser].all(), "an arm that hangs apart"
    assert inside[150 // coarser, 140 // coarser].all(), "the sinus"
    if coarser < 4:
        assert inside[150 // coarser, 212 // coarser].all(), "the nose"


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 2, 0)])
def test_envelope_from_a_ct_does_not_depend_on_the_order_of_the_voxels(order: tuple[int, int, int]):
    ct, _ = patient_on_a_table()
    array = np.zeros(ct.array.shape)
    array[28:32, 24:27] = 115
    mask = label_map(array, ct.affine)
    moved = turned(mask, order, (1, 0, 1))
    assert (add_body(moved, ct).array == turned(add_body(mask, ct), order, (1, 0, 1)).array).all()
