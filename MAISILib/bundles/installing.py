"""What downloading and importing share: staging folders, weights into safetensors, and the rename that installs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MAISILib.bundles import networks, weights
from MAISILib.bundles.catalogue import data_folder, installed_folder
from MAISILib.bundles.manifest import Manifest, NetworkEntry, cannot_write, write_manifest
from MAISILib.errors import BundleError, FileFormatError
from MAISILib.files.archives import unpack_zip

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle

#: Networks without which a bundle still makes images.
OPTIONAL_NETWORKS = ("mask_autoencoder", "mask_diffusion")


def check_not_installed(name: str) -> None:
    """Goes on if no downloaded or imported bundle has this name.

    Raises:
        BundleError: There is one.
    """
    if installed_folder(name).exists():
        raise BundleError(f"Bundle '{name}' is installed already. Run 'maisi bundles remove {name}' first.")


def new_staging_folder(name: str) -> Path:
    """An empty folder on the same disk as the installed bundles.

    Raises:
        BundleError: It cannot be made.
    """
    folder = data_folder() / "staging" / f"{name}-{os.getpid()}-{time.time_ns()}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder


def install(staging: Path, name: str) -> Path:
    """Renames a complete staging folder to its place among the installed bundles.

    Raises:
        BundleError: The name is taken, or the rename failed.
    """
    check_not_installed(name)
    target = installed_folder(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.rename(target)
    except OSError as error:
        raise cannot_write(target, error) from error
    return target


def without_broken_mask_generator(bundle: Bundle) -> tuple[Manifest, list[str]]:
    """Verifies all weights of a bundle; a mask generator that does not fit is left out, with a note.

    Returns:
        The manifest without what does not load, and notes about it.

    Raises:
        BundleError: A network that images need does not load.
    """
    manifest, notes = bundle.manifest, []
    for network in manifest.networks:
        problems = bundle.verify_network(network)
        if problems and network not in OPTIONAL_NETWORKS:
            raise BundleError(problems[0])
        if problems:
            notes.append(f"{network} left out: {problems[0]}")
    if not notes:
        return manifest, notes
    kept = {name: entry for name, entry in manifest.networks.items() if name not in OPTIONAL_NETWORKS}
    return manifest.model_copy(update={"networks": kept, "controllable": [], "mask_generator": None}), notes


def convert_to_safetensors(bundle: Bundle) -> Manifest:
    """Rewrites each torch checkpoint of a bundle as fp16 safetensors, removes the old file, writes the manifest.

    Half precision loses nothing that sampling would notice: the published models are run in half precision by their
    authors. A tensor with values beyond its range stays float32.

    Returns:
        The manifest as written, with checksums and the diffusion checkpoint's scale factor.

    Raises:
        BundleError: Weights that do not load, or cannot be written.
    """
    entries: dict[Any, NetworkEntry] = {}
    old, changes = set(), {}
    if bundle.manifest.scale_factor is None:
        changes["scale_factor"] = bundle.scale_factor()
    for name, entry in bundle.manifest.networks.items():
        path = bundle.path(entry.weights)
        if entry.format == "torch":
            state = bundle.load(name).state_dict()
            old.add(path)
            path = weights.save_safetensors(state, path.with_name(f"{name}.safetensors"))
        relative = path.relative_to(bundle.folder).as_posix()
        entries[name] = described(entry, bundle.folder, relative, "safetensors")
    manifest = bundle.manifest.model_copy(update={**changes, "networks": entries})
    write_manifest(manifest, bundle.folder)
    for path in old:
        path.unlink()
    return manifest


def described(entry: NetworkEntry, folder: Path, relative: str, format: str) -> NetworkEntry:
    """``entry`` with the path, format, checksum and size of the file that is there now."""
    path = folder / relative
    update = {"weights": relative, "format": format, "sha256": weights.sha256_of(path), "bytes": path.stat().st_size}
    return entry.model_copy(update=update)


def filled_and_dropped(bundle: Bundle) -> list[str]:
    """In words, the allowances that published checkpoints needed; of networks loaded or verified so far."""
    lines = []
    for network, report in bundle.reports.items():
        if report.filled:
            lines.append(f"{network}: {len(report.filled)} weights taken from the diffusion UNet")
        if report.dropped:
            lines.append(f"{network}: {len(report.dropped)} unused output projections of attention left out")
    return lines


def check_definition_builds(entry: NetworkEntry, where: str) -> None:
    """Builds the network without memory, to learn that its definition is sound.

    Raises:
        BundleError: It is not.
    """
    networks.build_network(entry.definition, where, device="meta")


def unpack_masks(archive: Path) -> Path:
    """Unpacks a zip of masks into a folder of its name beside it, then removes the zip.

    Raises:
        BundleError: Not a zip, damaged, with a member that would land outside the folder, or one that unpacks without
            end.
    """
    folder = archive.with_suffix("")
    try:
        unpack_zip(archive, folder)
    except FileFormatError as error:
        raise BundleError(str(error)) from error
    archive.unlink()
    return folder
