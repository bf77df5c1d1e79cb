"""The check of a folder: planted faults are found, sound cases pass, and the report needs nothing from outside."""

from __future__ import annotations

import base64
import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from MAISILib.anatomy.labels import default_table
from MAISILib.quality import case_check
from MAISILib.quality.agreement import boundary_contrast, contrast_to_host, explained_variance, mirrored
from MAISILib.quality.case_check import CaseCheck, check_case, hu_of, read_verdict
from MAISILib.quality.hu_check import OrganRange
from MAISILib.quality.image_sets import find_images
from MAISILib.quality.quality_evaluation import SetCheck, evaluate_quality, read_or_nothing
from MAISILib.quality.quality_report import write_report
from MAISILib.volumes import Grid, LabelMap, Volume
from Testing.quality.image_folders import (
    BODY,
    BONE,
    GAS,
    LIVER,
    SHAPE,
    SPACING,
    TUMOR,
    patient_and_mask,
    volume,
    write_case,
    write_ct,
)

RANGES = [
    OrganRange("liver", (LIVER,), 20.0, 160.0),
    OrganRange("bone", (BONE,), 200.0, 1000.0),
    OrganRange("lung", (GAS,), -1000.0, -500.0),
]


def check(image: np.ndarray, mask: LabelMap | None) -> CaseCheck:
    return check_case("a case", volume(image), mask, RANGES)


def texts(case: CaseCheck) -> str:
    return "\n".join(finding.text for finding in case.findings)


def test_sound_case_passes_with_its_figures() -> None:
    image, mask = patient_and_mask(0)
    found = check(image, mask)
    assert (found.verdict, found.findings) == ("passed", ())
    assert found.bone_dice > 0.95
    assert found.gas_dice > 0.95
    assert found.boundary_contrast > 3
    assert found.lesions["hepatic tumor"][0] == pytest.approx(70, abs=10)
    assert found.to_dict()["hu"]["passed"] is True


def _moved(affine: np.ndarray) -> np.ndarray:
    move = np.eye(4)
    move[0, 3] = 6
    return move @ affine


Spoil = Callable[[np.ndarray, LabelMap], tuple[np.ndarray, LabelMap]]
FAULTS: dict[str, tuple[Spoil, str]] = {
    "organ 200 HU too bright": (
        lambda i, m: (np.where(m.array == LIVER, i + 200, i), m),
        "liver is too bright: median 2.. HU, expected 20 to 160",
    ),
    "mirrored in its array": (lambda i, m: (i, m.with_array(m.array[::-1].copy())), "mirrored left to right"),
    "mirrored about the middle": (
        lambda i, m: (np.roll(i, 2, 0), m.with_array(np.roll(m.array[::-1], 2, 0))),
        "mirrored left to right",
    ),
    "blank": (lambda i, m: (np.full_like(i, -1000), m), "blank: all voxels are about -1000 HU"),
    "nothing but noise": (
        lambda i, m: (np.random.default_rng(0).normal(0, 300, SHAPE), m),
        "borders are no edges",
    ),
    "empty mask": (lambda i, m: (i, m.with_array(np.zeros_like(m.array))), "mask is empty"),
    "no value": (lambda i, m: (np.where(m.array == LIVER, np.nan, i), m), "NaN"),
    "label of another table": (
        lambda i, m: (i, m.with_array(np.where(m.array == LIVER, 255, m.array).astype(np.uint8))),
        r"does not know labels of the mask: 255 \(\d+ voxels\)",
    ),
    "mask of another size": (
        lambda i, m: (i, m.with_array(m.array[:-1].copy())),
        r"\(24 × 20 × 16 voxels\) and mask \(23 × 20 × 16\) differ in size",
    ),
    "mask in another place": (
        lambda i, m: (i, m.with_array(m.array, affine=_moved(m.affine))),
        "different places",
    ),
}


