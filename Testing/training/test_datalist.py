"""Datalists and folders of pairs: what is found, what is held out, and how bad entries are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from MAISILib.errors import FileFormatError
from MAISILib.training.datalist import DataItem, Datalist, read_datalist, write_datalist

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def image(path: Path, shape: tuple[int, ...] = (6, 5, 4), affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4) if affine is None else affine), path)  # type: ignore[attr-defined]
    return path


def listed(path: Path, *training: Any, **more: Any) -> Path:
    path.write_text(json.dumps({"training": list(training), **more}), encoding="utf-8")
    return path


def names(items: tuple[DataItem, ...]) -> list[str]:
    return [item.name for item in items]


def pairs(data: Datalist) -> list[tuple[str, str | None]]:
    return [(item.image.name, item.label.name if item.label else None) for item in data.training]


def test_the_published_format_is_read(tmp_path: Path) -> None:
    image(tmp_path / "data" / "a.nii.gz")
    image(tmp_path / "data" / "a_mask.nii.gz")
    image(tmp_path / "data" / "b.nii.gz")
    source = listed(
        tmp_path / "list.json",
        {
            "image": "a.nii.gz",
            "label": "a_mask.nii.gz",
            "dim": [6, 5, 4],
            "spacing": [1, 1, 2.5],
            "modality": "ct",
            "fold": 1,
            "top_region_index": [0, 1, 0, 0],
            "bottom_region_index": [0, 0, 1, 0],
            "something": "else",
        },
        {"image": "b.nii.gz", "class": "mri", "fold": 0},
        numTraining=2,
    )
    data = read_datalist(source, base=tmp_path / "data")
    assert data.training == (
        DataItem(
            name="a",
            image=tmp_path / "data" / "a.nii.gz",
            label=tmp_path / "data" / "a_mask.nii.gz",
            modality="ct",
            dim=(6, 5, 4),
            spacing=(1.0, 1.0, 2.5),
            fold=1,
            top_region_index=(0, 1, 0, 0),
            bottom_region_index=(0, 0, 1, 0),
        ),
    )
    assert [(item.name, item.modality) for item in data.validation] == [("b", "mri")]


def test_folds_decide_what_is_held_out(tmp_path: Path) -> None:
    for name in "abc":
        image(tmp_path / f"{name}.nii.gz")
    source = listed(
        tmp_path / "list.json",
        {"image": "a.nii.gz", "fold": 0},
        {"image": "b.nii.gz", "fold": 1},
        "c.nii.gz",
    )
    assert names(read_datalist(source).validation) == ["a"]
    assert names(read_datalist(source, fold=1).validation) == ["b"]
    assert names(read_datalist(source, fold=1).training) == ["a", "c"]
    assert names(read_datalist(source, fold=None).training) == ["a", "b", "c"]


def test_a_validation_list_is_held_out_whatever_the_fold(tmp_path: Path) -> None:
    for name in "ab":
        image(tmp_path / f"{name}.nii.gz")
    source = listed(tmp_path / "list.json", {"image": "a.nii.gz"}, validation=[{"image": "b.nii.gz"}])
    data = read_datalist(source, fold=None)
    assert (names(data.training), names(data.validation)) == (["a"], ["b"])


def test_several_lists_have_their_own_base_folders(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        image(tmp_path / folder / "scan.nii.gz")
    lists = [listed(tmp_path / f"{n}.json", {"image": "scan.nii.gz"}) for n in "12"]
    data = read_datalist(lists, base=[tmp_path / "one", tmp_path / "two"])
    assert names(data.training) == ["one-scan", "two-scan"]
    with pytest.raises(FileFormatError, match="2 datalists and 1 base folders"):
        read_datalist(lists, base=[tmp_path])


def test_an_image_is_not_both_learned_from_and_held_out(tmp_path: Path) -> None:
    image(tmp_path / "a.nii.gz")
    source = listed(tmp_path / "list.json", {"image": "a.nii.gz"}, validation=[{"image": "./a.nii.gz"}])
    with pytest.raises(FileFormatError, match=r"a\.nii\.gz is in training and in validation"):
        read_datalist(source)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["p_1_ct.nii.gz", "p_1_seg.nii.gz"], [("p_1_ct.nii.gz", "p_1_seg.nii.gz")]),
        (["a.nii", "a_label.nii.gz"], [("a.nii", "a_label.nii.gz")]),
        (["a.nii.gz", "a_mask.nii.gz", "b.nii.gz"], [("a.nii.gz", "a_mask.nii.gz"), ("b.nii.gz", None)]),
        (["p10.nii.gz", "p9.nii.gz", "._p9.nii.gz"], [("p9.nii.gz", None), ("p10.nii.gz", None)]),
        (
            ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz", "imagesTs/t.nii.gz"],
            [("a_0000.nii.gz", "a.nii.gz")],
        ),
        (["imagesTr/a_01.nii.gz", "labelsTr/a_01.nii.gz"], [("a_01.nii.gz", "a_01.nii.gz")]),
        (["scan_2019.nii.gz", "scan_2019_seg.nii.gz"], [("scan_2019.nii.gz", "scan_2019_seg.nii.gz")]),
    ],
)
def test_pairs_are_found_by_their_names(tmp_path: Path, files: list[str], found: list[tuple[str, str | None]]) -> None:
    for name in files:
        image(tmp_path / name)
    assert pairs(read_datalist(tmp_path)) == found


def test_folders_named_train_and_validation_are_what_they_say(tmp_path: Path) -> None:
    image(tmp_path / "train" / "a_ct.nii.gz")
    image(tmp_path / "validation" / "b_ct.nii.gz")
    data = read_datalist(tmp_path)
    assert (names(data.training), names(data.validation)) == (["a"], ["b"])
    assert data.training[0].modality == "ct"


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(FileFormatError, match="holds no images"):
        read_datalist(tmp_path)


def test_image_and_label_may_be_stored_in_different_orders(tmp_path: Path) -> None:
    image(tmp_path / "a.nii.gz")
    turned = LPS.copy()
    turned[:2, 3] = 5, 4
    image(tmp_path / "a_seg.nii.gz", affine=turned)
    assert pairs(read_datalist(tmp_path)) == [("a.nii.gz", "a_seg.nii.gz")]


def test_bad_entries_are_all_named(tmp_path: Path) -> None:
    shifted = np.eye(4)
    shifted[0, 3] = 40
    for name in ("good", "size", "place", "nolabel"):
        image(tmp_path / f"{name}.nii.gz")
    image(tmp_path / "size_seg.nii.gz", (6, 5, 3))
    image(tmp_path / "place_seg.nii.gz", affine=shifted)
    (tmp_path / "broken.nii.gz").write_bytes(b"not an image")
    image(tmp_path / "flat.nii.gz", (6, 5))
    source = listed(
        tmp_path / "list.json",
        {"image": "good.nii.gz"},
        {"label": "good.nii.gz"},
        {"image": "good.nii.gz", "spacing": [1, 0, 1]},
        {"image": "gone.nii.gz"},
        {"image": "broken.nii.gz"},
        {"image": "flat.nii.gz"},
        {"image": "nolabel.nii.gz", "label": "gone_seg.nii.gz"},
        {"image": "size.nii.gz", "label": "size_seg.nii.gz"},
        {"image": "place.nii.gz", "label": "place_seg.nii.gz"},
        17,
    )
    with pytest.raises(FileFormatError, match="9 of 10 entries cannot be used") as told:
        read_datalist(source)
    for part in (
        r"training[1]: field 'image' is missing",
        "training[2] (good.nii.gz): field 'spacing.1' is 0:",
        "gone.nii.gz does not exist",
        "broken.nii.gz cannot be read",
        "flat.nii.gz has 2 axes",
        "gone_seg.nii.gz does not exist",
        "size_seg.nii.gz has 6×5×3",
        "place_seg.nii.gz lie in different places",
        "training[9]: is 17:",
    ):
        assert part in str(told.value)
    assert len(str(told.value).splitlines()) == 1 + 9 + 1  # what it is about, each of them, what to do
    reported: list[str] = []
    data = read_datalist(source, skip_bad=True, on_skip=reported.append)
    assert names(data.training) == ["good"]
    assert len(reported) == 9
    assert data.skipped == tuple(reported)


def test_nothing_left_is_an_error_even_when_bad_ones_are_skipped(tmp_path: Path) -> None:
    source = listed(tmp_path / "list.json", {"image": "gone.nii.gz"})
    with pytest.raises(FileFormatError, match=r"1 of 1 entries.*\s.*gone\.nii\.gz"):
        read_datalist(source, skip_bad=True)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"training": []}', '{"training": "a"}', '{"training": {}}', "[" * 99999, "\xff"]
)
def test_what_is_no_datalist_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FileFormatError, match=r"list\.json"):
        read_datalist(path)
    with pytest.raises(FileFormatError, match="does not exist"):
        read_datalist(tmp_path / "gone.json")


def test_a_written_list_reads_back(tmp_path: Path) -> None:
    here, there = image(tmp_path / "out" / "a.nii.gz"), image(tmp_path / "elsewhere" / "b.nii.gz")
    training = (DataItem("a", here, modality=1, spacing=(1.0, 2.0, 3.0)),)
    validation = (DataItem("b", there),)
    path = write_datalist(tmp_path / "out" / "list.json", training, validation)
    assert json.loads(path.read_text())["training"] == [{"image": "a.nii.gz", "modality": 1, "spacing": [1, 2, 3]}]
    data = read_datalist(path)
    assert data.training == training
    assert [item.image.resolve() for item in data.validation] == [there.resolve()]


def test_segmentations_that_belong_to_no_image_or_two_to_one_are_named(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "a_seg.nii.gz", "a_mask.nii.gz", "b_seg.nii.gz"):
        image(tmp_path / name)
    with pytest.raises(
        FileFormatError, match=r"2 of 3.*\s.*a_seg\.nii\.gz and a_mask\.nii\.gz.*\s.*b_seg\.nii\.gz has no image"
    ):
        read_datalist(tmp_path)
