"""Bad input: each has a message of its own, exit code 2, and nothing is written."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from MAISILib.files.nifti import write_labels
from Testing.bundles.conftest import write_published
from Testing.cli.conftest import Maisi
from Testing.tiny_bundle import make_tiny_bundle, tiny_patient


class Bomb:
    """Runs a shell command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = bundle / "bundle.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--anatomy livr", "'livr'.*Did you mean 'liver'"),
        ("--anatomy 250", "250"),
        ("--modality cr", "Unknown modality 'cr'.*Did you mean 'ct'"),
        ("--body-region chst", "'chst'.*'chest'"),
        ("--body-region head", "no mask for this request.*reaches over head"),
        ("--size 18 16 16", "divisible by 4.*Nearest: 20×16×16"),
        ("--size 0 16 16", r"output_size\.0: .*\(got 0\)"),
        ("--spacing 4 4 40", "z must lie in 0.5–10 mm.*Nearest: 4×4×10"),
        ("--count 0", r"count: .*\(got 0\)"),
        ("--steps 5000", "5000 steps are too many"),
        ("--seed -1", r"seed: .*\(got -1\)"),
        ("--schedule fast", r"schedule: .*\(got 'fast'\)"),
        ("--solver eulr", "eulr"),
        ("--preset quick", r"preset: .*\(got 'quick'\)"),
        ("--preset draft --steps 3", "leave out steps, or the preset"),
        ("--guidance -1", r"guidance_scale: .*\(got -1\.0\)"),
        ("--device gpu", "Unknown device 'gpu'"),
        ("--mask a.nii.gz --no-mask", "--mask and --no-mask contradict"),
        ("--mask gone.nii.gz", r"gone\.nii\.gz does not exist"),
        ("--mask-ct ct.nii.gz", "mask_ct belongs to a mask_file"),
        ("--no-mask --anatomy liver", "no anatomy"),
        ("--request gone.json", r"gone\.json cannot be read"),
        ("--replay gone.json", r"gone\.json does not exist"),
        ("--replay p.json --seed 0", r"--replay makes exactly the recorded sample.*\(seed\)"),
    ],
)
def test_senseless_options_are_refused(refused: Maisi, tiny: Path, arguments: str, said: str) -> None:
    told = refused("generate", "--bundle", tiny, *arguments.split(), "--out", "out")
    _assert_says(told.err, said)
    if not arguments.startswith("--replay"):
        _assert_says(refused("plan", "--bundle", tiny, *arguments.split()).err, said)


def _assert_says(text: str, pattern: str) -> None:
    assert re.search(pattern, text), text


def test_unknown_bundle_is_named_with_the_nearest(refused: Maisi) -> None:
    _assert_says(refused("generate", "--bundle", "nv-rflo-ct").err, "no bundle 'nv-rflo-ct'.*'nv-rflow-ct'")
    _assert_says(refused("generate", "--bundle", "nv-rflow-ct").err, "maisi bundles download nv-rflow-ct")


def test_options_that_are_no_numbers_get_usage_help(maisi: Maisi, tiny: Path) -> None:
    for arguments in (["--count", "many"], ["--size", "16", "16"], ["--colour", "red"]):
        told = maisi("generate", "--bundle", tiny, *arguments)
        assert told.code == 2
        assert arguments[0] in told.err
        assert "Traceback" not in told.err


def test_what_the_bundle_cannot_do_is_refused(refused: Maisi, tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path / "b", unconditional_modality=None, limits={"min_field_of_view_xy": {"": 60.0}})
    _assert_says(refused("generate", "--bundle", bundle).err, "no mask library")
    _assert_says(refused("generate", "--bundle", bundle, "--no-mask", "--guidance", 2).err, "guidance cannot be used")
    small = refused("generate", "--bundle", bundle, "--no-mask", "--spacing", 2, 2, 2)
    _assert_says(small.err, "32×32 mm.*at least 60 mm.*Nearest")


