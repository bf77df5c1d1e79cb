"""The benchmark of the embedded model, on two tiny bundles and made-up patients in the layout of OpenKBP."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from MAISILib.files.images import read_grid
from MAISILib.quality.image_sets import find_images
from MAISILib.resources import resource
from Testing.benchmarks.head_neck_mini import main
from Testing.tiny_bundle import make_tiny_bundle
from Testing.training.patients import write_patient


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patients")
    for number in (1, 2, 10):
        write_patient(folder, f"pt_{number}", brightness=10.0 * number)
    return folder


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An old and a new rectified flow and a DDPM, with the labels of head-neck-mini."""
    folders = []
    kinds: dict[str, Literal["rflow", "ddpm"]] = {"old": "rflow", "new": "rflow", "variant": "ddpm"}
    for seed, (name, kind) in enumerate(kinds.items()):
        folder = make_tiny_bundle(
            tmp_path_factory.mktemp(name),
            kind=kind,
            seed=seed,
            name="tiny",
            recommended=[{"size": (16, 16, 16), "spacing": (7.0, 7.0, 7.0)}],
        )
        (folder / "labels.csv").write_bytes(resource("bundles", "head-neck-mini", "labels.csv").read_bytes())
        folders.append(str(folder))
    return folders


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: Any) -> dict[str, Any]:
    target = folder / "figures.json"
    monkeypatch.setattr(sys, "argv", ["head_neck_mini.py", *map(str, arguments), "--json", str(target)])
    main()
    return json.loads(target.read_text())


def test_every_part_is_measured_and_a_second_run_goes_on_from_the_first(
    data: Path, bundles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = (
        "--data",
        data,
        "--bundle",
        *bundles[:2],
        "--ddpm",
        bundles[2],
        "--steps",
        2,
        "--reuse",
        tmp_path / "kept",
    )
    first = run(monkeypatch, tmp_path, *common, "--cases", 2)
    assert first["patients"] == ["pt_1", "pt_2"]
    keys = list(first["codec"])
    assert len(keys) == 2, "bundles of one name are told apart by their weights"
    codec, images = first["codec"][keys[0]], first["images"][keys[0]]
    assert [row["case"] for row in codec["cases"]] == ["pt_1", "pt_2"]
    assert codec["mean"]["psnr_body_db"] == pytest.approx(sum(row["psnr_body_db"] for row in codec["cases"]) / 2)
    assert images["cases"][0]["real_soft_tissue_hu"] == pytest.approx(50, abs=15)
    assert images["mean"]["outside_hu"] == -1000
    assert "not comparable" in first["fid"]["features"]
    assert len(first["fid"]["cases"]) == 5
    assert first["fid"]["cases"][0]["ratio"] == 1
    assert first["ddpm"]["cases"][1]["times_as_long"] > 0
    assert first["sizes"] == dict.fromkeys(keys)
    assert "no mask generator" in capsys.readouterr().out

    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.npz")}
    assert len(kept) == 6
    second = run(monkeypatch, tmp_path, *common, "--only", "images")
    assert second["patients"] == ["pt_1", "pt_2", "pt_10"]
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.npz")}
    assert len(now) == 8
    assert kept.items() <= now.items()
    assert second["images"][keys[0]]["cases"][:2] == images["cases"]


def test_parts_that_need_real_images_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["head_neck_mini.py", "--only", "fid"])
    with pytest.raises(SystemExit):
        main()
    assert "give --data" in capsys.readouterr().err


def test_patients_are_exported_with_their_masks(
    data: Path, bundles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data", str(data), "--bundle", bundles[0], "--export", str(tmp_path / "files")]
    monkeypatch.setattr(sys, "argv", ["head_neck_mini.py", *arguments])
    main()
    found = find_images(tmp_path / "files")
    assert [image.name for image in found] == ["pt_1", "pt_2", "pt_10"]
    assert all(image.mask is not None and read_grid(image.mask).same_as(read_grid(image.path)) for image in found)
