"""Writes files so that a reader never meets a half-written one, and says plainly why a file cannot be written."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from MAISILib.errors import OutputError

_ADVICE = {
    errno.ENOSPC: "the disk is full. Free some space, or choose a folder on another disk.",
    errno.EDQUOT: "your disk quota is used up. Free some space, or choose a folder on another disk.",
    errno.EROFS: "the disk is read-only. Choose another folder.",
    errno.EACCES: "no permission. Choose a folder that you may write to.",
    errno.EPERM: "no permission. Choose a folder that you may write to.",
    errno.EISDIR: "a folder of that name is in the way. Choose another name.",
    errno.ENOTDIR: "a part of the path is a file, not a folder. Choose another folder.",
    errno.EEXIST: "a file is in the way of a folder. Choose another folder.",
    errno.ENOENT: "the folder does not exist and cannot be made. Choose another folder.",
    errno.ENAMETOOLONG: "the name is too long for this disk. Choose a shorter one.",
}


def output_error(path: Path, error: OSError) -> OutputError:
    """The error to raise where ``path`` could not be written because of ``error``."""
    reason = _ADVICE.get(error.errno or 0, f"{error.strerror or error}. Choose another folder.")
    return OutputError(f"Cannot write {path}: {reason}")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Gives a temporary path of the same name, and moves the file to ``path`` when the block ends without an error.

    The temporary file lies in a hidden folder beside the target (same disk, so that moving it is one step) and keeps
    the target's name, for formats that look at it. Folders that are missing on the way to ``path`` are made. When the
    block raises, an existing file at ``path`` stays as it was and nothing is left behind.

    Example:
        >>> with atomic_path("result/image.nii.gz") as temporary:  # doctest: +SKIP
        ...     image.to_filename(temporary)

    Raises:
        OutputError: Whatever keeps the file from being written: no permission, no space, something in the way.
    """
    path = Path(path)
    folder: Path | None = None
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".maisi-", dir=path.parent))
        temporary = folder / path.name
        yield temporary
        if not temporary.is_file():
            raise OutputError(f"Cannot write {path}: nothing was written. Is the disk full?")
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path | str, text: str) -> None:
    """Writes ``text`` as UTF-8 with LF line ends, as a whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def _flush_to_disk(path: Path) -> None:
    """Has the system put the file on the disk, so that a full disk shows now and not after the rename."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def atomic_folder(path: Path | str, replaces: str) -> Iterator[Path]:
    """Gives an empty staging folder beside ``path``, and puts it in its place when the block ends without an error.

    Args:
        path: The folder to make.
        replaces: A folder that is there already is replaced only if it is empty or holds a file of this name, which
            says that it is one of ours. When the block raises, it stays as it was.

    Raises:
        OutputError: Something else is at ``path``, or the folder cannot be written.
    """
    path = Path(path)
    staging: Path | None = None
    try:
        check_replaceable(path, replaces)
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".maisi-", dir=path.parent))
        new, old = staging / "new", staging / "old"
        new.mkdir()
        yield new
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def check_replaceable(path: Path, replaces: str) -> None:
    """Makes sure that :func:`atomic_folder` would put its folder at ``path``.

    Raises:
        OutputError: Something else is there.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise OutputError(f"Cannot write {path}: a file of that name is in the way. Choose another folder.")
    if any(path.iterdir()) and not (path / replaces).is_file():
        raise OutputError(
            f"Cannot write {path}: the folder holds other files (no {replaces}). Choose another folder, or empty it."
        )


def check_writable(folder: Path) -> None:
    """Finds out before the work, not after it, that a folder cannot be written; leaves nothing behind.

    Raises:
        OutputError: No permission, no space, or a file in the way.
    """
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise OutputError(f"Cannot write into {folder}: {existing} is a file, not a folder. Choose another folder.")
        probe = existing / f".maisi-{os.getpid()}"
        try:
            probe.write_bytes(b"0" * 4096)
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(folder, error) from None
