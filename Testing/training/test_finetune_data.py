"""Training pairs from a user's cases: on the bundle's grid, in the right place, with everything that a model needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MAISILib.bundles.bundle import Bundle
from MAISILib.errors import Cancelled, FileFormatError, MaskError, RequestError
from MAISILib.generation.conditioning import prepare
from MAISILib.generation.request import GenerateRequest
from MAISILib.resampling import nearest
from MAISILib.training.cases import read_cases
from MAISILib.training.finetune_data import PreparedCase, plan_preparation, prepared_one_by_one
from MAISILib.training.label_mapping import propose_mapping
from MAISILib.training.new_labels import extended_table, parse_new_labels
from MAISILib.volumes import Grid, LabelMap
from Testing.tiny_bundle import BODY, LIVER, LUNG, LUNG_TUMOR, make_tiny_bundle
from Testing.training.users_cases import (
    HU,
    LESION,
    OBLIQUE_LPS,
    moved,
    patient,
    write_case,
    write_image,
    write_list,
    write_segments,
)

NEW = f"lesion={LESION}:liver"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(make_tiny_bundle(tmp_path_factory.mktemp("tiny"), name="tiny"))


@pytest.fixture
def pairs(bundle: Bundle, tmp_path: Path) -> Callable[..., list[PreparedCase]]:
    """Prepares a list of cases, as `maisi finetune` does."""

    def make(content: Any, new: Sequence[str] = (NEW,), *, of: Bundle = bundle, **options: Any) -> list[PreparedCase]:
        skipping = {key: options.pop(key) for key in ("skip_bad", "on_skip", "on_progress") if key in options}
        cases = read_cases(write_list(tmp_path, content))
        labels = parse_new_labels(new, of.labels)
        mapping = propose_mapping(cases, of.labels, labels)
        return list(prepared_one_by_one(plan_preparation(of, mapping, labels, **options), cases, **skipping))

    return make


def seen(pair: PreparedCase, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels of a pair on other voxels; where the grids only begin elsewhere, its own values."""
    return nearest(pair.image.array, pair.image.grid, grid), nearest(pair.mask.array, pair.mask.grid, grid)


def test_pair_shows_the_patient_as_the_files_do(tmp_path: Path, pairs: Callable[..., list[PreparedCase]]) -> None:
    (pair,) = pairs(write_case(tmp_path, "anna"))
    ct, mask = patient()
    assert pair.name == "anna"
    assert pair.mask.array.shape == (20, 20, 20)  # legal, with 10 mm of air
    assert pair.image.grid.same_as(pair.mask.grid)
    image, labels = seen(pair, mask.grid)
    assert np.array_equal(labels, mask.array)
    assert np.array_equal(image, ct.array)
    assert (pair.mask.array > 0).sum() == (mask.array > 0).sum()
    assert (pair.image.array[pair.mask.array == 0] == -1000).all()
    assert pair.mask.table[LESION].name == "lesion"
    assert pair.image.units == "HU"


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_orientation_of_the_files_does_not_change_the_pair(
    tmp_path: Path, pairs: Callable[..., list[PreparedCase]], suffix: str
) -> None:
    ct, mask = patient()
    write_image(tmp_path / f"ct{suffix}", *moved(ct.array, ct.affine, OBLIQUE_LPS))
    write_image(tmp_path / f"seg{suffix}", *moved(mask.array, mask.affine, OBLIQUE_LPS))
    (pair,) = pairs({"image": f"ct{suffix}", "segmentation": f"seg{suffix}"})
    array, affine = moved(mask.array, mask.affine, OBLIQUE_LPS)
    image, labels = seen(pair, Grid(array.shape, affine))  # type: ignore[arg-type]
    assert np.array_equal(labels, array)
    assert np.array_equal(image, moved(ct.array, ct.affine, OBLIQUE_LPS)[0])
    assert (np.diag(pair.mask.affine)[:3] > 0).all()  # whatever the order of the file's axes


