"""Fetches single files from a model hub through huggingface_hub: resumable, pinned, checked against the hub's checksum.

``HF_ENDPOINT``, ``HF_TOKEN`` and the proxy variables of the environment are read at each call, so that they can be set
after this module was imported. Transfers are plain HTTP (no Xet), which every proxy and mirror understands.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from MAISILib.bundles.manifest import cannot_write
from MAISILib.bundles.weights import sha256_of
from MAISILib.errors import Cancelled, DownloadError, MaisiError

_SHA256 = re.compile(r"[0-9a-f]{64}")
#: Constants of huggingface_hub while we use it: plain HTTP, in pieces small enough that a cancel is noticed soon.
_CONSTANTS = {"HF_HUB_DISABLE_XET": True, "DOWNLOAD_CHUNK_SIZE": 1 << 18}
#: Where unfinished files wait, inside the download's folder.
PARTIAL_FOLDER = ".partial"
_RETRY = "What has arrived is kept: run the same command again to go on."


class CancelToken(Protocol):
    """What can be asked whether the user has cancelled."""

    def is_set(self) -> bool:
        """Whether to stop; ``threading.Event`` will do."""
        ...


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub. After ``resolve`` the revision is a commit, and ``sha256`` is there if the hub tells it."""

    repository: str
    revision: str
    path: str
    bytes: int | None = None
    sha256: str | None = None

    @property
    def address(self) -> str:
        """Where it is, in words."""
        return f"{endpoint()}/{self.repository}/{self.path} (revision {self.revision})"


class _Broken(DownloadError):
    """A transfer that stopped in the middle; worth another attempt if it got any further."""


def endpoint() -> str:
    """The hub's address: ``$HF_ENDPOINT``, else huggingface.co."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def resolve(file: RemoteFile) -> RemoteFile:
    """Asks the hub for a file's commit, size and checksum; transfers nothing.

    Raises:
        DownloadError: Not reachable, no such file, or access denied.
    """
    import huggingface_hub as hub

    with _session(file):
        url = hub.hf_hub_url(file.repository, file.path, revision=file.revision, endpoint=endpoint())
        metadata = hub.get_hf_file_metadata(url, token=_token())
    etag = (metadata.etag or "").lower()
    return RemoteFile(
        file.repository,
        metadata.commit_hash or file.revision,
        file.path,
        metadata.size,
        etag if _SHA256.fullmatch(etag) else None,
    )


def fetch(
    file: RemoteFile,
    folder: Path,
    *,
    expected_sha256: str | None = None,
    on_progress: Callable[[int], None] | None = None,
    cancel: CancelToken | None = None,
) -> tuple[Path, str]:
    """Downloads a file into ``folder``, going on from what an earlier attempt left there.

    Args:
        file: As ``resolve`` returned it.
        folder: It lands at ``folder / file.path``.
        expected_sha256: Must match too, where known beforehand.
        on_progress: Gets the bytes of this file that are there.
        cancel: Asked at every piece that arrives.

    Returns:
        The file, and its SHA-256.

    Raises:
        DownloadError: Cut off, damaged (the file is removed), not reachable, or access denied.
        Cancelled: By the user; what has arrived stays.
    """
    path = folder / file.path
    if not (path.is_file() and path.stat().st_size == file.bytes):
        part = _transfer(file, folder, on_progress, cancel)
        path.parent.mkdir(parents=True, exist_ok=True)
        part.replace(path)
    size, actual = path.stat().st_size, sha256_of(path)
    if file.bytes is not None and size != file.bytes:
        path.unlink()
        raise DownloadError(f"{file.address}: {size} bytes arrived instead of {file.bytes}. Download it again.")
    for expected, said_by in ((file.sha256, "the hub"), (expected_sha256, "the catalogue")):
        if expected is not None and actual != expected:
            path.unlink()
            raise DownloadError(
                f"{file.address}: arrived damaged or was changed: SHA-256 is {actual}, {said_by} says {expected}. "
                "It was removed; download it again."
            )
    if on_progress is not None:
        on_progress(size)
    return path, actual


def _transfer(
    file: RemoteFile, folder: Path, on_progress: Callable[[int], None] | None, cancel: CancelToken | None
) -> Path:
    """Completes a file's partial copy, which is named after the content, so that a new version starts anew."""
    part = folder / PARTIAL_FOLDER / f"{file.path.replace('/', '__')}.{(file.sha256 or file.revision)[:16]}.part"
    _stop_if_cancelled(cancel)
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as target:
            if file.bytes is not None and target.tell() > file.bytes:
                target.truncate(0)
            while file.bytes is None or target.tell() < file.bytes or not file.bytes:
                there = target.tell()
                try:
                    _append(file, target, on_progress, cancel)
                    break
                except _Broken:
                    if target.tell() <= there:
                        raise
    except OSError as error:
        raise DownloadError(str(cannot_write(part, error))) from error
    return part


