"""The weights that a training starts from, where the recipe names a bundle or an ended run in ``init_from``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from MAISILib.bundles.bundle import Bundle, open_bundle
from MAISILib.bundles.weights import read_state_dict
from MAISILib.diffusion.schedules import Schedule, schedule_of
from MAISILib.errors import TrainingError
from MAISILib.training.denoising import make_schedule
from MAISILib.training.trained_networks import trained_network


def start_from(networks: Mapping[str, nn.Module], where: str | None) -> None:
    """Gives networks the weights that a bundle or a run has for them, in place.

    Args:
        networks: By the names that a bundle's manifest has. Those that are not there stay as they are.
        where: Name or folder of a bundle, or folder of a run that has ended; ``None`` changes nothing.

    Raises:
        TrainingError: There is none of these networks, or others than the recipe describes.
        BundleError: There is no such bundle, or its weights are damaged.
    """
    if where is None:
        return
    bundle = bundle_of(where)
    found = _of_run(Path(where), networks) if bundle is None else _of_bundle(bundle, networks)
    if not found:
        wanted = " or ".join(networks)
        raise TrainingError(f"{where!r} in init_from has no {wanted}. Name another, or leave it out.")
    for name, state in found.items():
        try:
            networks[name].load_state_dict(state)
        except RuntimeError:  # PyTorch's message lists every weight
            raise TrainingError(
                f"The {name} of {where!r} in init_from is another network than the recipe describes. Take the "
                "definition from there (bundle.json, or request.json of a run), or leave init_from out."
            ) from None


def start_unet_from(networks: Mapping[str, nn.Module], name: str, where: str | None, schedule: Schedule) -> None:
    """:func:`start_from` for networks among which is a diffusion UNet.

    Velocity (image minus noise) and noise point in opposite directions. A UNet that learned one of them starts to learn
    the other with the sign of its last layer turned; otherwise it unlearns everything first, and may not come back.

    Args:
        networks: As for :func:`start_from`.
        name: The UNet among them.
        where: As for :func:`start_from`.
        schedule: What it shall learn by.

    Raises:
        TrainingError: As :func:`start_from`.
        BundleError: As :func:`start_from`.
    """
    start_from(networks, where)
    if where is not None and type(_learned_by(where, name)) is not type(schedule):
        with torch.no_grad():
            for weight in networks[name].get_submodule("out.2").parameters():
                weight.neg_()


def bundle_of(where: str | None) -> Bundle | None:
    """The bundle that ``init_from`` names; ``None`` where it names nothing, or the folder of a run.

    Raises:
        BundleError: There is no such bundle.
    """
    if where is None or (Path(where) / "weights").is_dir():
        return None
    return open_bundle(where)


def _of_run(run: Path, networks: Mapping[str, nn.Module]) -> dict[str, dict[str, torch.Tensor]]:
    """The averaged weights of an ended run."""
    paths = {name: run / "weights" / f"{name}.safetensors" for name in networks}
    states = {name: read_state_dict(path, "safetensors") for name, path in paths.items() if path.is_file()}
    return {name: {key: value.float() for key, value in state.items()} for name, state in states.items()}


def _of_bundle(bundle: Bundle, networks: Mapping[str, nn.Module]) -> dict[str, dict[str, torch.Tensor]]:
    return {name: bundle.load(name).state_dict() for name in networks if name in bundle.manifest.networks}


def _learned_by(where: str, name: str) -> Schedule:
    """The schedule that a UNet was trained by."""
    bundle = bundle_of(where)
    if bundle is None:
        return make_schedule(trained_network(Path(where), name).recipe["schedule"])
    generator = bundle.manifest.mask_generator
    entry = generator.schedule if name == "mask_diffusion" and generator is not None else bundle.manifest.schedule
    return schedule_of(entry)
