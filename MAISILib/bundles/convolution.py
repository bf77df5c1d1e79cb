"""A convolution that stays fast on small feature maps. Loaded together with PyTorch only."""

from __future__ import annotations

import torch
from torch import nn


class Convolution(nn.Conv3d):
    """``Conv3d`` by oneDNN on a CPU, whatever the size of the volume; results agree to float rounding.

    PyTorch's own takes single samples of at most 20480 numbers (last axis not counted) to a path without oneDNN, which
    the deeper levels of a UNet meet: predictions of ``head-neck-mini`` took 1.2 to 2.2 times as long.
    Training, other devices and reduced precision go PyTorch's way, which uses oneDNN there.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As ``Conv3d``."""
        if (
            input.device.type != "cpu"
            or input.dtype != torch.float32
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
            or not torch.backends.mkldnn.is_available()
            or self.padding_mode != "zeros"
            or isinstance(self.padding, str)
        ):
            return super().forward(input)
        return torch.mkldnn_convolution(
            input, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )
