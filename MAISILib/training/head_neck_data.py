"""The training set of ``head-neck-mini``: the OpenKBP patients on the model's grids, as image pairs and a data list."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from MAISILib.anatomy.labels import LabelTable
from MAISILib.errors import TrainingError
from MAISILib.files.atomic import write_text
from MAISILib.files.nifti import write_labels, write_volume
from MAISILib.training.head_neck import Case, case_names, crop_grid, read_case, sample_case
from MAISILib.volumes import Grid, LabelMap, Volume

DATALIST_NAME = "datalist.json"
#: What the pairs in a folder were asked to be.
_SETTINGS_NAME = "settings.json"


def prepare_patients(
    data: Path,
    out: Path,
    table: LabelTable,
    shape: tuple[int, int, int],
    spacings: list[tuple[float, float, float]],
    *,
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda message: None,
) -> Path:
    """Writes ``<split>/<case>-<variant>_ct.nii.gz`` and ``_seg.nii.gz`` and the data list; returns its path.

    Training patients give one crop for every entry of ``spacings``: the first is centred, the others lie at a random
    height. Validation patients, who are never learned from, give the centred one only.

    Args:
        data: OpenKBP: ``train/`` and ``validation/``.
        out: Folder for the pairs. What it holds already is not made again.
        table: Labels of the bundle.
        shape: Voxels of every crop.
        spacings: mm ``(x, y, z)``.
        seed: Of the heights.
        on_progress: Called with a line now and then.

    Raises:
        TrainingError: A folder holds no patients, a patient's file is missing, or ``out`` holds other crops.
    """
    _check_settings(out, {"shape": list(shape), "spacings": [list(spacing) for spacing in spacings], "seed": seed})
    path = out / DATALIST_NAME
    if path.exists():
        return path
    entries: dict[str, list[dict[str, Any]]] = {"training": [], "validation": []}
    for split, section in (("train", "training"), ("validation", "validation")):
        names = case_names(data / split)
        for number, name in enumerate(names):
            wanted = spacings if split == "train" else spacings[:1]
            crops = {f"{split}/{name}-{variant}": (variant, spacing) for variant, spacing in enumerate(wanted)}
            if missing := [stem for stem in crops if not _is_there(out, stem)]:
                case = read_case(data / split, name)
                for stem in missing:
                    variant, spacing = crops[stem]
                    _write_pair(case, _grid(case, variant, shape, spacing, seed), out, stem, table)
            entries[section] += [
                {
                    "image": f"{stem}_ct.nii.gz",
                    "label": f"{stem}_seg.nii.gz",
                    "dim": list(shape),
                    "spacing": list(spacing),
                    "modality": "ct",
                }
                for stem, (_, spacing) in crops.items()
            ]
            if number % 20 == 0:
                on_progress(f"{split}: {number + 1} of {len(names)} patients prepared")
    write_text(path, json.dumps(entries, indent=1) + "\n")
    return path


def centred_masks(datalist: Path, table: LabelTable) -> Iterator[tuple[str, Volume, LabelMap]]:
    """Case name, CT and label map of the centred crop of every training patient."""
    from MAISILib.files.nifti import read_labels, read_volume

    for entry in json.loads(datalist.read_text(encoding="utf-8"))["training"]:
        name, _, variant = Path(entry["label"]).name.removesuffix("_seg.nii.gz").rpartition("-")
        if variant == "0":
            folder = datalist.parent
            yield name, read_volume(folder / entry["image"]), read_labels(folder / entry["label"], table)


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Makes sure that pairs which are there already are of the kind that is asked for."""
    path = out / _SETTINGS_NAME
    text = json.dumps(settings) + "\n"
    if not path.exists():
        write_text(path, text)
    elif path.read_text(encoding="utf-8") != text:
        raise TrainingError(f"{out} holds crops of other sizes or places. Give another folder, or delete this one.")


def _is_there(out: Path, stem: str) -> bool:
    return all((out / f"{stem}_{kind}.nii.gz").is_file() for kind in ("ct", "seg"))


def _grid(
    case: Case, variant: int, shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int
) -> Grid:
    height = 0.5 if variant == 0 else random.Random(f"{seed}/{case.name}/{variant}").random()
    return crop_grid(case, shape, spacing, height)


def _write_pair(case: Case, grid: Grid, out: Path, stem: str, table: LabelTable) -> None:
    ct, labels = sample_case(case, grid)
    image = Volume(np.round(ct).astype(np.int16), grid.affine)
    write_volume(image, out / f"{stem}_ct.nii.gz", f"OpenKBP {case.name}", synthetic=False)
    write_labels(LabelMap(labels, grid.affine, table, case.name), out / f"{stem}_seg.nii.gz", synthetic=False)
