"""``maisi evaluate``: what each subcommand prints and writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from Testing.cli.conftest import Maisi
from Testing.quality.image_folders import write_patients


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
