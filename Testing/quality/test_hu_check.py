from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from MAISILib.errors import FileFormatError
from MAISILib.quality.hu_check import OrganRange, check_hu, median_statistics, read_ranges
from MAISILib.training.bundle_writer import write_statistics

LIVER = OrganRange("liver", (1,), -20.0, 160.0)
KIDNEY = OrganRange("kidney", (5, 14), -40.0, 260.0)
HEADER = "organ,labels,percentile_0_5,percentile_99_5,sigma_6_low,sigma_6_high\n"


@pytest.fixture
def shipped(repository: Path) -> dict[str, OrganRange]:
    return {r.organ: r for r in read_ranges(repository / "Resources" / "quality" / "ct_median_statistics.csv")}


def phantom() -> tuple[np.ndarray, np.ndarray]:
    """A liver at 60 HU and kidneys at 30 HU (two labels) in a mask of 8³ voxels."""
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[:4], labels[4:6], labels[6:] = 1, 5, 14
    return np.where(labels == 1, 60.0, 30.0), labels


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_organs_of_known_brightness_pass() -> None:
    report = check_hu(*phantom(), [LIVER, KIDNEY])
    assert report.passed
    assert report.failures == []
    assert [(o.organ, o.voxels, o.median_hu) for o in report.organs] == [("liver", 256, 60.0), ("kidney", 256, 30.0)]


def test_organ_out_of_range_fails_by_name_and_number() -> None:
    image, labels = phantom()
    image[labels == 1] = 400
    report = check_hu(image, labels, [LIVER, KIDNEY])
    assert not report.passed
    assert [o.organ for o in report.failures] == ["liver"]


def test_bounds_belong_to_the_range() -> None:
    image, labels = phantom()
    for value, verdict in ((-20.0, True), (160.0, True), (-20.5, False), (160.5, False)):
        assert check_hu(np.where(labels == 1, value, image), labels, [LIVER]).passed is verdict


def test_median_is_not_moved_by_a_few_wild_voxels() -> None:
    image, labels = phantom()
    image[0, 0] = 30000
    assert check_hu(image, labels, [LIVER]).passed


def test_group_is_measured_as_one() -> None:
    """Two kidneys of which neither lies in the range on its own, but their common median does."""
    image, labels = phantom()
    image[labels == 5], image[labels == 14] = 1000, -1000
    check = check_hu(image, labels, [KIDNEY]).organs[0]
    assert (check.voxels, check.median_hu, check.passed) == (256, 0.0, True)


def test_nan_fails() -> None:
    image, labels = phantom()
    image[0, 0, 0] = np.nan
    report = check_hu(image, labels, [LIVER, KIDNEY])
    assert [o.organ for o in report.failures] == ["liver"]


def test_absent_organ_is_not_checked() -> None:
    image, labels = phantom()
    report = check_hu(image, np.where(labels == 1, 200, labels), [LIVER, KIDNEY])
    assert [o.organ for o in report.organs] == ["kidney"]


@pytest.mark.parametrize(("voxels", "checked"), [(9, False), (10, True)])
def test_organ_of_a_few_voxels_is_not_checked(voxels: int, checked: bool) -> None:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels.ravel()[:voxels] = 1
    report = check_hu(np.full(labels.shape, 3000.0), labels, [LIVER])
    assert bool(report.organs) is checked
    assert report.passed is not checked


def test_nothing_to_check_passes() -> None:
    report = check_hu(np.zeros((4, 4, 4)), np.zeros((4, 4, 4), np.uint8), [LIVER])
    assert report.passed
    assert report.organs == ()


def test_report_goes_into_a_sidecar_file() -> None:
    image, labels = phantom()
    image[labels == 1] = 400
    data = json.loads(json.dumps(check_hu(image, labels, [LIVER, KIDNEY]).to_dict()))
    assert data["passed"] is False
    assert [(o["organ"], o["labels"], o["passed"]) for o in data["organs"]] == [
        ("liver", [1], False),
        ("kidney", [5, 14], True),
    ]


def test_shipped_statistics_cover_the_published_groups(shipped: dict[str, OrganRange]) -> None:
    bone = {*range(33, 57), *range(63, 98), 120, 122, 127}
    expected = {"liver": {1}, "spleen": {3}, "pancreas": {4}, "kidney": {5, 14}, "brain": {22}, "bone": bone}
    assert {name: set(r.labels) for name, r in shipped.items()} == {**expected, "lung": set(range(28, 33))}
    assert all(r.low < r.high for r in shipped.values())


def test_lungs_include_the_right_lower_lobe(shipped: dict[str, OrganRange]) -> None:
    """Label 32 is left out by the published script."""
    labels = np.full((4, 4, 4), 32, np.uint8)
    ranges = list(shipped.values())
    assert check_hu(np.full(labels.shape, -800.0), labels, ranges).passed
    assert not check_hu(np.full(labels.shape, 50.0), labels, ranges).passed


