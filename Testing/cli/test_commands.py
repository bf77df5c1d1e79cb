"""What the subcommands do when all is well."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import MAISILib
from MAISILib.cli.options import build_request
from MAISILib.errors import RequestError
from MAISILib.generation.request import GenerateRequest
from Testing.cli.conftest import Maisi


def test_generate_then_replay_gives_the_same_files(maisi: Maisi, tiny: Path, work: Path) -> None:
    told = maisi("generate", "--bundle", tiny, "--anatomy", "liver", "--seed", 3, "--steps", 1, "--first-index", 4)
    assert told.code == 0
    assert re.fullmatch(r"out/sample-0004: failed – the mask's borders are no edges of the image .*\n", told.out)
    assert sorted(path.name for path in work.iterdir()) == ["out"]
    again = maisi("generate", "--replay", "out/sample-0004/provenance.json", "--out", "again", "--json")
    assert again.json["samples"][0]["folder"] == "again/sample-0004"
    for name in ("image.nii.gz", "mask.nii.gz"):
        first, second = (work / folder / "sample-0004" / name for folder in ("out", "again"))
        assert first.read_bytes() == second.read_bytes()


def test_replay_with_other_weights_is_refused(maisi: Maisi, own_tiny: Path, work: Path) -> None:
    assert maisi("generate", "--bundle", own_tiny, "--no-mask", "--steps", 1).code == 0
    weights = own_tiny / "diffusion.safetensors"
    weights.write_bytes(weights.read_bytes() + b"\0")
    told = maisi("generate", "--replay", "out/sample-0000/provenance.json", "--out", "again")
    assert told.code == 2
    assert "other weights now" in told.err
    assert not (work / "again").exists()


def test_plan_tells_time_and_memory_and_writes_nothing(maisi: Maisi, tiny: Path, work: Path) -> None:
    text = maisi("plan", "--bundle", tiny, "--size", 32, 16, 16, "--count", 2, "--device", "cpu")
    assert text.code == 0
    assert text.out.startswith("2 × 32×16×16 voxels at 4×4×4 mm, latent 4×16×8×8, 4 steps on cpu (float32)\n")
    assert "GB are free" in text.out
    plan = maisi("plan", "--bundle", tiny, "--no-mask", "--windows", "--json").json
    assert plan["fits"] is True
    assert plan["size"] == [16, 16, 16]
    assert 0 < plan["peak_bytes"] < plan["available_bytes"]
    assert plan["seconds"] > 0
    assert {stage["name"] for stage in plan["stages"]} == {"diffusion", "decode"}
    assert list(work.iterdir()) == []


def test_bundles_are_imported_listed_verified_and_removed(maisi: Maisi, tiny: Path) -> None:
    before = {row["name"]: row for row in maisi("bundles", "list", "--json").json}
    assert before["nv-rflow-ct"]["state"] == "to download"
    assert "tiny" not in before
    imported = maisi("bundles", "import", tiny, "--json")
    assert imported.code == 0, imported.err
    assert imported.json["bundle"] == "tiny"
    row = next(row for row in maisi("bundles", "list", "--json").json if row["name"] == "tiny")
    assert (row["state"], row["modality"]) == ("installed", {"ct": 1})
    assert Path(row["folder"]) == Path(imported.json["folder"])
    assert "Tiny rflow bundle" in maisi("bundles", "list").out
    assert maisi("bundles", "verify", "tiny", "--json").json == {"bundle": "tiny", "problems": []}
    assert maisi("plan", "--bundle", "tiny").code == 0
    assert maisi("bundles", "remove", "tiny", "--json").json == {"removed": "tiny"}
    assert "tiny" not in {row["name"] for row in maisi("bundles", "list", "--json").json}
    gone = maisi("bundles", "remove", "tiny")
    assert gone.code == 2
    assert gone.err.startswith("maisi: ")


def test_verify_lists_what_is_wrong_in_json_too(maisi: Maisi, own_tiny: Path) -> None:
    (own_tiny / "controlnet.safetensors").unlink()
    told = maisi("bundles", "verify", own_tiny, "--json")
    assert told.code == 2
    assert len(told.json["problems"]) == 1
    assert "controlnet.safetensors" in told.json["problems"][0]


def test_version_and_help(maisi: Maisi) -> None:
    assert maisi("--version").out.strip() == MAISILib.__version__
    told = maisi("generate", "--help")
    assert told.code == 0
    for option in ("--anatomy", "--mask", "--no-mask", "--size", "--replay", "--scene", "--json"):
        assert option in told.out
    assert maisi("frobnicate").code == 2


def test_options_win_over_the_request_file(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text(
        json.dumps({"random_seed": 7, "num_output_samples": 3, "cfg_guidance_scale": 2, "spacing": [2, 2, 2]})
    )
    assert build_request(request_file=path) == GenerateRequest(seed=7, count=3, guidance_scale=2, spacing=(2, 2, 2))
    changed = build_request(request_file=path, seed=0, guidance_scale=0.0, count=None, anatomy=[])
    assert changed == GenerateRequest(seed=0, count=3, guidance_scale=0, spacing=(2, 2, 2))


def test_mask_options_win_over_those_of_the_request_file(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps({"mask_file": "a.nii", "mask_ct": "ct.nii", "seed": 7}))
    assert build_request(request_file=path).mask_file == Path("a.nii")
    assert build_request(request_file=path, mask=Path("b.nii")).mask_file == Path("b.nii")
    assert build_request(request_file=path, no_mask=True) == GenerateRequest(mask="none", seed=7)
    assert build_request(request_file=path, windows=True).decode == "windows"
    with pytest.raises(RequestError, match="contradict"):
        build_request(request_file=path, mask=Path("b.nii"), no_mask=True)
