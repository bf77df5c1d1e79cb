"""The two flat networks of published 2.5D FIDs, built here so that nothing has to be installed for them.

Only what their weight files name is built: ResNet-50 (He et al., arXiv:1512.03385) as converted from Keras for
RadImageNet (Mei et al., Radiology: Artificial Intelligence 4(5), 2022), and SqueezeNet 1.1 (Iandola et al.,
arXiv:1602.07360) with torchvision's names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from MAISILib.bundles.weights import check_and_load, read_state_dict
from MAISILib.errors import DownloadError

NetworkName = Literal["radimagenet_resnet50", "squeezenet1_1"]
#: Keras' batch normalisation adds this to the variance.
_KERAS_EPSILON = 1.001e-5
_RADIMAGENET_HUB = "Warvito/radimagenet-models"
_SQUEEZENET_URL = "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 for three channels."""

    def __init__(self) -> None:
        super().__init__()
        widths = {3: (64, 16), 4: (128, 16), 6: (128, 32), 7: (256, 32)}
        widths |= {9: (256, 48), 10: (384, 48), 11: (384, 64), 12: (512, 64)}
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 2), nn.ReLU()]
        for place in range(2, 13):
            layers.append(_Fire(*widths[place]) if place in widths else nn.MaxPool2d(3, 2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Identity(), nn.Conv2d(512, 1000, 1), nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The 1000 outputs ``(N, 1000)`` of images ``(N, 3, H, W)``."""
        return self.classifier(self.features(images)).mean((2, 3))


class _Fire(nn.Module):
    """A narrow layer, and two wide ones side by side."""

    def __init__(self, inputs: int, narrow: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, narrow, 1)
        self.expand1x1 = nn.Conv2d(narrow, 4 * narrow, 1)
        self.expand3x3 = nn.Conv2d(narrow, 4 * narrow, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


class RadImageNetResNet50(nn.Module):
    """ResNet-50 without its last layer; strides lie in the first convolution of a block, and all have a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3), _norm(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = 64
        for number, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
            stride = 1 if number == 1 else 2
            first = _Bottleneck(inputs, width, stride, shortcut=True)
            inputs = 4 * width
            others = [_Bottleneck(inputs, width, 1, shortcut=False) for _ in range(blocks - 1)]
            setattr(self, f"layer{number}", nn.Sequential(first, *others))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features ``(N, 2048)``, averaged over the picture, of images ``(N, 3, H, W)``."""
        x = self.maxpool(self.bn1(self.conv1(images)).relu())
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        return x.mean((2, 3))


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, *, shortcut: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, stride), _norm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), _norm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1), _norm(4 * width)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, stride), _norm(4 * width)) if shortcut else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        beside = x if self.downsample is None else self.downsample(x)
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return (self.bn3(self.conv3(x)) + beside).relu()


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_KERAS_EPSILON)


def load_flat_network(name: NetworkName, weights: Path | None = None) -> nn.Module:
    """A network with its weights, frozen.

    Args:
        name: Which one.
        weights: A state dict (``.pth``, ``.pt``, ``.safetensors``); ``None`` fetches it through ``torch.hub``. For
            ``squeezenet1_1`` this downloads a file whose checksum is compared; for ``radimagenet_resnet50`` it runs the
            code of the repository that publishes the weights.

    Raises:
        BundleError: The file is missing, damaged, or holds another network.
        DownloadError: The weights cannot be fetched.
    """
    with torch.device("meta"):
        network = SqueezeNet() if name == "squeezenet1_1" else RadImageNetResNet50()
    if weights is None:
        state, where = _fetched(name), f"{name} of torch.hub"
    else:
        state = read_state_dict(weights, "safetensors" if weights.suffix == ".safetensors" else "torch")
        where = str(weights)
    return check_and_load(network, _with_counters(network, state), where)


def _with_counters(network: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Counters of batches play no part here, and not every file has them."""
    counters = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("num_batches_tracked")}
    return {**counters, **state}


def _fetched(name: NetworkName) -> dict[str, torch.Tensor]:
    try:
        if name == "squeezenet1_1":
            return torch.hub.load_state_dict_from_url(
                _SQUEEZENET_URL, map_location="cpu", check_hash=True, progress=False, weights_only=True
            )
        return torch.hub.load(_RADIMAGENET_HUB, name, verbose=False, trust_repo=True).state_dict()  # type: ignore[union-attr]
    except Exception as error:  # of the network, of the disk, or of the published code
        raise DownloadError(
            f"The weights of {name} cannot be fetched ({type(error).__name__}: {error}). Give a file with "
            "--weights, or use --network autoencoder, which needs none."
        ) from error
