"""Training crops of the head-and-neck cases, resampled once and kept in a folder."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MAISILib.training import head_neck


@dataclass(frozen=True)
class Crop:
    """A file ``<case>-<variant>.npz`` with ``ct`` (int16 HU) and ``labels`` (uint8), ``(X, Y, Z)``; spacing in mm."""

    path: Path
    case: str
    spacing: tuple[float, float, float]
    body_voxels: int

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """CT in HU as float32 and labels."""
        with np.load(self.path) as data:
            return data["ct"].astype(np.float32), data["labels"]


def prepare_crops(
    data: Path,
    out: Path,
    shape: tuple[int, int, int],
    spacings: list[tuple[float, float, float]],
    *,
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda message: None,
) -> list[Crop]:
    """Cuts one crop for every case and entry of ``spacings``, skipping those already in ``out``.

    The first crop of each case is centred on the patient; the others lie at a random height. Returns all crops.
    """
    out.mkdir(parents=True, exist_ok=True)
    index_path = out / "index.json"
    if not index_path.exists():
        index = []
        names = head_neck.case_names(data)
        for number, name in enumerate(names):
            case = head_neck.read_case(data, name)
            for variant, spacing in enumerate(spacings):
                height = 0.5 if variant == 0 else random.Random(f"{seed}/{name}/{variant}").random()
                ct, labels = head_neck.sample_case(case, head_neck.crop_grid(case, shape, spacing, height))
                path = out / f"{name}-{variant}.npz"
                np.savez(path, ct=np.round(ct).astype(np.int16), labels=labels)
                index.append(
                    {"file": path.name, "case": name, "spacing": spacing, "body_voxels": int((labels > 0).sum())}
                )
            on_progress(f"{name} ({number + 1} of {len(names)})")
        index_path.write_text(json.dumps(index), encoding="utf-8")
    return [
        Crop(out / e["file"], e["case"], tuple(e["spacing"]), e["body_voxels"])
        for e in json.loads(index_path.read_text(encoding="utf-8"))
        if e["body_voxels"] > 2000
    ]


def pick(crops: list[Crop], rng: random.Random) -> Crop:
    """A crop at random; those that hold much of a patient come more often (square root of the body's voxels)."""
    return rng.choices(crops, weights=[c.body_voxels**0.5 for c in crops])[0]
