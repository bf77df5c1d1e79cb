"""MONAI's MAISI autoencoder read as a list of convolutions, and which voxels each of them needs.

Value 0 is the input of the list, value ``k + 1`` the output of layer ``k``. Only shapes matter here, so
networks without storage will do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from MAISILib.errors import BundleError

#: Half-open range of voxels along one axis.
Span = tuple[int, int]
#: One span per axis ``(x, y, z)``.
Box = tuple[Span, Span, Span]


@dataclass(frozen=True)
class Layer:
    """One convolution with what belongs to it: ``[SiLU][GroupNorm](source) → convolution [→ + shortcut(residual)]``.

    Args:
        kind: ``conv`` keeps the grid; ``up`` doubles it trilinearly before a convolution; ``transposed`` doubles and
            ``down`` halves it by the stride; ``global`` is an attention block, which needs the whole volume.
        module: The ``Conv3d`` or ``ConvTranspose3d``, for ``global`` the whole block.
        source: The value that it reads.
        norm: Normalises the source, with the statistics of the whole volume.
        silu: Whether SiLU follows the norm.
        residual: The value that is added.
        shortcut: A 1×1×1 convolution on its way, where the channels differ.
    """

    kind: Literal["conv", "up", "transposed", "down", "global"]
    module: Any
    source: int
    norm: nn.GroupNorm | None = None
    silu: bool = False
    residual: int | None = None
    shortcut: nn.Conv3d | None = None

    @property
    def reach(self) -> int:
        """Voxels on each side of a voxel that the convolution reads."""
        return 0 if self.kind == "global" else self.module.kernel_size[0] // 2

    @property
    def in_channels(self) -> int:
        """Channels of the source."""
        return self.module.norm.num_channels if self.kind == "global" else self.module.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.in_channels if self.kind == "global" else self.module.out_channels

    @property
    def width(self) -> float:
        """Mean number of channels (geometric), by which the speed of a convolution is told."""
        return math.sqrt(self.in_channels * self.out_channels)

    def operations(self, read: int, made: int) -> float:
        """Floating-point operations.

        Args:
            read: Voxels of the source.
            made: Voxels of the output.
        """
        if self.kind == "global":  # four linear maps, then each voxel meets every other twice
            return 2.0 * made * self.in_channels * (4 * self.in_channels + 2 * made)
        voxels = read * self.in_channels if self.kind == "transposed" else made * self.out_channels
        shortcut = 0 if self.shortcut is None else made * self.out_channels * self.shortcut.in_channels
        return 2.0 * (voxels * self.module.weight[0].numel() + shortcut)

    def size(self, source: int) -> int:
        """Voxels of the output along an axis on which the source has so many."""
        return {"up": source * 2, "transposed": source * 2, "down": source // 2}.get(self.kind, source)

    def grid(self, span: Span, source: int) -> Span:
        """Which part of the grid that is convolved (``up``: the doubled one) the output voxels ``span`` read."""
        lo, hi = span
        if self.kind == "down":
            return 2 * lo, min(2 * hi + 1, source)
        limit = source * 2 if self.kind == "up" else source
        return max(lo - self.reach, 0), min(hi + self.reach, limit)

    def needs(self, span: Span, source: int) -> Span:
        """Which part of the source the output voxels ``span`` depend on, along an axis of ``source`` voxels."""
        if self.kind == "global":
            return 0, source
        lo, hi = span
        if self.kind == "transposed":
            return lo // 2, min(hi // 2 + 1, source)
        lo, hi = self.grid(span, source)
        if self.kind == "up":  # voxel 2i lies between i − 1 and i, voxel 2i + 1 between i and i + 1
            return max((lo - 1) // 2, 0), min(hi // 2 + 1, source)
        return lo, hi


def decoder_layers(autoencoder: Any) -> list[Layer]:
    """The layers of an ``AutoencoderKlMaisi``'s decoder, after ``post_quant_conv``.

    Raises:
        BundleError: It holds a block that MONAI's MAISI decoders do not have.
    """
    return _read(autoencoder.decoder.blocks)


def encoder_layers(autoencoder: Any) -> list[Layer]:
    """The layers of an ``AutoencoderKlMaisi``'s encoder, before the ``quant_conv`` pair.

    Raises:
        BundleError: It holds a block that MONAI's MAISI encoders do not have.
    """
    return _read(autoencoder.encoder.blocks)


def sizes(layers: Sequence[Layer], shape: Sequence[int]) -> list[tuple[int, ...]]:
    """The grid ``(x, y, z)`` of every value, for an input of ``shape``."""
    found = [tuple(shape)]
    for layer in layers:
        found.append(tuple(layer.size(n) for n in found[layer.source]))
    return found


def channels(layers: Sequence[Layer]) -> list[int]:
    """The channels of every value."""
    return [layers[0].in_channels, *(layer.out_channels for layer in layers)]


def last_uses(layers: Sequence[Layer]) -> list[int]:
    """For every value, the last layer that reads it; the list's length for the output."""
    last = [len(layers)] * (len(layers) + 1)
    for index, layer in enumerate(layers):
        for value in (layer.source, layer.residual):
            if value is not None:
                last[value] = index
    return last


def spans_needed(
    layers: Sequence[Layer], first: int, value: int, span: Span, axis_sizes: Sequence[int]
) -> dict[int, Span]:
    """What of each value must be there to compute ``span`` of ``value`` from value ``first`` on, along one axis.

    Args:
        layers: All layers.
        first: Values up to this one are at hand; those after it are computed.
        value: What is wanted.
        span: Its part.
        axis_sizes: Size of every value along the axis.
    """
    needed = {value: span}
    for index in range(value - 1, first - 1, -1):
        wanted, layer = needed.get(index + 1), layers[index]
        if wanted is None:
            continue
        _widen(needed, layer.source, layer.needs(wanted, axis_sizes[layer.source]))
        if layer.residual is not None:
            _widen(needed, layer.residual, wanted)
    return needed


def _widen(needed: dict[int, Span], value: int, span: Span) -> None:
    lo, hi = needed.get(value, span)
    needed[value] = (min(lo, span[0]), max(hi, span[1]))


def _read(blocks: Any) -> list[Layer]:
    from monai.apps.generation.maisi.networks import autoencoderkl_maisi as maisi
    from monai.networks.blocks.spatialattention import SpatialAttentionBlock
    from monai.networks.nets.autoencoderkl import AEKLResBlock

    layers: list[Layer] = []
    norm: nn.GroupNorm | None = None
    for block in blocks:
        value = len(layers)
        if isinstance(block, (maisi.MaisiResBlock, AEKLResBlock)):
            layers.append(Layer("conv", _convolution(block.conv1), value, block.norm1, silu=True))
            shortcut = None if isinstance(block.nin_shortcut, nn.Identity) else _convolution(block.nin_shortcut)
            layers.append(Layer("conv", _convolution(block.conv2), value + 1, block.norm2, True, value, shortcut))
        elif isinstance(block, maisi.MaisiUpsample):
            layers.append(Layer("transposed" if block.use_convtranspose else "up", _convolution(block), value))
        elif isinstance(block, maisi.MaisiDownsample):
            layers.append(Layer("down", _convolution(block), value))
        elif isinstance(block, SpatialAttentionBlock):
            layers.append(Layer("global", block, value))
        elif isinstance(block, nn.GroupNorm):
            norm = block
        elif isinstance(block, maisi.MaisiConvolution):
            layers.append(Layer("conv", _convolution(block), value, norm))
            norm = None
        else:
            raise BundleError(f"The autoencoder holds a block of an unknown kind, {type(block).__name__}.")
    return layers


def _convolution(module: nn.Module) -> Any:
    return next(m for m in module.modules() if isinstance(m, (nn.Conv3d, nn.ConvTranspose3d)))
