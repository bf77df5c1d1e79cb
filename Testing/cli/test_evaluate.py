"""``maisi evaluate``: what each subcommand prints and writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from Testing.cli.conftest import Maisi
from Testing.quality.image_folders import patient_and_mask, write_case, write_patients


@pytest.fixture
def real(work: Path) -> Path:
    return write_patients(work / "real", range(3))


@pytest.fixture
def made(work: Path) -> Path:
    return write_patients(work / "made", range(10, 13))


def test_fid_prints_a_table_and_keeps_features(maisi: Maisi, tiny: Path, real: Path, made: Path) -> None:
    options = ("--bundle", tiny, "--bootstrap", 10, "--features", "kept")
    outcome = maisi("evaluate", "fid", real, made, *options)
    assert outcome.code == 0, outcome.err
    assert "3 real and 3 generated volumes" in outcome.out
    assert "not comparable with published numbers" in outcome.out
    assert [line.split()[0] for line in outcome.out.splitlines()[1:6]] == ["plane", "xy", "yz", "zx", "mean"]
    assert "features, real 1/3 p0" in outcome.err
    again = maisi("evaluate", "fid", "kept/real", made, *options, "--json")
    assert again.json["volumes"] == [3, 3]
    assert set(again.json["fid"]) == {"xy", "yz", "zx", "mean"}
    assert again.json["confidence"]["mean"]["high"] >= again.json["fid"]["mean"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--network", "squeezenet1_1"), "squeezenet1_1 needs its weights"),
        (("--weights", "some.pth"), "--weights and --download are for"),
        (("--center-slices-ratio", "0"), "0 < ratio"),
        (("--bundle", "head-neck-mimi"), "head-neck-mini"),
        (("--images", "1"), "at least two"),
        (("--network", "radimagenet_resnet50", "--weights", "missing.pt"), "missing.pt: the weights are missing"),
    ],
)
def test_fid_refuses(refused: Maisi, real: Path, made: Path, options: tuple[str, ...], said: str) -> None:
    assert said in refused("evaluate", "fid", real, made, *options).err


def test_fid_of_features_of_another_preprocessing_is_refused(
    maisi: Maisi, refused: Maisi, tiny: Path, real: Path, made: Path
) -> None:
    common = ("evaluate", "fid", real, made, "--bundle", tiny, "--features", "kept", "--bootstrap", 0)
    assert maisi(*common).code == 0
    assert "another preprocessing" in refused(*common, "--spacing", 8, 8, 8).err


def test_quality_writes_a_report_and_tables(maisi: Maisi, work: Path) -> None:
    for seed in range(2):
        write_case(work / "cases" / f"p{seed}", *patient_and_mask(seed))
    (work / "cases" / "p1" / "image.nii.gz").write_bytes(b"cut off")
    outcome = maisi("evaluate", "quality", "cases", "--bundle", "head-neck-mini", "--out", "report")
    assert outcome.code == 0, outcome.err
    assert "2 cases:" in outcome.out
    assert "p1: failed" in outcome.out
    assert sorted(path.name for path in (work / "report").iterdir()) == ["quality.csv", "quality.json", "report.html"]
    one = maisi("evaluate", "quality", "cases/p0/image.nii.gz", "--out", "one", "--pictures", 0, "--json")
    assert [case["name"] for case in one.json["checks"]] == ["p0"]
    assert one.json["checks"][0]["explained_variance"] > 0.5, "the mask beside the image was found"


def test_quality_refuses_what_it_cannot_check(refused: Maisi, work: Path) -> None:
    (work / "empty").mkdir()
    assert "holds no images" in refused("evaluate", "quality", "empty").err
    assert "is for MR" in refused("evaluate", "quality", "empty", "--bundle", "nv-rflow-mr").err