def _nifti(path: Path, array: np.ndarray, affine: Any = None) -> None:
    image: Any = nib.Nifti1Image(array, np.diag([4.0, 4.0, 4.0, 1.0]))
    if affine is not None:
        image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = np.asarray(affine, float)[:3]
        image.header["sform_code"], image.header["qform_code"] = 1, 0
        with path.open("wb") as file:
            file.write(image.header.binaryblock + b"\0" * 4 + array.tobytes(order="F"))
        return
    image.to_filename(path)


PATIENT = tiny_patient().array
STRANGE = np.where(PATIENT == 28, 250, PATIENT).astype(np.uint8)
MASKS: dict[str, tuple[Any, Any, str]] = {
    "4D": (np.stack([PATIENT] * 3, axis=-1), None, r"4 axes \(16, 16, 16, 3\)"),
    "2D": (PATIENT[:, :, 5], None, "3D image is needed"),
    "float labels": (PATIENT.astype(np.float32) * 0.37, None, "no whole numbers"),
    "unknown labels": (STRANGE, None, r"does not know: 250 \(\d+ voxels\).*Known ones in it: .*liver"),
    "labels beyond 255": (PATIENT.astype(np.int16) * 3, None, "outside 0–255: 600"),
    "empty": (PATIENT * 0, None, "is empty"),
    "sheared": (PATIENT, [[4, 5, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0]], "sheared"),
    "singular": (PATIENT, [[4, 4, 0, 0], [0, 0, 0, 0], [0, 0, 4, 0]], "singular"),
    "NaN": (PATIENT, [[4, 0, 0, 0], [0, 4, 0, 0], [0, 0, 4, np.nan]], "NaN or infinity"),
}


