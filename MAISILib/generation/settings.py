"""A request read against a bundle: every choice made, every limit checked, nothing loaded yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from MAISILib.anatomy.masks import REGIONS, region_name
from MAISILib.diffusion.solver_names import Sampling, choose_sampling
from MAISILib.errors import RequestError, did_you_mean
from MAISILib.generation.mask_wish import checked_sizes, generator_of

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle
    from MAISILib.bundles.manifest import Manifest, Recommendation
    from MAISILib.generation.request import GenerateRequest


@dataclass(frozen=True)
class Settings:
    """What will be done.

    Args:
        size: Output voxels ``(X, Y, Z)``. For a mask from a file: the recommendation; the mask decides later.
        spacing: Output spacing in mm; ``None`` where a mask from a file keeps its own.
        labels: Wanted label values.
        regions: Wanted body regions, as indices 0–3 (head, chest, abdomen, lower: the networks' one-hot order).
        modality: Name of the modality.
        modality_code: Its class code.
        free_modality: Class code of guidance's unconditional side, ``None`` where guidance is off.
        sampling: Solver and steps of the image.
        mask_sampling: Solver and steps of the mask, where one is generated.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float] | None
    labels: tuple[int, ...]
    regions: tuple[int, ...]
    modality: str
    modality_code: int
    free_modality: int | None
    sampling: Sampling
    mask_sampling: Sampling | None


def resolve(bundle: Bundle, request: GenerateRequest) -> Settings:
    """Completes a request from the bundle's recommendations and checks it against the bundle's limits.

    Raises:
        RequestError: Unknown names (with the nearest), illegal sizes (with the nearest legal), or something that this
            bundle cannot do.
    """
    manifest = bundle.manifest
    modality, code = _modality(manifest, request)
    regions = tuple(REGIONS.index(region_name(word)) for word in request.body_region)
    if request.mask != "none" and "controlnet" not in manifest.networks:
        raise RequestError(f"Bundle {bundle.name!r} makes images without a mask only. Use --no-mask (mask='none').")
    if request.mask == "library" and manifest.masks is None:
        raise RequestError(f"Bundle {bundle.name!r} has no mask library. Give a mask file, or use --no-mask.")
    mask_sampling = _mask_sampling(bundle, request) if request.mask == "generated" else None
    if manifest.body_region_input and request.mask == "none" and not regions:
        raise RequestError(
            f"Bundle {bundle.name!r} needs body regions when it makes an image without a mask. "
            "Give --body-region head, chest, abdomen or lower."
        )
    best = recommendation(manifest, regions, modality)
    size, spacing = request.output_size or best.size, request.spacing or best.spacing
    if request.output_size or request.mask != "file":
        manifest.limits.check_size(size, bundle.size_divisor)
    manifest.limits.check_spacing(spacing)
    if request.output_size or request.mask != "file":
        manifest.limits.check_field_of_view(size, spacing, request.body_region)
    keep = request.mask == "file" and manifest.mask_spacing == "keep" and request.spacing is None
    return Settings(
        size=size,
        spacing=None if keep else spacing,
        labels=tuple(bundle.labels.find(a).value for a in request.anatomy),
        regions=regions,
        modality=modality,
        modality_code=code,
        free_modality=_free_modality(bundle, request),
        sampling=choose_sampling(manifest.schedule, solver=request.solver, steps=request.steps, preset=request.preset),
        mask_sampling=mask_sampling,
    )


def _modality(manifest: Manifest, request: GenerateRequest) -> tuple[str, int]:
    if request.modality is None:
        return next(iter(manifest.modality.items()))
    wanted = str(request.modality).strip().lower()
    for name, code in manifest.modality.items():
        if wanted in (name.lower(), str(code)):
            return name, code
    known = ", ".join(f"{name} ({code})" for name, code in manifest.modality.items())
    raise RequestError(
        f"Unknown modality {request.modality!r}; this bundle makes {known}.{did_you_mean(wanted, manifest.modality)}"
    )


def _mask_sampling(bundle: Bundle, request: GenerateRequest) -> Sampling:
    generator = generator_of(bundle, request.controllable_anatomy_size)
    checked_sizes(bundle, request.controllable_anatomy_size)
    try:
        return choose_sampling(
            generator.schedule, solver=request.mask_solver or generator.solver, steps=request.mask_steps
        )
    except RequestError as error:
        raise RequestError(f"Mask generator: {error}") from None


def _free_modality(bundle: Bundle, request: GenerateRequest) -> int | None:
    if request.guidance_scale == 0:
        return None
    free = bundle.manifest.unconditional_modality
    if free is None:
        raise RequestError(
            f"Bundle {bundle.name!r} was trained without an unconditional input, so guidance cannot be used. "
            "Leave out --guidance."
        )
    return free


def recommendation(manifest: Manifest, regions: tuple[int, ...], modality: str) -> Recommendation:
    """The first recommendation for exactly these regions, at best for this modality too; else the first for it.

    Args:
        manifest: Of the bundle.
        regions: Body regions as indices of ``REGIONS``.
        modality: Name of the modality.
    """
    names = {REGIONS[index] for index in regions}
    return max(manifest.recommended, key=lambda e: (bool(names) and set(e.regions) == names, e.modality == modality))
