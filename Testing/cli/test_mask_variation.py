"""``maisi mask vary``, ``insert`` and ``clean`` as a user meets them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from MAISILib.anatomy.labels import default_table
from MAISILib.cli.options import millimeters
from MAISILib.errors import RequestError
from MAISILib.files.images import read_mask
from MAISILib.files.nifti import write_labels
from MAISILib.volumes import LabelMap
from Testing.cli.conftest import Maisi
from Testing.tiny_bundle import LIVER, LUNG_TUMOR, tiny_patient

CT_BUNDLE = "nv-rflow-ct"


@pytest.fixture
def patient(work: Path) -> LabelMap:
    """Saved as ``patient.nii.gz`` in the working folder."""
    mask = tiny_patient(shape=(32, 32, 32), tumor=True)
    write_labels(mask, work / "patient.nii.gz", synthetic=False)
    return mask


def read(path: Path) -> np.ndarray:
    return read_mask(path, default_table()).array


def test_vary_writes_another_patient_the_same_for_the_same_seed(maisi: Maisi, patient: LabelMap, work: Path) -> None:
    for name, seed in (("a", 1), ("again", 1), ("b", 2)):
        told = maisi("mask", "vary", "patient.nii.gz", "-b", CT_BUNDLE, "--seed", seed, "--out", f"{name}.nii.gz")
        assert told.code == 0, told
        assert told.out.splitlines()[-2:] == [f"Varied with seed {seed}.", f"{name}.nii.gz holds the mask."]
    first, again, other = (read(work / f"{name}.nii.gz") for name in ("a", "again", "b"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, patient.array)
    assert set(np.unique(first)) == {0, *patient.labels}


def test_vary_lesions_alone(maisi: Maisi, patient: LabelMap, work: Path) -> None:
    still = ("--rotation", 0, "--scale", 0, "--bend", 0, "--organs", 0)
    told = maisi("mask", "vary", "patient.nii.gz", "-b", CT_BUNDLE, *still, "-o", "moved.nii.gz", "--picture", "p.png")
    assert told.code == 0, told
    changed = read(work / "moved.nii.gz") != patient.array
    assert changed.any()
    assert LIVER not in patient.array[changed]
    assert (work / "p.png").stat().st_size > 1000


def test_insert_tells_what_was_put_where(maisi: Maisi, patient: LabelMap, work: Path) -> None:
    command = ("mask", "insert", "patient.nii.gz", "-b", CT_BUNDLE, "--tumour", "hepatic tumor")
    told = maisi(*command, "--host", "liver", "--diameter", "2.4cm", "--seed", 3, "--out", "with.nii.gz")
    assert told.code == 0, told
    assert told.out.startswith("Inserted: hepatic tumor of 24.0 mm (asked for: 24 mm; 113 voxels) in liver at R ")
    assert np.count_nonzero(read(work / "with.nii.gz") == 26) == 113
    as_json = maisi(*command, "--diameter", "12mm", "--shape", "round", "--json", "--out", "json.nii.gz").json
    assert as_json["insertion"]["lesion"] == "hepatic tumor"
    assert as_json["insertion"]["diameter_mm"] == pytest.approx(12, abs=0.5)
    assert as_json["mask"] == "json.nii.gz"


def test_clean_keeps_small_lesions_and_says_what_it_changed(maisi: Maisi, patient: LabelMap, work: Path) -> None:
    array = patient.array.copy()
    array[2, 2, 2], array[16, 16, 8], array[28, 28, 28] = LIVER, 26, 26
    write_labels(patient.with_array(array), work / "drawn.nii.gz", synthetic=False)
    told = maisi("mask", "clean", "drawn.nii.gz", "-b", CT_BUNDLE, "--out", "clean.nii.gz")
    assert told.code == 0, told
    assert "Removed, because it lay outside of its host: hepatic tumor (1 voxels)." in told.out
    cleaned = read(work / "clean.nii.gz")
    assert np.argwhere(cleaned == 26).tolist() == [[16, 16, 8]]
    assert cleaned[2, 2, 2] == 200
    options = ("--keep-lesions", "--one-piece", "spleen", "--remove", "lung tumor")
    assert maisi("mask", "clean", "drawn.nii.gz", "-b", CT_BUNDLE, *options, "--out", "less.nii.gz").code == 0
    less = read(work / "less.nii.gz")
    assert (less[2, 2, 2], less[28, 28, 28]) == (LIVER, 26)
    assert LUNG_TUMOR not in less


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["vary", "--rotation", 99], "rotation is 0 to 30, not 99"),
        (["insert", "--tumour", "hepatic tumr", "--diameter", "9mm"], "Did you mean 'hepatic tumor'"),
        (["insert", "--tumour", "hepatic tumor", "--diameter", "9 inch"], "'9 inch' is no length"),
        (["insert", "--tumour", "hepatic tumor", "--diameter", "30cm"], "larger than liver"),
        (["insert", "--tumour", "hepatic tumor", "--diameter", "9mm", "--host", "spleen"], "has no spleen"),
        (["clean", "--one-piece", "livr"], "Did you mean 'liver'"),
        (["vary", "--bundle", "head-neck-mini"], "does not know: 1 ("),
    ],
)
def test_bad_input_is_refused(refused: Maisi, patient: LabelMap, command: list[object], said: str) -> None:
    bundle = [] if "--bundle" in command else ["--bundle", CT_BUNDLE]
    told = refused("mask", command[0], "patient.nii.gz", "--out", "new.nii.gz", *bundle, *command[1:])
    assert said in told.err


def test_lengths_are_read_as_people_write_them() -> None:
    assert [millimeters(text) for text in ("12mm", "1.2 cm", " 12 ", ".5CM")] == [12, 12, 12, 5]
    for text in ("", "mm", "-3mm", "12m"):
        with pytest.raises(RequestError, match="is no length"):
            millimeters(text)


def test_generate_varies_the_mask_and_puts_a_lesion_into_it(maisi: Maisi, work: Path, tiny: Path) -> None:
    lesion = ("--insert", "lung tumor=30mm", "--insert-host", "liver", "--insert-shape", "round")
    told = maisi("generate", "--bundle", tiny, "--vary", 3, *lesion, "--steps", 1, "--out", "out", "--device", "cpu")
    assert told.code == 0, told.err
    assert "\n    another patient, variation " in told.out
    assert "\n    lung tumor of 30." in told.out
    assert maisi("plan", "--bundle", tiny, "--vary", 3, *lesion, "--device", "cpu").code == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--insert", "12mm"], "write NAME=DIAMETER"),
        (["--insert", "lung tumor=big"], "'big' is no length"),
        (["--insert", "lung tumor=0"], "greater than 0"),
        (["--insert-host", "liver"], "give it with --insert"),
        (["--vary", 1, "--no-mask"], "leave out vary"),
    ],
)
def test_generate_refuses_changes_that_cannot_be(refused: Maisi, tiny: Path, given: list[object], said: str) -> None:
    assert said in refused("generate", "--bundle", tiny, *given).err


def test_generate_names_a_lesion_that_no_mask_of_the_library_takes(maisi: Maisi, tiny: Path) -> None:
    told = maisi("generate", "--bundle", tiny, "--insert", "lung tumor=500mm", "--device", "cpu")
    assert (told.code, len(told.err.splitlines())) == (2, 2)
    assert "A lung tumor of 500 mm is larger than left lung upper lobe" in told.err
