"""What each stage of a request needs: its work and its memory, counted on networks without storage."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import nn

from MAISILib.bundles.networks import build_network
from MAISILib.codec.choosing import Choice, Ways, counted
from MAISILib.codec.codec import Windows
from MAISILib.codec.layers import Layer, decoder_layers
from MAISILib.codec.strategies import Strategy
from MAISILib.diffusion.networks import Conditions, control_residuals, embed_mask, predict
from MAISILib.diffusion.solver_names import Sampling
from MAISILib.generation.settings import Settings
from MAISILib.generation.workload import Work, count_work

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle
    from MAISILib.generation.request import GenerateRequest

#: Samples per visit of a network: it is loaded once for so many, and freed after them.
SAMPLES_PER_VISIT = 8
#: Bytes of a voxel of a sample that waits for the others: image and mask.
_WAITING_BYTES = 5
#: Bytes that the codec moves for a number that it normalises, interpolates or sums (measured, docs/performance.md).
_BYTES_PER_ELEMENT = 11
#: What a file costs: each byte is written and read, and both go through memory several times.
_BYTES_PER_FILED_BYTE = 9
#: Convolutions hold buffers of their own, and freed memory returns to the system late: part of the tensors' bytes.
_ALLOCATOR = 1.1


@dataclass(frozen=True)
class StageCost:
    """What one stage needs for one sample.

    Args:
        work: All that it computes.
        bytes: Largest memory beside the process itself: weights and tensors.
    """

    work: Work
    bytes: int


def unstored(bundle: Bundle, network: str) -> nn.Module:
    """A network of a bundle with shapes only."""
    return build_network(bundle.entry(network).definition, f"{bundle.name}: {network}", device="meta")


def weight_bytes(networks: Sequence[nn.Module]) -> int:
    """Bytes of the weights in float32."""
    return sum(p.numel() * 4 for network in networks for p in network.parameters())


def loading_bytes(bundle: Bundle, networks: Sequence[str]) -> int:
    """The most that reading networks takes, one after the other: their weights, and the file that is read."""
    total = most = 0
    for name in networks:
        own = weight_bytes([unstored(bundle, name)])
        total += own
        most = max(most, total + (bundle.entry(name).bytes or own))
    return most


def guidance_sides(request: GenerateRequest, settings: Settings) -> int:
    """How often the networks are evaluated at each time, as far as is known before the mask is."""
    return 1 if settings.free_modality is None or request.guidance_scale == 1 else 2


def mask_cost(bundle: Bundle, sampling: Sampling) -> StageCost:
    """The cost of generating a mask."""
    from MAISILib.generation.mask_generation import latent_shape, mask_denoiser, most_likely_classes
    from MAISILib.generation.mask_wish import generator_of

    entry = generator_of(bundle)
    x = torch.empty(1, *latent_shape(bundle), device="meta")
    unet, autoencoder = unstored(bundle, "mask_diffusion"), unstored(bundle, "mask_autoencoder")
    conditions = [0.0] * len(bundle.manifest.controllable)
    denoise = mask_denoiser(unet, conditions, entry.guidance_scale, "meta")
    walk = count_work([unet], lambda: denoise(x, 0.0))
    decode = count_work([autoencoder], lambda: most_likely_classes(autoencoder, x))
    needs = [weight_bytes([n]) + w.peak_bytes * _ALLOCATOR for n, w in ((unet, walk), (autoencoder, decode))]
    needs += [loading_bytes(bundle, [name]) for name in ("mask_diffusion", "mask_autoencoder")]
    return StageCost(walk.times(sampling.evaluations).then(decode), round(max(needs)))


def diffusion_cost(
    bundle: Bundle,
    request: GenerateRequest,
    settings: Settings,
    latent: tuple[int, ...],
    spacing: tuple[float, float, float],
    precision: torch.dtype,
) -> StageCost:
    """The cost of all evaluations of UNet and ControlNet, with the mask's embedding once.

    Args:
        bundle: Whose networks.
        request: For the kind of mask.
        settings: For guidance and solver.
        latent: ``(C, x, y, z)``.
        spacing: mm.
        precision: Of the networks' arithmetic.
    """
    x, times = torch.empty(1, *latent, device="meta", dtype=precision), torch.empty(1, device="meta")
    regions = (0, 0) if bundle.manifest.body_region_input else (None, None)
    inputs = Conditions(settings.modality_code, spacing, *regions).tensors("meta")
    inputs = {k: v.to(precision) if v.is_floating_point() else v for k, v in inputs.items()}
    networks = [unstored(bundle, "diffusion").to(precision)]
    embedding: torch.Tensor | None = None
    embed = Work()
    if request.mask != "none":
        networks.append(unstored(bundle, "controlnet").to(precision))

        def embed_once() -> None:
            nonlocal embedding
            embedding = embed_mask(networks[1], torch.empty(1, 8, *settings.size, device="meta", dtype=precision))

        embed = count_work(networks, embed_once)

    def evaluate() -> None:
        residuals = None
        if embedding is not None:
            residuals = control_residuals(networks[1], x, times, embedding, inputs["class_labels"])
        predict(networks[0], x, times, inputs, residuals)

    step, weights = count_work(networks, evaluate), weight_bytes(networks)
    sides = guidance_sides(request, settings)
    if precision != torch.float32:  # weights are stored in float32, and a copy is made for each evaluation
        step = step.then(Work(moved={math.inf: 1.5 * weights}, peak_bytes=step.peak_bytes + weights // 2))
    other_mask = 0 if sides == 1 or embedding is None else 8 * 4 * math.prod(settings.size)
    peak = max(embed.peak_bytes + other_mask, step.peak_bytes)
    loading = loading_bytes(bundle, ["diffusion", "controlnet"][: len(networks)])
    work = embed.then(step.times(settings.sampling.evaluations)).times(sides)
    return StageCost(work, max(loading, round(weights + peak * _ALLOCATOR)))


class Decoding:
    """The ways from a latent to an image, and their costs.

    Args:
        bundle: Whose autoencoder.
        request: For what it says about decoding.
        latent: ``(C, x, y, z)``.
        device: Where it is decoded.
    """

    def __init__(self, bundle: Bundle, request: GenerateRequest, latent: tuple[int, ...], device: str) -> None:
        self._autoencoder: Any = unstored(bundle, "autoencoder")
        self._request, self._latent, self._shape = request, latent, latent[1:]
        waiting = (min(request.count, SAMPLES_PER_VISIT) - 1) * math.prod(self._shape) * bundle.compression**3
        self._kept = weight_bytes([self._autoencoder]) + waiting * _WAITING_BYTES
        self._layers = decoder_layers(self._autoencoder)
        self._windows = Windows(request.decode_window, request.decode_overlap)
        self._ways = ways_to_decode(self._layers, self._shape, device)

    @property
    def is_fixed(self) -> bool:
        """Whether the memory at hand makes no difference."""
        return self._request.decode != "exact"

    def within(self, budget: float) -> tuple[StageCost, Strategy | Windows]:
        """The fastest way within so many bytes (weights included), or the leanest.

        Args:
            budget: Bytes beside the process itself.
        """
        if self._request.decode == "windows" and self._windows.count(self._shape) > 1:
            latent = torch.empty(1, self._latent[0], *self._windows.edges(self._shape), device="meta")
            one = count_work([self._autoencoder], lambda: self._autoencoder.decode(latent))
            memory = self._kept + round(one.peak_bytes * _ALLOCATOR)
            return StageCost(one.times(self._windows.count(self._shape)), memory), self._windows
        choice = self._ways.within(budget - self._kept)
        if self._request.decode != "exact":
            choice = counted(self._layers, self._shape, Strategy())
        return StageCost(self._work(choice), self._kept + choice.bytes), choice.strategy

    def thresholds(self) -> list[int]:
        """Bytes beside the process itself from which on decoding is faster, from the leanest way on."""
        return [self._kept + choice.bytes for choice in self._ways.front()]

    def _work(self, choice: Choice) -> Work:
        cost = choice.cost
        filed = cost.stored_bytes * _BYTES_PER_FILED_BYTE if choice.strategy.storage == "file" else 0.0
        return Work(cost.products, {math.inf: cost.elements * _BYTES_PER_ELEMENT + filed}, 0, cost.bytes)


def ways_to_decode(layers: Sequence[Layer], shape: Sequence[int], device: str) -> Ways:
    """The ways through a decoder on this computer, with the host memory and the disk that are free now."""
    host = psutil.virtual_memory().available if device.startswith("cuda") else None
    return Ways(layers, shape, host=host, disk=shutil.disk_usage(tempfile.gettempdir()).free)
