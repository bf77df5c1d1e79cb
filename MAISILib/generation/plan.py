"""What a request will cost on a device, known before anything is loaded.

Work is counted on networks without storage (PyTorch's "meta" device): floating-point operations exactly, memory from
the largest tensors that live at the same time. Seconds come from a short probe of the device, made once per process.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import nn

from MAISILib.bundles.networks import build_network
from MAISILib.codec.choosing import choose, counted
from MAISILib.codec.codec import Windows
from MAISILib.codec.layers import decoder_layers
from MAISILib.codec.strategies import Strategy
from MAISILib.diffusion.networks import Conditions, control_residuals, embed_mask, predict
from MAISILib.diffusion.solver_names import Sampling
from MAISILib.errors import OutOfMemory, RequestError
from MAISILib.generation.settings import Settings, resolve

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle
    from MAISILib.generation.request import GenerateRequest

#: Python, PyTorch, MONAI and what they have loaded, in bytes (peak of a run of head-neck-mini less its tensors).
PROCESS_BYTES = 520_000_000
#: Part of the probe's rate that whole networks reach, fitted to head-neck-mini on two CPU cores (docs/performance.md).
_EFFICIENCY = {"diffusion": 0.87, "decode": 0.5}


@dataclass(frozen=True)
class Stage:
    """One stage for one sample: operations, seconds, and bytes beyond the process itself."""

    name: str
    flops: float
    seconds: float
    bytes: int


@dataclass(frozen=True)
class Plan:
    """How a request will run.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``.
        precision: Arithmetic of the diffusion networks; the codec always runs in float32 on a CPU.
        size: Voxels ``(X, Y, Z)``.
        spacing: mm.
        latent: Latent shape ``(C, x, y, z)``.
        steps: Solver steps.
        samples: Number of samples.
        stages: Cost of each stage, per sample.
        peak_bytes: Largest memory at any time, the process included.
        available_bytes: Memory that the run may fill: what the device had when the plan was made, or less if so asked.
        decode: How latents become images.
        asked_bytes: The request's limit, where it has one.
    """

    device: str
    precision: str
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    latent: tuple[int, int, int, int]
    steps: int
    samples: int
    stages: tuple[Stage, ...]
    peak_bytes: int
    available_bytes: int
    decode: Strategy | Windows = Strategy()  # noqa: RUF009 - frozen
    asked_bytes: int | None = None

    @property
    def seconds(self) -> float:
        """Estimated time for all samples, in seconds."""
        return self.samples * sum(stage.seconds for stage in self.stages)

    @property
    def fits(self) -> bool:
        """Whether the estimate stays below the memory at hand."""
        return self.peak_bytes <= self.available_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "decode": str(self.decode), "seconds": self.seconds, "fits": self.fits}

    def check(self) -> None:
        """Raises OutOfMemory, with what would fit, before anything is allocated."""
        if not self.fits:
            part = (self.available_bytes - PROCESS_BYTES) / max(1, self.peak_bytes - PROCESS_BYTES)
            limit = "were asked for" if self.available_bytes == self.asked_bytes else "are free"
            advice = f"A volume of about {part:.0%} as many voxels would fit: lower the size."
            if self.decode == Strategy() and part >= 0.01:
                advice = advice[:-1] + ", or decode 'exact' rather than 'whole', which then goes in tiles."
            if part < 0.01:
                advice = "Not even a small volume would fit: close other programs first."
            raise OutOfMemory(
                f"This needs about {self.peak_bytes / 1e9:.1f} GB on {self.device}, "
                f"and {self.available_bytes / 1e9:.1f} GB {limit}. {advice}"
            )

    def __str__(self) -> str:
        head = (
            f"{self.samples} × {_times(self.size)} voxels at {_times(self.spacing)} mm, latent {_times(self.latent)}, "
            f"{self.steps} steps on {self.device} ({self.precision})"
        )
        rows = [
            f"  {s.name:<10} {s.seconds:8.1f} s  {s.bytes / 1e9:6.2f} GB  {s.flops / 1e12:8.3f} TFLOP"
            for s in self.stages
        ]
        total = (
            f"  about {self.seconds:.0f} s and {self.peak_bytes / 1e9:.1f} GB in all; "
            f"{self.available_bytes / 1e9:.1f} GB {'asked for' if self.asked_bytes else 'are free'}"
        )
        return "\n".join([head, *rows, f"  decode: {self.decode}", total])


def choose_device(device: str = "auto") -> str:
    """``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        RequestError: A device that this machine or this PyTorch does not have.
    """
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, there in has.items() if there)
    kind, colon, number = device.partition(":")
    if kind not in has or (colon and not (kind == "cuda" and number.isdecimal())):
        raise RequestError(f"Unknown device {device!r}; known: auto, cpu, cuda, cuda:0, mps.")
    if not has[kind] or (number and int(number) >= torch.cuda.device_count()):
        raise RequestError(f"Device {device!r} is not available to PyTorch on this machine. Use --device cpu or auto.")
    return device


def diffusion_precision(device: str) -> torch.dtype | None:
    """Autocast type of the diffusion networks: half precision where GPUs gain from it, ``None`` (float32) elsewhere."""
    if not device.startswith("cuda"):
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def plan(bundle: Bundle, request: GenerateRequest, device: str = "auto", settings: Settings | None = None) -> Plan:
    """Estimates a request. Nothing is loaded, no network gets memory.

    Args:
        bundle: Whose networks.
        request: What is asked for. A mask file is not read: its size is taken to be the recommended one.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        settings: Where the size is already known (by the pipeline, from a mask).

    Raises:
        RequestError: The request does not fit the bundle, or the device is not there.
    """
    settings = settings or resolve(bundle, request)
    device = choose_device(device)
    latent = (bundle.latent_channels, *(n // bundle.compression for n in settings.size))
    spacing = settings.spacing or bundle.manifest.recommended[0].spacing
    rate, available = device_rate(device), available_bytes(device)
    if request.memory is not None:
        available = min(available, request.memory)
    decode, how = _decode_stage(bundle, request, latent, rate, device, available)
    stages = (
        *([_mask_stage(bundle, settings.mask_sampling, rate)] if settings.mask_sampling else []),
        _diffusion_stage(bundle, request, settings, latent, spacing, rate),
        decode,
    )
    precision = diffusion_precision(device)
    return Plan(
        device=device,
        precision=str(precision or torch.float32).removeprefix("torch."),
        size=settings.size,
        spacing=spacing,
        latent=latent,  # type: ignore[arg-type]
        steps=settings.sampling.steps,
        samples=request.count,
        stages=stages,
        peak_bytes=PROCESS_BYTES + max(stage.bytes for stage in stages),
        available_bytes=available,
        decode=how,
        asked_bytes=request.memory,
    )


def available_bytes(device: str) -> int:
    """Memory that a run in this process may fill, in bytes: what the device has free, and what the process has already.

    For the CPU, free is what the operating system can hand out without swapping.
    """
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    return int(psutil.virtual_memory().available) + psutil.Process().memory_info().rss


def networks_of(request: GenerateRequest) -> list[str]:
    """The networks that a request needs."""
    networks = ["diffusion", "autoencoder"]
    networks += [] if request.mask == "none" else ["controlnet"]
    return networks + (["mask_diffusion", "mask_autoencoder"] if request.mask == "generated" else [])


def weight_bytes(bundle: Bundle, request: GenerateRequest) -> int:
    """Size in memory of all networks that a request needs, as if loaded at the same time."""
    return sum(_weight_bytes(_unstored(bundle, network)) for network in networks_of(request))


@functools.cache
def device_rate(device: str) -> float:
    """Floating-point operations per second in a 3×3×3 convolution of 32 channels, the networks' main work."""
    layer = nn.Conv3d(32, 32, 3, padding=1).to(device)
    edge = 40  # smaller volumes take another, slower path of the CPU library than real latents do
    x = torch.zeros(1, 32, edge, edge, edge, device=device)
    operations = 2 * 27 * 32 * 32 * edge**3
    best = float("inf")
    with torch.inference_mode():
        for _ in range(4):
            start = time.perf_counter()
            float(layer(x)[0, 0, 0, 0, 0])
            best = min(best, time.perf_counter() - start)
    return operations / best


def _mask_stage(bundle: Bundle, sampling: Sampling, rate: float) -> Stage:
    from MAISILib.generation.mask_generation import latent_shape, mask_denoiser, most_likely_classes
    from MAISILib.generation.mask_wish import generator_of

    entry = generator_of(bundle)
    x = torch.empty(1, *latent_shape(bundle), device="meta")
    unet, autoencoder = _unstored(bundle, "mask_diffusion"), _unstored(bundle, "mask_autoencoder")
    conditions = [0.0] * len(bundle.manifest.controllable)
    with _WorkCounter(unet) as walk, torch.no_grad():
        mask_denoiser(unet, conditions, entry.guidance_scale, "meta")(x, 0.0)
    with _WorkCounter(autoencoder) as decode:
        most_likely_classes(autoencoder, x)
    walked = walk.flops * sampling.evaluations
    seconds = walked / _EFFICIENCY["diffusion"] + decode.flops / _EFFICIENCY["decode"]
    memory = max(_weight_bytes(unet) + walk.peak_bytes, _weight_bytes(autoencoder) + decode.peak_bytes)
    return Stage("mask", walked + decode.flops, seconds / rate, memory)


def _diffusion_stage(
    bundle: Bundle, request: GenerateRequest, settings: Settings, latent: tuple[int, ...], spacing: Any, rate: float
) -> Stage:
    x, times = torch.empty(1, *latent, device="meta"), torch.empty(1, device="meta")
    regions = (0, 0) if bundle.manifest.body_region_input else (None, None)
    inputs = Conditions(settings.modality_code, spacing, *regions).tensors("meta")
    unet = _unstored(bundle, "diffusion")
    networks = [unet]
    if request.mask != "none":
        networks.append(_unstored(bundle, "controlnet"))
    with _WorkCounter(*networks) as work, torch.no_grad():
        residuals = None
        if request.mask != "none":
            embedding = embed_mask(networks[1], torch.empty(1, 8, *settings.size, device="meta"))
            residuals = control_residuals(networks[1], x, times, embedding, inputs["class_labels"])
        predict(unet, x, times, inputs, residuals)
    sides = 1 if settings.free_modality is None else 2
    flops = work.flops * settings.sampling.evaluations * sides
    weights = sum(_weight_bytes(network) for network in networks)
    return Stage("diffusion", flops, flops / rate / _EFFICIENCY["diffusion"], weights + work.peak_bytes)


