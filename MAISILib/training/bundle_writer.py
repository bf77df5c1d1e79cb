"""Puts trained networks together into a bundle folder: weights, masks, statistics, manifest."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from MAISILib.bundles.manifest import Manifest, NetworkEntry, write_manifest
from MAISILib.bundles.weights import save_safetensors, sha256_of
from MAISILib.files.atomic import atomic_path
from MAISILib.quality.hu_check import COLUMNS, TISSUE_COLUMNS, median_statistics, tissue_quartile
from MAISILib.training.trained_networks import TrainedNetwork


def write_trained(folder: Path, trained: TrainedNetwork) -> NetworkEntry:
    """Writes ``<name>.safetensors`` in fp16 and returns its manifest entry."""
    path = save_safetensors(trained.read().weights, folder / f"{trained.name}.safetensors")
    return NetworkEntry(
        definition=trained.definition,
        weights=path.name,
        format="safetensors",
        sha256=sha256_of(path),
        bytes=path.stat().st_size,
    )


def write_statistics(
    path: Path, pairs: Iterable[tuple[np.ndarray, np.ndarray]], organs: dict[str, tuple[int, ...]]
) -> None:
    """Writes what HU each organ has, measured on pairs of a CT (HU) and its labels, both ``(X, Y, Z)``."""
    medians: dict[str, list[float]] = {organ: [] for organ in organs}
    tissue: dict[str, list[float]] = {organ: [] for organ in organs}
    for ct, labels in pairs:
        for organ, values in organs.items():
            inside = ct[np.isin(labels, values)]
            if inside.size >= 10:
                medians[organ].append(float(np.median(inside)))
                tissue[organ] += [] if (found := tissue_quartile(inside)) is None else [found]
    rows = median_statistics(medians, organs, tissue)
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *TISSUE_COLUMNS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_bundle(folder: Path, fields: dict[str, Any]) -> None:
    """Checks the manifest's fields and writes ``bundle.json``, last of all."""
    write_manifest(Manifest(**fields), folder)
