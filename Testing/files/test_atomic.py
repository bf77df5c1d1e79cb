"""A file is there as a whole or not at all, and the message says why it could not be written."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MAISILib.errors import OutputError
from MAISILib.files.atomic import atomic_folder, atomic_path, output_error, write_text
from MAISILib.files.nifti import write_volume
from MAISILib.volumes import Volume


def test_the_file_appears_at_the_end_with_its_name_and_folders(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "image.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.name == "image.nii.gz"
        temporary.write_bytes(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert os.listdir(target.parent) == ["image.nii.gz"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_error_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "file.txt"
    write_text(target, "old ä")

    def write_half() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
        write_half()
    assert target.read_text(encoding="utf-8") == "old ä"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_writing_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nothing was written"), atomic_path(tmp_path / "file"):
        pass


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.ENAMETOOLONG, "too long"),
        (errno.EIO, "Choose another folder"),
    ],
)
def test_the_message_says_what_to_do(code: int, advice: str) -> None:
    message = str(output_error(Path("out/image.nii.gz"), OSError(code, os.strerror(code))))
    assert "out/image.nii.gz" in message.replace("\\", "/")
    assert advice in message


def test_what_is_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(OutputError, match=r"not a folder|in the way"):
        write_text(tmp_path / "file" / "x.txt", "x")
    with pytest.raises(OutputError, match="folder of that name"):
        write_text(tmp_path / "folder.nii", "x")
    with pytest.raises(OutputError, match="too long"):
        write_text(tmp_path / ("x" * 300), "x")


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_folder_without_permission_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write anywhere")
        with pytest.raises(OutputError, match="no permission"):
            write_text(tmp_path / "x.txt", "x")
    finally:
        tmp_path.chmod(0o700)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, timeout=20).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=False)


NOISE = Volume(np.random.default_rng(0).integers(-1000, 1000, (64, 64, 64)).astype(np.int16), np.eye(4))


def test_a_full_disk_is_told_and_left_as_it_was(small_disk: Path) -> None:
    with pytest.raises(OutputError, match="disk is full"):
        write_volume(NOISE, small_disk / "image.nii.gz")
    assert os.listdir(small_disk) == []


def test_a_disk_that_fills_up_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nibabel as nib

    def fill_up(image: Any, stream: Any) -> None:
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_stream", fill_up)
    with pytest.raises(OutputError, match="disk is full"):
        write_volume(NOISE, tmp_path / "image.nii.gz")
    assert os.listdir(tmp_path) == []


def test_a_disk_that_is_full_only_when_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="quota"):
        write_text(tmp_path / "x.txt", "x")
    assert os.listdir(tmp_path) == []


def test_a_folder_of_ours_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "sample"
    for text in ("first", "second"):
        with atomic_folder(target, replaces="mark.txt") as staging:
            (staging / "mark.txt").write_text(text)
            (staging / f"{text}.txt").touch()
    assert sorted(os.listdir(target)) == ["mark.txt", "second.txt"]
    assert os.listdir(tmp_path) == ["sample"]


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(OutputError, match="holds other files"), atomic_folder(tmp_path, replaces="mark.txt"):
        pytest.fail("the work must not begin")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="in the way"), atomic_folder(tmp_path / "file", replaces="mark.txt"):
        pytest.fail("the work must not begin")
    assert (tmp_path / "thesis.docx").read_text() == "years of work"


def test_a_folder_stays_when_the_new_one_cannot_take_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "sample"
    with atomic_folder(target, replaces="mark.txt") as staging:
        (staging / "mark.txt").write_text("old")
    replace = os.replace

    def fail_for_new(source: Path, destination: Path) -> None:
        if Path(source).name == "new":
            raise OSError(errno.EACCES, "Permission denied")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fail_for_new)
    with pytest.raises(OutputError, match="no permission"), atomic_folder(target, replaces="mark.txt") as staging:
        (staging / "mark.txt").write_text("new")
    assert (target / "mark.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["sample"]
