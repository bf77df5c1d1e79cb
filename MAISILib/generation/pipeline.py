"""The walk: request → plan → mask → latent → image → quality → result. Calls the rooms in order and does no maths."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from MAISILib.anatomy.grids import back_to
from MAISILib.anatomy.masks import label_bits, remove_tumors
from MAISILib.codec.codec import Codec, IntensityScale, Windows
from MAISILib.codec.strategies import Strategy
from MAISILib.diffusion.acceleration import accelerated
from MAISILib.diffusion.networks import Conditions
from MAISILib.diffusion.sampler import Denoiser, Guidance, sample_latent
from MAISILib.diffusion.schedules import schedule_of
from MAISILib.diffusion.solvers import make_solver
from MAISILib.errors import OutOfMemory, means_out_of_memory
from MAISILib.generation.conditioning import ConditioningMask, MaskSource, Prepared, prepare
from MAISILib.generation.costs import SAMPLES_PER_VISIT, guidance_sides
from MAISILib.generation.mask_generation import generate_masks
from MAISILib.generation.plan import Plan, diffusion_precision, leaner_decode, learn, networks_of, plan
from MAISILib.generation.previews import image_preview, latent_preview
from MAISILib.generation.progress import CancelToken, OnProgress, Progress, interruptible, silent
from MAISILib.generation.provenance import describe_run
from MAISILib.generation.result import GenerateResult, Sample
from MAISILib.generation.settings import Settings
from MAISILib.generation.speed import cache_file
from MAISILib.memory import give_back
from MAISILib.quality.case_check import check_case
from MAISILib.quality.hu_check import check_hu, read_ranges
from MAISILib.volumes import Grid, Volume

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle
    from MAISILib.generation.request import GenerateRequest

#: A sample that fails the HU check is made again this often, then kept and marked (MAISI's published rule).
REGENERATIONS = 2


def generate(
    bundle: Bundle,
    request: GenerateRequest,
    *,
    device: str = "auto",
    on_progress: OnProgress = silent,
    cancel: CancelToken | None = None,
) -> GenerateResult:
    """Carries out a request.

    Args:
        bundle: An opened bundle.
        request: What to make.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        on_progress: Called with :class:`Progress`.
        cancel: Its ``cancel()`` stops the run.

    Returns:
        All samples, in memory. For many large ones use :func:`generate_samples` and save each as it comes.

    Raises:
        MaisiError: Something is wrong with the request, the mask or the bundle, memory is short, or it was cancelled.
    """
    run = generate_samples(bundle, request, device=device, on_progress=on_progress, cancel=cancel)
    return GenerateResult(list(run))


def generate_samples(
    bundle: Bundle,
    request: GenerateRequest,
    *,
    device: str = "auto",
    on_progress: OnProgress = silent,
    cancel: CancelToken | None = None,
    prepared: Prepared | None = None,
    planned: Plan | None = None,
) -> Iterator[Sample]:
    """Like :func:`generate`, one sample at a time. The request is checked before this returns.

    Args:
        bundle: As for `generate`.
        request: As for `generate`.
        device: As for `generate`.
        on_progress: As for `generate`.
        cancel: As for `generate`.
        prepared: What :func:`prepare` gave for the same bundle and request, where that was called already.
        planned: What :func:`plan_request` gave for them and the same device, likewise.
    """
    settings, masks = prepared or prepare(bundle, request)
    planned = planned or _plan(bundle, request, settings, masks, device)
    planned.check()
    for network in networks_of(request):
        bundle.check_file(network)  # damaged weights are found before the work, not in its middle
    run = _Run(bundle, request, settings, planned, masks, on_progress, cancel or CancelToken())
    return run.samples()


def plan_request(
    bundle: Bundle, request: GenerateRequest, device: str = "auto", prepared: Prepared | None = None
) -> Plan:
    """The plan that :func:`generate` would follow; unlike `plan` it reads the mask file, which decides the size."""
    settings, masks = prepared or prepare(bundle, request)
    return _plan(bundle, request, settings, masks, device)


def _plan(bundle: Bundle, request: GenerateRequest, settings: Settings, masks: MaskSource, device: str) -> Plan:
    if masks.grid is not None:
        settings = replace(settings, size=masks.grid.shape, spacing=masks.grid.spacing)
    return plan(bundle, request, device, settings)


def sample_seed(seed: int, index: int, purpose: str = "noise") -> int:
    """The seed of one sample for one purpose: the same whatever else the request makes. 63 bits of SHA-256."""
    digest = hashlib.sha256(f"{seed}/{index}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass
class _Draft:
    """A sample on its way."""

    index: int
    mask: ConditioningMask | None
    attempts: int = 0
    sides: int = 1
    regions: tuple[int | None, int | None] = (None, None)
    latent: torch.Tensor | None = None
    image: Volume | None = None
    decode: Strategy | Windows | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class _Run:
    def __init__(
        self,
        bundle: Bundle,
        request: GenerateRequest,
        settings: Settings,
        planned: Plan,
        masks: MaskSource,
        on_progress: OnProgress,
        cancel: CancelToken,
    ) -> None:
        self._bundle, self._request, self._settings, self._plan = bundle, request, settings, planned
        self._masks, self._progress, self._cancel = masks, on_progress, cancel
        self._decode_way = planned.decode
        path = bundle.quality_path() if request.quality_check and request.mask != "none" else None
        self._ranges = read_ranges(path) if path and bundle.manifest.intensity.kind == "ct" else []

    def samples(self) -> Iterator[Sample]:
        shared = describe_run(self._bundle, self._request, self._plan.device, self._plan.precision)
        indices = range(self._request.first_index, self._request.first_index + self._request.count)
        for start in range(0, len(indices), SAMPLES_PER_VISIT):
            pending = drafts = self._drafts(indices[start : start + SAMPLES_PER_VISIT])
            while pending:
                self._diffuse(pending)
                self._decode(pending)
                pending = [d for d in pending if not self._passes(d) and d.attempts <= REGENERATIONS]
            for draft in drafts:
                yield self._finished(draft, shared)

    def _drafts(self, indices: Sequence[int]) -> list[_Draft]:
        """Samples with nothing but their masks."""
        seeds = [sample_seed(self._request.seed, index, "mask") for index in indices]
        if self._masks.wish is None:
            return [self._draft(index, seed) for index, seed in zip(indices, seeds, strict=True)]
        started = time.perf_counter()

        def on_step(number: int, done: int, total: int) -> None:
            self._cancel.check()
            self._progress(Progress("mask", done, total, f"step {done} of {total}", indices[number]))

        masks = generate_masks(
            self._bundle,
            self._masks.wish,
            seeds,
            self._network,
            device=self._plan.device,
            sampling=self._settings.mask_sampling,
            on_step=on_step,
        )
        seconds = (time.perf_counter() - started) / len(masks)
        return [
            _Draft(index, self._masks.from_generated(mask), seconds={"mask": seconds})
            for index, mask in zip(indices, masks, strict=True)
        ]

    def _draft(self, index: int, seed: int) -> _Draft:
        self._cancel.check()
        self._progress(Progress("mask", 0, 1, "choosing a mask", index))
        return _Draft(index, self._masks.for_sample(seed))

    @contextmanager
    def _network(self, name: str) -> Iterator[Any]:
        """A network on the device, stopping when cancelled; freed after use, unless the bundle keeps it."""
        self._cancel.check()
        self._progress(Progress("load", 0, 1, f"loading the {name.replace('_', ' ')}"))
        give_back(self._plan.device)  # what the stage before has left
        network = self._bundle.load(name, self._plan.device)
        try:
            # Compilers would meet the hooks in the middle of their graph; between steps it is checked all the same.
            compiles = self._request.accelerate != "none"
            with nullcontext() if compiles else interruptible(network, self._cancel):
                yield network
        except (MemoryError, RuntimeError) as error:
            if not means_out_of_memory(error):
                raise
            raise OutOfMemory(f"Memory ran out in the {name}. Ask for a smaller size. {self._plan}") from error

    def _diffuse(self, drafts: list[_Draft]) -> None:
        with ExitStack() as loaded:
            unet = loaded.enter_context(self._network("diffusion"))
            has_mask = self._request.mask != "none"
            controlnet = loaded.enter_context(self._network("controlnet")) if has_mask else None
            unet, controlnet = accelerated(
                self._request.accelerate, unet, controlnet, self._engines(), self._plan.precision_type
            )
            for draft in drafts:
                self._diffuse_one(draft, unet, controlnet)

    def _engines(self) -> Path:
        """Where compiled networks are kept: they hold for these weights, this latent and this precision."""
        weights = "".join(self._bundle.weights_sha256().get(name, "")[:8] for name in ("diffusion", "controlnet"))
        latent = "x".join(map(str, self._plan.latent))
        return cache_file().parent / "engines" / f"{self._bundle.name}-{weights}-{latent}-{self._plan.precision}"

    def _diffuse_one(self, draft: _Draft, unet: Any, controlnet: Any) -> None:
        started = time.perf_counter()
        device, settings, sampling = self._plan.device, self._settings, self._settings.sampling
        draft.regions = self._regions(draft)
        denoiser = Denoiser(
            unet,
            controlnet,
            Conditions(settings.modality_code, self._plan.spacing, *draft.regions),
            _bits(draft.mask.model.array) if draft.mask else None,
            self._guidance(draft),
            device=device,
            autocast=diffusion_precision(device, self._request.precision),
        )
        seed = sample_seed(self._request.seed, draft.index, f"noise {draft.attempts}")

        def on_step(done: int, state: torch.Tensor, clean: torch.Tensor) -> None:
            self._cancel.check()
            message = f"step {done} of {sampling.steps}"
            self._progress(Progress("diffusion", done, sampling.steps, message, draft.index, latent_preview(clean)))

        draft.latent = sample_latent(
            denoiser,
            schedule_of(self._bundle.manifest.schedule),
            make_solver(sampling.solver, self._bundle.manifest.schedule.kind),
            self._plan.latent,
            steps=sampling.steps,
            seed=seed,
            mode=self._request.schedule,
            device=device,
            on_step=on_step,
        ).cpu()
        draft.attempts += 1
        draft.sides = denoiser.sides
        draft.seconds["diffusion"] = draft.seconds.get("diffusion", 0.0) + time.perf_counter() - started

    def _regions(self, draft: _Draft) -> tuple[int | None, int | None]:
        if not self._bundle.manifest.body_region_input:
            return None, None
        asked = self._settings.regions
        top, bottom = draft.mask.regions if draft.mask else (None, None)
        if asked:
            top, bottom = (top if top is not None else min(asked)), (bottom if bottom is not None else max(asked))
        # A mask that shows no region (body only) is taken to be what head-to-lower volumes start and end with.
        return (0 if top is None else top), (3 if bottom is None else bottom)

    def _guidance(self, draft: _Draft) -> Guidance | None:
        if self._settings.free_modality is None:
            return None
        free = _bits(remove_tumors(draft.mask.model).array) if draft.mask else None
        return Guidance(self._request.guidance_scale, self._settings.free_modality, free)

    def _decode(self, drafts: list[_Draft]) -> None:
        intensity = self._bundle.manifest.intensity
        with self._network("autoencoder") as autoencoder:
            codec = Codec(
                autoencoder,
                self._bundle.scale_factor(),
                IntensityScale(intensity.kind, intensity.low, intensity.high),
                device=self._plan.device,
            )
            for draft in drafts:
                started = time.perf_counter()
                draft.image = self._image(draft, self._decode_one(draft, codec))
                draft.seconds["decode"] = draft.seconds.get("decode", 0.0) + time.perf_counter() - started
                self._progress(Progress("decode", 1, 1, "decoded", draft.index, image_preview(draft.image)))

    def _decode_one(self, draft: _Draft, codec: Codec) -> np.ndarray:
        """The image of a latent, in smaller tiles where memory ran out although the plan fitted."""
        assert draft.latent is not None

        def on_tile(done: int, total: int) -> None:
            self._cancel.check()
            self._progress(Progress("decode", done, total, f"tile {done} of {total}", draft.index))

        while True:
            draft.decode = self._decode_way
            try:
                return codec.decode(draft.latent, self._decode_way, on_tile=on_tile)
            except OutOfMemory:
                leaner = leaner_decode(self._bundle, self._request, self._plan, self._decode_way)
                if leaner is None:
                    raise
            # Not in the block above: as long as the error lives, so do the tensors of the try.
            give_back(self._plan.device)
            self._decode_way = leaner
            self._progress(Progress("decode", 0, 1, f"memory ran out; once more {leaner}", draft.index))

    def _image(self, draft: _Draft, array: np.ndarray) -> Volume:
        """The decoded array as an image on the model grid; CT outside the mask is air."""
        intensity = self._bundle.manifest.intensity
        units = "HU" if intensity.kind == "ct" else "arbitrary"
        if draft.mask is None:
            return Volume(array, Grid.axis_aligned(self._plan.size, self._plan.spacing).affine, units)
        if intensity.kind == "ct":
            array = np.where(draft.mask.model.array > 0, array, intensity.low)
        return Volume(array, draft.mask.model.affine, units)

    def _passes(self, draft: _Draft) -> bool:
        if not self._ranges or draft.mask is None:
            return True
        assert draft.image is not None
        self._progress(Progress("quality", 0, 1, "checking HU", draft.index))
        return check_hu(draft.image.array, draft.mask.model.array, self._ranges).passed

    def _finished(self, draft: _Draft, shared: dict[str, Any]) -> Sample:
        self._cancel.check()
        assert draft.image is not None
        image, mask = draft.image, draft.mask.output if draft.mask else None
        low = self._bundle.manifest.intensity.low if image.units == "HU" else 0.0
        if mask is not None and not mask.grid.same_as(image.grid):
            image = back_to(image, mask.grid, fill=low)
            if image.units == "HU":
                image = replace(image, array=np.where(mask.array > 0, image.array, low))
        image = replace(image, array=np.rint(image.array).clip(-32768, 32767))
        quality = None
        if self._request.quality_check:  # of the voxels that are written, while NaN can still be seen among them
            self._progress(Progress("quality", 0, 1, "comparing image and mask", draft.index))
            quality = check_case("", image, mask, self._ranges)
        image = replace(image, array=np.nan_to_num(image.array, nan=low).astype(np.int16))
        settings, seed = self._settings, sample_seed(self._request.seed, draft.index)
        top, bottom = draft.regions
        provenance = shared | {
            "sample": {"index": draft.index, "seed": seed, "attempts": draft.attempts},
            "mask_source": draft.mask.source if draft.mask else None,
            "settings": {
                "size": list(self._plan.size),
                "spacing": list(self._plan.spacing),
                "modality": settings.modality,
                "modality_code": settings.modality_code,
                "body_regions": None if top is None else {"top": top, "bottom": bottom},
                "steps": settings.sampling.steps,
                "schedule": self._request.schedule,
                "solver": settings.sampling.solver,
                "mask_steps": settings.mask_sampling.steps if settings.mask_sampling else None,
                "mask_solver": settings.mask_sampling.solver if settings.mask_sampling else None,
                "guidance_scale": self._request.guidance_scale,
                "decode": str(draft.decode),
            },
            "seconds": {name: round(value, 2) for name, value in draft.seconds.items()},
            "quality": quality.to_dict() if quality else None,
        }
        for name, seconds in draft.seconds.items():
            if self._ran_as_planned(name, draft):
                learn(self._bundle, self._plan, name, seconds if name == "mask" else seconds / draft.attempts)
        self._progress(Progress("done", 1, 1, "finished", draft.index))
        return Sample(draft.index, seed, image, mask, quality, draft.attempts, provenance)

    def _ran_as_planned(self, stage: str, draft: _Draft) -> bool:
        """Whether the time of a stage says something about the plan's estimate."""
        if stage == "decode":
            return draft.decode == self._plan.decode
        is_plain = self._request.accelerate == "none"
        return is_plain and (stage == "mask" or draft.sides == guidance_sides(self._request, self._settings))


def _bits(labels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(label_bits(labels)))[None].float()
