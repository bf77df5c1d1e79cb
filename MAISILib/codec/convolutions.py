"""The arithmetic of one layer on one tile. Tiles are ``(X, Y, Z, C)``, channels last: what CPUs convolve fastest."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from MAISILib.codec.layers import Box, Layer

#: Statistics are taken in pieces of about so many numbers, which stay in the processor's cache.
_PIECE = 1 << 20


class Moments:
    """Mean and squared deviations of every channel, collected from tiles; they do not depend on how it was cut."""

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, tile: torch.Tensor) -> None:
        """Takes in a tile ``(X, Y, Z, C)``."""
        rows = max(1, _PIECE // max(1, tile[0].numel()))
        for piece in tile.split(rows):
            flat = piece.reshape(-1, tile.shape[3])
            mean = flat.mean(0)
            deviations = flat - mean  # two passes: constant channels must not leave the rounding of large sums
            self._merge(len(flat), mean.double().cpu(), deviations.mul_(deviations).sum(0).double().cpu())

    def _merge(self, count: int, mean: torch.Tensor, squares: torch.Tensor) -> None:
        """Joins two sets of moments (Chan, Golub, LeVeque 1979, eq. 2.1)."""
        total, shift = self._count + count, mean - self._mean
        self._mean = self._mean + shift * (count / total)
        self._squares = self._squares + squares + shift.square() * (self._count * count / total)
        self._count = total

    def affine(self, norm: torch.nn.GroupNorm, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Factor and offset per channel ``(C,)`` that equal GroupNorm with these moments."""
        groups, size = norm.num_groups, norm.num_channels // norm.num_groups
        means = self._mean.view(groups, size)
        mean = means.mean(1, keepdim=True)
        squares = self._squares.view(groups, size) + self._count * (means - mean).square()
        factor = (squares.sum(1, keepdim=True) / (self._count * size) + norm.eps).rsqrt().expand(groups, size)
        factor, offset = factor.flatten(), (-mean * factor).flatten()
        if norm.weight is not None:
            weight, bias = norm.weight.double().cpu(), norm.bias.double().cpu()
            factor, offset = factor * weight, offset * weight + bias
        return factor.float().to(device), offset.float().to(device)


