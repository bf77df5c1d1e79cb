"""The mask library: what a search finds, and what is never opened."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from MAISILib.anatomy.labels import default_table
from MAISILib.anatomy.library import MaskLibrary, build_library
from MAISILib.errors import FileFormatError, MaskError, OutputError, RequestError
from MAISILib.files.nifti import write_labels
from Testing.anatomy.phantoms import label_map, torso

LIVER, SPLEEN, BRAIN, LUNG, HEPATIC_TUMOR, LUNG_TUMOR = 1, 3, 22, 28, 26, 23


def entry(
    file: str = "masks/a.nii.gz", size=(32, 32, 32), spacing=(2.0, 2.0, 2.0), labels=(LIVER, 200), **more
) -> dict:
    return {"file": file, "size": list(size), "spacing": list(spacing), "labels": list(labels), **more}


def library(folder: Path, *rows: dict) -> MaskLibrary:
    path = folder / "masks.json"
    path.write_text(json.dumps({"format": "maisi-mask-library", "version": 1, "masks": rows}))
    return MaskLibrary.open(path, "maisi", default_table())


def files(candidates) -> list[str]:
    return [candidate.entry.file for candidate in candidates]


def test_candidate_holds_every_requested_anatomy(tmp_path: Path):
    masks = library(
        tmp_path, entry("a", labels=[LIVER]), entry("b", labels=[LIVER, SPLEEN]), entry("c", labels=[SPLEEN])
    )
    assert files(masks.search([LIVER, SPLEEN])) == ["b"]
    assert sorted(files(masks.search([]))) == ["a", "b", "c"]


def test_mask_with_a_tumor_is_used_only_where_that_tumor_is_asked_for(tmp_path: Path):
    masks = library(
        tmp_path,
        entry("healthy", labels=[LIVER, LUNG]),
        entry("liver", labels=[LIVER, LUNG, HEPATIC_TUMOR]),
        entry("both", labels=[LIVER, LUNG, HEPATIC_TUMOR, LUNG_TUMOR]),
    )
    assert files(masks.search([LIVER])) == ["healthy"]
    assert files(masks.search([LIVER, HEPATIC_TUMOR])) == ["liver"]
    assert files(masks.search([LUNG_TUMOR, HEPATIC_TUMOR])) == ["both"]
    with pytest.raises(MaskError, match=r"tumor that was not asked for.*hepatic tumor"):
        masks.search([LUNG_TUMOR])


def test_exact_size_comes_first_then_the_nearest_field_of_view(tmp_path: Path):
    masks = library(
        tmp_path,
        entry("far", size=(64, 64, 64), spacing=(4, 4, 4)),
        entry("near", size=(30, 32, 32), spacing=(2, 2, 2)),
        entry("same view", size=(64, 64, 64), spacing=(1, 1, 1)),
        entry("exact", size=(32, 32, 32), spacing=(2.0004, 2, 2)),
    )
    found = masks.search([LIVER], (32, 32, 32), (2, 2, 2))
    assert files(found) == ["exact", "same view", "near", "far"]
    assert [c.exact for c in found] == [True, False, False, False]
    assert "64 × 64 × 64" in found[3].reason
    assert len(masks.search([LIVER], (32, 32, 32), (2, 2, 2), limit=2)) == 2


def test_nearest_field_of_view_and_tolerance_are_taken_at_the_word(tmp_path: Path):
    masks = library(
        tmp_path,
        entry("wide", size=(100, 100, 100), spacing=(4, 4, 4)),
        entry("narrow", size=(50, 50, 50), spacing=(4.1, 4.1, 4.1)),
    )
    assert files(masks.search([LIVER], field_of_view=(390, 400, 410))) == ["wide", "narrow"]
    assert files(masks.search([LIVER], field_of_view=(100, 100, 100))) == ["narrow", "wide"]
    assert not masks.search([LIVER], (50, 50, 50), (4, 4, 4))[0].exact
    assert masks.search([LIVER], (50, 50, 50), (4, 4, 4), tolerance=0.05)[0].exact
    with pytest.raises(RequestError, match="either these or that"):
        masks.search([LIVER], (50, 50, 50), (4, 4, 4), field_of_view=(1, 1, 1))


def test_where_nothing_fits_the_nearest_are_named_with_what_they_lack(tmp_path: Path):
    masks = library(
        tmp_path,
        entry("far", labels=[BRAIN]),
        entry("near", labels=[LIVER, SPLEEN, HEPATIC_TUMOR]),
        entry("nearest", labels=[LIVER, SPLEEN]),
    )
    with pytest.raises(
        MaskError, match=r"Nearest: nearest \(lacks brain\); near \(lacks brain; has hepatic tumor\); far"
    ):
        masks.search([LIVER, SPLEEN, BRAIN])
    with pytest.raises(MaskError, match=r"Nearest: nearest \(shows abdomen\)"):
        masks.search([SPLEEN], body_regions=["chest"])


def test_library_is_built_from_a_zip_of_masks(tmp_path: Path):
    built = build_library([("a", torso()), ("b", torso())], tmp_path / "first", default_table()).parent
    with zipfile.ZipFile(tmp_path / "all_masks.zip", "w") as archive:
        for path in sorted((built / "masks").iterdir()):
            archive.write(path, f"all_masks/sub/{path.name}")
        archive.writestr("all_masks/readme.txt", "no mask")
    index = build_library(tmp_path / "all_masks.zip", tmp_path / "second", default_table())
    masks = MaskLibrary.open(index, "auto", default_table())
    assert len(masks) == 2
    assert (masks.load(masks.entries[0]).array == torso().array).all()
    whole = (tmp_path / "all_masks.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileFormatError, match=r"cut\.zip cannot be unpacked"):
        build_library(tmp_path / "cut.zip", tmp_path / "third", default_table())
    assert not (tmp_path / "third").exists()


def test_seed_chooses_among_equally_good_masks(tmp_path: Path):
    masks = library(tmp_path, *[entry(f"m{i}") for i in range(20)])
    by_seed = [tuple(files(masks.search([LIVER], (32, 32, 32), (2, 2, 2), rng_seed=s, limit=3))) for s in (1, 2, 3, 1)]
    assert by_seed[0] == by_seed[3]
    assert len(set(by_seed)) == 3


def test_label_in_no_mask_is_named_with_the_counts_of_all(tmp_path: Path):
    masks = library(tmp_path, entry("a", labels=[LIVER]), entry("b", labels=[LIVER, SPLEEN]))
    with pytest.raises(MaskError, match=r"has brain \(masks with each: liver: 2, spleen: 1, brain: 0"):
        masks.search([LIVER, SPLEEN, BRAIN])


def test_labels_that_never_occur_together_are_told_with_counts(tmp_path: Path):
    masks = library(tmp_path, entry("a", labels=[LIVER]), entry("b", labels=[SPLEEN]))
    with pytest.raises(MaskError, match=r"all of them at once \(masks with each: liver: 1, spleen: 1"):
        masks.search([LIVER, SPLEEN])


def test_body_regions_must_be_covered(tmp_path: Path):
    masks = library(
        tmp_path,
        entry("trunk", top_region="chest", bottom_region="abdomen"),
        entry("whole", top_region="head", bottom_region="lower"),
        entry("told by labels", labels=[LIVER, LUNG]),
        entry("unknown", labels=[200]),
    )
    assert sorted(files(masks.search([], body_regions=["thorax", "abdomen"]))) == ["told by labels", "trunk", "whole"]
    assert files(masks.search([], body_regions=["head"])) == ["whole"]
    with pytest.raises(MaskError, match="reaches over head"):
        masks.search([LUNG], body_regions=["head"])


def test_unknown_label_region_or_half_a_size_is_a_wrong_request(tmp_path: Path):
    masks = library(tmp_path, entry())
    with pytest.raises(RequestError, match="no anatomy 199"):
        masks.search([199])
    with pytest.raises(RequestError, match="no body region"):
        masks.search([LIVER], body_regions=["elbow"])
    with pytest.raises(RequestError, match="both or neither"):
        masks.search([LIVER], size=(32, 32, 32))


@pytest.mark.parametrize(
    "file",
    ["../secret.nii.gz", "masks/../../x.nii.gz", "/etc/passwd", "C:\\x.nii.gz", "..\\x.nii.gz", "\\\\host\\x", "", 7],
)
def test_path_out_of_the_library_is_refused(tmp_path: Path, file):
    with pytest.raises(FileFormatError, match="mask 1"):
        library(tmp_path, entry(file))
    published = tmp_path / "published.json"
    published.write_text(
        json.dumps([{"pseudo_label_filename": file, "dim": [8, 8, 8], "spacing": [1, 1, 1], "label_list": [1]}])
    )
    with pytest.raises(FileFormatError, match="mask 1"):
        MaskLibrary.open(published, "published", default_table())


def test_link_out_of_the_library_is_not_followed(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.nii.gz").write_bytes(b"secret")
    (tmp_path / "in" / "a.nii.gz").symlink_to(tmp_path / "secret.nii.gz")
    masks = library(tmp_path / "in", entry("a.nii.gz"))
    with pytest.raises(FileFormatError, match="leads out of the library folder"):
        masks.load(masks.search([LIVER])[0])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is not a mask library"),
        ('{"format": "maisi-mask-library", "version": 2, "masks": []}', "newer version"),
        ('{"format": "maisi-mask-library", "version": 1, "masks": []}', "holds no masks"),
        ('{"format": "maisi-mask-library", "version": 1, "masks": [1]}', "mask 1: an object is needed"),
    ],
)
def test_damaged_index_is_told(tmp_path: Path, content: str, said: str):
    (tmp_path / "masks.json").write_text(content)
    with pytest.raises(FileFormatError, match=said):
        MaskLibrary.open(tmp_path / "masks.json", "maisi", default_table())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": [8, 8]}, "size"),
        ({"size": [8, 8, 0]}, "size"),
        ({"size": [8, 8, 8.5]}, "size"),
        ({"spacing": [1, 1, -1]}, "spacing"),
        ({"spacing": "abc"}, "spacing"),
        ({"labels": [1, 300]}, "labels"),
        ({"labels": None}, "labels"),
        ({"top_region": "tail", "bottom_region": "head"}, "body regions"),
    ],
)
def test_wrong_entry_is_named(tmp_path: Path, change: dict, said: str):
    with pytest.raises(FileFormatError, match=f"mask 2.*{said}"):
        library(tmp_path, entry(), {**entry(), **change})


def test_missing_index_is_told(tmp_path: Path):
    with pytest.raises(FileFormatError, match="is missing"):
        MaskLibrary.open(tmp_path / "none.json", "maisi", default_table())


def test_published_index_is_read(tmp_path: Path):
    rows = [
        {
            "pseudo_label_filename": "./sub/a.nii.gz",
            "dim": [512, 512, 128],
            "spacing": [0.8, 0.8, 2.5],
            "label_list": [0, 1, 28],
            "top_region_index": [0, 1, 0, 0],
            "bottom_region_index": [0, 0, 1, 0],
        },
        {
            "pseudo_label_filename": "b.nii.gz",
            "dim": [256, 256, 128],
            "spacing": [1.5, 1.5, 2.0],
            "label_list": [22, 93],
        },
    ]
    (tmp_path / "masks.json").write_text(json.dumps(rows))
    masks = MaskLibrary.open(tmp_path / "masks.json", "published", default_table())
    assert [e.regions for e in masks.entries] == [("chest", "abdomen"), ("head", "lower")]
    assert masks.entries[0].labels == {1, 28}
    assert files(masks.search([1], (512, 512, 128), (0.8, 0.8, 2.5))) == ["sub/a.nii.gz"]
    rows[0]["top_region_index"] = [1, 1, 0, 0]
    (tmp_path / "masks.json").write_text(json.dumps(rows))
    with pytest.raises(FileFormatError, match="top_region_index"):
        MaskLibrary.open(tmp_path / "masks.json", "published", default_table())


def test_built_library_gives_its_masks_back(tmp_path: Path):
    mask = torso()
    index = build_library(
        [("pt_1", mask), ("pt_2", label_map(np.full((4, 4, 4), LIVER)))], tmp_path / "lib", default_table()
    )
    masks = MaskLibrary.open(index, "maisi", default_table())
    assert [e.file for e in masks.entries] == ["masks/pt_1.nii.gz", "masks/pt_2.nii.gz"]
    assert masks.entries[0].regions == ("head", "lower")
    found = masks.search([BRAIN], mask.array.shape, mask.spacing)
    assert found[0].exact
    loaded = masks.load(found[0])
    assert (loaded.array == mask.array).all()
    assert loaded.grid.same_as(mask.grid)
    assert "pt_1" in loaded.source


def test_library_is_built_from_a_folder_of_masks(tmp_path: Path):
    build_library([("a", torso()), ("b", torso())], tmp_path / "first", default_table())
    index = build_library(tmp_path / "first" / "masks", tmp_path / "second", default_table())
    assert len(MaskLibrary.open(index, "maisi", default_table())) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileFormatError, match="no masks"):
        build_library(tmp_path / "empty", tmp_path / "third", default_table())


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a\\b", ".hidden", "a:b"])
def test_mask_names_are_plain_file_names(tmp_path: Path, name: str):
    with pytest.raises(OutputError, match="plain file name"):
        build_library([(name, torso())], tmp_path, default_table())


def test_library_without_a_whole_set_of_masks_gets_no_index(tmp_path: Path):
    with pytest.raises(MaskError, match="empty"):
        build_library([("a", torso()), ("b", label_map(np.zeros((2, 2, 2))))], tmp_path, default_table())
    with pytest.raises(OutputError, match="Two masks"):
        build_library([("a", torso()), ("A", torso())], tmp_path, default_table())
    assert not any(tmp_path.iterdir())


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("problem", [MaskError("empty"), KeyboardInterrupt()])
@pytest.mark.parametrize("is_new", [False, True])
def test_build_that_ends_early_leaves_the_library_as_it_was(tmp_path: Path, problem: BaseException, is_new: bool):
    folder = tmp_path / "lib"
    if not is_new:
        build_library([("a", torso()), ("b", torso())], folder, default_table())
        (folder / "notes.txt").write_text("mine")
    before = content(tmp_path)

    def pairs() -> Iterator[tuple]:
        yield "a", label_map(np.full((4, 4, 4), LIVER))
        raise problem

    with pytest.raises(type(problem)):
        build_library(pairs(), folder, default_table())
    assert content(tmp_path) == before
    assert folder.exists() is not is_new


def test_built_library_takes_the_place_of_an_earlier_one(tmp_path: Path):
    build_library([("a", torso()), ("b", torso())], tmp_path, default_table())
    (tmp_path / "notes.txt").write_text("mine")
    small = label_map(np.full((4, 4, 4), LIVER))
    index = build_library([("a", small)], tmp_path, default_table())
    masks = MaskLibrary.open(index, "maisi", default_table())
    assert (masks.load(masks.search([LIVER])[0]).array == small.array).all()
    assert [entry.file for entry in masks.entries] == ["masks/a.nii.gz"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks", "masks.json", "notes.txt"]
    # its own masks, built anew into the folder that they are read from
    index = build_library(tmp_path / "masks", tmp_path, default_table())
    assert len(MaskLibrary.open(index, "maisi", default_table())) == 2


def test_while_masks_are_moved_there_is_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    build_library([("a", torso()), ("b", torso())], tmp_path, default_table())
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "masks" / "b.nii.gz":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    small = label_map(np.full((4, 4, 4), LIVER))
    with pytest.raises(OutputError, match="disk is full"):
        build_library([("a", small), ("b", small)], tmp_path, default_table())
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (("a/m.nii.gz", "b/m.nii.gz"), "Two masks are named 'm': a/m.nii.gz and b/m.nii.gz"),
        (("m.nii.gz", "a/M.nii"), "Two masks are named 'M': m.nii.gz and a/M.nii"),
        (("m.nii.gz", ".n.nii.gz"), "'.n' is not a plain file name"),
        (("m.nii.gz", "damaged.nii.gz"), "'damaged.nii.gz' in it is damaged"),
    ],
)
def test_zip_is_tested_before_a_mask_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: tuple[str, ...], said: str
):
    archive = tmp_path / "masks.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for number, name in enumerate(members):
            packed.writestr(name, f"content {number}")
    if "damaged" in said:
        archive.write_bytes(archive.read_bytes().replace(b"content 1", b"contents!"))
    monkeypatch.setattr("MAISILib.files.nifti.read_labels", lambda *_: pytest.fail("a mask was read"))
    with pytest.raises((OutputError, FileFormatError)) as told:
        build_library(archive, tmp_path / "lib", default_table())
    assert said in str(told.value)
    assert not (tmp_path / "lib").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": [9, 9, 9]}, "24 × 20 × 16 voxels, the index says 9 × 9 × 9"),
        ({"spacing": [1, 1, 1]}, "4 × 4 × 5 mm, the index says 1 × 1 × 1"),
        ({"labels": [1, 4]}, r"lacks 4 \(pancreas\)"),
        ({"file": "masks/gone.nii.gz"}, "is missing"),
    ],
)
def test_mask_that_is_not_what_the_index_says_is_refused(tmp_path: Path, change: dict, said: str):
    index = build_library([("a", torso())], tmp_path, default_table())
    content = json.loads(index.read_text())
    content["masks"][0].update(change)
    index.write_text(json.dumps(content))
    masks = MaskLibrary.open(index, "maisi", default_table())
    with pytest.raises(FileFormatError, match=said):
        masks.load(masks.entries[0])


def test_mask_with_unknown_labels_is_refused(tmp_path: Path):
    index = build_library([("a", label_map(np.full((4, 4, 4), LIVER)))], tmp_path, default_table())
    array = np.full((4, 4, 4), LIVER)
    array[0] = 150
    write_labels(label_map(array), tmp_path / "masks" / "a.nii.gz")
    masks = MaskLibrary.open(index, "maisi", default_table())
    with pytest.raises(MaskError, match=r"150 \(16 voxels\)"):
        masks.load(masks.search([LIVER])[0])
