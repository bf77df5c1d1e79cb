"""The list of a user's cases, and the files that it names, good and bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from MAISILib.errors import FileFormatError
from MAISILib.training.cases import read_cases
from Testing.tiny_bundle import BODY, LIVER, LUNG
from Testing.training.users_cases import (
    LESION,
    OBLIQUE_LPS,
    moved,
    patient,
    write_case,
    write_image,
    write_list,
    write_segments,
)


def names_of(cases: Any) -> list[list[str]]:
    return [[segment.name for segment in case.segments] for case in cases]


def test_one_case_several_or_an_object_with_cases(tmp_path: Path) -> None:
    one, two = write_case(tmp_path, "anna"), write_case(tmp_path, "bert", lesion=False)
    for content, names in (
        (one, ["anna"]),
        ([one, two], ["anna", "bert"]),
        ({"cases": [{**two, "name": "Mr B"}]}, ["Mr B"]),
    ):
        cases = read_cases(write_list(tmp_path, content))
        assert [case.name for case in cases] == names
    assert names_of(read_cases(write_list(tmp_path, [one, two]))) == [["1", "28", "150", "200"], ["1", "28", "200"]]


def test_paths_are_relative_to_the_list_and_like_names_are_told_apart(tmp_path: Path) -> None:
    entries = []
    for folder in ("first", "second"):
        write_case(tmp_path / folder, "scan")
        entries.append({"image": f"{folder}/scan_ct.nii.gz", "segmentation": f"{folder}/scan_seg.nii.gz"})
    assert [case.name for case in read_cases(write_list(tmp_path, entries))] == ["first-scan", "second-scan"]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd"])
def test_every_format_and_orientation_is_read(tmp_path: Path, suffix: str) -> None:
    ct, mask = patient()
    write_image(tmp_path / f"ct{suffix}", *moved(ct.array, ct.affine, OBLIQUE_LPS))
    write_image(tmp_path / f"seg{suffix}", *moved(mask.array, mask.affine, OBLIQUE_LPS))
    (case,) = read_cases(write_list(tmp_path, {"image": f"ct{suffix}", "segmentation": f"seg{suffix}"}))
    assert [segment.value for segment in case.segments] == [LIVER, LUNG, LESION, BODY]
    assert case.notes == ()


def test_segments_of_slicer_keep_their_names_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    entry = write_case(tmp_path, "anna")
    ct, mask = patient()
    layers = np.stack([mask.array == LIVER, mask.array == LESION]).astype(np.uint8)
    segments = [
        {"Name": "Leber", "LabelValue": 1, "Layer": 0},
        {"Name": "Läsion", "LabelValue": 1, "Layer": 1},
        {"Name": "nothing", "LabelValue": 2, "Layer": 1},
    ]
    write_segments(tmp_path / "anna.seg.nrrd", layers, ct.affine, segments)
    (case,) = read_cases(write_list(tmp_path, {**entry, "segmentation": "anna.seg.nrrd"}))
    assert names_of([case]) == [["Leber", "Läsion"]]


def test_numbers_are_named_by_the_list_for_all_cases_or_for_one(tmp_path: Path) -> None:
    one, two = write_case(tmp_path, "anna"), write_case(tmp_path, "bert")
    content = {"cases": [one, {**two, "names": {"150": "met"}}], "names": {"150": "lesion", "1": "liver", "9": "no"}}
    cases = read_cases(write_list(tmp_path, content))
    assert names_of(cases) == [["liver", "28", "lesion", "200"], ["liver", "28", "met", "200"]]
    assert [segment.is_named for segment in cases[0].segments] == [True, False, True, False]


def test_names_in_a_nifti_header_are_used(tmp_path: Path) -> None:
    entry = write_case(tmp_path, "anna")
    path = tmp_path / entry["segmentation"]
    image: Any = nib.load(path)  # type: ignore[attr-defined]
    table = '<Label Key="1" Red="1"><![CDATA[liver]]></Label>\n<Label Key="28">lung_upper_lobe_left</Label>'
    text = f"<?xml version='1.0'?> <CaretExtension><LabelTable>{table}</LabelTable></CaretExtension>"
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, text.encode()))  # type: ignore[attr-defined]
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), tmp_path / "organs.nii.gz")  # type: ignore[attr-defined]
    (case,) = read_cases(write_list(tmp_path, {**entry, "body_segmentation": "organs.nii.gz"}))
    assert [segment.name for segment in case.body_segments] == ["liver", "lung_upper_lobe_left", "150", "200"]


def bad_files(folder: Path) -> list[tuple[dict[str, Any], str]]:
    """Entries that cannot be used, and what is said about them."""
    ct, mask = patient()
    files = {
        "nan": np.where(mask.array == 1, np.nan, 1.0).astype(np.float32),
        "large": mask.array.astype(np.int16) * 2,
        "float": mask.array * np.float32(0.5),
        "empty": mask.array * 0,
        "short": mask.array[:, :, :12],
    }
    for name, array in files.items():
        write_image(folder / f"{name}.nii.gz", array, ct.affine)
    away, far = ct.affine.copy(), ct.affine.copy()
    away[0, 3] += 20
    far[2, 3] += 500
    write_image(folder / "moved.nii.gz", mask.array, away)
    write_image(folder / "far.nrrd", mask.array[:8], far)
    (folder / "broken.nii.gz").write_bytes((folder / "good_ct.nii.gz").read_bytes()[:90])
    good = {"image": "good_ct.nii.gz", "segmentation": "good_seg.nii.gz"}
    return [
        ({**good, "image": "gone.nii.gz"}, r"gone: .*gone\.nii\.gz does not exist"),
        ({**good, "image": "broken.nii.gz"}, r"broken: .*broken\.nii\.gz cannot be read"),
        (
            {**good, "image": "nan.nii.gz"},
            r"nan: .*nan\.nii\.gz has no value \(NaN or infinity\) in 320 of 4,096 voxels",
        ),
        ({**good, "segmentation": "large.nii.gz"}, r"large\.nii\.gz holds labels outside 0–255: 300, 400"),
        ({**good, "segmentation": "float.nii.gz"}, r"float\.nii\.gz holds 1 values that are no whole numbers \(0\.5\)"),
        ({**good, "segmentation": "empty.nii.gz"}, r"empty\.nii\.gz is empty"),
        (
            {**good, "segmentation": "moved.nii.gz"},
            r"same size, but lie in different places .*16×16×16 voxels of 4×4×4 mm around \(0, 0, 0\) mm; "
            r"segmentation moved\.nii\.gz.*around \(20, 0, 0\) mm",
        ),
        ({**good, "segmentation": "short.nii.gz"}, r"different size.*16×16×16 voxels.*16×16×12 voxels"),
        ({**good, "segmentation": "far.nrrd"}, r"Only 0% of the segmentation lies in the image"),
        ({**good, "body_segmentation": "moved.nii.gz"}, r"different places.*moved\.nii\.gz"),
    ]


@pytest.mark.parametrize("number", range(10))
def test_bad_file_is_refused_with_its_name_and_numbers(tmp_path: Path, number: int) -> None:
    write_case(tmp_path, "good")
    entry, said = bad_files(tmp_path)[number]
    with pytest.raises(FileFormatError, match=r"1 of 1 cases cannot be used:\n.*" + said) as caught:
        read_cases(write_list(tmp_path, [entry]))
    assert "cases.json" in str(caught.value)


def test_all_bad_files_of_a_list_are_named_and_the_others_go_on_if_wanted(tmp_path: Path) -> None:
    good = write_case(tmp_path, "good")
    bad = [{**entry, "name": f"bad {n}"} for n, (entry, _) in enumerate(bad_files(tmp_path)[:5])]
    path = write_list(tmp_path, [*bad, good])
    with pytest.raises(FileFormatError, match="5 of 6 cases cannot be used") as caught:
        read_cases(path)
    assert all(f"bad {n}: " in str(caught.value) for n in range(5))
    assert "--skip-bad" in str(caught.value)
    skipped: list[str] = []
    assert [case.name for case in read_cases(path, skip_bad=True, on_skip=skipped.append)] == ["good"]
    assert [message.split(":")[0] for message in skipped] == [f"bad {n}" for n in range(5)]
    with pytest.raises(FileFormatError, match="5 of 5"):
        read_cases(write_list(tmp_path, bad), skip_bad=True)


def test_segmentation_of_the_same_place_on_other_voxels_is_taken(tmp_path: Path) -> None:
    entry = write_case(tmp_path, "anna")
    _, mask = patient()
    fine = mask.affine @ np.diag([0.5, 0.5, 0.5, 1])
    fine[:3, 3] = (mask.affine @ [-0.25, -0.25, -0.25, 1])[:3]
    doubled = mask.array.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    cropped = mask.affine.copy()
    cropped[:3, 3] = (mask.affine @ [4, 4, 2, 1])[:3]
    flipped = mask.affine @ np.diag([-1.0, 1, 1, 1])
    flipped[:3, 3] = (mask.affine @ [15, 0, 0, 1])[:3]
    outside = np.pad(mask.array, ((0, 0), (0, 0), (4, 0)), mode="edge")
    below = mask.affine.copy()
    below[:3, 3] = (mask.affine @ [0, 0, -4, 1])[:3]
    outside[3, 3, 0] = LIVER
    for name, array, affine, noted in (
        ("fine", doubled, fine, ["other voxels"]),
        ("cropped", mask.array[4:, 4:, 2:], cropped, ["other voxels"]),
        ("flipped", mask.array[::-1], flipped, []),
        ("outside", outside, below, ["other voxels", "lies outside"]),
    ):
        write_image(tmp_path / f"{name}.nii.gz", array, affine)
        (case,) = read_cases(write_list(tmp_path, {**entry, "segmentation": f"{name}.nii.gz"}))
        assert len(case.notes) == len(noted)
        assert all(words in note for words, note in zip(noted, case.notes, strict=True))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"image": "a", "segmentaton": "b"}], r"'segmentation' is missing.*'segmentaton' is not known Did you mean"),
        ([{"image": "a", "segmentation": ""}, 5], r"case 1: field 'segmentation'.*case 2: '5' is no object"),
        ([], "list of cases"),
        ({"cases": [{"image": "a", "segmentation": "b"}], "nmes": {}}, "'nmes' is not known.*Did you mean 'names'"),
        ([{"image": "a", "segmentation": "b", "names": {"300": "x"}}], "names.300.*less than or equal to 255"),
        ([{"image": "a", "segmentation": "b", "name": "x/y"}], "field 'name' is 'x/y'"),
        ([{"image": "a", "segmentation": "b"}] * 2, "a stands in 2 cases"),
        (
            [{"image": x, "segmentation": "b", "name": n} for x, n in (("a", "N"), ("c", "n"))],
            "2 cases have the name 'n'",
        ),
    ],
)
def test_list_that_is_none_is_told(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(FileFormatError, match=said):
        read_cases(write_list(tmp_path, content))


def test_file_that_is_no_list_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"gone\.json does not exist"):
        read_cases(tmp_path / "gone.json")
    (tmp_path / "cases.json").write_bytes(b'[{"image": \xff}]')
    with pytest.raises(FileFormatError, match="cannot be read as a list of cases"):
        read_cases(tmp_path / "cases.json")
