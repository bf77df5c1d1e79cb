"""Samples of varied masks, and of masks with a new lesion, from the library and from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MAISILib.anatomy.labels import LabelTable, default_table
from MAISILib.anatomy.library import build_library
from MAISILib.bundles.bundle import Bundle
from MAISILib.errors import MaskError, RequestError
from MAISILib.files.nifti import write_labels
from MAISILib.generation.conditioning import ConditioningMask, prepare
from MAISILib.generation.mask_changes import box_of
from MAISILib.generation.pipeline import generate
from MAISILib.generation.provenance import check_replay, read_replay
from MAISILib.generation.request import GenerateRequest
from MAISILib.volumes import Grid
from Testing.anatomy.phantoms import turned
from Testing.tiny_bundle import LIVER, LUNG, LUNG_TUMOR, make_tiny_bundle, tiny_patient

SIZE, SPACING = (32, 32, 32), (4.0, 4.0, 4.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose library has one healthy patient."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    entry = {"regions": ["chest"], "size": SIZE, "spacing": SPACING}
    make_tiny_bundle(folder, masks={"index": "library/masks.json", "format": "maisi"}, recommended=[entry])
    table = LabelTable.read(folder / "labels.csv", base=default_table())
    build_library([("one", tiny_patient(table, SIZE, SPACING))], folder / "library", table)
    return Bundle(folder)


def mask_of(bundle: Bundle, seed: int = 0, **fields: Any) -> ConditioningMask:
    mask = prepare(bundle, GenerateRequest(**fields)).masks.for_sample(seed)
    assert mask is not None
    return mask


def test_a_library_of_one_mask_gives_many_patients(bundle: Bundle) -> None:
    masks = [mask_of(bundle, seed, vary=7) for seed in (1, 2, 1)]
    arrays = [mask.model.array for mask in masks]
    assert np.array_equal(arrays[0], arrays[2])
    assert not np.array_equal(arrays[0], arrays[1])
    assert not np.array_equal(arrays[0], mask_of(bundle, 1).model.array)
    assert not np.array_equal(arrays[0], mask_of(bundle, 1, vary=8).model.array)
    assert set(masks[0].model.labels) == set(mask_of(bundle, 1).model.labels)
    assert masks[0].source["entry"] == "masks/one.nii.gz"
    assert f"Varied with seed {masks[0].source['variation']['seed']}." in masks[0].source["notes"]


def test_a_lesion_is_put_into_each_mask_of_the_library(bundle: Bundle) -> None:
    wish = {"lesion": "lung tumor", "diameter": 24.0}
    first, second = (mask_of(bundle, seed, insert_lesion=wish, vary=1) for seed in (1, 2))
    for mask in (first, second):
        told = mask.source["insertion"]
        assert mask.model.counts[LUNG_TUMOR] == told["voxels"] == 113
        assert (told["lesion"], told["host"], told["asked_mm"]) == ("lung tumor", "left lung upper lobe", 24.0)
    assert first.source["insertion"]["center_mm"] != second.source["insertion"]["center_mm"]


def test_a_users_mask_is_varied_on_his_grid_within_what_the_model_sees(bundle: Bundle, tmp_path: Path) -> None:
    patient = turned(tiny_patient(bundle.labels, (40, 32, 36), (3.0, 3.0, 3.0)), (1, 2, 0), (0, 1, 1))
    write_labels(patient, tmp_path / "mine.nii.gz", synthetic=False)
    wish = {"lesion": 23, "diameter": 20.0, "host": "liver", "shape": "round"}
    fields: dict[str, Any] = {"mask_file": tmp_path / "mine.nii.gz", "vary": 3, "insert_lesion": wish}
    mask = mask_of(bundle, 5, **fields)
    assert mask.output.grid.same_as(patient.grid)
    assert not np.array_equal(mask.output.array, patient.array)
    assert set(mask.output.labels) == {*patient.labels, LUNG_TUMOR} == set(mask.model.labels)
    assert mask.source["kind"] == "file"
    box = box_of(mask.model.grid, mask.output.grid)
    outside = np.ones(mask.output.array.shape, bool)
    outside[tuple(slice(a, b + 1) for a, b in zip(*box, strict=True))] = False
    assert not mask.output.array[outside].any()


def test_box_of_a_smaller_grid_in_a_turned_one() -> None:
    patient = turned(tiny_patient(shape=(20, 16, 12), spacing=(2.0, 3.0, 4.0)), (2, 0, 1), (1, 0, 0))
    small = Grid.axis_aligned((10, 4, 6), (2.0, 3.0, 4.0))
    assert box_of(small, patient.grid) == ((3, 5, 6), (8, 14, 9))
    assert box_of(Grid.axis_aligned((90, 90, 90), (4.0, 4.0, 4.0)), patient.grid) == ((0, 0, 0), (11, 19, 15))


def test_sample_of_a_varied_mask_is_replayed(bundle: Bundle, tmp_path: Path) -> None:
    wish = {"lesion": "lung tumor", "diameter": 30}
    request = GenerateRequest(vary=4, insert_lesion=wish, seed=2, count=2, quality_check=False, steps=1)
    second = generate(bundle, request, device="cpu").samples[1]
    assert second.mask is not None
    assert LUNG_TUMOR in second.mask.labels
    second.save(tmp_path / "sample")
    _, again, provenance = read_replay(tmp_path / "sample" / "provenance.json")
    check_replay(bundle, provenance)
    (replayed,) = generate(bundle, again, device="cpu").samples
    assert replayed.mask is not None
    assert np.array_equal(replayed.mask.array, second.mask.array)
    assert np.array_equal(replayed.image.array, second.image.array)


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"vary": -1}, RequestError, "vary: .*greater than or equal to 0"),
        ({"vary": 1, "mask": "none"}, RequestError, "with mask 'none' leave out vary"),
        ({"vary": 1, "mask": "generated"}, RequestError, "with mask 'generated' leave out vary"),
        ({"insert_lesion": {"lesion": "lung tumor"}}, RequestError, r"insert_lesion\.diameter: field required"),
        ({"insert_lesion": {"lesion": "lung tumr", "diameter": 9}}, RequestError, "Did you mean 'lung tumor'"),
        ({"insert_lesion": {"lesion": "liver", "diameter": 9}}, RequestError, "'liver' is no lesion"),
        ({"insert_lesion": {"lesion": 23, "diameter": 9, "shape": "flat"}}, RequestError, "no shape of a lesion"),
        ({"insert_lesion": {"lesion": 23, "diameter": 900}}, MaskError, "is larger than left lung upper lobe"),
    ],
)
def test_wishes_that_cannot_be_fulfilled_are_refused(
    bundle: Bundle, fields: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        mask_of(bundle, **fields)


def test_file_without_the_host_is_refused_before_the_work(bundle: Bundle, tmp_path: Path) -> None:
    patient = tiny_patient(bundle.labels, SIZE, SPACING)
    no_lung = patient.with_array(np.where(patient.array == LUNG, LIVER, patient.array).astype(np.uint8))
    write_labels(no_lung, tmp_path / "mine.nii.gz", synthetic=False)
    wish = {"lesion": "lung tumor", "diameter": 20}
    with pytest.raises(MaskError, match="The mask has no left lung upper lobe"):
        prepare(bundle, GenerateRequest(mask_file=tmp_path / "mine.nii.gz", insert_lesion=wish))
