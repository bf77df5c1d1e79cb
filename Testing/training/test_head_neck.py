from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from MAISILib.anatomy.labels import LabelTable, default_table
from MAISILib.errors import TrainingError
from MAISILib.training.head_neck import (
    AIR,
    BODY,
    BONE,
    STRUCTURES,
    TARGET,
    Case,
    body_bounds,
    case_names,
    conditioning_labels,
    crop_grid,
    read_case,
    sample_case,
)
from MAISILib.training.head_neck_bundle import label_table, library_mask
from MAISILib.volumes import Grid, LabelMap, Volume
from Testing.training.patients import make_patient, write_patient

ESOPHAGUS, SPINAL_CORD, RIGHT_PAROTID, LEFT_PAROTID = 11, 121, 134, 135


@pytest.fixture
def labels() -> np.ndarray:
    ct, structures = make_patient()
    return conditioning_labels(ct.astype(np.float32), structures)


def test_patient_is_read_in_ras_order_whatever_the_file(tmp_path: Path) -> None:
    write_patient(tmp_path, "pt_1")
    write_patient(tmp_path, "pt_2", axes="LPS")
    one, two = read_case(tmp_path, "pt_1"), read_case(tmp_path, "pt_2")
    assert one.ct.dtype == np.int16
    np.testing.assert_array_equal(one.ct, make_patient()[0])
    np.testing.assert_array_equal(two.ct, one.ct)
    np.testing.assert_array_equal(two.structures, one.structures)
    np.testing.assert_allclose(two.affine, one.affine)


def test_missing_structures_are_named(tmp_path: Path) -> None:
    write_patient(tmp_path, "pt_1")
    (tmp_path / "pt_1_seg.nii.gz").unlink()
    with pytest.raises(TrainingError, match=r"pt_1_seg\.nii\.gz is missing"):
        read_case(tmp_path, "pt_1")


def test_structures_of_another_size_are_refused(tmp_path: Path) -> None:
    import nibabel as nib

    write_patient(tmp_path, "pt_1")
    other = nib.Nifti1Image(np.zeros((32, 32, 30), np.uint8), np.eye(4))  # type: ignore[attr-defined]
    nib.save(other, tmp_path / "pt_1_seg.nii.gz")  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match=r"pt_1: CT \(32, 32, 32\) and structures \(32, 32, 30\)"):
        read_case(tmp_path, "pt_1")


def test_patients_come_in_numeric_order(patients: Path) -> None:
    assert case_names(patients) == ["pt_1", "pt_2", "pt_10"]


def test_folder_without_patients_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no OpenKBP case"):
        case_names(tmp_path)


def test_body_bounds_ignore_specks(patients: Path) -> None:
    case = read_case(patients, "pt_1")
    case.ct[0, 0, 0] = case.ct[31, 31, 31] = 50
    low, high = body_bounds(case)
    assert low[2] == 2
    assert (low[:2] >= 1).all()
    assert (high <= [30, 30, 31]).all()


def test_empty_ct_is_refused_by_name() -> None:
    empty = np.full((8, 8, 8), -1000, np.int16)
    with pytest.raises(TrainingError, match="pt_7: no tissue"):
        body_bounds(Case("pt_7", empty, np.zeros((8, 8, 8), np.uint8), np.eye(4)))