def convolved(
    layer: Layer,
    tile: torch.Tensor,
    have: Box,
    want: Box,
    source: tuple[int, ...],
    affine: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """A layer without its residual: output voxels ``want`` from the voxels ``have`` of its source.

    Args:
        layer: Of a kind other than ``global``.
        tile: The source's voxels ``have``, at least those that `Layer.needs` names. It is not changed.
        have: Where the tile lies in the source.
        want: Where the result lies in the output.
        source: Size of the whole source ``(x, y, z)``.
        affine: GroupNorm of the source as factor and offset, where the layer has one.
    """
    module = layer.module
    if layer.kind == "transposed":
        y = _convolve_transposed(_channels_first(tile), module)
        crop = [slice(w[0] - 2 * h[0], w[1] - 2 * h[0]) for w, h in zip(want, have, strict=True)]
        return _channels_last(y)[tuple(crop)]
    if layer.kind == "up":
        for axis in (2, 1, 0):
            lo, hi = layer.grid(want[axis], source[axis])
            tile = _doubled(tile, axis).narrow(axis, lo - 2 * have[axis][0], hi - lo)
    missing = [_missing(layer, w, n) for w, n in zip(want, source, strict=True)]
    even = [before if before == after else 0 for before, after in missing]
    rest = [(before - e, after - e) for (before, after), e in zip(missing, even, strict=True)]
    if affine is not None:
        tile = _normalised(tile, affine, layer.silu, rest)
    elif any(before or after for before, after in rest):
        tile = F.pad(tile, (0, 0, *rest[2], *rest[1], *rest[0]))
    return _channels_last(_convolve(_channels_first(tile), module, even))


def add_residual(layer: Layer, tile: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Adds a layer's residual, in place."""
    if layer.shortcut is None:
        return tile.add_(residual)
    weight = layer.shortcut.weight.flatten(1)
    return tile.add_(F.linear(residual, weight, layer.shortcut.bias))


def _normalised(
    tile: torch.Tensor, affine: tuple[torch.Tensor, torch.Tensor], silu: bool, zeros: list[tuple[int, int]]
) -> torch.Tensor:
    """A new tile: GroupNorm as factor and offset, then SiLU, then zeros before and after along each axis.

    They are in one tensor from the start: padding it afterwards would hold two at the same time.
    """
    shape = [before + n + after for n, (before, after) in zip(tile.shape, zeros, strict=False)]
    result = tile.new_empty((*shape, tile.shape[3]))
    inside = result
    for axis, (before, after) in enumerate(zeros):
        inside.narrow(axis, 0, before).zero_()
        inside.narrow(axis, inside.shape[axis] - after, after).zero_()
        inside = inside.narrow(axis, before, tile.shape[axis])
    torch.addcmul(affine[1], tile, affine[0], out=inside)
    if silu:
        F.silu(inside, inplace=True)
    return result


def _missing(layer: Layer, want: tuple[int, int], source: int) -> tuple[int, int]:
    """How many zeros stand before and after the volume where the convolution reads over its border."""
    if layer.kind == "down":
        return 0, 2 * want[1] + 1 - min(2 * want[1] + 1, source)
    lo, hi = layer.grid(want, source)
    return lo - (want[0] - layer.reach), (want[1] + layer.reach) - hi


def _convolve(x: torch.Tensor, module: Any, padding: list[int]) -> torch.Tensor:
    stride, once = module.stride, (1, 1, 1)
    if _has_onednn(x, module):  # conv3d takes thin slabs to a path without it that is 5 to 10 times slower
        return torch.mkldnn_convolution(x, module.weight, module.bias, padding, stride, once, 1)
    return F.conv3d(x, module.weight, module.bias, stride, padding)


def _convolve_transposed(x: torch.Tensor, module: Any) -> torch.Tensor:
    once, twice = (1, 1, 1), (2, 2, 2)
    direct = getattr(torch.ops.mkldnn, "_convolution_transpose_pointwise", None)
    if direct is not None and _has_onednn(x, module):  # as above: conv_transpose3d takes small tiles elsewhere
        return direct(x, module.weight, module.bias, once, once, twice, once, 1, "none", [], "")
    return F.conv_transpose3d(x, module.weight, module.bias, stride=2, padding=1, output_padding=1)


def _has_onednn(x: torch.Tensor, module: Any) -> bool:
    return x.device.type == "cpu" and module.in_channels > 1 and torch.backends.mkldnn.is_available()


def _doubled(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Linear interpolation to twice the size along one axis, as ``interpolate(align_corners=False)`` does it."""
    n = x.shape[axis]
    result = x.new_empty((*x.shape[:axis], n, 2, *x.shape[axis + 1 :]))
    even, odd = result.unbind(axis + 1)
    below, above = x.narrow(axis, 0, n - 1), x.narrow(axis, 1, n - 1)
    torch.lerp(above, below, 0.25, out=even.narrow(axis, 1, n - 1))
    torch.lerp(below, above, 0.25, out=odd.narrow(axis, 0, n - 1))
    even.narrow(axis, 0, 1).copy_(x.narrow(axis, 0, 1))
    odd.narrow(axis, n - 1, 1).copy_(x.narrow(axis, n - 1, 1))
    return result.flatten(axis, axis + 1)


def _channels_first(tile: torch.Tensor) -> torch.Tensor:
    """As convolutions want it, without a copy. Were the batch axis added last, its stride would hide the layout."""
    return tile[None].permute(0, 4, 1, 2, 3)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x[0].permute(1, 2, 3, 0)