def test_bone_passes_up_to_1000_hu(shipped: dict[str, OrganRange]) -> None:
    assert shipped["bone"].high == 1000
    assert shipped["bone"].low == pytest.approx(71.399)  # the lower bound is measured


def test_range_is_the_wider_of_both_statistics(shipped: dict[str, OrganRange]) -> None:
    assert (shipped["liver"].low, shipped["liver"].high) == (-21.596, 162.0)
    assert (shipped["brain"].low, shipped["brain"].high) == (-951.0, 369.512)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (HEADER + "liver,1,0,100,-10,110\nspleen,3,many,100,-10,110\n", 3),
        (HEADER + "liver,one,0,100,-10,110\n", 2),
        (HEADER + "liver,1,0\n", 2),
        (HEADER.replace("high\n", "high,tissue,tissue_deviation\n") + "liver,1,0,100,-10,110,soft,3\n", 2),
        (HEADER.replace("sigma_6_high", "high") + "liver,1,0,100,-10,110\n", 2),
        (HEADER.replace("organ", "name") + "liver,1,0,100,-10,110\n", 2),
        ("organ,percentile_0_5,percentile_99_5,sigma_6_low,sigma_6_high,labels\nliver,0,100,-10,110\n", 2),
    ],
)
def test_broken_statistics_are_refused_with_file_and_line(tmp_path: Path, text: str, line: int) -> None:
    path = write(tmp_path / "mine.csv", text)
    with pytest.raises(FileFormatError, match=rf"mine\.csv, line {line}"):
        read_ranges(path)


def test_statistics_measured_in_patients_are_read_back(tmp_path: Path) -> None:
    medians = {"bone": [400.0, 450.0, 500.0, 550.0], "liver": [50.0, 55.0, 66.0], "rare": [1.0, 2.0]}
    tissue = {"bone": [500.0] * 4, "liver": [60.0] * 3, "rare": [5.0, 6.0]}
    rows = median_statistics(medians, {"bone": (33, 34), "liver": (1,), "rare": (7,)}, tissue)
    with (tmp_path / "quality.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    bone, liver = read_ranges(tmp_path / "quality.csv")  # two patients are too few to say anything
    deviation = np.std([50, 55, 66], ddof=1)
    assert (liver.organ, liver.labels, liver.tissue) == ("liver", (1,), None)
    assert (liver.low, liver.high) == pytest.approx((57 - 6 * deviation, 57 + 6 * deviation), abs=1e-3)
    assert (bone.labels, bone.high) == ((33, 34), 1000.0)
    assert float(rows[1]["percentile_0_5"]) == pytest.approx(np.percentile([50, 55, 66], 0.5), abs=1e-3)


def gullet(gas: float, tissue: float) -> tuple[np.ndarray, np.ndarray]:
    """An oesophagus of 1000 voxels, a part of which is gas, and its wall; a ninth of the wall is half gas."""
    labels = np.full((10, 10, 10), 11, np.uint8)
    image = np.full(labels.size, tissue + 5 * np.sin(np.arange(labels.size)))
    image[: int(gas * labels.size)] = -900
    image[-int((1 - gas) * labels.size / 9) :] = -250
    return image.reshape(labels.shape), labels


def test_a_wall_200_hu_off_is_unusual_however_much_gas_patients_have(tmp_path: Path) -> None:
    known = ((0.0, 30), (0.1, 40), (0.2, 20), (0.4, 35), (0.6, 25), (0.7, 45))
    patients = [gullet(gas, wall) for gas, wall in known]
    write_statistics(tmp_path / "quality.csv", patients, {"esophagus": (11,)})
    ranges = read_ranges(tmp_path / "quality.csv")
    assert ranges[0].low < -900, "the range of the median finds nothing"
    assert ranges[0].high > 240
    for gas in (0.0, 0.3, 0.65):
        for shift, expected in ((0, False), (200, True), (-200, True)):
            image, labels = gullet(gas, 32 + shift)
            [organ] = check_hu(image, labels, ranges).organs
            assert (organ.passed, organ.is_unusual) == (True, expected), (gas, shift)
    [organ] = check_hu(np.full(labels.shape, -900.0), labels, ranges).organs
    assert (organ.tissue_deviations, organ.is_unusual) == (None, False), "nothing but gas has no tissue"


def test_the_embedded_table_knows_the_tissue_of_hollow_organs(repository: Path) -> None:
    ranges = read_ranges(repository / "Resources" / "bundles" / "head-neck-mini" / "quality.csv")
    assert [r.organ for r in ranges if r.tissue is not None] == ["larynx", "esophagus"]
    assert all(5 * (r.tissue_deviation or 0) < 200 for r in ranges), "200 HU are more than five deviations"