def test_crop_is_centred_across_and_moves_along_the_body(tmp_path: Path) -> None:
    """Tissue is symmetric about 62 mm in x and y and spans 6 to 126 mm in z; then the origin is moved."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-30, 12, 500)
    write_patient(tmp_path, "pt_1", affine=affine)
    case = read_case(tmp_path, "pt_1")
    grids = [crop_grid(case, (16, 12, 10), (7.0, 8.0, 4.0), height) for height in (0.0, 0.5, 1.0)]
    for grid in grids:
        assert grid.shape == (16, 12, 10)
        assert grid.spacing == pytest.approx((7.0, 8.0, 4.0))
        np.testing.assert_allclose(grid.center[:2], [62 - 30, 62 + 12])
    lower_faces = [grid.center[2] - 20 for grid in grids]
    np.testing.assert_allclose(lower_faces, [506, 546, 586])  # bottom, middle and top of 506–626 mm


@pytest.mark.parametrize("height", [0.0, 0.3, 1.0])
def test_crop_longer_than_the_patient_holds_all_of_the_patient(patients: Path, height: float) -> None:
    case = read_case(patients, "pt_1")
    grid = crop_grid(case, (16, 16, 50), (7.0, 7.0, 4.0), height)
    assert grid.center[2] - 100 <= 6
    assert grid.center[2] + 100 >= 126


def test_crop_beyond_the_scan_is_air_without_label(patients: Path) -> None:
    case = read_case(patients, "pt_1")
    ct, labels = sample_case(case, Grid.axis_aligned((8, 8, 8), (4.0, 4.0, 4.0), (500.0, 62.0, 62.0)))
    assert (ct == -1000).all()
    assert not labels.any()


def test_crop_on_the_scans_own_grid_is_the_scan(patients: Path) -> None:
    case = read_case(patients, "pt_1")
    ct, labels = sample_case(case, case.grid)
    np.testing.assert_array_equal(ct, case.ct)
    assert set(np.unique(labels)) == {0, BODY, TARGET, BONE, AIR, SPINAL_CORD, RIGHT_PAROTID, LEFT_PAROTID}


def test_hu_are_clipped_to_the_models_range(patients: Path) -> None:
    case = read_case(patients, "pt_1")
    case.ct[16, 16, 16], case.ct[0, 0, 0] = 3000, -2048
    ct, _ = sample_case(case, case.grid)
    assert (ct.min(), ct.max()) == (-1000, 1000)


def test_air_inside_the_body_is_an_air_cavity_and_outside_is_background(labels: np.ndarray) -> None:
    assert labels[15, 20, 28] == AIR
    assert labels[0, 0, 16] == 0
    assert not labels[..., :2].any()


def test_hu_decide_over_the_target_but_not_over_organs(labels: np.ndarray) -> None:
    """From the bottom up: body, target, air cavity, bone, organs."""
    assert labels[15, 15, 16] == TARGET  # drawn on soft tissue
    assert labels[15, 20, 16] == AIR  # drawn on the airway
    assert labels[13, 8, 16] == BONE
    assert labels[15, 8, 16] == SPINAL_CORD  # drawn inside bone
    assert (labels[6, 15, 20], labels[25, 15, 20]) == (RIGHT_PAROTID, LEFT_PAROTID)
    assert labels[15, 3, 16] == BODY


@pytest.mark.parametrize(("hu", "label"), [(180, BODY), (181, BONE), (-300, BODY), (-301, AIR), (40, BODY)])
def test_thresholds_of_bone_and_air(hu: int, label: int) -> None:
    ct = np.full((12, 12, 12), -1000.0)
    ct[2:10, 2:10, 2:10] = 40
    ct[4:8, 4:8, 4:8] = hu
    assert conditioning_labels(ct, np.zeros(ct.shape, np.uint8))[5, 5, 5] == label


def test_target_drawn_in_the_air_around_the_patient_is_left_out() -> None:
    ct, structures = make_patient()
    structures[0, 0, 10] = 8
    assert conditioning_labels(ct.astype(np.float32), structures)[0, 0, 10] == 0


def test_the_library_cuts_organs_where_they_reach_beyond_the_patient() -> None:
    ct, structures = make_patient()
    structures[6, 15, 0:4] = 5  # an esophagus that goes on below the scan
    ct[:, :, 0:2] = -1000
    labels = conditioning_labels(ct.astype(np.float32), structures)
    assert (labels[6, 15, 0:4] == ESOPHAGUS).all()
    moved = np.diag([6.0, 6.0, 4.0, 1.0])
    moved[:3, 3] = 100.0
    cut = library_mask(Volume(ct, moved), LabelMap(labels, moved, label_table()))
    assert (cut.array[6, 15, 0:2] == 0).all()
    assert (cut.array[:, :, 2:] == labels[:, :, 2:]).all()
    assert cut.spacing == pytest.approx((6.0, 6.0, 4.0))
    center = cut.affine @ np.append((np.array(cut.array.shape) - 1) / 2, 1)
    assert center[:3] == pytest.approx(0.0)


def test_specks_beside_the_patient_are_no_body() -> None:
    ct, structures = make_patient()
    ct[0, 0, 20:22] = 50
    assert not conditioning_labels(ct.astype(np.float32), structures)[0, 0].any()


def test_grid_without_tissue_has_no_labels() -> None:
    ct = np.full((8, 8, 8), -1000.0)
    assert not conditioning_labels(ct, np.zeros((8, 8, 8), np.uint8)).any()


@pytest.mark.parametrize("structure", sorted(STRUCTURES))
def test_every_drawn_structure_has_a_label_of_the_bundle(structure: int, repository: Path) -> None:
    table = LabelTable.read(
        repository / "Resources" / "bundles" / "head-neck-mini" / "labels.csv", base=default_table()
    )
    ct = np.full((12, 12, 12), -1000.0)
    ct[2:10, 2:10, 2:10] = 40
    structures = np.zeros(ct.shape, np.uint8)
    structures[5, 5, 5] = structure
    label = int(conditioning_labels(ct, structures)[5, 5, 5])
    assert label == STRUCTURES[structure]
    assert label in table
