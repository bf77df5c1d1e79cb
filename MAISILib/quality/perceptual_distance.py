"""LPIPS (Zhang et al., arXiv:1801.03924) between two volumes, slice by slice, with weights that the user has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from MAISILib.bundles.weights import read_state_dict
from MAISILib.errors import BundleError
from MAISILib.quality.fid import PLANES
from MAISILib.quality.flat_networks import load_flat_network

#: Layers of SqueezeNet 1.1 after which features are compared, and their channels (version 0.1 of LPIPS).
_TAPS = {1: 64, 4: 128, 7: 256, 9: 384, 10: 384, 11: 512, 12: 512}
#: Of colours between −1 and 1.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class PerceptualDistance:
    """LPIPS with SqueezeNet 1.1.

    Args:
        backbone: Weights of SqueezeNet 1.1 with torchvision's names.
        weights: Weights of the layers (``lin0.model.1.weight`` and so on), as ``squeeze.pth`` of LPIPS 0.1 has them.
        at_once: Slices in one pass.

    Raises:
        BundleError: A file is missing, damaged, or holds other weights.
    """

    name = "LPIPS (SqueezeNet 1.1, version 0.1)"

    def __init__(self, backbone: Path, weights: Path, at_once: int = 16) -> None:
        self._features = load_flat_network("squeezenet1_1", backbone).features
        self._at_once = at_once
        state = read_state_dict(weights, "safetensors" if weights.suffix == ".safetensors" else "torch")
        self._weights = []
        for number, channels in enumerate(_TAPS.values()):
            weight = state.get(f"lin{number}.model.1.weight")
            if weight is None or tuple(weight.shape) != (1, channels, 1, 1):
                raise BundleError(
                    f"{weights} does not hold the layers of LPIPS for SqueezeNet (lin{number}.model.1.weight of "
                    f"{channels} channels). Give squeeze.pth of LPIPS 0.1."
                )
            self._weights.append(weight.float())

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, reference: np.ndarray) -> float:
        """The mean over the slices of all three planes; 0 for the same.

        Args:
            image: ``(X, Y, Z)`` from 0 to 1.
            reference: The same shape.
        """
        pair = [torch.from_numpy(np.asarray(array, np.float32)) for array in (image, reference)]
        planes = []
        for axis in PLANES.values():
            slices = [volume.movedim(axis, 0)[:, None].split(self._at_once) for volume in pair]
            planes.append(torch.cat([self._distances(*both) for both in zip(*slices, strict=True)]).mean())
        return float(torch.stack(planes).mean())

    def _distances(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        shift, scale = (torch.tensor(values)[None, :, None, None] for values in (_SHIFT, _SCALE))
        one, two = (((2 * slices - 1) - shift) / scale for slices in (first, second))
        total, tap = torch.zeros(len(first)), 0
        for number, layer in enumerate(self._features):  # type: ignore[arg-type]
            one, two = layer(one), layer(two)
            if number in _TAPS:
                apart = [x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in (one, two)]
                total += ((apart[0] - apart[1]) ** 2 * self._weights[tap]).sum(1).mean((1, 2))
                tap += 1
        return total
