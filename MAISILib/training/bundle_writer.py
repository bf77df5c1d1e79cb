"""Puts trained networks together into a bundle folder: weights, masks, statistics, manifest."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from MAISILib.anatomy.labels import LabelTable
from MAISILib.anatomy.library import build_library
from MAISILib.bundles.manifest import Manifest, NetworkEntry, write_manifest
from MAISILib.bundles.weights import save_safetensors, sha256_of
from MAISILib.files.atomic import atomic_path
from MAISILib.quality.hu_check import COLUMNS, median_statistics
from MAISILib.training.crops import Crop
from MAISILib.volumes import Grid, LabelMap


def write_network(folder: Path, name: str, definition: dict[str, Any], state: dict[str, Any]) -> NetworkEntry:
    """Writes ``<name>.safetensors`` in fp16 and returns its manifest entry."""
    path = folder / f"{name}.safetensors"
    save_safetensors(state, path)
    return NetworkEntry(
        definition=definition,
        weights=path.name,
        format="safetensors",
        sha256=sha256_of(path),
        bytes=path.stat().st_size,
    )


def write_library(folder: Path, crops: Iterable[Crop], table: LabelTable) -> Path:
    """Writes the label maps of crops as a mask library and returns its index. Patients are numbered, axes centred."""

    def masks() -> Iterable[tuple[str, LabelMap]]:
        for crop in crops:
            labels = crop.load()[1]
            grid = Grid.axis_aligned(labels.shape, crop.spacing)  # type: ignore[arg-type]
            yield crop.case.replace("_", "-"), LabelMap(labels, grid.affine, table, f"segmentation of {crop.case}")

    return build_library(masks(), folder, table)


def write_statistics(path: Path, crops: Iterable[Crop], organs: dict[str, tuple[int, ...]]) -> None:
    """Writes the ranges of median HU per organ, measured on the CTs of crops."""
    medians: dict[str, list[float]] = {organ: [] for organ in organs}
    for crop in crops:
        ct, labels = crop.load()
        for organ, values in organs.items():
            inside = ct[np.isin(labels, values)]
            if inside.size >= 10:
                medians[organ].append(float(np.median(inside)))
    rows = median_statistics(medians, organs)  # type: ignore[arg-type]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(COLUMNS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_bundle(folder: Path, fields: dict[str, Any]) -> None:
    """Checks the manifest's fields and writes ``bundle.json``, last of all."""
    write_manifest(Manifest(**fields), folder)
