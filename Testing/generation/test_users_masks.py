"""Masks from files: the result lies on the user's own grid, with the user's labels; and masks from the library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from MAISILib.bundles.bundle import Bundle
from MAISILib.errors import FileFormatError, MaskError
from MAISILib.files.checks import file_sha256
from MAISILib.files.nifti import read_labels, read_volume, write_volume
from MAISILib.generation.conditioning import prepare
from MAISILib.generation.pipeline import generate, plan_request
from MAISILib.generation.request import GenerateRequest
from MAISILib.resampling import nearest
from MAISILib.volumes import Grid, LabelMap, Volume
from Testing.tiny_bundle import BODY, LIVER, LUNG, LUNG_TUMOR, tiny_patient
from Testing.training.users_cases import write_image


def turned(mask: LabelMap, order: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> LabelMap:
    """The same patient at the same place, with voxel axes in another order and direction."""
    array, affine = mask.array.transpose(order), mask.affine[:, [*order, 3]].copy()
    for axis in range(3):
        if flips[axis]:
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
            array = np.flip(array, axis)
    return mask.with_array(np.ascontiguousarray(array), affine=affine)


USERS: dict[str, LabelMap] = {
    "LPS": turned(tiny_patient(), (0, 1, 2), (True, True, False)),
    "permuted, unequal voxels": turned(
        tiny_patient(shape=(20, 16, 24), spacing=(4.0, 3.0, 2.0)), (2, 0, 1), (False, True, True)
    ),
    "finer": tiny_patient(shape=(32, 32, 24), spacing=(2.0, 2.0, 2.5)),
    "odd size": tiny_patient(shape=(17, 19, 15)),
    "oblique": tiny_patient().with_array(
        tiny_patient().array, affine=np.array([[3.8, -1.2, 0, 5], [1.2, 3.8, 0, -9], [0, 0, 4, 2], [0, 0, 0, 1.0]])
    ),
}


@pytest.mark.parametrize("name", USERS)
def test_image_lies_on_the_users_grid_with_the_users_labels(
    rflow: Bundle, users_mask: Callable[..., GenerateRequest], tmp_path: Path, name: str
) -> None:
    mine = USERS[name]
    request = users_mask(mine, steps=1)
    result = generate(rflow, request)
    assert result.mask is not None
    assert result.image.grid.same_as(mine.grid)
    assert result.mask.grid.same_as(mine.grid)
    assert np.array_equal(result.mask.array, mine.array)
    assert (result.image.array[mine.array == 0] == -1000).all()
    assert (result.image.array[mine.array > 0] != -1000).mean() > 0.2
    result.save(tmp_path / "out")
    saved = read_volume(tmp_path / "out/sample-0000/image.nii.gz")
    assert saved.array.dtype == np.int16
    assert np.allclose(saved.affine, mine.affine, atol=1e-4)
    assert np.array_equal(read_labels(tmp_path / "out/sample-0000/mask.nii.gz", rflow.labels).array, mine.array)


def test_mask_of_a_tilted_gantry_is_straightened_and_that_is_told(rflow: Bundle, tmp_path: Path) -> None:
    mine = tiny_patient()
    sheared = mine.affine.copy()
    sheared[1, 2] = 1.2  # 16.7° from the normal of the slices
    hounsfield = np.where(mine.array > 0, 30, -1000).astype(np.int16)
    write_image(tmp_path / "mask.nii.gz", mine.array, sheared)
    write_image(tmp_path / "ct.nii.gz", hounsfield, sheared)
    request = GenerateRequest(mask_file=tmp_path / "mask.nii.gz", mask_ct=tmp_path / "ct.nii.gz", steps=1)
    result = generate(rflow, request)
    assert result.mask is not None
    assert result.image.grid.same_as(result.mask.grid)
    own = Grid(mine.grid.shape, np.asarray(nib.load(tmp_path / "mask.nii.gz").affine))  # type: ignore[attr-defined]
    back = nearest(result.mask.array, result.mask.grid, own)
    assert np.array_equal(back, mine.array), "each of the user's voxels is found at its old place"
    assert "axes meet at 73.3°" in result.provenance["mask_source"]["notes"][0]


def test_orientation_of_the_file_does_not_change_the_picture(
    tiny: Callable[..., Bundle], users_mask: Callable[..., GenerateRequest]
) -> None:
    bundle = tiny(mask_spacing="keep")
    plain = tiny_patient(shape=(20, 16, 24), spacing=(4.0, 3.0, 2.0))
    images = []
    for mask in (plain, turned(plain, (2, 0, 1), (False, True, True))):
        request = users_mask(mask, steps=1)
        assert plan_request(bundle, request).spacing == pytest.approx((4.0, 3.0, 2.0))
        images.append(generate(bundle, request).image.array)
    back = np.flip(images[1], (1, 2)).transpose(1, 2, 0)
    assert np.array_equal(images[0], back)


def test_large_field_of_view_is_cropped_for_the_model_and_given_back_whole(
    rflow: Bundle, users_mask: Callable[..., GenerateRequest]
) -> None:
    small = tiny_patient()
    array = np.zeros((60, 48, 40), np.uint8)
    array[30:46, 20:36, 10:26] = small.array
    mine = small.with_array(array)
    request = users_mask(mine, steps=1)
    assert max(plan_request(rflow, request).size) <= 24
    result = generate(rflow, request)
    assert result.image.array.shape == (60, 48, 40)
    assert (result.image.array[array == 0] == -1000).all()
    assert (result.image.array[array > 0] != -1000).mean() > 0.2


def test_missing_body_is_added_and_the_organs_stay(rflow: Bundle, users_mask: Callable[..., GenerateRequest]) -> None:
    organs = tiny_patient(shape=(24, 24, 24), body=False)
    result = generate(rflow, users_mask(organs, steps=1))
    assert result.mask is not None
    assert result.mask.labels == [LIVER, LUNG, BODY]
    assert np.array_equal(np.where(result.mask.array == BODY, 0, result.mask.array), organs.array)
    assert any("guess" in note for note in result.provenance["mask_source"]["notes"])


def test_structures_that_the_model_grid_loses_are_named_with_the_sample(
    rflow: Bundle, users_mask: Callable[..., GenerateRequest], tmp_path: Path
) -> None:
    mine = tiny_patient(shape=(48, 48, 48), spacing=(4 / 3, 4 / 3, 4 / 3))
    array = mine.array.copy()
    array[25, 25, 24] = LUNG_TUMOR
    request = users_mask(mine.with_array(array), steps=1)
    sample = generate(rflow, request).samples[0]
    lost = {"name": "lung tumor", "label": LUNG_TUMOR, "voxels": 1, "kept": 0}
    assert sample.provenance["mask_source"]["lost"] == [lost]
    told = sample.summary(tmp_path)["mask"]
    assert told == ["lung tumor: the model's voxels keep 0 of its 1 voxels, so the image does not show it"]
    assert sample.mask is not None
    assert sample.mask.array[25, 25, 24] == LUNG_TUMOR, "the user's mask comes back as it was"
    whole = generate(rflow, users_mask(tiny_patient(), steps=1)).samples[0]
    assert whole.provenance["mask_source"]["lost"] == whole.summary(tmp_path)["mask"] == []


def test_provenance_tells_the_body_regions_that_the_networks_were_given(
    rflow: Bundle, ddpm: Bundle, users_mask: Callable[..., GenerateRequest]
) -> None:
    def given(bundle: Bundle, request: GenerateRequest) -> Any:
        return generate(bundle, request).provenance["settings"]["body_regions"]

    assert given(ddpm, users_mask(steps=1)) == {"top": 1, "bottom": 2}, "lung above, liver below"
    assert given(ddpm, GenerateRequest(mask="none", body_region=["head", "chest"], steps=1)) == {"top": 0, "bottom": 1}
    assert given(rflow, users_mask(steps=1)) is None, "its networks take none"


def test_body_is_taken_from_the_ct_that_comes_along(
    rflow: Bundle, users_mask: Callable[..., GenerateRequest], tmp_path: Path
) -> None:
    organs = tiny_patient(shape=(24, 24, 24), body=False)
    hounsfield = np.full(organs.array.shape, -1000, np.int16)
    hounsfield[3:21, 5:19, :] = 30
    write_volume(Volume(hounsfield, organs.affine), tmp_path / "ct.nii.gz")
    result = generate(rflow, users_mask(organs, steps=1, mask_ct=tmp_path / "ct.nii.gz"))
    assert result.mask is not None
    assert np.array_equal(result.mask.array > 0, hounsfield > -300)
    assert result.provenance["mask_source"]["ct"]["sha256"] == file_sha256(tmp_path / "ct.nii.gz")


def test_mask_that_cannot_serve_is_refused_before_loading(
    rflow: Bundle, users_mask: Callable[..., GenerateRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "load", lambda *a: pytest.fail("a network was loaded"))
    healthy = tiny_patient()
    strange = healthy.array.copy()
    strange[4:6, 4:6, 4:6], strange[8, 8, 8] = 77, 250
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (
            healthy.with_array(strange),
            {},
            r"does not know: 77 \(8 voxels\), 250 \(1 voxels\).*Known ones in it: .*liver",
        ),
        (healthy.with_array(strange * 0), {}, "empty"),
        (healthy, {"anatomy": ["lung tumor"]}, "has no lung tumor, which --anatomy asks for"),
        (healthy, {"output_size": (8, 8, 8)}, r"labels span 56 × 56 × 56 mm.*nearest legal size is 8 × 8 × 8"),
    ]
    for mask, fields, said in cases:
        with pytest.raises(MaskError, match=said):
            generate(rflow, users_mask(mask, **fields))
    with pytest.raises(FileFormatError, match=r"gone\.nii does not exist"):
        generate(rflow, GenerateRequest(mask_file=tmp_path / "gone.nii"))


def test_library_mask_varies_with_the_seed(rflow: Bundle) -> None:
    masks = {}
    for seed in range(8):
        source = prepare(rflow, GenerateRequest(seed=seed)).masks.for_sample(seed)
        assert source is not None
        masks[source.source["entry"]] = source.model.array.tobytes()
        assert source.source["sha256"] == file_sha256(rflow.folder / "library" / source.source["entry"])
        assert "tumor" not in source.source["entry"]  # nobody asked for one
    assert len(masks) > 1
    assert len(set(masks.values())) == len(masks)


def test_library_mask_is_brought_to_the_size_asked_for(rflow: Bundle) -> None:
    request = GenerateRequest(output_size=(32, 24, 16), spacing=(2.5, 3.0, 4.0), anatomy=[LUNG])
    mask = prepare(rflow, request).masks.for_sample(1)
    assert mask is not None
    assert mask.model.array.shape == (32, 24, 16)
    assert mask.model.grid.spacing == pytest.approx((2.5, 3.0, 4.0))
    assert LUNG in mask.model.labels


def test_anatomy_outside_a_small_field_of_view_is_told(rflow: Bundle) -> None:
    request = GenerateRequest(output_size=(8, 8, 4), spacing=(0.5, 0.5, 0.5), anatomy=["liver", LUNG])
    masks = prepare(rflow, request).masks
    with pytest.raises(
        MaskError, match=r"has .*left lung upper lobe, but not within \(8, 8, 4\) voxels.*larger field of view"
    ):
        masks.for_sample(0)
