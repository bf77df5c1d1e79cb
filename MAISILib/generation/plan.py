"""What a request will cost on a device, known before anything is loaded, and how it will run.

Work and memory are counted on networks without storage (:mod:`MAISILib.generation.costs`); seconds come from a short
probe of the device and from earlier runs (:mod:`MAISILib.generation.speed`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import psutil
import torch

from MAISILib.codec.codec import Windows
from MAISILib.codec.layers import decoder_layers
from MAISILib.codec.strategies import Strategy
from MAISILib.diffusion.acceleration import check_accelerator
from MAISILib.errors import OutOfMemory, RequestError
from MAISILib.generation import costs
from MAISILib.generation.settings import Settings, resolve
from MAISILib.generation.speed import Machine, machine

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle
    from MAISILib.generation.request import GenerateRequest

#: Python, PyTorch, MONAI and what they have loaded, in bytes (peak of a run of head-neck-mini less its tensors).
PROCESS_BYTES = 520_000_000
#: More memory is told of where decoding then takes at most this part of the time.
_FASTER = 0.85
#: Amounts of memory are told, and compared, in steps of so many bytes.
_GRAIN = 10_000_000


@dataclass(frozen=True)
class Stage:
    """One stage for one sample: operations, seconds, and bytes beyond the process itself.

    ``probed_seconds`` is what the device's speed alone gives; ``seconds`` has learned from earlier runs.
    """

    name: str
    flops: float
    seconds: float
    bytes: int
    probed_seconds: float = 0.0


@dataclass(frozen=True)
class Budget:
    """How the same request would run with so much memory.

    Args:
        bytes: The memory, process included.
        decode: How latents would become images.
        peak_bytes: Largest memory at any time, process included.
        seconds: Of all samples.
    """

    bytes: int
    decode: str
    peak_bytes: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """How a request will run.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``.
        precision: Arithmetic of the diffusion networks; the codec always runs in float32.
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
        budgets: The same for other amounts of memory, least first: each at which the run becomes another one.
        advice: Where it does not fit: what would.
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
    budgets: tuple[Budget, ...] = ()
    advice: str = ""

    @property
    def seconds(self) -> float:
        """Estimated time for all samples, in seconds."""
        return self.samples * sum(stage.seconds for stage in self.stages)

    @property
    def precision_type(self) -> torch.dtype:
        """The precision as PyTorch's type."""
        return getattr(torch, self.precision)

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
            limit = "were asked for" if self._is_asked else "are free"
            raise OutOfMemory(
                f"This needs about {_gigabytes(self.peak_bytes)} on {self.device}, "
                f"and {_gigabytes(self.available_bytes, up=False)} {limit}. {self.advice}".strip()
            )

    @property
    def _is_asked(self) -> bool:
        return self.available_bytes == self.asked_bytes

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
            f"  about {self.seconds:.0f} s and {_gigabytes(self.peak_bytes)} in all; "
            f"{_gigabytes(self.available_bytes, up=False)} {'asked for' if self._is_asked else 'are free'}"
        )
        lines = [head, *rows, f"  decode: {self.decode}", total]
        if self.budgets:
            lines += ["from memory     time  decode"]
            lines += [f"  {_gigabytes(b.bytes):>9} {_minutes(b.seconds):>8}  {b.decode}" for b in self.budgets]
        return "\n".join(lines if self.fits else [*lines, f"Does not fit. {self.advice}"])


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


def diffusion_precision(device: str, wanted: str = "auto") -> torch.dtype | None:
    """Autocast type of the diffusion networks; ``None`` is float32.

    Args:
        device: Where they run.
        wanted: ``float32``, ``bfloat16``, or ``auto``: half precision on GPUs, which have it for this purpose, and
            float32 elsewhere, so that CPUs with and without bfloat16 make the same image.

    Raises:
        RequestError: bfloat16 on a device that does not compute it itself: imitating it is slower than float32.
    """
    if wanted == "bfloat16" and not computes_bfloat16(device):
        raise RequestError(f"Device {device!r} does not compute bfloat16 itself. Leave out --precision.")
    if wanted == "float32" or (wanted == "auto" and not device.startswith("cuda")):
        return None
    return torch.bfloat16 if computes_bfloat16(device) else torch.float16


