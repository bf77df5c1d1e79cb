"""From patients in the layout of OpenKBP to pairs of image and labels, and the data list."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from MAISILib.errors import TrainingError
from MAISILib.files.nifti import SYNTHETIC
from MAISILib.training.datalist import read_datalist
from MAISILib.training.head_neck import crop_grid, read_case, sample_case
from MAISILib.training.head_neck_bundle import label_table
from MAISILib.training.head_neck_data import centred_masks, prepare_patients
from Testing.training.patients import write_openkbp

SHAPE = (16, 14, 12)
SPACINGS = [(8.0, 8.0, 10.0), (8.0, 8.0, 5.0), (6.0, 6.0, 5.0)]


@pytest.fixture(scope="module")
def openkbp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_openkbp(tmp_path_factory.mktemp("openkbp"))


def prepare(openkbp: Path, out: Path, **changes: Any) -> Path:
    asked: dict[str, Any] = {"shape": SHAPE, "spacings": SPACINGS, "seed": 4, **changes}
    return prepare_patients(openkbp, out, label_table(), **asked)


@pytest.fixture(scope="module")
def pairs(openkbp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(openkbp, tmp_path_factory.mktemp("pairs"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_training_patients_give_every_crop_and_held_out_ones_the_centred_crop(pairs: Path) -> None:
    data = read_datalist(pairs)
    assert data.skipped == ()
    assert [item.name for item in data.training] == [f"pt_{n}-{v}" for n in (1, 2, 10) for v in range(3)]
    assert [item.name for item in data.validation] == ["pt_201-0"]
    assert {item.image.parent.name for item in data.training} == {"train"}
    for item, spacing in zip(data.training, SPACINGS * 3, strict=True):
        assert (item.dim, item.spacing, item.modality) == (SHAPE, spacing, "ct")
        assert item.label is not None
        for path in (item.image, item.label):
            stored: Any = nib.load(path)  # type: ignore[attr-defined]
            assert stored.shape == SHAPE
            np.testing.assert_allclose(stored.header.get_zooms(), spacing)


def test_pairs_hold_the_patient_on_the_crops_grid(openkbp: Path, pairs: Path) -> None:
    name, image, labels = next(centred_masks(pairs, label_table()))
    assert name == "pt_1"
    case = read_case(openkbp / "train", name)
    ct, wanted = sample_case(case, crop_grid(case, SHAPE, SPACINGS[0], 0.5))
    np.testing.assert_array_equal(image.array, np.round(ct))
    np.testing.assert_array_equal(labels.array, wanted)
    assert labels.grid.same_as(image.grid, 1e-3)


def test_masks_for_the_library_are_the_centred_ones_of_training_patients(pairs: Path) -> None:
    assert [name for name, _, _ in centred_masks(pairs, label_table())] == ["pt_1", "pt_2", "pt_10"]


def test_files_of_patients_are_not_called_synthetic(pairs: Path) -> None:
    files = sorted(pairs.parent.rglob("*.nii.gz"))
    assert len(files) == 20
    notes = {bytes(nib.load(path).header["descrip"]).rstrip(b"\0") for path in files}  # type: ignore[attr-defined, index]
    assert b"OpenKBP pt_10" in notes
    assert not [note for note in notes if SYNTHETIC.encode()[:10] in note]


def test_what_is_there_is_not_made_again_and_what_is_missing_is(openkbp: Path, pairs: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(pairs.parent, tmp_path / "pairs"))
    (out / "datalist.json").unlink()
    (out / "train" / "pt_2-1_seg.nii.gz").unlink()
    kept = out / "train" / "pt_2-0_ct.nii.gz"
    before = kept.stat().st_mtime_ns
    lines: list[str] = []
    assert prepare(openkbp, out, on_progress=lines.append) == out / "datalist.json"
    assert kept.stat().st_mtime_ns == before
    assert contents(out) == contents(pairs.parent)
    assert len(lines) == 2
    shutil.rmtree(out / "train")  # a finished folder is believed
    assert prepare(tmp_path / "gone", out) == out / "datalist.json"


def test_the_seed_decides_the_heights_of_all_but_the_centred_crops(openkbp: Path, pairs: Path, tmp_path: Path) -> None:
    def heights(datalist: Path) -> dict[str, float]:
        return {
            item.name: round(float(nib.load(item.image).affine[2, 3]), 3)  # type: ignore[attr-defined]
            for item in read_datalist(datalist).training
        }

    first, other = heights(pairs), heights(prepare(openkbp, tmp_path / "other", seed=5))
    assert {name for name in first if first[name] == other[name]} == {"pt_1-0", "pt_2-0", "pt_10-0"}


@pytest.mark.parametrize("change", [{"shape": (16, 14, 8)}, {"spacings": SPACINGS[:2]}, {"seed": 5}])
def test_a_folder_with_other_crops_is_refused(
    change: dict[str, Any], openkbp: Path, pairs: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(pairs.parent, tmp_path / "pairs"))
    with pytest.raises(TrainingError, match="other sizes or places"):
        prepare(openkbp, out, **change)
    assert contents(out) == contents(pairs.parent)


def test_a_patient_without_structures_is_named(openkbp: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(openkbp, tmp_path / "openkbp"))
    (data / "train" / "pt_2_seg.nii.gz").unlink()
    with pytest.raises(TrainingError, match=r"pt_2_seg\.nii\.gz is missing"):
        prepare(data, tmp_path / "pairs")
    assert not (tmp_path / "pairs" / "datalist.json").exists()


def test_paths_in_the_list_are_relative_so_that_the_folder_can_move(pairs: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(pairs.parent, tmp_path / "moved")) / "datalist.json"
    assert {item.image.parents[1] for item in read_datalist(moved).training} == {tmp_path / "moved"}
    assert not Path(json.loads(moved.read_text(encoding="utf-8"))["training"][0]["image"]).is_absolute()