def test_grid_is_the_one_of_generating_from_this_mask(
    tmp_path: Path, bundle: Bundle, pairs: Callable[..., list[PreparedCase]]
) -> None:
    ct, mask = patient(lesion=False, shape=(30, 21, 26))
    affine = mask.affine @ np.diag([1.1, 0.9, 0.6, 1])
    write_image(tmp_path / "ct.nrrd", ct.array, affine)
    write_image(tmp_path / "seg.nrrd", np.where(mask.array == BODY, 0, mask.array).astype(np.uint8), affine)
    (pair,) = pairs({"image": "ct.nrrd", "segmentation": "seg.nrrd"}, new=())
    request = GenerateRequest(mask_file=tmp_path / "seg.nrrd", mask_ct=tmp_path / "ct.nrrd")
    generated = prepare(bundle, request).masks.grid
    assert generated is not None
    assert pair.mask.grid.same_as(generated)
    assert pair.mask.labels == [LIVER, LUNG, BODY]


def test_users_labels_lie_on_the_organs_and_the_organs_on_the_body(
    tmp_path: Path, pairs: Callable[..., list[PreparedCase]]
) -> None:
    ct, mask = patient()
    lesion, organs = mask.array == LESION, np.where(mask.array == LESION, LIVER, mask.array)
    entry = write_case(tmp_path, "anna")
    users = np.where(lesion, 2, (mask.array > 0).astype(np.uint8))
    write_segments(
        tmp_path / "mine.seg.nrrd",
        users,
        ct.affine,
        [{"Name": "External", "LabelValue": 1}, {"Name": "Lesion", "LabelValue": 2}],
    )
    names = {"1": "liver", "28": "lung_upper_lobe_left", "3": "heart"}
    organs = np.where(organs == BODY, 0, organs)
    organs[2, 2, 2:5] = 3
    write_image(tmp_path / "organs.nii.gz", organs, ct.affine)
    content = {**entry, "segmentation": "mine.seg.nrrd", "body_segmentation": "organs.nii.gz", "body_names": names}
    (pair,) = pairs(content)
    assert np.array_equal(seen(pair, mask.grid)[1], mask.array)  # the heart, which the bundle does not know, is body


def test_segment_that_overlaps_wins_over_earlier_ones_and_over_the_body(
    tmp_path: Path, pairs: Callable[..., list[PreparedCase]]
) -> None:
    entry = write_case(tmp_path, "anna")
    ct, mask = patient()
    lesion, liver = mask.array == LESION, (mask.array == LIVER) | (mask.array == LESION)
    layers = np.stack([liver, lesion, mask.array > 0]).astype(np.uint8)
    segments = [{"Name": name, "LabelValue": 1, "Layer": k} for k, name in enumerate(("liver", "lesion", "body"))]
    for order, expected in ((segments, LESION), (segments[::-1], LIVER)):
        write_segments(tmp_path / "o.seg.nrrd", layers, ct.affine, order)
        (pair,) = pairs({**entry, "segmentation": "o.seg.nrrd"}, focus=["liver"])
        labels = seen(pair, mask.grid)[1]
        assert (labels[lesion] == expected).all()
        assert (labels[liver & ~lesion] == LIVER).all()
        assert (labels[mask.array == BODY] == BODY).all()


def test_body_comes_from_the_ct_and_outside_is_air(tmp_path: Path, pairs: Callable[..., list[PreparedCase]]) -> None:
    ct, mask = patient(shape=(24, 24, 24))
    array = ct.array.copy()
    array[mask.array == 0] = -950
    array[:, 1:3, :] = -950
    array[4:12, 0, :] = 200  # a table behind the patient
    write_image(tmp_path / "ct.nii.gz", array, ct.affine)
    write_image(tmp_path / "seg.nii.gz", np.where(mask.array == LESION, LESION, 0).astype(np.uint8), ct.affine)
    (pair,) = pairs({"image": "ct.nii.gz", "segmentation": "seg.nii.gz"})
    assert pair.mask.labels == [LESION, BODY]
    assert any("Body (label 200) added from the CT" in note for note in pair.notes)
    body = pair.mask.array > 0
    assert (pair.image.array[~body] == -1000).all()
    assert np.isin(pair.image.array[body], list(HU.values())).mean() > 0.95
    assert np.argwhere(seen(pair, mask.grid)[1]).min(axis=0).tolist() == [1, 3, 1]  # not the table in row 0


