"""Installs a bundle from a folder: one of ours (``bundle.json``), or one laid out as MAISI models are published.

The published layout is ``models/*.pt``, optionally ``configs/*.json`` and ``datasets/``, as the authors' download
script leaves it. Which variants it holds is read from the file names.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from MAISILib.bundles import installing, licences
from MAISILib.bundles.bundle import Bundle
from MAISILib.bundles.catalogue import downloadable
from MAISILib.bundles.manifest import (
    MANIFEST_NAME,
    NETWORK_NAMES,
    Manifest,
    MaskGeneratorEntry,
    MaskLibraryEntry,
    NetworkEntry,
    NetworkName,
    cannot_write,
    read_manifest,
    write_manifest,
)
from MAISILib.bundles.networks import compression_factor
from MAISILib.bundles.published import PublishedNetworks, read_network_json
from MAISILib.errors import BundleError, did_you_mean

#: Names that a network's file goes by, in each bundle of the catalogue; the first one found counts. Older releases
#: called the variants maisi3d-rflow and maisi3d-ddpm.
_FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "nv-rflow-ct": {
        "autoencoder": ("autoencoder_v1.pt", "autoencoder_epoch273.pt"),
        "diffusion": ("diff_unet_3d_rflow-ct.pt", "diff_unet_3d_rflow.pt"),
        "controlnet": ("controlnet_3d_rflow-ct.pt", "controlnet_3d_rflow.pt"),
        "mask_autoencoder": ("mask_generation_autoencoder.pt",),
        "mask_diffusion": ("mask_generation_diffusion_unet.pt",),
    },
    "nv-ddpm-ct": {
        "autoencoder": ("autoencoder_v1.pt", "autoencoder_epoch273.pt"),
        "diffusion": ("diff_unet_3d_ddpm-ct.pt", "diff_unet_3d_ddpm.pt"),
        "controlnet": ("controlnet_3d_ddpm-ct.pt", "controlnet_3d_ddpm.pt"),
        "mask_autoencoder": ("mask_generation_autoencoder.pt",),
        "mask_diffusion": ("mask_generation_diffusion_unet.pt",),
    },
    "nv-rflow-mr": {
        "autoencoder": ("autoencoder_v2.pt",),
        "diffusion": ("diff_unet_3d_rflow-mr.pt",),
        "controlnet": ("controlnet_3d_rflow-mr.pt",),
    },
    "nv-rflow-mr-brain": {
        "autoencoder": ("autoencoder_v1.pt",),
        "diffusion": ("diff_unet_3d_rflow-mr-brain_v1.pt", "diff_unet_3d_rflow-mr-brain_v0.pt"),
        "controlnet": ("controlnet_3d_rflow-mr-brain.pt",),
    },
}
_NEWER_MASK_GENERATOR = "mask_generation_diffusion_unet_v2.pt"
_DATA_FOLDERS = ("datasets", "configs")
_DATA_FILES = ("all_masks_*", "candidate_masks_*", "all_anatomy_size_*")


def import_folder(
    folder: str | Path,
    *,
    name: str | None = None,
    accept_licence: bool = False,
    convert: bool = True,
    check: Callable[[], None] = lambda: None,
) -> Bundle:
    """Installs a bundle from a folder, after checking every weight; the folder itself is not changed.

    Args:
        folder: One of ours (with ``bundle.json``), or one in the published layout.
        name: What to call the bundle. In a folder that holds several variants, the catalogue name of the wanted one.
        accept_licence: The user has read and accepts the licence; remembered from then on.
        convert: Rewrite torch checkpoints as fp16 safetensors: half the size or less, faster and safer to read. Without
            it the files are copied as they are.
        check: Called at every piece that is copied and every network that is read; may raise to stop.

    Returns:
        The installed bundle; ``import_notes`` says what is in it and what is missing.

    Raises:
        LicenceError: The licence has not been accepted.
        BundleError: Not a bundle, networks missing, weights that do not fit, or the name is taken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder.")
    ours = (folder / MANIFEST_NAME).is_file()
    manifest, found = (read_manifest(folder), {}) if ours else _published_manifest(folder, name)
    notes = list(manifest.sources.get("notes", []))
    if name is not None:
        manifest = _renamed(manifest, name)
    licences.require(manifest.licence, manifest.name, accept_licence, f"maisi bundles import {folder}")
    installing.check_not_installed(manifest.name)
    staging = installing.new_staging_folder(manifest.name)
    try:
        _copy(folder, staging, ours, found, check)
        for archive in staging.glob("datasets/*.zip"):
            installing.unpack_masks(archive)
        write_manifest(manifest, staging)
        manifest = _checked(_Watched(staging, check), manifest, notes, convert)
        installed = installing.install(staging, manifest.name)
    except OSError as error:
        raise cannot_write(staging, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Bundle(installed)


def import_notes(bundle: Bundle) -> list[str]:
    """What an imported bundle holds and what it lacks, a line each."""
    has = [name for name in NETWORK_NAMES if name in bundle.manifest.networks]
    lacks = [name for name in NETWORK_NAMES if name not in bundle.manifest.networks]
    lines = [f"networks: {', '.join(has)}"]
    if lacks:
        lines.append(f"not there: {', '.join(lacks)}")
    if bundle.manifest.masks is None:
        lines.append("no library of example masks")
    return lines + [str(note) for note in bundle.manifest.sources.get("notes", [])]


def variants_in(folder: str | Path) -> list[str]:
    """Catalogue names of the variants whose diffusion weights a folder in the published layout holds."""
    return [name for name, files in _FILES.items() if _first(Path(folder), files["diffusion"]) is not None]


def _checked(bundle: Bundle, manifest: Manifest, notes: list[str], convert: bool) -> Manifest:
    kept, more = installing.without_broken_mask_generator(bundle)
    notes += more + installing.filled_and_dropped(bundle)
    dropped = [bundle.path(e.weights) for n, e in manifest.networks.items() if n not in kept.networks]
    entries: dict[Any, NetworkEntry] = {
        network: installing.described(entry, bundle.folder, entry.weights, entry.format)
        for network, entry in kept.networks.items()
    }
    sources = {**kept.sources, "notes": notes}
    scale = kept.scale_factor or bundle.scale_factor()
    kept = kept.model_copy(update={"networks": entries, "sources": sources, "scale_factor": scale})
    write_manifest(kept, bundle.folder)
    for path in dropped:
        path.unlink(missing_ok=True)
    if convert and any(entry.format == "torch" for entry in entries.values()):
        kept = installing.convert_to_safetensors(Bundle(bundle.folder))
    problems = Bundle(bundle.folder).verify()
    if problems:
        raise BundleError("; ".join(problems))
    return kept


def _published_manifest(folder: Path, name: str | None) -> tuple[Manifest, dict[Path, str]]:
    """The manifest of a folder in the published layout, and its weight files with their places in the bundle."""
    variants = variants_in(folder)
    if not variants:
        raise BundleError(
            f"{folder}: neither {MANIFEST_NAME} nor published weights (models/diff_unet_3d_<variant>.pt) are here."
        )
    if len(variants) > 1 and name not in variants:
        raise BundleError(f"{folder}: holds {', '.join(variants)}. Say which one with --name.")
    variant = name if name in variants else variants[0]
    template = downloadable()[variant]
    named: dict[NetworkName, Path | None] = {
        network: _first(folder, _FILES[variant].get(network, ())) for network in NETWORK_NAMES
    }
    files: dict[NetworkName, Path] = {network: path for network, path in named.items() if path is not None}
    if "autoencoder" not in files:
        raise BundleError(
            f"{folder}: models/{_FILES[variant]['autoencoder'][0]} is missing; {variant} cannot do without it."
        )
    config = _config(folder, template.schedule.kind)
    notes = _published_notes(folder, files, config)
    entries: dict[NetworkName, NetworkEntry] = {}
    for network, path in files.items():
        definition = _definition(network, template, config)
        if definition is None:
            continue
        entries[network] = NetworkEntry(definition=definition, weights=f"models/{path.name}", format="torch")
        installing.check_definition_builds(entries[network], f"{folder}: {network}")
    changes: dict[str, Any] = {
        "networks": entries,
        "masks": _masks(folder, template),
        "sources": {
            "imported_from": folder.name,
            "catalogue": variant,
            "notes": notes,
        },
    }
    if not {"mask_autoencoder", "mask_diffusion"} <= entries.keys():
        changes |= {"controllable": [], "mask_generator": None}
    elif template.mask_generator is not None:
        changes["mask_generator"] = _mask_generator(folder, template.mask_generator, config, entries)
    if config is not None:
        changes |= {"body_region_input": config.body_region_input, "schedule": config.schedule or template.schedule}
        if config.schedule is not None and config.schedule.kind == "rflow":
            changes["schedule"] = config.schedule.model_copy(update={"steps": template.schedule.steps})
    return template.model_copy(update=changes), {path: entries[n].weights for n, path in files.items() if n in entries}


def _definition(network: NetworkName, template: Manifest, config: PublishedNetworks | None) -> dict[str, Any] | None:
    """The folder's own definition, else the catalogue's, else (a ControlNet for MR) rflow-ct's; else None."""
    sources: Iterable[Any] = (
        (config.definitions if config is not None else {}),
        {n: e.definition for n, e in template.networks.items()},
        {n: e.definition for n, e in downloadable()["nv-rflow-ct"].networks.items() if n == "controlnet"},
    )
    return next((definitions[network] for definitions in sources if network in definitions), None)


def _config(folder: Path, kind: str) -> PublishedNetworks | None:
    names = (f"config_network_{kind}.json", f"config_maisi3d-{kind}.json", f"config_maisi-{kind}.json")
    path = next((p for name in names for p in (folder / "configs" / name, folder / name) if p.is_file()), None)
    return None if path is None else read_network_json(path)


def _mask_generator(
    folder: Path,
    template: MaskGeneratorEntry,
    config: PublishedNetworks | None,
    networks: dict[NetworkName, NetworkEntry],
) -> MaskGeneratorEntry:
    """The catalogue's mask generator, with what the folder's network JSON says otherwise and the size table it has."""
    sizes = Path(template.sizes or "").name
    place = next((d for d in _DATA_FOLDERS if sizes and (folder / d / sizes).is_file()), None)
    changes: dict[str, Any] = {"sizes": f"{place}/{sizes}" if place else None}
    if config is not None:
        if config.mask_latent_shape is not None:
            factor = compression_factor(networks["mask_autoencoder"].definition)
            changes["size"] = tuple(n * factor for n in config.mask_latent_shape[1:])
        changes["schedule"] = config.mask_schedule or template.schedule
        changes["scale_factor"] = config.mask_scale_factor or template.scale_factor
    return template.model_copy(update=changes)


def _masks(folder: Path, template: Manifest) -> MaskLibraryEntry | None:
    if template.masks is None:
        return None
    index = Path(template.masks.index).name
    place = next((d for d in _DATA_FOLDERS if (folder / d / index).is_file()), None)
    library = any(folder.glob("datasets/all_masks_*"))
    return MaskLibraryEntry(index=f"{place}/{index}", format="published") if place and library else None


def _published_notes(folder: Path, files: dict[NetworkName, Path], config: PublishedNetworks | None) -> list[str]:
    notes = []
    if (folder / "models" / _NEWER_MASK_GENERATOR).is_file() and "mask_diffusion" not in files:
        notes.append(f"{_NEWER_MASK_GENERATOR} left out: the second-generation mask generator is not supported")
    if config is not None:
        notes += [f"{network} of the network JSON not used: {why}" for network, why in config.unsupported.items()]
        notes += [f"network JSON: key '{key}' is not known and was ignored" for key in config.ignored]
    return notes


class _Watched(Bundle):
    """A bundle that can be stopped before each network."""

    def __init__(self, folder: Path, check: Callable[[], None]) -> None:
        super().__init__(folder)
        self._check = check

    def check_file(self, network: str) -> Path:
        self._check()
        return super().check_file(network)


def _copy(folder: Path, staging: Path, ours: bool, files: dict[Path, str], check: Callable[[], None]) -> None:
    def copy(source: str | Path, target: str | Path) -> None:
        with open(source, "rb") as read, open(target, "wb") as written:
            while piece := read.read(1 << 22):
                check()
                written.write(piece)

    if ours:
        ignored = shutil.ignore_patterns(".*", "__pycache__")
        shutil.copytree(folder, staging, dirs_exist_ok=True, ignore=ignored, copy_function=copy)
        return
    for path, relative in files.items():
        target = staging / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        copy(path, target)
    for data in _DATA_FOLDERS:
        wanted = [p for pattern in _DATA_FILES for p in (folder / data).glob(pattern)]
        for path in wanted:
            target = staging / data / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(path, target, copy_function=copy) if path.is_dir() else copy(path, target)


def _renamed(manifest: Manifest, name: str) -> Manifest:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise BundleError(
            f"{name!r} is no name for a bundle: letters, digits, '.', '_' and '-' only.{did_you_mean(name, _FILES)}"
        )
    return manifest.model_copy(update={"name": name})


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((p for name in names for p in (folder / "models" / name, folder / name) if p.is_file()), None)
