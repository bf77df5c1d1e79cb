"""The weights that a training starts from, where the recipe names a bundle in ``init_from``."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from MAISILib.bundles.bundle import open_bundle
from MAISILib.errors import TrainingError


def start_from_bundle(networks: Mapping[str, nn.Module], where: str | None) -> None:
    """Gives networks the weights that a bundle has for them, in place.

    Args:
        networks: By the names that a bundle's manifest has. Those that the bundle does not have stay as they are.
        where: Name or folder of the bundle; ``None`` changes nothing.

    Raises:
        TrainingError: The bundle has none of these networks, or others than the recipe describes.
        BundleError: There is no such bundle, or its weights are damaged.
    """
    if where is None:
        return
    bundle = open_bundle(where)
    known = [name for name in networks if name in bundle.manifest.networks]
    if not known:
        wanted = " or ".join(networks)
        raise TrainingError(f"Bundle '{bundle.name}' in init_from has no {wanted}. Name another, or leave it out.")
    for name in known:
        try:
            networks[name].load_state_dict(bundle.load(name).state_dict())
        except RuntimeError:  # PyTorch's message lists every weight
            raise TrainingError(
                f"The {name} of bundle '{bundle.name}' in init_from is another network than the recipe describes. Take "
                "the definition from the bundle's bundle.json, or leave init_from out."
            ) from None