def test_pair_keeps_all_lesions_whatever_the_focus(tmp_path: Path, pairs: Callable[..., list[PreparedCase]]) -> None:
    ct, mask = patient(tumor=True)
    write_image(tmp_path / "ct.nii.gz", ct.array, ct.affine)
    write_image(tmp_path / "seg.nii.gz", mask.array, ct.affine)
    content = {"image": "ct.nii.gz", "segmentation": "seg.nii.gz"}
    for focus in ((), ("lung tumor",)):
        (pair,) = pairs(content, focus=focus)
        assert {LESION, LUNG_TUMOR} <= set(pair.mask.labels)


def test_case_without_the_focus_label_is_named_or_skipped(
    tmp_path: Path, pairs: Callable[..., list[PreparedCase]]
) -> None:
    content = [write_case(tmp_path, "anna"), write_case(tmp_path, "bert", lesion=False)]
    with pytest.raises(FileFormatError, match=r"'tiny': 1 of 2 .*\n  bert: There is no 150 \(lesion\) in it"):
        pairs(content)
    skipped: list[str] = []
    assert [p.name for p in pairs(content, skip_bad=True, on_skip=skipped.append)] == ["anna"]
    assert [message.split(":")[0] for message in skipped] == ["bert"]
    with pytest.raises(MaskError, match=r"No segment of the cases is 150 \(lesion\)"):
        pairs(content[1:], skip_bad=True)
    with pytest.raises(RequestError, match="no anatomy 'lesoin'"):
        pairs(content, focus=["lesoin"])


def test_focus_label_that_vanishes_between_the_models_voxels_is_told(
    tmp_path: Path, pairs: Callable[..., list[PreparedCase]]
) -> None:
    ct, mask = patient(lesion=False, shape=(64, 64, 64), spacing=(1.0, 1.0, 1.0))
    array = mask.array.copy()
    array[32, 32, 20] = LESION
    write_image(tmp_path / "ct.nii.gz", ct.array, ct.affine)
    write_image(tmp_path / "seg.nii.gz", array, ct.affine)
    with pytest.raises(FileFormatError, match=r"no 150 \(lesion\) in it with voxels of 4 × 4 × 4 mm.*too small"):
        pairs({"image": "ct.nii.gz", "segmentation": "seg.nii.gz"})


def test_fine_ct_is_sampled_with_everything_in_its_place(
    tmp_path: Path, pairs: Callable[..., list[PreparedCase]]
) -> None:
    ct, mask = patient()
    fine = mask.affine @ np.diag([0.25, 0.25, 0.25, 1])
    fine[:3, 3] = (mask.affine @ [-0.375, -0.375, -0.375, 1])[:3]

    def finer(array: np.ndarray) -> np.ndarray:
        return array.repeat(4, 0).repeat(4, 1).repeat(4, 2)

    write_image(tmp_path / "ct.nii.gz", finer(ct.array), fine)
    write_image(tmp_path / "seg.nii.gz", np.where(mask.array == LESION, LESION, 0).astype(np.uint8), mask.affine)
    (pair,) = pairs({"image": "ct.nii.gz", "segmentation": "seg.nii.gz"})
    assert pair.image.spacing == pytest.approx((4, 4, 4))
    image, labels = seen(pair, mask.grid)
    assert np.array_equal(labels == LESION, mask.array == LESION)
    assert np.array_equal(labels > 0, mask.array > 0)
    assert image[7:9, 7:9, 3:5] == pytest.approx(HU[LESION], abs=5)


