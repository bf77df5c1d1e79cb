"""``maisi evaluate``: what each subcommand prints and writes, and what it refuses."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from MAISILib.anatomy.labels import LabelTable, default_table
from MAISILib.files.nifti import write_labels, write_volume
from MAISILib.volumes import Grid, Volume
from Testing.cli.conftest import Maisi
from Testing.quality.image_folders import (
    SHAPE,
    SPACING,
    patient,
    patient_and_mask,
    write_case,
    write_ct,
    write_patients,
)
from Testing.tiny_bundle import make_tiny_bundle, tiny_patient


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


def test_fid_of_stored_features_takes_their_settings_or_refuses_others(
    maisi: Maisi, refused: Maisi, tiny: Path, work: Path, real: Path, made: Path
) -> None:
    common = ("evaluate", "fid", "kept/real", "kept/generated", "--bootstrap", 0)
    settings = ("--bundle", tiny, "--spacing", 8, 8, 8)
    found = maisi("evaluate", "fid", real, made, *settings, "--features", "kept", "--bootstrap", 0)
    assert maisi(*common).out == found.out
    assert maisi(*common, *settings).out == found.out
    assert "resampled to 6×6×4 mm" in refused(*common, "--bundle", tiny, "--spacing", *SPACING).err
    (work / "weights.pth").write_bytes(b"some")
    flat = ("--network", "squeezenet1_1", "--spacing", 8, 8, 8, "--weights")
    assert "ask for 'squeezenet1_1" in refused(*common, *flat, "weights.pth").err
    assert "nofile" in refused(*common, *flat, "nofile").err


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


def test_novelty_finds_the_copy(maisi: Maisi, work: Path, tiny: Path) -> None:
    write_patients(work / "known", range(16))
    write_ct(work / "made" / "a_ct.nii.gz", patient(30))
    write_ct(work / "made" / "b_ct.nii.gz", patient(3) + np.random.default_rng(0).normal(0, 20, SHAPE))
    options = ("--bundle", tiny, "--size", 24, 20, 16, "--spacing", *SPACING)
    outcome = maisi("evaluate", "novelty", "made", "known", *options, "--json")
    assert outcome.code == 0, outcome.err
    assert {case["name"]: case["verdict"] for case in outcome.json["cases"]} == {"a": "new", "b": "copy"}
    assert outcome.json["cases"][0]["latent"][0]["name"] == "p3"
    assert outcome.json["diversity"]["training"]["pairs"] == 100
    (work / "known" / "p2_ct.nii.gz").write_bytes(b"no image")
    (work / "made" / "c_ct.nii.gz").write_bytes(b"nor this")
    refusal = maisi("evaluate", "novelty", "made", "known", *options)
    assert refusal.code == 2
    error = refusal.err.splitlines()[-1]
    assert "2 of 19 images cannot be used" in error
    assert "p2_ct" in error
    assert "c_ct" in error
    text = maisi("evaluate", "novelty", "made", "known", *options, "--pairs", 0, "--skip-bad").out
    assert "2 volumes against 15 training volumes: 1 copy" in text
    assert "a: undecided" in text
    assert text.count("left out: ") == 2


def test_novelty_refuses(refused: Maisi, work: Path, tiny: Path) -> None:
    write_patients(work / "made", range(2))
    common = ("evaluate", "novelty", "made", "made", "--bundle", tiny)
    assert "4 at least" in refused(*common).err
    assert "divisible" in refused(*common, "--size", 15, 16, 16).err
    assert "nowhere does not exist" in refused("evaluate", "novelty", "made", "nowhere").err


def test_codec_prints_a_table(maisi: Maisi, refused: Maisi, work: Path, tiny: Path) -> None:
    write_case(work / "cases" / "p0", *patient_and_mask(0))
    outcome = maisi("evaluate", "codec", "cases", "--bundle", tiny)
    assert outcome.code == 0, outcome.err
    assert "| PSNR body dB |" in outcome.out
    assert "| MAE HU, label liver |" in outcome.out
    found = maisi("evaluate", "codec", "cases", "--bundle", tiny, "--json").json
    assert found["cases"][0]["mae_label_hu"]["1"] == found["mae_label_hu"]["liver"]["mean"]
    assert "needs both files" in refused("evaluate", "codec", "cases", "--lpips-weights", "squeeze.pth").err


def test_tables_are_made_once_and_written_as_a_page(
    maisi: Maisi, refused: Maisi, work: Path, tiny: Path, tmp_path: Path
) -> None:
    schedule = {"kind": "ddpm", "steps": 2, "train_timesteps": 3, "base_latent_voxels": 8**3}
    ddpm = make_tiny_bundle(tmp_path / "variant", kind="ddpm", name="variant", schedule=schedule)
    grid = Grid.axis_aligned((16, 16, 16), (4.0, 4.0, 4.0))
    for number in range(2):
        mask = tiny_patient(LabelTable.read(tiny / "labels.csv", base=default_table()), shift=number)
        values = np.where(mask.array > 0, 40 + 10 * number, -1000) + np.random.default_rng(number).normal(
            0, 9, grid.shape
        )
        write_volume(Volume(values.astype(np.int16), grid.affine), work / "real" / f"p{number}" / "image.nii.gz")
        write_labels(mask, work / "real" / f"p{number}" / "mask.nii.gz")
    options = ("--bundle", tiny, "--ddpm", ddpm, "--solver", "euler", "--steps", 1, "--steps", 2)
    outcome = maisi("evaluate", "tables", "real", *options, "--work", "kept", "--out", "page/results.md")
    assert outcome.code == 0, outcome.err
    page = (work / "page" / "results.md").read_text(encoding="utf-8")
    assert "## Steps and solvers" in page
    assert re.search(r"\| variant-\w{8} \(ddpm\) \| ancestral \| 3 \|", page)
    assert "## The autoencoder on real" in page
    assert "![FID against steps](results-steps.svg)" in page
    assert (work / "page" / "results-steps.svg").is_file()
    with Image.open(work / "page" / "results-images.png") as picture:
        assert picture.width > 4 * 300, "real, 1 and 2 steps, and the variant"
    made = {path: path.stat().st_mtime_ns for path in (work / "kept" / "images").rglob("image.nii.gz")}
    assert len(made) == 2 * 3
    again = maisi("evaluate", "tables", "real", *options, "--work", "kept", "--out", "page/results.md", "--json").json
    assert [row["steps"] for row in again["rows"]] == [1, 2, 3]
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert (work / "page" / "results.md").read_text(encoding="utf-8") == page
    common = ("evaluate", "tables", "real", "--bundle", tiny)
    assert "of kind 'rflow'" in refused(*common, "--ddpm", tiny).err
    assert "Unknown solver 'eular'" in refused(*common, "--solver", "eular").err
    assert "2000 steps are too many" in refused(*common, "--steps", 1, "--steps", 2000).err
    (work / "folder").mkdir()
    assert "is a folder. Give a file" in refused(*common, "--out", "folder").err
    (work / "list.txt").write_text("real/p0/image.nii.gz\nreal/p1/image.nii.gz\n", encoding="utf-8")
    shutil.copytree(work / "real", work / "elsewhere" / "real")
    others = ("--other", "elsewhere/real", "--work", "listed", "--out", "my page.md", "--steps", 1, "--steps", 1)
    outcome = maisi("evaluate", "tables", "list.txt", "--bundle", tiny, "--solver", "euler", *others)
    assert outcome.code == 0, outcome.err
    page = (work / "my page.md").read_text(encoding="utf-8")
    assert page.count("| euler | 1 |") == 1
    assert "## The autoencoder on list.txt" in page
    assert "## The autoencoder on real" in page
    assert "(my%20page-steps.svg)" in page