@pytest.mark.parametrize(("spoil", "said"), FAULTS.values(), ids=FAULTS.keys())
def test_planted_fault_is_found(spoil: Spoil, said: str) -> None:
    found = check(*spoil(*patient_and_mask(0)))
    assert found.verdict == "failed"
    assert re.search(said, texts(found)), texts(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_lesion_like_its_host_is_unusual() -> None:
    image, mask = patient_and_mask(0)
    image[mask.array == TUMOR] = np.median(image[mask.array == LIVER])
    found = check(image, mask)
    assert found.verdict == "unusual"
    assert "hepatic tumor can hardly be told from its host" in texts(found)


def test_image_without_a_mask_is_said_to_be_unchecked() -> None:
    found = check(patient_and_mask(0)[0], None)
    assert (found.verdict, found.passed, found.hu) == ("not checked", None, None)
    assert "no mask" in texts(found)


def test_organ_in_its_range_with_unusual_tissue_is_told() -> None:
    image, mask = patient_and_mask(0)
    wide = [OrganRange("liver", (LIVER,), -900.0, 900.0, 90.0, 15.0)]
    for shift, said in ((200, "liver is unusually bright"), (-200, "liver is unusually dark"), (0, "")):
        moved = np.where(mask.array == LIVER, image + shift, image)
        found = check_case("a case", volume(moved), mask, wide)
        assert (found.verdict, found.hu is not None and found.hu.passed) == ("unusual" if said else "passed", True)
        assert said in texts(found)


def test_mask_without_bone_and_gas_is_not_held_against_them() -> None:
    image, mask = patient_and_mask(0)
    found = check(image, mask.with_array(np.where(np.isin(mask.array, (BONE, GAS)), BODY, mask.array).astype(np.uint8)))
    assert (found.verdict, found.measures()["bone_dice"]) == ("passed", None)


def test_large_image_is_judged_by_a_part_of_its_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = patient_and_mask(0)
    finer, labels = (np.kron(array, np.ones((2, 2, 2), array.dtype)) for array in (image, mask.array))
    affine = volume(finer).affine
    pairs = [(finer, mask.with_array(array, affine=affine)) for array in (labels, labels[::-1].copy())]
    whole = [check(*pair) for pair in pairs]
    monkeypatch.setattr(case_check, "_MOST_VOXELS", 10_000)  # every second voxel along each axis
    for pair, expected in zip(pairs, whole, strict=True):
        found = check(*pair)
        assert (found.verdict, found.hu) == (expected.verdict, expected.hu)
        assert found.measures() == pytest.approx(expected.measures(), rel=0.01)
    assert [found.verdict for found in whole] == ["passed", "failed"]


def test_verdict_is_read_back_from_a_provenance_of_any_version() -> None:
    image, mask = patient_and_mask(0)
    image[mask.array == LIVER] += 200
    found = check(image, mask)
    assert read_verdict(found.to_dict()) == ("failed", [finding.text for finding in found.findings])
    assert found.hu is not None
    assert read_verdict(found.hu.to_dict()) == ("failed", ["outside the expected HU: liver"])
    assert read_verdict({"passed": True, "organs": [{"organ": "liver", "passed": True}]}) == ("passed", [])
    for nothing in (None, 3, {}, {"organs": []}, {"verdict": "splendid"}, {"verdict": "failed", "hu": 3}):
        assert read_verdict(nothing)[1] == []
        assert hu_of(nothing) == []


def test_boundary_contrast_falls_with_a_shift_and_explained_variance_too() -> None:
    image, mask = patient_and_mask(1)
    for measure in (boundary_contrast, explained_variance):
        values = [measure(image, np.roll(mask.array, shift, axis=0)) for shift in range(4)]
        assert values == sorted(values, reverse=True)
        assert values[0] > 1.5 * values[3]


def test_explained_variance_of_known_images() -> None:
    labels = np.repeat(np.arange(1, 5, dtype=np.uint8), 16).reshape(4, 4, 4)
    assert explained_variance(labels * 100.0, labels) == pytest.approx(1)
    halves = np.tile([0.0, 100.0], 32).reshape(4, 4, 4)
    assert explained_variance(halves, labels) == pytest.approx(0)
    assert explained_variance(halves + 100 * np.isin(labels, (3, 4)), labels) == pytest.approx(0.5)
    assert np.isnan(explained_variance(np.zeros((4, 4, 4)), labels))


def test_contrast_of_a_lesion_in_deviations_of_its_host() -> None:
    rng = np.random.default_rng(0)
    labels = np.where(np.arange(40)[:, None, None] < 20, TUMOR, LIVER) * np.ones((1, 20, 20), int)
    image = np.where(labels == TUMOR, 90.0, rng.normal(50, 20, labels.shape))
    difference, deviations = contrast_to_host(image, labels, TUMOR, LIVER)
    assert difference == pytest.approx(40, abs=1)
    assert deviations == pytest.approx(2, abs=0.1)
    assert np.isnan(contrast_to_host(image, labels, GAS, LIVER)[0])


def test_mask_mirrored_about_its_own_middle() -> None:
    labels = np.zeros((10, 2, 2), np.uint8)
    labels[1:4], labels[4] = 1, 2
    plain, about_middle = mirrored(labels)
    assert plain[:, 0, 0].tolist() == [0, 0, 0, 0, 0, 2, 1, 1, 1, 0]
    assert about_middle[:, 0, 0].tolist() == [0, 2, 1, 1, 1, 0, 0, 0, 0, 0]
    assert len(mirrored(np.ones((4, 2, 2), np.uint8))) == 1


@dataclass
class Folder:
    path: Path
    checked: SetCheck

    def verdict(self, name: str) -> CaseCheck:
        return next(case for case in self.checked.cases if case.name == name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Nine sound cases; one with the mask of another patient, one with NaN, one that is no file, one far from all."""
    path = tmp_path_factory.mktemp("cases")
    for seed in range(9):
        write_case(path / f"sound-{seed}", *patient_and_mask(seed))
    image, mask = patient_and_mask(20)
    other = np.roll(patient_and_mask(21)[1].array, (2, -3), axis=(0, 1))
    write_case(path / "swapped <1>", image, mask.with_array(other))
    image, mask = patient_and_mask(31)
    write_case(path / "bright", np.where(mask.array == LIVER, image + 55, image), mask)
    write_case(path / "nan", image, mask)
    image[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(image, mask.affine), path / "nan" / "image.nii.gz")  # type: ignore[attr-defined]
    write_case(path / "broken", *patient_and_mask(40))
    (path / "broken" / "mask.nii.gz").write_bytes(b"no mask")
    return Folder(path, evaluate_quality(find_images(path), default_table(), RANGES))


def test_folder_is_judged_worst_first(folder: Folder) -> None:
    verdicts = [case.verdict for case in folder.checked.cases]
    assert verdicts == ["failed"] * 3 + ["unusual"] + ["passed"] * 9
    assert {case.name for case in folder.checked.cases[:3]} == {"swapped <1>", "nan", "broken"}
    assert "13 cases: 9 passed, 1 unusual, 3 failed" in str(folder.checked)


def test_mask_of_another_case_is_found(folder: Folder) -> None:
    assert re.search(r"not this image's: even that of sound-\d explains", texts(folder.verdict("swapped <1>")))


def test_one_case_and_unchecked_ones_are_counted_as_such(tmp_path: Path) -> None:
    write_ct(tmp_path / "alone_ct.nii.gz", patient_and_mask(0)[0])
    checked = evaluate_quality(find_images(tmp_path), default_table(), RANGES)
    assert str(checked).splitlines() == [
        "1 case: 0 passed, 1 not checked, 0 unusual, 0 failed",
        "alone: not checked – there is no mask: only blankness was checked",
    ]


def test_files_that_cannot_be_read_are_named(folder: Folder) -> None:
    assert re.search(r"nan.image\.nii\.gz has no value", texts(folder.verdict("nan")))
    assert re.search(r"broken.mask\.nii\.gz", texts(folder.verdict("broken")))


def test_organ_far_from_the_set_is_unusual_though_in_its_range(folder: Folder) -> None:
    found = folder.verdict("bright")
    assert found.hu is not None
    assert found.hu.passed
    assert re.search(r"liver has 1\d\d HU, .* deviations from the set's \d\d", texts(found))


def test_tables_hold_every_case(folder: Folder, tmp_path: Path) -> None:
    as_json, as_csv = folder.checked.write_tables(tmp_path)
    data = json.loads(as_json.read_text(encoding="utf-8"))
    assert (data["cases"], data["failed"], len(data["checks"])) == (13, 3, 13)
    with as_csv.open(encoding="utf-8", newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert float(rows["sound-0"]["liver HU"]) == pytest.approx(90, abs=8)
    assert rows["nan"]["liver HU"] == ""
    assert rows["swapped <1>"]["verdict"] == "failed"


class Page(HTMLParser):
    """Whatever a page would load, its tags, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report_is_one_file_that_loads_nothing(folder: Folder, tmp_path: Path) -> None:
    cases = {case.name: case for case in find_images(folder.path)}
    path = write_report(
        folder.checked,
        lambda name: read_or_nothing(cases[name], default_table()),
        tmp_path / "report.html",
        title="A set & more",
        pictures=6,
    )
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert {"script", "iframe", "object", "embed"} & set(page.tags) == set()
    assert all(load.startswith(("data:", "#")) for load in page.loads)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "A set & more" in page.text
    assert "swapped <1>" in page.text, "names are text, not tags"
    pictures = [load for load in page.loads if load.startswith("data:image")]
    assert len(pictures) == 4, "six cases, two of which cannot be read"
    assert Image.open(BytesIO(base64.b64decode(pictures[0].partition(",")[2]))).size[0] == 900
    assert text.count("<circle") == sum(len(case.medians) for case in folder.checked.cases)
    order = [page.text.index(case.name) for case in folder.checked.cases[3:]]
    assert order == sorted(order), "the worst come first"
    assert all(f'id="{link[1:]}"' in text for link in page.loads if link.startswith("#"))


def test_mask_turned_in_its_file_is_the_same_mask(tmp_path: Path) -> None:
    image, mask = patient_and_mask(0)
    turn = np.diag([-1.0, 1, 1, 1])
    turn[0, 3] = SHAPE[0] - 1
    turned = LabelMap(mask.array[::-1].copy(), mask.affine @ turn, mask.table)
    grid = Grid.axis_aligned(SHAPE, SPACING)
    found = check_case("turned", Volume(image, grid.affine), turned, RANGES)
    assert (found.verdict, texts(found)) == ("passed", "")
    assert BODY in turned.labels
