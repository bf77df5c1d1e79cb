"""A bundle made from another one: the parent's networks, an own ControlNet, more labels and masks."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from MAISILib.anatomy.labels import LabelTable
from MAISILib.anatomy.library import MaskLibrary, build_library
from MAISILib.bundles.bundle import Bundle
from MAISILib.bundles.manifest import MANIFEST_NAME, Manifest, NetworkEntry, write_manifest
from MAISILib.bundles.weights import sha256_of
from MAISILib.files.atomic import atomic_folder
from MAISILib.volumes import Grid, LabelMap


def write_derived_bundle(
    parent: Bundle,
    out: Path,
    table: LabelTable,
    controlnet: Path,
    masks: Iterable[tuple[str, LabelMap]],
    made_by: dict[str, Any],
) -> Path:
    """Writes a whole bundle or nothing.

    The library holds the parent's masks (where they are in our format; a published library of thousands stays with the
    parent) and the new ones, so that new labels can be asked for at once.

    Args:
        parent: Its networks are copied.
        out: The new folder; one that holds a bundle is replaced.
        table: Labels of the new bundle.
        controlnet: Its weights, safetensors.
        masks: Name and label map; their centres are moved to the origin.
        made_by: For the manifest; parent and its weights are added.

    Raises:
        OutputError: The folder cannot be written, or holds something else.
    """
    old = parent.manifest
    with atomic_folder(out, MANIFEST_NAME) as folder:
        entries: dict[str, NetworkEntry] = {}
        for name, entry in old.networks.items():
            source = controlnet if name == "controlnet" else parent.path(entry.weights)
            path = folder / (f"{name}.safetensors" if name == "controlnet" else entry.weights)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)
            form = "safetensors" if name == "controlnet" else entry.format
            entries[name] = NetworkEntry(
                definition=entry.definition,
                weights=path.relative_to(folder).as_posix(),
                format=form,
                sha256=sha256_of(path),
                bytes=path.stat().st_size,
            )
        table.write(folder / "labels.csv")
        index = build_library(_library(parent, table, masks), folder / "masks", table)
        fields = old.model_dump() | {
            "name": _name(out),
            "title": f"{old.title}, fine-tuned",
            "version": "1",
            "labels": "labels.csv",
            "networks": entries,
            "scale_factor": parent.scale_factor(),
            "masks": {"index": index.relative_to(folder).as_posix(), "format": "maisi"},
            "quality": _quality(parent, folder),
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
    return re.sub(r"[^A-Za-z0-9._-]+", "-", out.name).strip("-._") or "fine-tuned"


def _quality(parent: Bundle, folder: Path) -> str | None:
    path = parent.quality_path()
    if path is None:
        return None
    shutil.copyfile(path, folder / "quality.csv")
    return "quality.csv"


def _library(
    parent: Bundle, table: LabelTable, masks: Iterable[tuple[str, LabelMap]]
) -> Iterator[tuple[str, LabelMap]]:
    own = parent.manifest.masks
    taken: set[str] = set()
    if own is not None and own.format == "maisi":
        library = MaskLibrary.open(parent.path(own.index), own.format, table)
        for entry in library.entries:
            name = Path(entry.file).name.removesuffix(".nii.gz")
            taken.add(name.casefold())
            yield name, library.load(entry)
    for number, (name, mask) in enumerate(masks):
        plain = f"case-{re.sub(r'[^A-Za-z0-9_-]+', '-', name).strip('-') or number}"
        while plain.casefold() in taken:
            plain = f"{plain}-{number}"
        taken.add(plain.casefold())
        grid = Grid.axis_aligned(mask.grid.shape, mask.spacing)
        yield plain, replace(mask, affine=grid.affine, table=table)
