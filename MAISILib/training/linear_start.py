"""Starts a small autoencoder as the best linear code of its images, so that training begins where PCA ends.

With one downsampling the code takes every block of 2×2×2 voxels to its first principal components. The networks'
residual blocks begin as identities, so all that stands in the way is GroupNorm: its statistics depend on how much of a
volume is air, and a code that passes through it would lose the absolute intensities. Two *anchor* channels, constant
and opposite, make the statistics of a single group nearly constant; all other channels start at random and learn.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from MAISILib.errors import TrainingError
from MAISILib.training.images import ImageDataset

#: Value of the anchor channels: so much larger than what codes [0, 1] images that its share of the deviation is 1 %.
_ANCHOR = 8.0
#: Components are scaled by their deviation to this power: 0 leaves most of the latent's variance to the blocks' mean,
#: 1 makes fine detail as strong as the mean.
_WHITENING = 0.7
#: Weaker components (part of the strongest's deviation) are scaled as if they were this strong: they are mere noise.
_WEAKEST = 0.01
#: Images that the components are measured on.
_IMAGES = 48


@dataclass(frozen=True)
class LinearCode:
    """Principal components of 2×2×2 blocks.

    Args:
        components: ``(K, 8)``, orthonormal, strongest first; a block's voxels in C order.
        gains: ``(K,)``, what each component is multiplied by in the latent.
    """

    components: np.ndarray
    gains: np.ndarray


def measure_code(dataset: ImageDataset, count: int, seed: int = 0) -> LinearCode:
    """The ``count`` first components of the blocks that touch the body (all blocks where images have no labels).

    They are those of the second moment about air (0), so that air codes to 0.
    """
    rng = random.Random(seed)
    chosen = rng.sample(range(len(dataset)), min(_IMAGES, len(dataset)))
    blocks = np.concatenate([_blocks_of(dataset, index, rng) for index in chosen]).astype(np.float64)
    _, vectors = np.linalg.eigh(blocks.T @ blocks / len(blocks))
    components = vectors[:, ::-1][:, :count].T
    components *= np.sign(components[np.arange(count), np.abs(components).argmax(axis=1)])[:, None]
    deviation = (blocks @ components.T).std(axis=0)
    return LinearCode(components, np.maximum(deviation, _WEAKEST * deviation.max()) ** -_WHITENING)


def start_as_linear_code(
    autoencoder: Any, code: LinearCode, images: Iterable[torch.Tensor], log_variance: float
) -> None:
    """Sets the weights of an autoencoder in place.

    Args:
        autoencoder: An ``AutoencoderKlMaisi`` with two levels, one normalisation group and transposed convolutions.
        code: As many components as the latent has channels.
        images: A few images ``(1, 1, X, Y, Z)`` in [0, 1], on which the normalisations are calibrated.
        log_variance: Of the posterior.

    Raises:
        TrainingError: Another layout.
    """
    encoder, decoder = list(autoencoder.encoder.blocks), list(autoencoder.decoder.blocks)
    _check_layout(encoder, decoder, len(code.components))
    offsets = [(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    with torch.no_grad():
        for block in (*encoder, *decoder):
            if hasattr(block, "conv2"):
                for parameter in _conv(block.conv2).parameters():
                    parameter.zero_()
        # Encoder: image in channel 0; block voxels in channels 0–7; their components.
        conv = _conv(encoder[0])
        _own_rows(conv, {0: {(0, 1, 1, 1): 1.0}})
        for block in encoder[1:-2]:
            if _is_downsample(block):
                _own_rows(_conv(block.conv), {n: {(0, *offset): 1.0} for n, offset in enumerate(offsets)})
            elif not isinstance(block.nin_shortcut, nn.Identity):
                _own_rows(_conv(block.nin_shortcut), {n: {(n, 0, 0, 0): 1.0} for n in range(8)})
        images = list(images)
        scale = _calibrate(autoencoder.encoder, encoder[-2], images)
        matrix = torch.as_tensor(code.components * code.gains[:, None], dtype=torch.float32) * scale
        _readout(_conv(encoder[-1]), matrix)
        for name in ("quant_conv_mu", "post_quant_conv"):
            _identity(_conv(getattr(autoencoder, name)))
        log_sigma = _conv(autoencoder.quant_conv_log_sigma)
        log_sigma.weight.zero_()
        log_sigma.bias.fill_(log_variance)
        # Decoder: the latent in channels 0 … K − 1; blocks put together again in channel 0; the image.
        count = len(code.components)
        _own_rows(_conv(decoder[0]), {n: {(n, 1, 1, 1): 1.0} for n in range(count)})
        inverse = code.components / code.gains[:, None]
        for block in decoder[1:-2]:
            if _is_upsample(block):
                taps = {
                    (c, *(1 + o for o in offset)): float(inverse[c, n])
                    for c in range(count)
                    for n, offset in enumerate(offsets)
                }
                _own_rows(_conv(block.conv), {0: taps}, transposed=True)
            elif not isinstance(block.nin_shortcut, nn.Identity):
                kept = range(count) if _comes_before_upsampling(decoder, block) else range(1)
                _own_rows(_conv(block.nin_shortcut), {n: {(n, 0, 0, 0): 1.0} for n in kept})
        latents = [autoencoder.encode(image)[0] for image in images]
        scale = _calibrate(autoencoder.decoder, decoder[-2], latents)
        _readout(_conv(decoder[-1]), torch.tensor([[scale]]))


def _own_rows(conv: nn.Module, rows: dict[int, dict[tuple[int, ...], float]], *, transposed: bool = False) -> None:
    """Sets output channels: ``{output: {(input, x, y, z): weight}}``; the last two become the anchors."""
    weight: Any = conv.weight.transpose(0, 1) if transposed else conv.weight  # type: ignore[operator]
    for output, taps in rows.items():
        weight[output] = 0.0
        conv.bias[output] = 0.0  # type: ignore[index]
        for place, value in taps.items():
            weight[(output, *place)] = value
    for output, value in ((-2, _ANCHOR), (-1, -_ANCHOR)):
        weight[output] = 0.0
        conv.bias[output] = value  # type: ignore[index]


def _readout(conv: nn.Module, matrix: torch.Tensor) -> None:
    """Output = matrix · (first channels), with the mean that the normalisation took away put back by the anchors."""
    weight: Any = conv.weight
    weight.zero_()
    conv.bias.zero_()  # type: ignore[operator]
    weight[:, : matrix.shape[1], 1, 1, 1] = matrix
    # The normalised anchors add up to −2·mean/deviation, whatever the volume holds.
    weight[:, -2:, 1, 1, 1] = -0.5 * matrix.sum(dim=1, keepdim=True)


def _identity(conv: nn.Module) -> None:
    weight: Any = conv.weight
    weight.zero_()
    conv.bias.zero_()  # type: ignore[operator]
    for channel in range(len(weight)):
        weight[channel, channel] = 1.0


def _calibrate(network: nn.Module, norm: nn.Module, inputs: list[torch.Tensor]) -> float:
    """Mean deviation of what a normalisation layer takes away."""
    seen: list[float] = []
    handle = norm.register_forward_pre_hook(lambda module, values: seen.append(float(values[0].std())))
    try:
        for value in inputs:
            network(value)
    finally:
        handle.remove()
    return float(np.mean(seen))


def _blocks_of(dataset: ImageDataset, index: int, rng: random.Random) -> np.ndarray:
    sample = dataset.load(index, rng)
    blocks = _as_blocks(sample.image[0].numpy())
    if sample.label is None:
        return blocks
    return blocks[_as_blocks(sample.label[0].numpy() > 0).any(axis=1)]


def _as_blocks(array: np.ndarray) -> np.ndarray:
    x, y, z = (n // 2 for n in array.shape)
    cut = array[: 2 * x, : 2 * y, : 2 * z].reshape(x, 2, y, 2, z, 2)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(-1, 8)


def _conv(module: Any) -> Any:
    """The convolution inside MONAI's wrappers."""
    while not isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
        module = module.conv
    return module


