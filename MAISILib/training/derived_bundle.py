"""A bundle made from another one: the parent's networks, an own ControlNet, more labels and masks."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from MAISILib.anatomy.grids import content_box
from MAISILib.anatomy.labels import LabelTable
from MAISILib.anatomy.library import MaskLibrary, build_library
from MAISILib.bundles.bundle import Bundle
from MAISILib.bundles.manifest import MANIFEST_NAME, Manifest, NetworkEntry, write_manifest
from MAISILib.bundles.weights import sha256_of
from MAISILib.files.atomic import atomic_folder
from MAISILib.generation.settings import recommendation
from MAISILib.volumes import Grid, LabelMap

_SUFFIX = ", fine-tuned"


def write_derived_bundle(
    parent: Bundle,
    out: Path,
    table: LabelTable,
    controlnet: Path,
    masks: Iterable[LabelMap],
    focus: tuple[int, ...],
    made_by: dict[str, Any],
) -> Path:
    """Writes a whole bundle or nothing.

    The library holds the parent's masks (where they are in our format; a published library of thousands stays with the
    parent) and the new ones, so that new labels can be asked for at once. Of the new masks only voxels are kept: they
    are numbered, and their centres lie at the origin.

    Args:
        parent: Its networks are copied.
        out: The new folder; one that holds a bundle is replaced.
        table: Labels of the new bundle.
        controlnet: Its weights, safetensors.
        masks: New label maps for the library, in the orientation of the bundle's own (R, A, S).
        focus: Labels that shall be seen when a mask is taken at the bundle's first recommended size.
        made_by: For the manifest; parent and its weights are added.

    Raises:
        BundleError: A file of the parent is missing or damaged.
        OutputError: The folder cannot be written, or holds something else.
    """
    old = parent.manifest
    with atomic_folder(out, MANIFEST_NAME) as folder:
        entries: dict[str, NetworkEntry] = {}
        for name, entry in old.networks.items():
            if name == "controlnet":
                path = Path(shutil.copyfile(controlnet, folder / "controlnet.safetensors"))
                form = "safetensors"
            else:
                parent.check_file(name)
                path, form = _copied(parent, entry.weights, folder), entry.format
            entries[name] = NetworkEntry(
                definition=entry.definition,
                weights=path.relative_to(folder).as_posix(),
                format=form,
                sha256=sha256_of(path),
                bytes=path.stat().st_size,
            )
        for table_file in _tables(old):
            if parent.path(table_file).is_file():  # else it is one of Resources
                _copied(parent, table_file, folder)
        table.write(folder / "labels.csv")
        index = build_library(_library(parent, table, masks, focus), folder / "masks", table)
        fields = old.model_dump() | {
            "name": _name(out),
            "title": old.title.removesuffix(_SUFFIX) + _SUFFIX,
            "version": "1",
            "labels": "labels.csv",
            "networks": entries,
            "scale_factor": parent.scale_factor(),
            "masks": {"index": index.relative_to(folder).as_posix(), "format": "maisi"},
            "sources": {},
            "made_by": {
                **made_by,
                "parent": {"name": parent.name, "version": old.version, "weights_sha256": parent.weights_sha256()},
            },
        }
        write_manifest(Manifest.model_validate(fields), folder)
    return out


def _name(out: Path) -> str:
    """A bundle name from a folder's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", out.absolute().name).strip("-._") or "fine-tuned"


def _tables(manifest: Manifest) -> list[str]:
    """Tables that the manifest names, which may lie in the bundle."""
    generator = manifest.mask_generator
    named = [manifest.quality, *((generator.sizes, generator.classes) if generator else ())]
    return [path for path in named if isinstance(path, str)]


def _copied(parent: Bundle, relative: str, folder: Path) -> Path:
    target = folder / relative
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(parent.path(relative), target))


def _library(
    parent: Bundle, table: LabelTable, masks: Iterable[LabelMap], focus: tuple[int, ...]
) -> Iterator[tuple[str, LabelMap]]:
    own = parent.manifest.masks
    taken: set[str] = set()
    if own is not None and own.format == "maisi":
        library = MaskLibrary.open(parent.path(own.index), own.format, table)
        for entry in library.entries:
            name = Path(entry.file).name.removesuffix(".nii.gz")
            taken.add(name.casefold())
            yield name, library.load(entry)
    best = recommendation(parent.manifest, (), next(iter(parent.manifest.modality)))
    number = 0
    for mask in masks:
        number += 1
        while f"case-{number}" in taken:
            number += 1
        part = _in_view(mask, focus, [n * s for n, s in zip(best.size, best.spacing, strict=True)])
        grid = Grid.axis_aligned(part.grid.shape, part.spacing)
        yield f"case-{number}", replace(part, affine=grid.affine, table=table, source="case of a fine-tuning")


def _in_view(mask: LabelMap, focus: tuple[int, ...], view: list[float]) -> LabelMap:
    """The mask, or a part of it, so that its middle has the focus in it: ``view`` (mm) is what of it will be shown."""
    inside = np.isin(mask.array, focus)
    if not inside.any():
        return mask
    box = content_box(mask.with_array(inside.astype(np.uint8)))
    kept = []
    for n, step, extent, first, last in zip(mask.array.shape, mask.spacing, view, *box, strict=True):
        length = min(n, int(extent / step + 1e-6))
        start = (n - length) // 2
        if start < first and last < start + length - 1:  # a voxel to spare, for resampling
            kept.append(slice(None))
            continue
        start = min(max((first + last + 1 - length) // 2, 0), n - length)
        kept.append(slice(start, start + length))
    return mask.with_array(np.ascontiguousarray(mask.array[tuple(kept)]))
