"""Does ``head-neck-mini`` follow masks of patients that it was not trained on? Medians in HU and Dice of bone.

``python Testing/benchmarks/follows_mask.py --data OPENKBP/validation [--cases 6] [--steps 30] [--json FILE]``. Without
``--data`` it takes masks of the bundle's library, which are training patients, and says so.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import MAISILib as maisi
from MAISILib.anatomy.library import MaskLibrary
from MAISILib.files.nifti import write_labels
from MAISILib.training.head_neck import AIR, BODY, BONE, BONE_HU, case_names, crop_grid, read_case, sample_case

Patient = tuple[str, maisi.LabelMap, np.ndarray | None]


def patients(bundle: maisi.Bundle, data: Path | None, count: int) -> Iterator[Patient]:
    """Name, mask on the recommended grid and, for patients of ``data``, the real CT there."""
    best = bundle.manifest.recommended[0]
    if data is None:
        assert bundle.manifest.masks is not None
        library = MaskLibrary.open(bundle.path(bundle.manifest.masks.index), "maisi", bundle.labels)
        for entry in library.entries[:: max(1, len(library) // count)][:count]:
            yield entry.file, library.load(entry), None
        return
    names = case_names(data)
    for name in names[:: max(1, len(names) // count)][:count]:
        case = read_case(data, name)
        grid = crop_grid(case, best.size, best.spacing, 0.5)
        ct, labels = sample_case(case, grid)
        yield name, maisi.LabelMap(labels, grid.affine, bundle.labels, name), ct


def measure(image: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Median HU of bone, soft tissue and gas, largest HU outside, Dice between the mask's bone and bright voxels."""
    bone, inside = labels == BONE, labels > 0
    bright = (image > BONE_HU) & np.isin(labels, (BONE, BODY, AIR))
    return {
        "bone_hu": float(np.median(image[bone])),
        "soft_tissue_hu": float(np.median(image[labels == BODY])),
        "gas_hu": float(np.median(image[labels == AIR])),
        "outside_hu": float(image[~inside].max()),
        "bone_dice": float(2 * (bright & bone).sum() / max(1, bright.sum() + bone.sum())),
    }


def main() -> None:
    """Generates and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cases", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    bundle = maisi.open_bundle("head-neck-mini")
    print("patients not trained on" if given.data else "masks of training patients (give --data for others)")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, mask, ct in patients(bundle, given.data, given.cases):
            path = Path(folder) / "mask.nii.gz"
            write_labels(mask, path)
            request = maisi.GenerateRequest(mask_file=path, seed=7, steps=given.steps, quality_check=False)
            row = measure(maisi.generate(bundle, request).image.array, mask.array)
            row |= {f"real_{key}": value for key, value in measure(ct, mask.array).items()} if ct is not None else {}
            rows.append({"case": name, **row})
            print(name, "  ".join(f"{key} {value:.2f}" for key, value in row.items()), flush=True)
    mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key != "case"}
    print("mean", "  ".join(f"{key} {value:.2f}" for key, value in mean.items()))
    if given.json:
        given.json.write_text(json.dumps({"mean": mean, "cases": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
