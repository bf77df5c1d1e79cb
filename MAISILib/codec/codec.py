"""Volumes to latents and back: intensity mapping, the autoencoder, and the scale of the latent space."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import nn

from MAISILib.codec.choosing import Choice, choose, counted
from MAISILib.codec.layers import decoder_layers, encoder_layers
from MAISILib.codec.strategies import Strategy
from MAISILib.codec.streaming import stream
from MAISILib.errors import OutOfMemory, RequestError, means_out_of_memory

T = TypeVar("T")
#: Called with (tiles done, tiles in all); may raise to stop.
OnTile = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class IntensityScale:
    """How image units and the autoencoder's [0, 1] correspond (MAISI, arXiv:2409.11169).

    Args:
        kind: ``ct`` is linear between ``low`` and ``high`` HU and clipped; ``mr`` takes percentiles 0 and 99.5 of the
            volume to 0 and 1 without clipping above, and multiplies by 1000 on the way out.
        low: HU of 0 (CT only).
        high: HU of 1 (CT only).
    """

    kind: Literal["ct", "mr"] = "ct"
    low: float = -1000.0
    high: float = 1000.0

    def to_unit(self, array: np.ndarray) -> np.ndarray:
        """Image ``(X, Y, Z)`` in its units → float32 around [0, 1]."""
        array = array.astype(np.float32)
        if self.kind == "ct":
            return (array.clip(self.low, self.high) - self.low) / (self.high - self.low)
        low, high = np.percentile(array, (0.0, 99.5))
        return np.maximum((array - low) / max(float(high - low), 1e-6), 0.0).astype(np.float32)

    def from_unit(self, array: np.ndarray) -> np.ndarray:
        """Network output → image units: HU, clipped to the range, or MR intensities 0–1000 and above."""
        if self.kind == "ct":
            return array.clip(0.0, 1.0) * (self.high - self.low) + self.low
        return np.maximum(array, 0.0) * 1000.0


@dataclass(frozen=True)
class Windows:
    """Overlapping windows blended with Gaussian weights, as the published scripts decode large latents.

    Kept for comparison: each window has its own GroupNorm statistics, so the result differs from the whole volume's.

    Args:
        size: Edge in latent voxels ``(x, y, z)``.
        overlap: Part of the window that neighbours share, 0 to below 1.
    """

    size: tuple[int, int, int] = (48, 48, 48)
    overlap: float = 0.6666

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1 or min(self.size) < 1:
            raise RequestError(
                f"Windows of {self.size} with overlap {self.overlap}: give sizes ≥ 1 and 0 ≤ overlap < 1."
            )

    def __str__(self) -> str:
        return f"windows of {'×'.join(map(str, self.size))} with overlap {self.overlap:g}"

    def edges(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The window on a latent ``(x, y, z)``: all of it if that has no more voxels than a window (published rule)."""
        if math.prod(shape) <= math.prod(self.size):
            return tuple(shape)
        return tuple(min(n, w) for n, w in zip(shape, self.size, strict=True))

    def count(self, shape: tuple[int, ...]) -> int:
        """How many windows cover a latent ``(x, y, z)``."""
        total = 1
        for n, w in zip(shape, self.edges(shape), strict=True):
            stride = n if n == w else max(1, int(w * (1 - self.overlap)))
            total *= -(-(n - w) // stride) + 1
        return total


class Codec:
    """An autoencoder with its scale, on one device, in float32.

    Args:
        autoencoder: Built network.
        scale_factor: Latents are multiplied by it for the diffusion model (one over their standard deviation).
        intensity: Image units.
        device: Where the autoencoder is.
    """

    def __init__(
        self, autoencoder: nn.Module, scale_factor: float, intensity: IntensityScale, *, device: str = "cpu"
    ) -> None:
        self._autoencoder, self._scale, self._intensity, self._device = autoencoder, scale_factor, intensity, device

    @property
    def device(self) -> str:
        """Where the autoencoder is."""
        return self._device

    def way_to_encode(
        self, shape: tuple[int, ...], budget: float, *, host: float | None = None, disk: float = 0.0
    ) -> Choice:
        """The fastest way to encode an image within a budget, or else the leanest.

        Args:
            shape: Voxels ``(X, Y, Z)`` of the image.
            budget: Bytes at hand on the device.
            host: Bytes at hand in host memory, where the device has its own.
            disk: Bytes at hand for temporary files.
        """
        layers = encoder_layers(self._autoencoder)
        whole = counted(layers, shape, Strategy())  # computes nothing twice: where it fits no other need be weighed
        return whole if whole.bytes <= budget else choose(layers, shape, budget, host=host, disk=disk)

    @torch.inference_mode()
    def posterior(
        self,
        image: np.ndarray,
        intensity: IntensityScale | None = None,
        how: Strategy | None = None,
        *,
        on_tile: OnTile = _silent,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of an image's posterior, not scaled.

        Args:
            image: ``(X, Y, Z)`` in its units; each axis divisible by the compression factor.
            intensity: Its units, where they are not the codec's: an autoencoder may have learned CT and MR.
            how: The way through the encoder; all give the same. ``None`` is the whole volume at once.
            on_tile: Called with (tiles done, tiles in all); may raise to stop.

        Returns:
            Two ``(1, C, x, y, z)``, float32 on the CPU.

        Raises:
            OutOfMemory: The device cannot hold the activations.
        """
        unit = torch.from_numpy((intensity or self._intensity).to_unit(image))[None, None].to(self._device)
        mean, deviation = _within_memory(lambda: self._encode(unit, how, on_tile), "encode", image.shape)
        return mean.float().cpu(), deviation.float().cpu()

    def encode(self, image: np.ndarray, how: Strategy | None = None, *, on_tile: OnTile = _silent) -> torch.Tensor:
        """Posterior mean of an image, scaled.

        Args:
            image: ``(X, Y, Z)`` in its units; each axis divisible by the compression factor.
            how: As for `posterior`.
            on_tile: As for `posterior`.

        Returns:
            ``(1, C, x, y, z)`` float32 on the CPU.
        """
        return self.posterior(image, how=how, on_tile=on_tile)[0] * self._scale

    @torch.inference_mode()
    def decode(
        self, latent: torch.Tensor, how: Strategy | Windows | None = None, *, on_tile: OnTile = _silent
    ) -> np.ndarray:
        """The image of a latent.

        Args:
            latent: ``(1, C, x, y, z)``, scaled.
            how: The way through the decoder: all strategies give the same, :class:`Windows` something else. ``None`` is
                the whole volume at once.
            on_tile: Called with (tiles done, tiles in all); may raise to stop.

        Returns:
            ``(X, Y, Z)`` float32 in image units.

        Raises:
            OutOfMemory: The device cannot hold the activations.
        """
        latent = latent.to(self._device, torch.float32) / self._scale
        shape = tuple(latent.shape[2:])
        if isinstance(how, Windows) and how.count(shape) > 1:
            output = _within_memory(lambda: self._decode_windows(latent, how, on_tile), "decode", shape)
        else:
            strategy = None if isinstance(how, Windows) else how
            output = _within_memory(lambda: self._decode(latent, strategy, on_tile), "decode", shape)
        return self._intensity.from_unit(output[0, 0].float().cpu().numpy())

    def _encode(self, unit: torch.Tensor, how: Strategy | None, on_tile: OnTile) -> tuple[torch.Tensor, torch.Tensor]:
        network: Any = self._autoencoder
        hidden = stream(encoder_layers(network), unit, how or Strategy(), on_tile=on_tile)
        # As AutoencoderKL.encode has it: the logarithm of the variance is kept within bounds.
        logarithm = network.quant_conv_log_sigma(hidden).clamp(-30.0, 20.0)
        return network.quant_conv_mu(hidden), torch.exp(logarithm / 2)

    def _decode(self, latent: torch.Tensor, how: Strategy | None, on_tile: OnTile) -> torch.Tensor:
        network: Any = self._autoencoder
        latent = network.post_quant_conv(latent)
        return stream(decoder_layers(network), latent, how or Strategy(), on_tile=on_tile)

    def _decode_windows(self, latent: torch.Tensor, windows: Windows, on_tile: OnTile) -> torch.Tensor:
        from monai.inferers.inferer import SlidingWindowInferer

        shape = tuple(latent.shape[2:])
        total, done = windows.count(shape), 0

        def decode_one(part: torch.Tensor) -> torch.Tensor:
            nonlocal done
            output = self._autoencoder.decode(part)  # type: ignore[operator]
            done += 1
            on_tile(done, total)
            return output

        edges = windows.edges(shape)
        inferer = SlidingWindowInferer(roi_size=edges, overlap=windows.overlap, mode="gaussian", sw_batch_size=1)
        return inferer(latent, decode_one)  # type: ignore[return-value]


def _within_memory(work: Callable[[], T], doing: str, shape: tuple[int, ...]) -> T:
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if not means_out_of_memory(error):
            raise
        raise OutOfMemory(_advice(doing, shape)) from error


def _advice(doing: str, shape: tuple[int, ...]) -> str:
    size = "×".join(map(str, shape))
    return f"Not enough memory to {doing} a volume of {size}. Ask for a smaller size, or for less memory (--memory)."
