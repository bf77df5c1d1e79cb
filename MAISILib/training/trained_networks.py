"""Networks as their trainings left them: definition from the run's request, averaged weights from ``weights``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MAISILib.bundles.bundle import open_bundle
from MAISILib.bundles.networks import build_network
from MAISILib.bundles.weights import Checkpoint, check_and_load, read_checkpoint, sha256_of
from MAISILib.errors import TrainingError
from MAISILib.jobs.folder import REQUEST_NAME
from MAISILib.training.recipes import read_json

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class TrainedNetwork:
    """A network of a training that has ended; :func:`trained_network` finds it.

    Args:
        name: As bundles name it, for example ``autoencoder``.
        recipe: What was trained, with all defaults.
        definition: How it is built.
        weights: Averaged weights, safetensors in fp16: those that a bundle holds.
    """

    name: str
    recipe: dict[str, Any]
    definition: dict[str, Any]
    weights: Path

    @property
    def sha256(self) -> str:
        """Of the file with the weights: what latents remember their autoencoder by."""
        return sha256_of(self.weights)

    def read(self) -> Checkpoint:
        """The weights as stored, with the scale factor of a diffusion network.

        Raises:
            BundleError: The file is damaged.
        """
        return read_checkpoint(self.weights, "safetensors")

    def load(self) -> nn.Module:
        """The network in float32 on the CPU, frozen, in evaluation mode.

        Raises:
            BundleError: The weights are damaged, or do not fit the definition.
        """
        return check_and_load(build_network(self.definition), self.read().weights, str(self.weights))


def trained_network(run: Path, name: str) -> TrainedNetwork:
    """Finds a network that a training has left.

    Args:
        run: Run folder of ``maisi train``.
        name: As bundles name it, for example ``controlnet``, which is trained alone or together with its UNet.

    Raises:
        TrainingError: No run, one that has not ended, or one of other networks.
        BundleError: The bundle that a ControlNet's definition was taken from is not there any more.
    """
    weights = run / "weights" / f"{name}.safetensors"
    if not weights.is_file():
        others = sorted(path.stem for path in weights.parent.glob("*.safetensors"))
        if others:
            raise TrainingError(f"{run} is a training of {' and '.join(others)}, not of {name}. Name the other run.")
        raise TrainingError(f"{weights} is missing. Let the training {run.absolute().name!r} end first.")
    recipe = read_json(run / REQUEST_NAME).get("train")
    if not isinstance(recipe, dict):
        raise TrainingError(f"{run / REQUEST_NAME} is not the request of a training. Name a run of maisi train.")
    together = name == "controlnet" and recipe.get("network") == "diffusion"
    definition = recipe.get("controlnet" if together else "definition")
    if definition is None and name == "controlnet" and recipe.get("init_from"):
        definition = open_bundle(recipe["init_from"]).entry(name).definition
    if not isinstance(definition, dict):
        raise TrainingError(f"{run / REQUEST_NAME} does not say how the {name} is built. Name a run of maisi train.")
    return TrainedNetwork(name, recipe, definition, weights)
