"""Results on disk: whole or not at all, with provenance from which the sample can be made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import MAISILib as maisi
from MAISILib.bundles.bundle import Bundle
from MAISILib.errors import BundleError, FileFormatError
from MAISILib.files.checks import file_sha256
from MAISILib.files.nifti import read_volume, write_labels
from MAISILib.generation import result as results
from MAISILib.generation.pipeline import generate
from MAISILib.generation.provenance import check_replay, read_replay
from MAISILib.generation.request import GenerateRequest
from Testing.tiny_bundle import tiny_patient

FILES = ["image.nii.gz", "mask.nii.gz", "preview.png", "provenance.json"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def replay(path: Path) -> Any:
    name, request, recorded = read_replay(path)
    bundle = maisi.open_bundle(name)
    check_replay(bundle, recorded)
    return generate(bundle, request)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory, rflow: Bundle) -> results.Sample:
    return generate(rflow, GenerateRequest(anatomy=["liver"], seed=11, first_index=2, steps=2)).samples[0]


def test_folder_holds_what_was_promised(sample: results.Sample, tmp_path: Path) -> None:
    written = maisi.GenerateResult([sample]).save(tmp_path / "out")
    assert names(tmp_path / "out") == ["sample-0002"]
    assert [path.name for path in written] == FILES == names(tmp_path / "out/sample-0002")
    assert np.array_equal(read_volume(written[0]).array, sample.image.array)


def test_second_run_replaces_the_first(sample: results.Sample, tmp_path: Path) -> None:
    sample.save(tmp_path / "s")
    (tmp_path / "s" / "old-notes.txt").write_text("from a run before")
    sample.save(tmp_path / "s")
    assert names(tmp_path / "s") == FILES
    assert names(tmp_path) == ["s"]


@pytest.mark.parametrize("before", [True, False])
def test_error_in_the_middle_leaves_the_old_folder_and_nothing_else(
    sample: results.Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    folder = tmp_path / "out"
    if before:
        sample.save(folder / "s")
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def fail(path: Path, *arguments: Any, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "write_preview", fail)
    with pytest.raises(maisi.OutputError, match="disk is full"):
        sample.save(folder / "s")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == kept
    assert names(folder) == (["s"] if before else [])


def test_provenance_says_how_the_sample_was_made(sample: results.Sample, rflow: Bundle, tmp_path: Path) -> None:
    sample.save(tmp_path / "s")
    found = json.loads((tmp_path / "s" / "provenance.json").read_text(encoding="utf-8"))
    assert found == json.loads(json.dumps(sample.provenance))
    assert found["synthetic"] is True
    assert "Not a patient" in found["statement"]
    assert found["bundle"]["name"] == rflow.name
    assert found["bundle"]["weights_sha256"] == {
        network: file_sha256(rflow.folder / f"{network}.safetensors")
        for network in ("autoencoder", "diffusion", "controlnet")
    }
    assert found["request"]["seed"] == 11
    assert found["request"]["schedule"] == "exact"  # defaults too: they may change
    assert found["sample"] == {"index": 2, "seed": sample.seed, "attempts": 1}
    assert set(found["software"]) >= {"MAISILib", "python", "torch", "monai", "numpy"}
    assert found["device"]["name"] == "cpu"
    assert (found["settings"]["solver"], found["settings"]["steps"]) == ("euler", 2)
    assert set(found["seconds"]) == {"diffusion", "decode"}
    source = found["mask_source"]
    assert source["sha256"] == file_sha256(rflow.folder / "library" / source["entry"])


def test_replay_gives_the_identical_image(sample: results.Sample, tmp_path: Path) -> None:
    sample.save(tmp_path / "s")
    again = replay(tmp_path / "s" / "provenance.json")
    assert [s.index for s in again.samples] == [2]
    assert again.image.array.tobytes() == sample.image.array.tobytes()
    assert sample.mask is not None
    assert np.array_equal(again.mask.array, sample.mask.array)


def test_replay_takes_the_recorded_solver_and_steps_whatever_is_usual_by_then(
    sample: results.Sample, tmp_path: Path
) -> None:
    sample.save(tmp_path / "s")
    path = tmp_path / "s" / "provenance.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    for solver, steps, preset in (("heun", 3, "draft"), ("EulerSolver", 2, "standard")):  # the latter as 0.3 wrote it
        data["request"] |= {"solver": None, "steps": None, "preset": preset}
        data["settings"] |= {"solver": solver, "steps": steps}
        path.write_text(json.dumps(data), encoding="utf-8")
        request = read_replay(path)[1]
        assert (request.solver, request.steps) == ({"EulerSolver": "euler"}.get(solver, solver), steps)
    again = replay(path)
    assert again.image.array.tobytes() == sample.image.array.tobytes()


def test_replay_finds_the_mask_from_another_working_folder(
    rflow: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_labels(tiny_patient(), tmp_path / "here" / "mask.nii.gz")
    monkeypatch.chdir(tmp_path / "here")
    first = generate(rflow, GenerateRequest(mask_file="mask.nii.gz", steps=1))
    assert first.provenance["mask_source"]["sha256"] == file_sha256(Path("mask.nii.gz"))
    first.save("out")
    monkeypatch.chdir(tmp_path)
    assert replay(Path("here/out/sample-0000/provenance.json")).image.array.tobytes() == first.image.array.tobytes()


def test_replay_is_refused_where_it_could_not_be_identical(
    tiny: Callable[..., Bundle], users_mask: Callable[..., GenerateRequest], tmp_path: Path
) -> None:
    bundle, request = tiny(with_masks=1), users_mask(steps=1)
    own, library = (generate(bundle, r).provenance for r in (request, GenerateRequest(steps=1)))
    mask = request.mask_file
    assert mask is not None
    check_replay(bundle, own)
    write_labels(tiny_patient(shift=1), mask)
    with pytest.raises(FileFormatError, match=r"The mask .*mask\.nii\.gz has changed"):
        check_replay(bundle, own)
    mask.unlink()
    with pytest.raises(FileFormatError, match=r"The mask .*mask\.nii\.gz of this sample is gone"):
        check_replay(bundle, own)
    check_replay(bundle, library)
    write_labels(tiny_patient(shift=1), bundle.folder / "library" / library["mask_source"]["entry"])
    with pytest.raises(FileFormatError, match=r"library mask .* has changed"):
        check_replay(bundle, library)
    shutil.copy(bundle.folder / "diffusion.safetensors", bundle.folder / "autoencoder.safetensors")
    with pytest.raises(BundleError, match=r"other weights now .*\(autoencoder\).*Install the version"):
        check_replay(bundle, own)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, "does not exist"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "is not a provenance file"),
        ({"format": "other"}, "is not a provenance file"),
        ({"format_version": 2}, "newer version"),
        ({"request": {"seeds": 3}}, r"lacks what a replay needs: .*'seeds'"),
        ({"request": 5}, "lacks what a replay needs"),
        ({"sample": {}}, "'index' is missing"),
        ({"bundle": {"name": "x", "folder": "y"}}, "'weights_sha256' is missing"),
        ({"mask_source": {"kind": "file"}}, "'path' is missing"),
    ],
)
def test_file_that_is_no_provenance_is_named(sample: results.Sample, tmp_path: Path, change: Any, said: str) -> None:
    path = tmp_path / "provenance.json"
    if isinstance(change, str):
        path.write_text(change)
    elif change is not None:
        path.write_text(json.dumps({**sample.provenance, **change}))
    with pytest.raises(FileFormatError, match=said) as caught:
        read_replay(path)
    assert "provenance.json" in str(caught.value)