def _decode_stage(
    bundle: Bundle, request: GenerateRequest, latent: tuple[int, ...], rate: float, device: str, available: int
) -> tuple[Stage, Strategy | Windows]:
    """The cost of decoding, and the way that is taken."""
    autoencoder: Any = _unstored(bundle, "autoencoder")
    shape, weights = latent[1:], _weight_bytes(autoencoder)
    rate = rate * _EFFICIENCY["decode"]
    windows = Windows(request.decode_window, request.decode_overlap)
    if request.decode == "windows" and windows.count(shape) > 1:
        with _WorkCounter(autoencoder) as work, torch.no_grad():
            autoencoder.decode(torch.empty(1, latent[0], *windows.edges(shape), device="meta"))
        flops = work.flops * windows.count(shape)
        return Stage("decode", flops, flops / rate, weights + work.peak_bytes), windows
    layers = decoder_layers(autoencoder)
    if request.decode == "exact":
        host = psutil.virtual_memory().available if device.startswith("cuda") else None
        disk = shutil.disk_usage(tempfile.gettempdir()).free
        chosen = choose(layers, shape, available - PROCESS_BYTES - weights, host=host, disk=disk)
    else:
        chosen = counted(layers, shape, Strategy())
    return Stage("decode", chosen.cost.flops, chosen.work / rate, weights + chosen.bytes), chosen.strategy


def _unstored(bundle: Bundle, network: str) -> nn.Module:
    return build_network(bundle.entry(network).definition, f"{bundle.name}: {network}", device="meta")


def _weight_bytes(network: nn.Module) -> int:
    return sum(p.numel() * 4 for p in network.parameters())


class _WorkCounter:
    """Counts the operations of convolutions, linear layers and attention, and the tensors that live at the same time.

    Those are the largest input and output of one layer, each twice (PyTorch's CPU convolutions hold a copy in their own
    layout), and the largest feature map twice more for the skip connections that wait for it.
    """

    def __init__(self, *networks: nn.Module) -> None:
        self.flops = 0.0
        self._largest = self._waiting = 0
        self._modules = [m for n in networks for m in n.modules()]

    def __enter__(self) -> _WorkCounter:
        self._handles = [module.register_forward_hook(self._seen) for module in self._modules]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _seen(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, torch.Tensor) or not inputs or not isinstance(inputs[0], torch.Tensor):
            return
        if isinstance(module, (nn.Conv3d, nn.Linear)):
            self.flops += 2.0 * output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.ConvTranspose3d):
            self.flops += 2.0 * inputs[0].numel() * module.weight[0].numel()
        elif hasattr(module, "use_flash_attention") and inputs[0].ndim == 3:
            # Tokens (N, T, C): QKᵀ and its product with V.
            self.flops += 4.0 * inputs[0].numel() * inputs[0].shape[1]
        if next(module.children(), None) is None:
            self._largest = max(self._largest, 4 * (inputs[0].numel() + output.numel()))
        if isinstance(module, nn.Conv3d):
            self._waiting = max(self._waiting, 4 * output.numel())

    @property
    def peak_bytes(self) -> int:
        """Estimate of the activations that live at the same time."""
        return 2 * self._largest + 2 * self._waiting


def _times(values: Any) -> str:
    return "×".join(f"{v:g}" for v in values)
