"""The weights that a training starts from, where the recipe names a bundle or an ended run in ``init_from``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from MAISILib.bundles.bundle import Bundle, open_bundle
from MAISILib.bundles.weights import read_state_dict
from MAISILib.errors import TrainingError

if TYPE_CHECKING:
    import torch


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