def computes_bfloat16(device: str) -> bool:
    """Whether a device has instructions for bfloat16 (Ampere GPUs and later; x86 with AVX-512 BF16 or AMX)."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device == "cpu" and any(getattr(torch.cpu, name, bool)() for name in asked)


def plan(bundle: Bundle, request: GenerateRequest, device: str = "auto", settings: Settings | None = None) -> Plan:
    """Estimates a request. Nothing is loaded, no network gets memory; a new computer is measured for two seconds.

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
    available = available_bytes(device)
    if request.memory is not None:
        available = min(available, request.memory)
    planned, decoding = _planned(bundle, request, settings, device, available)
    advice = "" if planned.fits else _advice(bundle, request, settings, planned, decoding)
    return replace(planned, advice=advice, budgets=tuple(_budgets(bundle, planned, decoding)))


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
    return costs.weight_bytes([costs.unstored(bundle, network) for network in networks_of(request)])


def learn(bundle: Bundle, plan: Plan, name: str, seconds: float) -> None:
    """Remembers how long a stage really took, for the plans that follow on this computer.

    Args:
        bundle: Of the run.
        plan: Of the run.
        name: Of the stage.
        seconds: For one sample.
    """
    stage = next(stage for stage in plan.stages if stage.name == name)
    known, task = _machine_and_task(bundle, plan.device, name, plan.decode, plan.precision_type)
    known.learn(task, stage.probed_seconds, seconds)


def leaner_decode(bundle: Bundle, request: GenerateRequest, plan: Plan, failed: Strategy | Windows) -> Strategy | None:
    """How to decode where memory ran out all the same; ``None`` where there is no other way, or none is allowed.

    Args:
        bundle: Of the run.
        request: Of the run.
        plan: Of the run.
        failed: The way that was taken.
    """
    if request.decode != "exact" or isinstance(failed, Windows):
        return None
    layers = decoder_layers(costs.unstored(bundle, "autoencoder"))
    choice = costs.ways_to_decode(layers, plan.latent[1:], plan.device).after(failed)
    return choice.strategy if choice else None


