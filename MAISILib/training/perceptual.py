"""How unlike two volumes look to a network that has learned medical images: the perceptual term of the autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from MAISILib.bundles.weights import check_and_load, read_state_dict
from MAISILib.errors import BundleError, TrainingError
from MAISILib.training.recipes import HOW_TO_GET_PERCEPTUAL_WEIGHTS

_LAYERS = ("layer1", "layer2", "layer3", "layer4")
#: MedicalNet does not halve the grid in its last two layers; they look further instead (Med3D, arXiv:1904.00625).
_DILATIONS = {"layer3": 2, "layer4": 4}
#: Least deviation that a patch is divided by (of the range 0–1): nothing but air has no contrast to measure in.
_LEAST_DEVIATION = 0.05


class PerceptualDistance:
    """Distance between the features of MedicalNet's 3D ResNet-10 (Med3D, arXiv:1904.00625).

    After every layer, features are brought to length 1 along the channels; the distance is the squared difference,
    summed over channels, averaged over voxels and layers (LPIPS without learned weights, arXiv:1801.03924). Both
    volumes are standardised by mean and deviation of the image, so that a wrong brightness counts as well.

    Args:
        weights: ``resnet_10_23dataset.pth``, or the same weights as safetensors. Nothing is ever downloaded.

    Raises:
        TrainingError: The file is missing, unreadable, or holds other weights.
    """

    def __init__(self, weights: Path) -> None:
        self._network: Any = _medicalnet(weights)

    def __call__(self, reconstruction: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Distance of every sample, ``(N,)``, 0 for the same; gradients reach the reconstruction only.

        Args:
            reconstruction: ``(N, 1, X, Y, Z)``.
            image: The same shape, in [0, 1].
        """
        self._network.to(image.device)
        dims = (1, 2, 3, 4)
        with torch.no_grad():
            mean = image.mean(dims, keepdim=True)
            deviation = image.std(dims, keepdim=True).clamp(min=_LEAST_DEVIATION)
            wanted = self._features((image - mean) / deviation)
        found = self._features((reconstruction - mean) / deviation)
        distances = [((a - b) ** 2).sum(1).flatten(1).mean(1) for a, b in zip(found, wanted, strict=True)]
        return torch.stack(distances).mean(0)

    def _features(self, volume: torch.Tensor) -> list[torch.Tensor]:
        network = self._network
        x = network.maxpool(network.act(network.bn1(network.conv1(volume))))
        features = []
        for name in _LAYERS:
            x = getattr(network, name)(x)
            features.append(nn.functional.normalize(x.float(), dim=1, eps=1e-6))
        return features


def _medicalnet(weights: Path) -> nn.Module:
    """The network, frozen."""
    from monai.networks.nets.resnet import resnet10

    with torch.device("meta"):
        network: Any = resnet10(n_input_channels=1, conv1_t_stride=2, feed_forward=False, bias_downsample=False)
    for name, dilation in _DILATIONS.items():
        for conv in (m for m in getattr(network, name).modules() if isinstance(m, nn.Conv3d)):
            conv.stride = (1, 1, 1)
            if conv.kernel_size == (3, 3, 3):
                conv.dilation = conv.padding = (dilation, dilation, dilation)
    try:
        state = read_state_dict(weights, "safetensors" if weights.suffix == ".safetensors" else "torch")
        # Counters of batches, which play no part here; files of PyTorch before 0.4.1 do not have them.
        counters = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("num_batches_tracked")}
        return check_and_load(network, {**counters, **state}, str(weights))
    except BundleError as error:
        raise TrainingError(f"These are not the perceptual weights. {error} {HOW_TO_GET_PERCEPTUAL_WEIGHTS}") from None
