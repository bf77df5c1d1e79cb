"""Zip files from outside: nothing is written outside of its folder, and none unpacks without end."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

from MAISILib.errors import FileFormatError
from MAISILib.files.checks import check_is_file

#: Packed label maps shrink no further (.nii.gz), uncompressed ones up to the limit of the method (RFC 1951).
_MOST_SHRUNK, _MOST_SHRUNK_LABELS = 100, 1040
_SMALL = 1 << 20
_MOST_MEMBERS = 1_000_000
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, KeyError)


def unpack_zip(archive: Path, folder: Path) -> None:
    """Unpacks a zip into a folder; a top folder of the archive's own name is left out.

    Args:
        archive: The file.
        folder: Is made; where something goes wrong, it is removed again.

    Raises:
        FileFormatError: Not a zip, damaged or cut short, with a member that would land outside of the folder, or one
            that unpacks to far more than label maps do or than the disk has room for.
    """
    with opened_zip(archive) as (source, members):
        try:
            for name, member in members:
                parts = Path(name).parts
                inner = parts[1:] if len(parts) > 1 and parts[0] == archive.stem else parts
                target = folder.joinpath(*inner)
                target.parent.mkdir(parents=True, exist_ok=True)
                unpack_member(source, member, target)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


@contextmanager
def opened_zip(archive: Path) -> Iterator[tuple[zipfile.ZipFile, list[tuple[str, zipfile.ZipInfo]]]]:
    """An archive whose members were looked over, and its files by their names with ``/``.

    Raises:
        FileFormatError: As for `unpack_zip`; also for what goes wrong in the block.
    """
    check_is_file(archive)
    try:
        with zipfile.ZipFile(archive) as source:
            members = [(_plain_name(info, archive), info) for info in source.infolist() if not info.is_dir()]
            if len(members) > _MOST_MEMBERS or len({name.casefold() for name, _ in members}) < len(members):
                raise FileFormatError(f"{archive}: several of its files have the same name. It was not unpacked.")
            needed = sum(info.file_size for _, info in members)
            free = shutil.disk_usage(archive.absolute().parent).free
            if needed > _MOST_SHRUNK_LABELS * archive.stat().st_size:  # members may share their bytes
                raise FileFormatError(f"{archive}: its files would unpack to {needed:,} bytes. It was not unpacked.")
            if needed > free:
                raise FileFormatError(
                    f"{archive} needs {needed / 1e9:.1f} GB of disk, and {free / 1e9:.1f} GB are free. Make room, or "
                    "copy it to another disk."
                )
            yield source, members
    except (OSError, *_ZIP_ERRORS) as error:
        raise FileFormatError(f"{archive} cannot be unpacked ({error}). Download or copy it again.") from error


def unpack_member(source: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Writes a member's bytes to ``target``; no more of them than it claims."""
    with source.open(member) as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)


def _plain_name(info: zipfile.ZipInfo, archive: Path) -> str:
    """The member's name, where it is a file that stays in the folder and is no larger than it can be."""
    path = PureWindowsPath(info.filename)
    if path.drive or path.root or not path.parts or ".." in path.parts or ":" in info.filename or "\0" in path.name:
        raise FileFormatError(
            f"{archive}: member {info.filename!r} would be written outside of the folder. It was not unpacked."
        )
    if stat.S_ISLNK(info.external_attr >> 16):
        raise FileFormatError(f"{archive}: member {info.filename!r} is a link. It was not unpacked.")
    if info.flag_bits & 1:
        raise FileFormatError(f"{archive} needs a password. Unpack it, and give the folder.")
    limit = _MOST_SHRUNK_LABELS if path.name.lower().endswith(".nii") else _MOST_SHRUNK
    if info.file_size > _SMALL + limit * info.compress_size:
        raise FileFormatError(
            f"{archive}: member {info.filename!r} would unpack from {info.compress_size:,} to {info.file_size:,} "
            "bytes. It was not unpacked."
        )
    return path.as_posix()
