"""Zip files from outside are unpacked whole, inside of their folder, or not at all."""

from __future__ import annotations

import stat
import struct
import zipfile
from pathlib import Path

import pytest

from MAISILib.errors import FileFormatError
from MAISILib.files.archives import unpack_zip


def zipped(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def refused(archive: Path, said: str) -> None:
    folder = archive.parent / "unpacked"
    with pytest.raises(FileFormatError, match=said) as told:
        unpack_zip(archive, folder)
    assert archive.name in str(told.value)
    assert not folder.exists()
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]


def test_files_are_unpacked_without_a_folder_of_the_archives_name(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "masks.zip", ("masks/a.nii.gz", b"a"), ("b/c.nii.gz", b"c"), ("masks/", b""))
    unpack_zip(archive, tmp_path / "out")
    assert (tmp_path / "out/a.nii.gz").read_bytes() == b"a"
    assert (tmp_path / "out/b/c.nii.gz").read_bytes() == b"c"


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "C:/evil", "..\\evil", "\\\\host\\evil", "a/b:stream"]
)
def test_member_that_points_outside_is_refused(tmp_path: Path, name: str) -> None:
    refused(zipped(tmp_path / "bad.zip", ("good.nii.gz", b"x"), (name, b"x")), "outside of the folder")


def test_links_and_doubles_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(zipped(tmp_path / "bad.zip", (link, b"/etc/passwd")), "is a link")
    refused(zipped(tmp_path / "bad.zip", ("a.nii", b"1"), ("A.nii", b"2")), "same name")


def test_archive_cut_anywhere_or_damaged_is_refused(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "bad.zip", ("a.nii.gz", bytes(range(256)) * 20), ("b.nii.gz", b"2" * 500)).read_bytes()
    for length in range(1, len(whole), len(whole) // 12):
        (tmp_path / "bad.zip").write_bytes(whole[:length])
        refused(tmp_path / "bad.zip", "cannot be unpacked.*Download or copy it again")
    middle = whole.index(b"a.nii.gz") + 20
    (tmp_path / "bad.zip").write_bytes(whole[:middle] + b"\xff" * 8 + whole[middle + 8 :])
    refused(tmp_path / "bad.zip", "cannot be unpacked")
    (tmp_path / "bad.zip").write_bytes(b"no zip at all")
    refused(tmp_path / "bad.zip", "cannot be unpacked")


def test_file_that_unpacks_far_beyond_its_size_is_refused(tmp_path: Path) -> None:
    refused(zipped(tmp_path / "bad.zip", ("bomb.nii.gz", b"\0" * 5_000_000)), "would unpack from .* to 5,000,000")


def test_members_that_claim_the_same_bytes_are_refused(tmp_path: Path) -> None:
    """The trick of a zip bomb: many entries of the directory point to one member."""
    archive = zipped(tmp_path / "bad.zip", *((f"{n:03}.nii.gz", b"") for n in range(400)))
    content = bytearray(archive.read_bytes())
    at = content.find(b"PK\x01\x02")
    while at >= 0:
        content[at + 20 : at + 28] = struct.pack("<II", 1000, 1_000_000)  # packed and unpacked size
        at = content.find(b"PK\x01\x02", at + 4)
    archive.write_bytes(content)
    refused(archive, "would unpack to 400,000,000 bytes")


def test_archive_larger_than_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(tmp_path / "bad.zip", ("a.nii.gz", b"x" * 100))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    refused(archive, "GB of disk")
