"""Features of slices from a network for flat images, as published 2.5D FIDs take them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from MAISILib.errors import BundleError, RequestError
from MAISILib.files.checks import file_sha256
from MAISILib.quality.fid import PLANES
from MAISILib.quality.flat_networks import NetworkName, load_flat_network
from MAISILib.quality.slice_geometry import SliceGeometry
from MAISILib.volumes import Volume

#: HU beyond these are clipped (the published tool's range).
LOW_HU, HIGH_HU = -1000.0, 1000.0
#: Taken off blue, green and red after slices were brought to 0–1 (ImageNet's means, in the order of Keras).
_MEANS = (0.406, 0.456, 0.485)
#: SqueezeNet's first layers need so many pixels along each edge.
_LEAST_EDGE = 17


class FlatFeatures:
    """Features of every slice of a CT.

    As the published tool has it: HU are clipped to ±1000, the slices of one plane are brought to 0–1 together, the grey
    value stands for all three colours, and ImageNet's means are taken off.

    Args:
        network: ``radimagenet_resnet50`` (2048 features) or ``squeezenet1_1`` (1000).
        weights: File with its weights; ``None`` fetches them, see :func:`load_flat_network`.
        geometry: What is done to each volume before.
        device: Where the network runs.
        at_once: Slices in one pass.

    Attributes:
        name: What the features are, for sets that are compared.

    Raises:
        BundleError: The weights do not fit the network.
        DownloadError: They cannot be fetched.
    """

    def __init__(
        self,
        network: NetworkName,
        weights: Path | None = None,
        *,
        geometry: SliceGeometry | None = None,
        device: str = "cpu",
        at_once: int = 16,
    ) -> None:
        self._network = load_flat_network(network, weights).to(device)
        self._geometry = geometry or SliceGeometry()
        self._device, self._at_once = device, at_once
        self.name = name_for_network(network, weights, self._geometry)

    @torch.inference_mode()
    def __call__(self, volume: Volume) -> dict[str, np.ndarray]:
        """Features of the slices of each plane.

        Args:
            volume: In HU.

        Returns:
            Plane (``xy``, ``yz``, ``zx``) → ``(S, F)`` float32.

        Raises:
            RequestError: A value is not finite, or slices are too small for the network.
        """
        image = self._geometry.apply(volume)
        if not np.isfinite(image).all():
            raise RequestError("The image holds NaN or infinity, so it has no features.")
        if min(image.shape) < _LEAST_EDGE:
            raise RequestError(
                f"Slices of a volume of {image.shape} are too small for the network, which needs {_LEAST_EDGE} voxels "
                "along each edge. Resample to a smaller spacing, or pad to a larger shape."
            )
        clipped = torch.from_numpy(image.clip(LOW_HU, HIGH_HU))
        return {plane: self._of_plane(clipped.movedim(axis, 0)) for plane, axis in PLANES.items()}

    def _of_plane(self, slices: torch.Tensor) -> np.ndarray:
        slices = slices[self._geometry.middle(len(slices))]
        low, high = slices.min(), slices.max()
        unit = (slices - low) / (high - low + 1e-10)
        means = torch.tensor(_MEANS)[None, :, None, None]
        batches = [(part[:, None] - means).to(self._device) for part in unit.split(self._at_once)]
        return torch.cat([self._network(batch).float().cpu() for batch in batches]).numpy()


def name_for_network(network: NetworkName, weights: Path | None, geometry: SliceGeometry) -> str:
    """What :class:`FlatFeatures` of these arguments are called; loads no network.

    Raises:
        BundleError: The file with the weights is missing.
        FileFormatError: It cannot be read.
    """
    if weights is not None and not weights.is_file():
        raise BundleError(f"{weights}: the weights are missing. Give the file that holds them.")
    which = "of torch.hub" if weights is None else file_sha256(weights)[:8]
    return f"{network} {which}, {LOW_HU:g} to {HIGH_HU:g} HU, {geometry}"