def _is_downsample(block: nn.Module) -> bool:
    return type(block).__name__ == "MaisiDownsample"


def _is_upsample(block: nn.Module) -> bool:
    return type(block).__name__ == "MaisiUpsample"


def _comes_before_upsampling(blocks: list[nn.Module], block: nn.Module) -> bool:
    return blocks.index(block) < next(n for n, b in enumerate(blocks) if _is_upsample(b))


def _check_layout(encoder: list[Any], decoder: list[Any], components: int) -> None:
    def problems() -> Iterator[str]:
        if sum(map(_is_downsample, encoder)) != 1:
            yield "one downsampling"
        upsamplings = [block for block in decoder if _is_upsample(block)]
        if not all(block.use_convtranspose for block in upsamplings):
            yield "transposed convolutions"
        if encoder[-2].num_groups != 1:
            yield "norm_num_groups 1"
        if min(_conv(encoder[0]).out_channels, _conv(encoder[-1]).in_channels) < 10:
            yield "at least 10 channels"
        if _conv(encoder[-1]).out_channels != components or components > 8:
            yield "1 to 8 latent channels, as many as components"

    missing = ", ".join(problems())
    if missing:
        raise TrainingError(
            f"linear_start needs an autoencoder with {missing}. Change the definition, or leave it out."
        )
