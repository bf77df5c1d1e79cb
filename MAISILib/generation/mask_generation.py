"""Makes masks: sizes of organs → latent → a class for every voxel → label map."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from MAISILib.anatomy.organ_sizes import NOT_TOLD, measure_sizes
from MAISILib.bundles.networks import compression_factor
from MAISILib.diffusion.sampler import sample_latent
from MAISILib.diffusion.schedules import schedule_of
from MAISILib.diffusion.solver_names import Sampling, choose_sampling
from MAISILib.diffusion.solvers import make_solver
from MAISILib.errors import MaskError, RequestError
from MAISILib.generation.mask_wish import SIZE_TOLERANCE, MaskWish
from MAISILib.generation.plan import diffusion_precision
from MAISILib.volumes import LabelMap

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle

#: A mask without an anatomy that was asked for, or with one of another size, is drawn again with other noise. The
#: nearest to the wish is kept; where an anatomy is always missing, the request fails.
ATTEMPTS = 3
#: The decoder's last layer works on slabs of about so many voxels: all classes of a whole volume are gigabytes.
_SLAB_VOXELS = 1 << 20

#: Gives a network by its name, on the device, for the length of a ``with`` block.
OpenNetwork = Callable[[str], AbstractContextManager[Any]]
#: Called with (number of the mask, steps done, steps in all); may raise to stop.
OnMaskStep = Callable[[int, int, int], None]


@dataclass(frozen=True)
class GeneratedMask:
    """A mask and how it came about.

    Args:
        mask: On the generator's grid, centred at the origin.
        conditions: What the network was told, in the order of the bundle's controllable anatomies.
        sizes: See :meth:`MAISILib.generation.mask_wish.MaskWish.sizes_of`.
        attempts: Number of the attempt that it comes from.
    """

    mask: LabelMap
    conditions: list[float]
    sizes: dict[str, dict[str, Any]]
    attempts: int


def generate_masks(
    bundle: Bundle,
    wish: MaskWish,
    seeds: Sequence[int],
    open_network: OpenNetwork,
    *,
    device: str = "cpu",
    sampling: Sampling | None = None,
    on_step: OnMaskStep = lambda number, done, total: None,
) -> list[GeneratedMask]:
    """Draws one mask for each seed, or up to :data:`ATTEMPTS` where sizes miss the wish, and keeps the nearest to it.

    Each network is opened once an attempt for all of them, one after the other.

    Args:
        bundle: Whose mask generator.
        wish: What the masks shall hold.
        seeds: One for each mask; the same seed gives the same mask whatever the others are.
        open_network: Gives a network.
        device: Where the networks are.
        sampling: Solver and steps; the bundle's by default.
        on_step: Hears about progress.

    Raises:
        RequestError: The bundle names a solver that does not exist, or more steps than its schedule has.
        MaskError: An anatomy that was asked for did not appear in :data:`ATTEMPTS` attempts.
    """
    best: dict[int, GeneratedMask] = {}
    missing: list[str] = []
    pending = list(range(len(seeds)))
    for attempt in range(ATTEMPTS):
        drawn: dict[int, tuple[list[float], torch.Tensor]] = {}
        with open_network("mask_diffusion") as unet:
            for number in pending:
                seed = random.Random(f"{seeds[number]}/{attempt}").getrandbits(63)
                conditions = wish.conditions(seed)
                hear = _numbered(on_step, number)
                latent = sample_mask_latent(
                    bundle, unet, conditions, seed, device=device, sampling=sampling, on_step=hear
                )
                drawn[number] = conditions, latent
        with open_network("mask_autoencoder") as autoencoder:
            for number, (conditions, latent) in drawn.items():
                classes = most_likely_classes(autoencoder, latent).cpu().numpy()
                mask = wish.finish(wish.classes[classes], conditions)
                if lacking := wish.missing(mask):
                    missing = lacking
                    continue
                sizes = wish.sizes_of(mask, conditions)
                if number not in best or sum(wish.misses(sizes)) < sum(wish.misses(best[number].sizes)):
                    best[number] = GeneratedMask(mask, conditions, sizes, attempt + 1)
        pending = [n for n in pending if n not in best or max(wish.misses(best[n].sizes), default=0) > SIZE_TOLERANCE]
        if not pending:
            break
    if len(best) < len(seeds):
        raise MaskError(
            f"The mask generator of bundle {bundle.name!r} was asked for {', '.join(missing)} and did not draw it in "
            f"{ATTEMPTS} attempts. Try another seed, or ask for less at once."
        )
    return [best[number] for number in range(len(seeds))]


def latent_shape(bundle: Bundle) -> tuple[int, int, int, int]:
    """Shape ``(C, x, y, z)`` of the latent of a mask."""
    entry, definition = bundle.manifest.mask_generator, bundle.entry("mask_autoencoder").definition
    assert entry is not None, "MaskWish has checked it"
    factor = compression_factor(definition)
    x, y, z = (n // factor for n in entry.size)
    return int(definition["latent_channels"]), x, y, z


def sample_mask_latent(
    bundle: Bundle,
    unet: Any,
    conditions: Sequence[float],
    seed: int,
    *,
    device: str = "cpu",
    sampling: Sampling | None = None,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> torch.Tensor:
    """Walks from noise to the latent of a mask, ``(1, C, x, y, z)`` float32, ready for the decoder.

    Args:
        bundle: Whose schedule and scale factor.
        unet: Its ``mask_diffusion`` network, on ``device``.
        conditions: Condition vector.
        seed: Of the noise, which is drawn on the CPU.
        device: Where the network is.
        sampling: Solver and steps; the bundle's by default.
        on_step: Called with (steps done, steps in all).

    Raises:
        RequestError: As :func:`generate_masks`.
    """
    entry = bundle.manifest.mask_generator
    assert entry is not None, "MaskWish has checked it"
    sampling = sampling or choose_sampling(entry.schedule, solver=entry.solver)
    count = sampling.steps
    latent = sample_latent(
        mask_denoiser(unet, conditions, entry.guidance_scale, device),
        schedule_of(entry.schedule),
        make_solver(sampling.solver, entry.schedule.kind),
        latent_shape(bundle),
        steps=count,
        seed=seed,
        device=device,
        on_step=lambda done, state, clean: on_step(done, count),
    )
    return latent / entry.scale_factor


def mask_denoiser(
    unet: Any, conditions: Sequence[float], guidance_scale: float = 0.0, device: str = "cpu"
) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """The mask UNet and what it is told, as one function ``(x, time) → prediction``."""
    context = torch.tensor([[list(conditions)]], dtype=torch.float32, device=device)
    autocast = diffusion_precision(device)

    def predict(x: torch.Tensor, time: float) -> torch.Tensor:
        times = torch.full((x.shape[0],), time, dtype=torch.float32, device=device)
        with torch.autocast(device.partition(":")[0], autocast) if autocast else nullcontext():
            told = unet(x, times, context=context).float()
            if guidance_scale <= 1:
                return told
            free = unet(x, times, context=torch.full_like(context, NOT_TOLD)).float()
        return free + guidance_scale * (told - free)

    return predict


@torch.inference_mode()
def most_likely_classes(autoencoder: Any, latent: torch.Tensor) -> torch.Tensor:
    """The class with the largest score in every voxel, ``(X, Y, Z)`` int64.

    The decoder's last layer and the choice of the class go slab by slab, so that the scores of all classes never lie in
    memory for the whole volume; the outcome is the same. No softmax is needed to find the largest score.

    Args:
        autoencoder: A mask autoencoder.
        latent: ``(1, C, x, y, z)``, as the autoencoder encodes (scale factor removed), on the same device.
    """
    features = autoencoder.post_quant_conv(latent)
    *blocks, last = autoencoder.decoder.blocks
    for block in blocks:
        features = block(features)
    length = features.shape[2]
    thickness = max(1, _SLAB_VOXELS // math.prod(features.shape[3:]))
    slabs = []
    for start in range(0, length, thickness):
        end = min(start + thickness, length)
        low, high = max(0, start - 1), min(length, end + 1)  # the last layer is 3 voxels wide
        scores = last(features[:, :, low:high])[:, :, start - low : end - low]
        slabs.append(scores.argmax(1)[0])
    return torch.cat(slabs)


def generated_volumes(
    bundle: Bundle,
    anatomy: str,
    percentile: float,
    seeds: Sequence[int],
    *,
    solver: str | None = None,
    steps: int | None = None,
) -> list[float | None]:
    """How large an anatomy is in masks that were asked for a size of it, on the CPU.

    Args:
        bundle: Whose mask generator.
        anatomy: One of its controllable anatomies.
        percentile: The size asked for, 0–1.
        seeds: One for each mask.
        solver: Name of a solver; the bundle's by default.
        steps: Solver steps; the bundle's by default.

    Returns:
        Volume in mm³ for each seed; ``None`` where the anatomy is cut off by the border.

    Raises:
        RequestError: The bundle has no mask generator, or does not take sizes of this anatomy.
        MaskError: The anatomy did not appear.
    """
    wish = MaskWish(bundle, {anatomy: percentile})
    label = bundle.labels.find(anatomy).value
    entry = bundle.manifest.mask_generator
    assert entry is not None, "MaskWish has checked it"
    sampling = choose_sampling(entry.schedule, solver=solver or entry.solver, steps=steps)
    masks = generate_masks(bundle, wish, seeds, lambda name: nullcontext(bundle.load(name)), sampling=sampling)
    measured = [measure_sizes(generated.mask, [label])[0] for generated in masks]
    return [size.volume_mm3 if size is not None and size.is_whole else None for size in measured]


def real_volumes(bundle: Bundle, anatomy: str, percentiles: Sequence[float]) -> list[float]:
    """The volumes in mm³ of an anatomy at percentiles 0–1 among the training masks.

    Raises:
        RequestError: The bundle has no mask generator, or its table does not tell volumes.
    """
    wish = MaskWish(bundle, {anatomy: 0.5})
    (name,) = wish.asked
    volumes = [None if wish.size_table is None else wish.size_table.volume(name, p) for p in percentiles]
    if None in volumes:
        raise RequestError(f"Bundle {bundle.name!r} does not tell the volumes of its training masks.")
    return [float(volume) for volume in volumes if volume is not None]


def _numbered(on_step: OnMaskStep, number: int) -> Callable[[int, int], None]:
    return lambda done, total: on_step(number, done, total)