def _append(
    file: RemoteFile, target: BinaryIO, on_progress: Callable[[int], None] | None, cancel: CancelToken | None
) -> None:
    import huggingface_hub as hub
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    with _session(file):
        http_get(
            hub.hf_hub_url(file.repository, file.path, revision=file.revision, endpoint=endpoint()),
            _Watched(target, on_progress, cancel),  # pyright: ignore[reportArgumentType]
            resume_size=target.tell(),
            headers=build_hf_headers(token=_token()),
            expected_size=file.bytes,
        )


def _stop_if_cancelled(cancel: CancelToken | None) -> None:
    if cancel is not None and cancel.is_set():
        raise Cancelled("The download was cancelled. What has arrived is kept for the next attempt.")


def _token() -> str | None:
    return os.environ.get("HF_TOKEN") or None  # None: what the user has logged in with, if anything


class _Watched:
    """A file that tells how much has been written to it, and stops the writer when the user cancels."""

    def __init__(self, file: BinaryIO, on_progress: Callable[[int], None] | None, cancel: CancelToken | None) -> None:
        self._file, self._on_progress, self._cancel = file, on_progress, cancel

    def write(self, piece: bytes) -> int:
        written = self._file.write(piece)
        if self._on_progress is not None:
            self._on_progress(self._file.tell())
        _stop_if_cancelled(self._cancel)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def _session(file: RemoteFile) -> Iterator[None]:
    """A fresh connection that sees today's environment, without Xet and bars; hub errors become ours."""
    import huggingface_hub as hub
    from huggingface_hub import constants, errors, utils

    close: Callable[[], None] | None = getattr(hub, "close_session", None)  # huggingface_hub 1.0 and later
    if close is not None:
        close()
    before = {name: getattr(constants, name) for name in _CONSTANTS if hasattr(constants, name)}
    for name in before:
        setattr(constants, name, _CONSTANTS[name])
    bars = not utils.are_progress_bars_disabled()
    if bars:
        utils.disable_progress_bars()
    try:
        yield
    except MaisiError:
        raise
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{file.address}: access is granted on the hub's page only. Accept the terms at "
            f"{endpoint()}/{file.repository}, then set HF_TOKEN to your access token."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(f"{file.address}: no such repository, or HF_TOKEN gives no access to it.") from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{file.address}: no such revision. Update MAISI for Slicer.") from error
    except errors.LocalEntryNotFoundError as error:
        raise DownloadError(
            f"{file.address}: not reachable ({_cause(error)}). Check HF_ENDPOINT and proxies. {_RETRY}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise DownloadError(f"{file.address}: no such file in the repository. Update MAISI for Slicer.") from error
    except Exception as error:  # the HTTP library differs between versions of huggingface_hub
        raise _Broken(f"{file.address}: the transfer failed ({_cause(error)}). {_RETRY}") from error
    finally:
        if bars:
            utils.enable_progress_bars()
        for name, value in before.items():
            setattr(constants, name, value)


def _cause(error: BaseException) -> str:
    inner = error.__cause__ or error
    return (str(inner).strip().splitlines() or [type(inner).__name__])[0][:200]