@pytest.mark.parametrize("name", MASKS)
def test_unusable_mask_is_refused_with_its_own_reason(refused: Maisi, tiny: Path, work: Path, name: str) -> None:
    array, affine, said = MASKS[name]
    _nifti(work / "mask.nii", array, affine)
    told = refused("generate", "--bundle", tiny, "--mask", "mask.nii", "--out", "out")
    _assert_says(told.err, said)
    assert "mask.nii" in told.err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("mask.nii.gz", b"I am no image", "cannot be read"),
        ("mask.nii", b"", "is empty"),
        ("mask.docx", b"words", "format that is not read here"),
    ],
)
def test_file_that_is_no_image_is_refused(
    refused: Maisi, tiny: Path, work: Path, name: str, content: bytes, said: str
) -> None:
    (work / name).write_bytes(content)
    _assert_says(refused("generate", "--bundle", tiny, "--mask", name).err, f"{name}.*{said}")
    _assert_says(refused("generate", "--bundle", tiny, "--mask", work).err, "is a folder")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ('{"anatomie": []}', "Unknown field 'anatomie'.*'anatomy'"),
        ('{"num_output_samples": "many"}', r"count: .*\(got 'many'\)"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_bad_request_file_is_refused(refused: Maisi, tiny: Path, work: Path, text: Any, said: str) -> None:
    (work / "r.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    _assert_says(refused("generate", "--bundle", tiny, "--request", "r.json").err, rf"r\.json.*{said}")


def test_bad_replay_file_is_refused(refused: Maisi, work: Path) -> None:
    (work / "p.json").write_text('{"format": "maisi-provenance", "format_version": 99}')
    _assert_says(refused("generate", "--replay", "p.json").err, r"p\.json was written by a newer version")
    (work / "p.json").write_text('{"format": "maisi-provenance", "format_version": 1}')
    _assert_says(refused("generate", "--replay", "p.json").err, "lacks what a replay needs: 'request' is missing")


def test_output_that_cannot_be_written_is_refused_before_the_work(refused: Maisi, tiny: Path, work: Path) -> None:
    (work / "file").write_text("in the way")
    for out in ("file", "file/below/it"):
        _assert_says(refused("generate", "--bundle", tiny, "--out", out).err, "file is a file, not a folder")
    if sys.platform == "linux":
        _assert_says(refused("generate", "--bundle", tiny, "--out", "/proc/maisi").err, "Cannot write /proc/maisi")
    if os.name == "posix" and os.getuid() != 0:
        locked = work / "locked"
        locked.mkdir(mode=0o555)
        _assert_says(refused("generate", "--bundle", tiny, "--out", locked / "out").err, "no permission")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_is_told_and_leaves_nothing(maisi: Maisi, refused: Maisi, tiny: Path, small_disk: Path) -> None:
    arguments = ("generate", "--bundle", tiny, "--steps", 1, "--out", small_disk / "out")
    while_saving = maisi(*arguments)
    assert while_saving.code == 2
    _assert_says(while_saving.err, "maisi: Cannot write .*disk is full")
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []
    (small_disk / "filler").write_bytes(b"x" * 20 * 1024)
    _assert_says(refused(*arguments).err, "disk is full")  # found before the work


def test_damaged_weights_are_refused(maisi: Maisi, own_tiny: Path, work: Path) -> None:
    weights = own_tiny / "diffusion.safetensors"
    whole = weights.read_bytes()
    tampered = bytearray(whole)
    tampered[-1] ^= 1
    for content, said in ((whole[:-100], "not the file that the manifest describes"), (bytes(tampered), "SHA-256")):
        weights.write_bytes(content)
        told = maisi("generate", "--bundle", own_tiny)
        assert told.code == 2
        _assert_says(told.err, f"diffusion.*{said}")
        assert list(work.rglob("*")) == []
        assert maisi("bundles", "verify", own_tiny).code == 2
    edit_manifest(own_tiny, lambda m: m["networks"]["diffusion"].update(sha256=None))
    weights.write_bytes(whole[:-100])
    _assert_says(maisi("generate", "--bundle", own_tiny).err, r"maisi: .*diffusion\.safetensors.*")


def test_pickle_that_would_run_code_is_refused_and_not_run(maisi: Maisi, own_tiny: Path, work: Path) -> None:
    mark = work.parent / "ran"
    (own_tiny / "bomb.pt").write_bytes(pickle.dumps({"weights": Bomb(mark)}))
    entry = {"weights": "bomb.pt", "format": "torch", "sha256": None, "bytes": None}
    edit_manifest(own_tiny, lambda m: m["networks"]["diffusion"].update(entry))
    told = maisi("generate", "--bundle", own_tiny)
    assert told.code == 2
    _assert_says(told.err, r"bomb\.pt")
    assert not mark.exists()
    assert list(work.rglob("*")) == []


def test_code_in_a_network_file_is_refused_and_not_run(refused: Maisi, tmp_path: Path, work: Path) -> None:
    folder, mark = write_published(tmp_path / "published"), tmp_path / "ran"
    path = folder / "configs" / "config_network_rflow.json"
    content = json.loads(path.read_text())
    content["autoencoder_def"]["num_splits"] = f"$__import__('os').system('touch {mark}')"
    path.write_text(json.dumps(content))
    told = refused("bundles", "import", folder, "--accept-licence")
    _assert_says(told.err, r"config_network_rflow\.json.*\$")
    assert not mark.exists()


def test_newer_manifest_is_refused(refused: Maisi, own_tiny: Path) -> None:
    edit_manifest(own_tiny, lambda m: m.update(manifest_version=2))
    _assert_says(refused("generate", "--bundle", own_tiny).err, "newer version")


def test_mask_of_the_library_that_is_gone_is_told(refused: Maisi, own_tiny: Path) -> None:
    (own_tiny / "library" / "masks.json").unlink()
    _assert_says(refused("generate", "--bundle", own_tiny).err, r"masks\.json is missing")


def test_memory_that_is_short_is_a_failed_run(
    maisi: Maisi, tiny: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("MAISILib.generation.plan.available_bytes", lambda device: 10**6)
    told = maisi("generate", "--bundle", tiny)
    assert told.code == 3
    _assert_says(told.err, "maisi: This needs about .* GB")
    assert list(work.rglob("*")) == []


def test_users_mask_is_read_as_it_is(maisi: Maisi, tiny: Path, work: Path) -> None:
    """The counterpart: a good mask passes where the bad ones above did not."""
    write_labels(tiny_patient(), work / "mask.nii.gz")
    assert maisi("plan", "--bundle", tiny, "--mask", "mask.nii.gz").code == 0