def _planned(
    bundle: Bundle, request: GenerateRequest, settings: Settings, device: str, available: int
) -> tuple[Plan, costs.Decoding]:
    """A plan without other budgets and without advice, and the ways to decode."""
    latent = (bundle.latent_channels, *(n // bundle.compression for n in settings.size))
    spacing = settings.spacing or bundle.manifest.recommended[0].spacing
    precision = diffusion_precision(device, request.precision) or torch.float32
    check_accelerator(request.accelerate, device)
    decoding = costs.Decoding(bundle, request, latent, device)
    decode, how = decoding.within(available - PROCESS_BYTES)
    needed = {
        **({"mask": costs.mask_cost(bundle, settings.mask_sampling)} if settings.mask_sampling else {}),
        "diffusion": costs.diffusion_cost(bundle, request, settings, latent, spacing, precision),
        "decode": decode,
    }
    planned = Plan(
        device=device,
        precision=str(precision).removeprefix("torch."),
        size=settings.size,
        spacing=spacing,
        latent=latent,  # type: ignore[arg-type]
        steps=settings.sampling.steps,
        samples=request.count,
        stages=tuple(_stage(bundle, device, name, cost, how, precision) for name, cost in needed.items()),
        peak_bytes=PROCESS_BYTES + max(cost.bytes for cost in needed.values()),
        available_bytes=available,
        decode=how,
        asked_bytes=request.memory,
    )
    return planned, decoding


def _machine_and_task(
    bundle: Bundle, device: str, name: str, how: Strategy | Windows, diffusion: torch.dtype
) -> tuple[Machine, str]:
    precision = {"diffusion": diffusion, "mask": diffusion_precision(device)}.get(name)
    way = f" {how.name if isinstance(how, Strategy) else 'windows'}" if name == "decode" else ""
    return machine(device, precision or torch.float32), f"{bundle.name}: {name}{way}"


def _stage(
    bundle: Bundle, device: str, name: str, cost: costs.StageCost, how: Strategy | Windows, diffusion: torch.dtype
) -> Stage:
    known, task = _machine_and_task(bundle, device, name, how, diffusion)
    probed = known.speed.seconds(cost.work)
    return Stage(name, cost.work.flops, probed * known.correction(task), cost.bytes, probed)


def _with_decode(bundle: Bundle, planned: Plan, decoding: costs.Decoding, budget: int) -> Plan:
    """The same plan for another amount of memory: only decoding can follow it."""
    cost, how = decoding.within(budget - PROCESS_BYTES)
    stages = (*planned.stages[:-1], _stage(bundle, planned.device, "decode", cost, how, planned.precision_type))
    peak = PROCESS_BYTES + max(stage.bytes for stage in stages)
    return replace(planned, stages=stages, peak_bytes=peak, decode=how, available_bytes=budget)


def _budgets(bundle: Bundle, planned: Plan, decoding: costs.Decoding) -> Iterator[Budget]:
    """The least memory that this volume takes, more with which decoding is clearly faster, and all that it can use."""
    if decoding.is_fixed:
        return
    others = max(stage.bytes for stage in planned.stages[:-1])
    before, told, thresholds = math.inf, None, decoding.thresholds()
    for needed in thresholds:
        budget = _GRAIN * math.ceil((PROCESS_BYTES + max(needed, others)) / _GRAIN)
        other = _with_decode(bundle, planned, decoding, budget)
        is_worth_it = other.stages[-1].seconds <= _FASTER * before or needed == thresholds[-1]
        if is_worth_it and other.decode != told:
            yield Budget(budget, str(other.decode), other.peak_bytes, other.seconds)
            before, told = other.stages[-1].seconds, other.decode


def _advice(
    bundle: Bundle, request: GenerateRequest, settings: Settings, planned: Plan, decoding: costs.Decoding
) -> str:
    """What would fit: another way to decode, a smaller volume, or more memory."""
    limit = planned.available_bytes
    if decoding.is_fixed:
        exact = request.model_copy(update={"decode": "exact"})
        other, _ = _planned(bundle, exact, settings, planned.device, limit)
        if other.fits:
            tiles = f"Decoding in tiles would fit ({other.decode})"
            return f"{tiles}: leave out --windows (in a request file: decode 'exact')."
    for size in _smaller_sizes(bundle, settings.size, (limit - PROCESS_BYTES) / (planned.peak_bytes - PROCESS_BYTES)):
        smaller, _ = _planned(bundle, request, replace(settings, size=size), planned.device, limit)
        if smaller.fits:
            return f"A volume of {_times(size)} voxels would fit: ask for that size, or for one like it."
    smallest = bundle.manifest.limits.nearest_size((1, 1, 1), bundle.size_divisor)
    least, _ = _planned(bundle, request, replace(settings, size=smallest), planned.device, 0)
    needed = f"the smallest, {_times(smallest)} voxels, takes {_gigabytes(least.peak_bytes)}"
    if planned.asked_bytes is not None and planned.available_bytes == planned.asked_bytes:
        return f"That limit is too small for any volume: {needed}. Allow at least that much memory."
    return f"Not even a small volume would fit: {needed}. Close other programs first."


def _smaller_sizes(bundle: Bundle, size: tuple[int, int, int], part: float) -> Iterator[tuple[int, int, int]]:
    """Legal sizes of about the same shape, with the part of the voxels that should fit, and with less."""
    tried = {size}
    for share in (1.0, 0.7, 0.4):
        if part <= 0:
            return
        wanted = [max(1, int(n * (part * share) ** (1 / 3))) for n in size]
        scaled = bundle.manifest.limits.nearest_size(wanted, bundle.size_divisor)
        if scaled not in tried:
            tried.add(scaled)
            yield scaled


def _gigabytes(amount: int, *, up: bool = True) -> str:
    """Below 10 GB with two decimals, from 0.05 GB on; less in MB. What is needed is rounded up, what is there down."""
    rounded = math.ceil if up else math.floor
    if amount < 5e7:
        return f"{rounded(amount / 1e6)} MB"
    digits = 2 if amount < 1e10 else 1
    return f"{rounded(amount / 1e9 * 10**digits) / 10**digits:.{digits}f} GB"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def _times(values: Any) -> str:
    return "×".join(f"{v:g}" for v in values)
