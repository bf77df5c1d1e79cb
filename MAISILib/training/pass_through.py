"""Starts a diffusion UNet so that it hands its noisy input through, which small networks otherwise learn for hours.

Velocity and noise predictions hold the noise itself, voxel by voxel, and in plain air nothing else. The last layers of
the UNet are GroupNorm, SiLU and a convolution. A pair of channels ``+x, −x`` in one normalisation group goes through
them unharmed: its mean is zero, and ``SiLU(a) − SiLU(−a) = a``. So each input channel takes a pair of the first skip
connection, and the output begins as ``sign · x / rms(x)``: the noise, where there is little else. What differs from it
is left to learn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from MAISILib.errors import TrainingError


@torch.no_grad()
def start_with_pass_through(unet: Any, sign: float) -> None:
    """Sets weights of a freshly built ``DiffusionModelUNetMaisi`` in place.

    Args:
        unet: As many output as input channels, and at least two features per channel and two per group in the first
            level.
        sign: −1 for velocity (image minus noise), +1 for noise.

    Raises:
        TrainingError: Another layout.
    """
    first, last = unet.conv_in.conv, unet.up_blocks[-1].resnets[-1]
    norm, readout = unet.out[0], unet.out[2].conv
    channels, features = first.in_channels, first.out_channels
    group = features // norm.num_groups
    fits = readout.out_channels == channels and 2 * channels <= features and group % 2 == 0
    if not fits or isinstance(last.skip_connection, nn.Identity):
        raise TrainingError(
            f"pass_through_start needs as many output as input channels (here {readout.out_channels} and {channels}), "
            f"at least twice as many features at the first level (here {features}) and pairs of them in each "
            f"normalisation group (here {group}). Change the definition, or leave it out."
        )
    centre = (slice(None), *(n // 2 for n in first.kernel_size))
    shortcut = last.skip_connection.conv
    skipped = shortcut.in_channels - features  # the skip connection's features come after the block's own
    for channel in range(channels):
        for feature, value in ((2 * channel, 1.0), (2 * channel + 1, -1.0)):
            first.weight[feature] = 0.0
            first.bias[feature] = 0.0
            first.weight[feature][centre][channel] = value
            shortcut.weight[feature] = 0.0
            shortcut.bias[feature] = 0.0
            shortcut.weight[feature, skipped + feature] = 1.0
            readout.weight[channel][centre][feature] = sign * value