def test_labels_outside_of_the_image_are_not_taught(tmp_path: Path, pairs: Callable[..., list[PreparedCase]]) -> None:
    ct, mask = patient()
    write_image(tmp_path / "ct.nii.gz", ct.array[:, :, :12], ct.affine)
    write_image(tmp_path / "seg.nrrd", mask.array[1:], mask.affine @ np.array(
        [[1.0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))  # fmt: skip
    (pair,) = pairs({"image": "ct.nii.gz", "segmentation": "seg.nrrd"})
    heights = pair.mask.affine[2, 2] * np.arange(pair.mask.array.shape[2]) + pair.mask.affine[2, 3]
    above = heights > (ct.affine @ [0, 0, 11.6, 1])[2]
    assert above.any()
    assert not pair.mask.array[:, :, above].any()
    assert (pair.image.array[:, :, above] == -1000).all()


def limited(folder: Path) -> Bundle:
    sizes = {"size_x": [8, 12], "size_y": [8, 12], "size_z": [8, 12]}
    return Bundle(make_tiny_bundle(folder, name="limited", limits=sizes, mask_spacing="keep"))


def test_patient_larger_than_the_model_is_cropped_around_the_lesion(
    tmp_path: Path, pairs: Callable[..., list[PreparedCase]]
) -> None:
    _, mask = patient(shape=(16, 16, 32))
    (pair,) = pairs({**write_case(tmp_path, "anna", shape=(16, 16, 32))}, of=limited(tmp_path / "limited"))
    assert pair.mask.array.shape == (12, 12, 12)
    assert (pair.mask.array == LESION).sum() == (mask.array == LESION).sum()
    assert any("larger than the model's field of view: 48 × 48 × 48 mm around the focus" in n for n in pair.notes)
    start = np.rint(np.linalg.solve(mask.affine, pair.mask.affine[:, 3])[:3]).astype(int)
    assert start.tolist() == [2, 2, 1]  # in the middle across; along the patient as far down as the body goes
    x, y, z = start
    assert np.array_equal(pair.mask.array, mask.array[x : x + 12, y : y + 12, z : z + 12])


def test_far_lesions_that_do_not_fit_together_leave_the_larger_one(
    tmp_path: Path, pairs: Callable[..., list[PreparedCase]]
) -> None:
    ct, mask = patient(shape=(16, 16, 40))
    array = mask.array.copy()
    array[8:10, 8:10, 35:37] = LESION
    write_image(tmp_path / "ct.nii.gz", ct.array, ct.affine)
    write_image(tmp_path / "seg.nii.gz", array, ct.affine)
    (pair,) = pairs({"image": "ct.nii.gz", "segmentation": "seg.nii.gz"}, of=limited(tmp_path / "limited"))
    assert (pair.mask.array == LESION).sum() == 64


def test_all_cases_get_the_size_asked_for(tmp_path: Path, pairs: Callable[..., list[PreparedCase]]) -> None:
    content = [write_case(tmp_path, "anna"), write_case(tmp_path, "bert", shape=(28, 20, 12))]
    assert {pair.mask.array.shape for pair in pairs(content)} == {(20, 20, 20), (32, 24, 16)}
    sized = pairs(content, size=(16, 16, 16), spacing=(3.0, 3.0, 3.0))
    assert {pair.mask.array.shape for pair in sized} == {(16, 16, 16)}
    assert all(pair.image.spacing == pytest.approx((3, 3, 3)) for pair in sized)
    assert all(LESION in pair.mask.labels for pair in sized)
    with pytest.raises(RequestError, match="divisible by 4"):
        pairs(content, size=(15, 16, 16))
    with pytest.raises(RequestError, match=r"Spacing 99×3×3 mm"):
        pairs(content, spacing=(99, 3, 3))


def test_mr_keeps_its_values_and_gets_a_body(tmp_path: Path, pairs: Callable[..., list[PreparedCase]]) -> None:
    of = Bundle(make_tiny_bundle(tmp_path / "mr", name="mr", intensity={"kind": "mr"}, modality={"mri": 8}))
    _, mask = patient()
    values = np.where(mask.array == 0, 3.5, np.where(mask.array == LESION, 900.0, 400.0)).astype(np.float32)
    write_image(tmp_path / "mr.nii.gz", values, mask.affine)
    write_image(tmp_path / "seg.nii.gz", np.where(mask.array == LESION, LESION, 0).astype(np.uint8), mask.affine)
    (pair,) = pairs({"image": "mr.nii.gz", "segmentation": "seg.nii.gz"}, of=of)
    assert pair.image.units == "arbitrary"
    image, labels = seen(pair, mask.grid)
    assert np.array_equal(image, values)
    assert np.array_equal(labels > 0, mask.array > 0)
    assert pair.image.array.min() == np.float32(3.5)  # around the image, too


def test_bundle_without_a_body_gets_none(tmp_path: Path, pairs: Callable[..., list[PreparedCase]]) -> None:
    folder = make_tiny_bundle(tmp_path / "organs", name="organs")
    rows = (folder / "labels.csv").read_text().replace("200,,,,,,,,,,,\n", "")
    (folder / "labels.csv").write_text(rows)
    ct, mask = patient(body=False)
    write_image(tmp_path / "ct.nii.gz", ct.array, ct.affine)
    write_image(tmp_path / "seg.nii.gz", mask.array, ct.affine)
    (pair,) = pairs({"image": "ct.nii.gz", "segmentation": "seg.nii.gz"}, of=Bundle(folder))
    assert pair.mask.labels == [LIVER, LUNG, LESION]


def test_ct_that_is_not_in_hu_is_doubted(tmp_path: Path, pairs: Callable[..., list[PreparedCase]]) -> None:
    entry = write_case(tmp_path, "anna")
    ct, _ = patient()
    write_image(tmp_path / "grey.nii.gz", ct.array.astype(np.int16) + 950, ct.affine)
    (pair,) = pairs({**entry, "image": "grey.nii.gz"})
    assert any("lowest value is -50. Is it in HU?" in note for note in pair.notes)


def test_preparation_tells_where_it_is_and_can_be_stopped(
    tmp_path: Path, pairs: Callable[..., list[PreparedCase]]
) -> None:
    content = [write_case(tmp_path, "anna"), write_case(tmp_path, "bert")]
    news: list[tuple[int, int, str]] = []

    def stop_at_the_second(*progress: Any) -> None:
        news.append(progress)  # type: ignore[arg-type]
        if len(news) == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        pairs(content, on_progress=stop_at_the_second, skip_bad=True)
    assert news == [(0, 2, "anna"), (1, 2, "bert")]


def test_segmentation_saved_by_slicer_is_taught(tmp_path: Path, pairs: Callable[..., list[PreparedCase]]) -> None:
    pytest.importorskip("slicer", reason="slicer-core is not installed")
    from MAISILib.scene import new_scene, show_mask

    ct, mask = patient()
    write_image(tmp_path / "ct.nrrd", *moved(ct.array, ct.affine, OBLIQUE_LPS))
    array, affine = moved(mask.array, mask.affine, OBLIQUE_LPS)
    drawn = np.where(np.isin(array, (LIVER, LESION)), array, 0).astype(np.uint8)
    table = extended_table(mask.table, parse_new_labels([NEW], mask.table))
    scene = new_scene()
    node = show_mask(scene, LabelMap(drawn, affine, table), "mine")
    node.GetSegmentation().GetNthSegment(0).SetName("Leber")  # its tag and its codes say what it is
    node.AddDefaultStorageNode()
    node.GetStorageNode().SetFileName(str(tmp_path / "mine.seg.nrrd"))
    assert node.GetStorageNode().WriteData(node)
    (pair,) = pairs({"image": "ct.nrrd", "segmentation": "mine.seg.nrrd"})
    labels = seen(pair, Grid(array.shape, affine))[1]  # type: ignore[arg-type]
    assert np.array_equal(np.where(labels == BODY, 0, labels), drawn)
