"""Checks a user's mask against everything that generating with a bundle will ask of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from MAISILib.anatomy.envelope import MARGIN_MM, has_body
from MAISILib.anatomy.grids import Box, content_box, losses
from MAISILib.anatomy.labels import LabelTable
from MAISILib.anatomy.mask_report import Finding, MaskReport, examine
from MAISILib.anatomy.masks import REGIONS, BodyRegions
from MAISILib.errors import MaisiError
from MAISILib.generation.mask_grid import grid_for_mask
from MAISILib.generation.settings import recommendation
from MAISILib.resampling import canonical_grid, resample_labels, to_canonical
from MAISILib.volumes import Grid, LabelMap

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle


class CheckedMask(NamedTuple):
    """A mask and what was found out about it."""

    mask: LabelMap
    report: MaskReport


def check_mask_file(path: Path, bundle: Bundle) -> CheckedMask:
    """Reads a mask and looks it over. Nothing is written, no network is loaded.

    Args:
        path: NIfTI, NRRD or ``.seg.nrrd``, in the bundle's labels.
        bundle: What it is to be used with.

    Raises:
        FileFormatError: The file cannot be read.
        MaskError: Its voxels are no labels, or it has segments that the bundle does not know.
    """
    from MAISILib.files.images import read_mask

    mask = read_mask(path, bundle.labels)
    return CheckedMask(mask, check_mask_for(mask, bundle))


def check_mask_for(mask: LabelMap, bundle: Bundle) -> MaskReport:
    """Looks a mask over: its labels, and whether its voxels and its field of view suit the bundle."""
    report = examine(mask)
    if "controlnet" not in bundle.manifest.networks:
        text = f"Bundle {bundle.name!r} makes images without a mask only. Choose another bundle."
        report = report.with_findings(Finding("error", "bundle", text))
    regions = BodyRegions(*report.regions).between() if report.regions else []
    return report.with_findings(*_about_the_grid(mask, bundle, regions)) if report.labels else report


def _about_the_grid(mask: LabelMap, bundle: Bundle, regions: list[str]) -> list[Finding]:
    """What generating without a size and a spacing of the user's own will make of the mask's voxels."""
    manifest = bundle.manifest
    modality = next(iter(manifest.modality))
    usual = recommendation(manifest, (), modality)
    keeps = manifest.mask_spacing == "keep"
    own = canonical_grid(mask.grid).spacing
    found = _about_the_field_of_view(mask, bundle, regions)
    try:
        manifest.limits.check_spacing(own)
    except MaisiError as error:
        found.append(Finding("warning" if keeps else "note", "spacing", f"{error} The mask will be resampled."))
    best = recommendation(manifest, tuple(REGIONS.index(name) for name in regions), modality)
    if best is not usual:
        text = f"Recommended for {', '.join(best.regions)}: {_times(best.size)} voxels of {_times(best.spacing)} mm."
        found.append(Finding("note", "size", f"{text} Ask for it with --spacing."))
    spacing = None if keeps else usual.spacing
    try:
        grid = grid_for_mask(bundle, mask.grid, _content_with_body(mask), recommended=usual.size, spacing=spacing)
    except MaisiError as error:
        return [*found, Finding("error", "size", str(error))]
    text = f"The networks will work on {_times(grid.shape)} voxels of {_times(grid.spacing)} mm"
    coarser = max(new / old for new, old in zip(grid.spacing, own, strict=True))
    text += f", up to {coarser:.1f} times coarser than the mask." if coarser > 1.5 else "."
    return [*found, Finding("note", "size", text), *_about_losses(mask, grid)]


def _about_losses(mask: LabelMap, grid: Grid) -> list[Finding]:
    """What a model grid has no voxels for."""
    found = losses(mask, resample_labels(mask, grid))
    lines = []
    if gone := [loss for loss in found if not loss.kept]:
        text = (
            f"Too small for these voxels, and lost: {', '.join(map(str, gone))}. Ask for smaller ones with --spacing."
        )
        lines.append(Finding("warning", "size", text))
    if halved := [loss for loss in found if loss.kept]:
        text = f"More than half of their voxels change: {', '.join(map(str, halved))}."
        lines.append(Finding("note", "size", text))
    return lines


def _about_the_field_of_view(mask: LabelMap, bundle: Bundle, regions: list[str]) -> list[Finding]:
    """Whether the patient is cut off at the sides where the bundle's training images showed all of him."""
    needed, _ = bundle.manifest.limits.minimum_field_of_view(regions)
    array, affine = to_canonical(mask.array, mask.affine)
    grid = Grid(array.shape, affine)  # type: ignore[arg-type]
    cut = [
        f"{name} ({grid.field_of_view[axis]:.0f} mm)"
        for axis, name in enumerate(("left–right", "front–back"))
        if grid.field_of_view[axis] < needed and np.take(array, (0, -1), axis=axis).any()
    ]
    if not cut:
        return []
    text = (
        f"The mask cuts the patient off {' and '.join(cut)}; the bundle's images show at least {needed:.0f} mm. Beyond "
        "the mask there will be air."
    )
    return [Finding("warning", "field of view", text)]


def _content_with_body(mask: LabelMap) -> Box:
    """Where the labels lie, with the room that a body around them will take."""
    box = content_box(mask)
    if has_body(mask) or LabelTable.BODY not in mask.table:
        return box
    room = np.ceil(MARGIN_MM / np.asarray(mask.spacing)).astype(int)
    first = np.maximum(np.asarray(box.first) - room, 0)
    last = np.minimum(np.asarray(box.last) + room, np.asarray(mask.grid.shape) - 1)
    return Box(tuple(map(int, first)), tuple(map(int, last)))  # type: ignore[arg-type]


def _times(values: tuple[float, ...]) -> str:
    return " × ".join(f"{value:.4g}" for value in values)
