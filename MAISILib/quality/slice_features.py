"""Features of the slices of a volume, for :mod:`MAISILib.quality.fid`, without a network that has to be downloaded.

The published tool takes a flat network that was trained on other images. Offline there is the bundle's own encoder: it
sees the whole volume once, and its last hidden layer (what the latent is computed from) is summarised slice by slice.
Such distances say which of two sets of images is nearer to the real ones. **They cannot be compared with published
FIDs, nor with distances from another encoder.**
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from MAISILib.errors import RequestError
from MAISILib.quality.fid import PLANES
from MAISILib.quality.slice_geometry import SliceGeometry
from MAISILib.volumes import Volume

if TYPE_CHECKING:
    from torch import nn

    from MAISILib.bundles.bundle import Bundle

#: Tissue is above so many HU; gas, lung and the air around the patient are below.
_TISSUE_HU = -300.0
#: A slice with a smaller part of body than this says nothing about the patient and is skipped.
_LEAST_BODY = 0.01


class AutoencoderFeatures:
    """Features of CT slices from an autoencoder's encoder.

    For each slice of the encoder's last hidden layer ``(C, x, y, z)`` and each channel there are three numbers over the
    body: mean, standard deviation, and mean absolute difference of neighbours within the slice. The first follows
    brightness, the second contrast, the third sharpness and noise. The body is what is brighter than −300 HU, with what
    it encloses in its axial slice; slices with less than 1 % of it are skipped, lest they dilute the distance.

    A slice here is a layer of the encoder's grid: with 4× compression, four slices of the image.

    Args:
        autoencoder: A MAISI autoencoder (``AutoencoderKlMaisi``) in evaluation mode.
        identity: Which one, for example bundle and checksum: sets are compared only if it is the same.
        low: HU that the network takes as 0.
        high: HU that the network takes as 1.
        geometry: What is done to each volume before.
        compression: Of the autoencoder: volumes are filled up with air to a multiple of it.
        device: Where the autoencoder is.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        identity: str,
        *,
        low: float = -1000.0,
        high: float = 1000.0,
        geometry: SliceGeometry | None = None,
        compression: int = 1,
        device: str = "cpu",
    ) -> None:
        encoder: Any = autoencoder.encoder
        self._blocks = encoder.blocks
        self._geometry, self._divisor = geometry or SliceGeometry(), compression
        self._low, self._high, self._device = low, high, device
        self.name = _name(identity, low, high, self._geometry)

    def __call__(self, volume: Volume) -> dict[str, np.ndarray]:
        """Features of all slices with body.

        Args:
            volume: In HU.

        Returns:
            Plane (``xy``, ``yz``, ``zx``) → ``(S, 3·C)`` float64, S being the number of slices with body.

        Raises:
            RequestError: A value is not finite, no voxel is brighter than −300 HU, or the size cannot be divided.
        """
        image = self._geometry.apply(volume, self._divisor)
        if not np.isfinite(image).all():
            raise RequestError("The image holds NaN or infinity, so it has no features.")
        body = body_of(image)
        if not body.any():
            raise RequestError(f"The image is blank: nothing is brighter than {_TISSUE_HU:g} HU.")
        hidden = self._hidden(image)
        share = _share_of(body, hidden.shape[1:])
        middles = {axis: self._geometry.middle(hidden.shape[axis + 1]) for axis in PLANES.values()}
        return {plane: summarise(hidden, share, axis, middles[axis]) for plane, axis in PLANES.items()}

    def _hidden(self, image: np.ndarray) -> np.ndarray:
        import torch

        unit = (image.astype(np.float32).clip(self._low, self._high) - self._low) / (self._high - self._low)
        with torch.inference_mode():
            state = torch.from_numpy(unit)[None, None].to(self._device)
            for block in self._blocks[:-1]:  # the last one makes the latent
                state = block(state)
        return state[0].double().cpu().numpy()


