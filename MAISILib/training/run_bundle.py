"""Puts trainings together into a bundle: the commands' way from images to a model of one's own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from MAISILib.anatomy.library_index import read_index
from MAISILib.bundles.bundle import Bundle
from MAISILib.bundles.manifest import MANIFEST_NAME, Manifest, ScheduleEntry, parse_manifest
from MAISILib.errors import BundleError, TrainingError, did_you_mean
from MAISILib.files.atomic import atomic_folder
from MAISILib.training.bundle_writer import write_bundle, write_trained
from MAISILib.training.checkpoint import read_checkpoint
from MAISILib.training.latents import AUTOENCODER_FACT
from MAISILib.training.recipes import read_json
from MAISILib.training.trained_networks import TrainedNetwork, trained_network
from MAISILib.training.trainer import CHECKPOINT_NAME

#: Networks that trainings give to a bundle; the first two are needed.
NETWORKS = ("autoencoder", "diffusion", "controlnet")
#: Fields of a manifest that are not taken from the file but from the trainings, and those of a mask generator.
_NOT_GIVEN = ("networks", "scale_factor", "mask_generator")


def make_bundle(manifest: Path, runs: Mapping[str, Path], out: Path) -> Path:
    """Writes a whole bundle or nothing.

    Args:
        manifest: JSON with the manifest's fields but ``networks`` and ``scale_factor``, which the trainings tell. The
            schedule is the diffusion training's where it is not given. Labels, masks and the quality table that it
            names lie beside it; a quality table may also be one of the program's.
        runs: Run folders by network, of :data:`NETWORKS`. A ControlNet that was trained together with its UNet has the
            same run.
        out: The new folder; one that holds a bundle is replaced.

    Returns:
        The folder.

    Raises:
        TrainingError: A run has not ended or is of another network, the networks do not fit each other, or the
            manifest's file cannot be read.
        BundleError: A field does not fit, or a file that it names is missing.
        FileFormatError: The index of the masks is damaged.
        OutputError: The folder cannot be written, or holds something else.
    """
    for name in runs:
        if name not in NETWORKS:
            raise TrainingError(f"No training of {name!r} goes into a bundle.{did_you_mean(name, NETWORKS)}")
    if missing := [name for name in NETWORKS[:2] if name not in runs]:
        raise TrainingError(f"A bundle needs an autoencoder and a diffusion network. Name the run of {missing[0]}.")
    trained = {name: trained_network(run, name) for name, run in runs.items()}
    checked = parse_manifest(_fields(manifest, trained), str(manifest))
    _check_fit(checked, trained, manifest)
    with atomic_folder(out, MANIFEST_NAME) as folder:
        for file in _files(checked, manifest):
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(manifest.parent / file, target)
        networks = {name: write_trained(folder, network) for name, network in trained.items()}
        write_bundle(folder, {**checked.model_dump(), "networks": networks})
        if problems := Bundle(folder).verify():
            raise BundleError(f"{manifest} and these trainings make no bundle: {' '.join(problems)}")
    return out


def _fields(manifest: Path, trained: Mapping[str, TrainedNetwork]) -> dict[str, Any]:
    """All fields of the manifest; of the networks, what is known before they are written."""
    given = read_json(manifest)
    if wrong := [name for name in _NOT_GIVEN if given.get(name) is not None]:
        raise BundleError(f"{manifest}: leave {wrong[0]!r} out; it is no field that trainings are put together with.")
    diffusion = trained["diffusion"]
    return {
        "schedule": diffusion.recipe["schedule"],
        **given,
        "scale_factor": diffusion.read().scale_factor,
        "networks": {n: {"definition": t.definition, "weights": f"{n}.safetensors"} for n, t in trained.items()},
    }


def _check_fit(checked: Manifest, trained: Mapping[str, TrainedNetwork], manifest: Path) -> None:
    """Refuses what would load, and make noise."""
    learned = ScheduleEntry.model_validate(trained["diffusion"].recipe["schedule"])
    told, meant = (schedule.model_dump(exclude={"steps"}) for schedule in (checked.schedule, learned))
    if told != meant:
        differing = [name for name in meant if told[name] != meant[name]]
        raise TrainingError(
            f"{manifest}: the diffusion network was trained with another schedule: "
            f"{', '.join(f'{name} {meant[name]!r}, not {told[name]!r}' for name in differing)}."
        )
    takes_regions = bool(trained["diffusion"].definition.get("include_top_region_index_input", False))
    if takes_regions != checked.body_region_input:
        raise TrainingError(
            f"{manifest}: 'body_region_input' is {str(checked.body_region_input).lower()}, but the diffusion network "
            f"{'takes' if takes_regions else 'does not take'} body regions."
        )
    made = trained["autoencoder"].definition.get("latent_channels")
    for name in trained.keys() - {"autoencoder"}:
        taken = trained[name].definition.get("in_channels")
        if taken != made:
            raise TrainingError(
                f"The {name} takes latents of {taken} channels, the autoencoder makes {made}. Name trainings that "
                "belong together."
            )
        learned_on = _autoencoder_of(trained[name])
        if learned_on not in (None, trained["autoencoder"].sha256):
            raise TrainingError(
                f"The {name} learned on latents of another autoencoder ({learned_on[:12]}…). Name trainings that "
                "belong together."
            )


def _autoencoder_of(trained: TrainedNetwork) -> str | None:
    """SHA-256 of the autoencoder whose latents a network learned on; ``None`` where its run does not tell."""
    checkpoint = trained.weights.parents[1] / CHECKPOINT_NAME
    told = read_checkpoint(checkpoint).identity.get(AUTOENCODER_FACT) if checkpoint.is_file() else None
    return told if isinstance(told, str) and len(told) == 64 else None


def _files(checked: Manifest, manifest: Path) -> list[str]:
    """What the manifest names beside itself, relative to it."""
    files = [] if checked.labels is None else [checked.labels]
    if checked.masks is not None:
        index = Path(checked.masks.index)
        masks = read_index(manifest.parent / index, checked.masks.format)
        files += [checked.masks.index, *((index.parent / mask.file).as_posix() for mask in masks)]
    if gone := [file for file in files if not (manifest.parent / file).is_file()]:
        raise BundleError(f"{manifest} names {gone[0]!r}, which is not beside it. Put it there, or leave it out.")
    if checked.quality is not None and (manifest.parent / checked.quality).is_file():
        files.append(checked.quality)
    return files
