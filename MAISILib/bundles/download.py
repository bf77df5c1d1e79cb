"""Downloads bundles of the catalogue into the user's data folder, and removes them.

A download gathers in ``downloads/<name>`` and becomes an installed bundle by one rename, when every file is there and
every weight fits. Until then nothing is installed; what has arrived stays for the next attempt.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MAISILib.bundles import hub, installing, licences
from MAISILib.bundles.catalogue import data_folder, downloadable, installed_folder, list_bundles
from MAISILib.bundles.manifest import Manifest, NetworkName, check_relative_path, write_manifest
from MAISILib.errors import BundleError, DownloadError, did_you_mean

#: Spare room on the disk beyond the files themselves (bytes).
_SPARE_BYTES = 200_000_000


@dataclass(frozen=True)
class _Wanted:
    network: NetworkName | None
    file: hub.RemoteFile
    sha256: str | None


def download(
    name: str,
    *,
    accept_licence: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    cancel: hub.CancelToken | None = None,
    with_masks: bool = True,
) -> Path:
    """Downloads a bundle of the catalogue; returns its folder. Goes on where an earlier attempt stopped.

    Args:
        name: Name in the catalogue.
        accept_licence: The user has read and accepts the licence; remembered from then on.
        on_progress: Gets (bytes done, bytes in all).
        cancel: Asked at every piece that arrives; ``threading.Event`` will do.
        with_masks: Fetch the library of example masks too, where the bundle has one.

    Raises:
        LicenceError: The licence has not been accepted; says which, where to read it, and how to accept.
        DownloadError: Not reachable, cut off, damaged, or too little room on the disk.
        BundleError: No such bundle, one that needs no download, or weights that do not fit their networks.
        Cancelled: By the user.
    """
    manifest = _to_download(name)
    licences.require(manifest.licence, name, accept_licence, f"maisi bundles download {name}")
    if installed_folder(name).exists():
        return installed_folder(name)
    staging = data_folder() / "downloads" / name
    wanted = [_Wanted(w.network, hub.resolve(w.file), w.sha256) for w in _wanted(manifest, with_masks)]
    total = sum(w.file.bytes or 0 for w in wanted)
    _check_room(staging, total)
    done, checksums, sizes = 0, {}, {}
    for want in wanted:
        before = done

        def report(there: int, before: int = before) -> None:
            if on_progress is not None:
                on_progress(before + there, max(total, before + there))

        path, checksums[want.file.path] = hub.fetch(
            want.file, staging, expected_sha256=want.sha256, on_progress=report, cancel=cancel
        )
        sizes[want.file.path] = path.stat().st_size
        done += sizes[want.file.path]
    return _install(name, _recorded(manifest, wanted, checksums, sizes, with_masks), staging)


def remove(name: str) -> None:
    """Deletes an installed bundle, and what an unfinished download of it left. Embedded bundles stay.

    Raises:
        BundleError: Embedded, not installed, or not deletable.
    """
    states = {state.name: state for state in list_bundles()}
    state = states.get(name)
    folders = [f for f in (installed_folder(name), data_folder() / "downloads" / name) if state and f.is_dir()]
    if state is not None and state.state == "embedded":
        raise BundleError(f"Bundle '{name}' is part of the program and cannot be removed.")
    if not folders:
        raise BundleError(f"Bundle '{name}' is not installed.{did_you_mean(name, states) if state is None else ''}")
    for folder in folders:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise BundleError(
                f"{folder}: cannot be removed ({error.strerror or error}). Close programs that use it."
            ) from error


def _to_download(name: str) -> Manifest:
    manifests = downloadable()
    if name in manifests:
        return manifests[name]
    if any(state.name == name for state in list_bundles()):
        raise BundleError(f"Bundle '{name}' is on this computer already; there is nothing to download.")
    raise BundleError(
        f"There is no bundle '{name}' to download.{did_you_mean(name, manifests)} Known: {', '.join(manifests)}."
    )


def _wanted(manifest: Manifest, with_masks: bool) -> list[_Wanted]:
    """The files of a bundle, small ones first, so that an address that is wrong is known early."""
    sources = manifest.sources
    files: list[_Wanted] = []
    for path in sources.get("data", []) if with_masks else []:
        check_relative_path(path)
        files.append(_Wanted(None, hub.RemoteFile(sources["repository"], sources["revision"], path), None))
    for network, entry in manifest.networks.items():
        place = sources["files"][network]
        if isinstance(place, str):
            place = {"repository": sources["repository"], "revision": sources["revision"], "path": place}
        check_relative_path(place["path"])
        files.append(_Wanted(network, hub.RemoteFile(**place), entry.sha256))
    return files


def _check_room(staging: Path, total: int) -> None:
    place = staging
    while not place.exists():
        place = place.parent
    there = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file()) if staging.exists() else 0
    free = shutil.disk_usage(place).free
    if total - there + _SPARE_BYTES > free:
        raise DownloadError(
            f"{data_folder()}: {(total - there) / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free. Make room, or "
            "set MAISI_DATA to a folder on another disk."
        )


def _recorded(
    manifest: Manifest, wanted: list[_Wanted], checksums: dict[str, str], sizes: dict[str, int], with_masks: bool
) -> Manifest:
    """The manifest of the installed bundle: what arrived, from which commit, with which checksum."""
    entries, files, notes = dict(manifest.networks), {}, {}
    for want in wanted:
        path = want.file.path
        place = {"repository": want.file.repository, "revision": want.file.revision, "path": path}
        if want.network is None:
            notes[path] = {**place, "sha256": checksums[path]}
            continue
        files[want.network] = place
        update = {"weights": path, "format": "torch", "sha256": checksums[path], "bytes": sizes[path]}
        entries[want.network] = entries[want.network].model_copy(update=update)
    main = next((p["revision"] for p in files.values() if p["repository"] == manifest.sources["repository"]), None)
    sources: dict[str, Any] = {
        **manifest.sources,
        "revision": main or manifest.sources["revision"],
        "files": files,
        "data": notes,
        "endpoint": hub.endpoint(),
    }
    masks = manifest.masks if with_masks else None
    return manifest.model_copy(update={"networks": entries, "sources": sources, "masks": masks})


def _install(name: str, manifest: Manifest, staging: Path) -> Path:
    from MAISILib.bundles.bundle import Bundle

    write_manifest(manifest, staging)
    bundle = Bundle(staging)
    kept, notes = installing.without_broken_mask_generator(bundle)
    notes += installing.filled_and_dropped(bundle)
    if kept.scale_factor is None:
        kept = kept.model_copy(update={"scale_factor": bundle.scale_factor()})
    for archive in staging.glob("datasets/*.zip"):
        installing.unpack_masks(archive)
    write_manifest(kept.model_copy(update={"sources": {**kept.sources, "notes": notes}}), staging)
    shutil.rmtree(staging / hub.PARTIAL_FOLDER, ignore_errors=True)
    return installing.install(staging, name)