def features_of_bundle(
    bundle: Bundle, geometry: SliceGeometry | None = None, device: str = "cpu"
) -> AutoencoderFeatures:
    """Features of a bundle's own autoencoder, named after its weights.

    Raises:
        RequestError: The bundle is not for CT.
        BundleError: The autoencoder cannot be loaded.
    """
    intensity, identity = bundle.manifest.intensity, _identity(bundle)
    network = bundle.load("autoencoder", device)
    return AutoencoderFeatures(
        network,
        identity,
        low=intensity.low,
        high=intensity.high,
        geometry=geometry,
        compression=bundle.compression,
        device=device,
    )


def name_for_bundle(bundle: Bundle, geometry: SliceGeometry) -> str:
    """What :func:`features_of_bundle` would call its features; loads no network.

    Raises:
        RequestError: The bundle is not for CT.
        BundleError: Weights are missing.
    """
    intensity = bundle.manifest.intensity
    return _name(_identity(bundle), intensity.low, intensity.high, geometry)


def _identity(bundle: Bundle) -> str:
    if bundle.manifest.intensity.kind != "ct":
        raise RequestError(f"Bundle {bundle.name!r} is for MR; features are taken of CT, in HU. Give a bundle for CT.")
    return f"{bundle.name} {bundle.weights_sha256()['autoencoder'][:8]}"


def _name(identity: str, low: float, high: float, geometry: SliceGeometry) -> str:
    what = f"autoencoder features of {identity}, {low:g} to {high:g} HU, {geometry}"
    return f"{what}: not comparable with published numbers"


def body_of(image: np.ndarray) -> np.ndarray:
    """Where the patient is in a CT ``(X, Y, Z)`` in HU: tissue, and what it encloses within an axial slice."""
    from scipy import ndimage

    tissue = image > _TISSUE_HU
    return np.stack([ndimage.binary_fill_holes(tissue[:, :, z]) for z in range(tissue.shape[2])], axis=2)


def summarise(hidden: np.ndarray, share: np.ndarray, axis: int, slices: slice = slice(None)) -> np.ndarray:
    """Mean, deviation and mean absolute difference of neighbours, over the body of each slice that has any.

    Args:
        hidden: ``(C, x, y, z)``.
        share: ``(x, y, z)``, the part of each voxel that is body.
        axis: Slices are counted along this axis (0 to 2).
        slices: Those that count.

    Returns:
        ``(S, 3·C)``.
    """
    channels, weights = np.moveaxis(hidden, axis + 1, 1), np.moveaxis(share, axis, 0)  # (C, S, a, b) and (S, a, b)
    channels, weights = channels[:, slices], weights[slices]
    kept = weights.mean(axis=(1, 2)) >= _LEAST_BODY
    channels, weights = channels[:, kept], weights[kept]
    mean = _weighted_mean(channels, weights)
    deviation = np.sqrt(_weighted_mean((channels - mean[..., None, None]) ** 2, weights))
    steps, amount = np.zeros_like(mean), np.zeros(len(weights))
    for along in (1, 2):
        both = np.minimum(*_neighbours(weights, along))
        first, second = _neighbours(channels, along + 1)
        steps += (np.abs(second - first) * both).sum(axis=(2, 3))
        amount += both.sum(axis=(1, 2))
    return np.concatenate([mean, deviation, steps / np.maximum(amount, 1e-9)]).T


def _weighted_mean(channels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (channels * weights).sum(axis=(2, 3)) / weights.sum(axis=(1, 2))


def _neighbours(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    length = array.shape[axis]
    return np.take(array, range(length - 1), axis), np.take(array, range(1, length), axis)


def _share_of(body: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The part of body in each voxel of a coarser grid of ``shape``."""
    factors = [fine // coarse for fine, coarse in zip(body.shape, shape, strict=True)]
    if tuple(f * n for f, n in zip(factors, shape, strict=True)) != body.shape:
        raise RequestError(
            f"An image of {body.shape} does not divide into the encoder's {shape}. Crop or pad it to a multiple of the "
            "autoencoder's compression."
        )
    blocks = body.reshape(shape[0], factors[0], shape[1], factors[1], shape[2], factors[2])
    return blocks.mean(axis=(1, 3, 5))
