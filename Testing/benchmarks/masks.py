"""How long a mask of 256³ voxels takes to be checked, to get a body, with a CT and without, and to be cleaned up.

``make bench``, or ``python Testing/benchmarks/masks.py [--size N] [--json FILE]``. The patient is made up: a trunk with
as many organs as the public labels have, each of them an ellipsoid, on a table. Seconds are those of a clock; the
processor's tell how much of them was waiting for other programs. Masks to clean up have specks of all labels in them,
as a generator draws them; that of 96³ voxels is the size for which 15 s are published.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import MAISILib as maisi
from MAISILib.anatomy.envelope import add_body
from MAISILib.anatomy.labels import default_table
from MAISILib.anatomy.mask_cleanup import clean_up
from MAISILib.anatomy.variation import vary_mask
from MAISILib.bundles.bundle import describe_bundle
from MAISILib.generation.mask_check import check_mask_for
from MAISILib.volumes import Grid, LabelMap, Volume

#: Seconds on two cores that each step must stay below at 256³.
BOUNDS = {
    "check": 5.0,
    "envelope with a CT": 15.0,
    "envelope without": 15.0,
    "clean-up": 20.0,
    "clean-up of 96³": 0.75,
    "another patient": 20.0,
}
#: Part of the voxels that a drawn mask has as specks.
_SPECKS = 0.002


def patient(size: int, seed: int = 0) -> tuple[LabelMap, Volume]:
    """A trunk with an organ for each public label, in a CT with lungs of air and a table."""
    rng = np.random.default_rng(seed)
    grid = Grid.axis_aligned((size, size, size), (384 / size, 384 / size, 512 / size))
    x, y, z = np.ogrid[tuple(slice(-1, 1, size * 1j) for _ in range(3))]
    trunk = (x / 0.85) ** 2 + (y / 0.6) ** 2 + 0 * z <= 1
    array = np.zeros((size,) * 3, np.uint8)
    for label in default_table():
        if label.is_unused or label.value == 200:
            continue
        center, radius = rng.uniform(-0.45, 0.45, 3) * (1, 0.7, 1.9), rng.uniform(0.04, 0.22, 3)
        first, last = (((center + side * radius + 1) / 2 * size).astype(int).clip(0, size - 1) for side in (-1, 1))
        box = tuple(slice(int(low), int(high) + 1) for low, high in zip(first, last, strict=True))
        near = (x[box[0]], y[:, box[1]], z[:, :, box[2]])
        inside = sum(((axis - c) / r) ** 2 for axis, c, r in zip(near, center, radius, strict=True)) <= 1
        array[box][inside & (np.hypot(near[0] / 0.8, near[1] / 0.55) <= 1)] = label.value
    hounsfield = np.where(trunk, np.int16(40), np.int16(-1000))
    hounsfield[np.isin(array, (28, 29, 30, 31, 32))] = -850
    hounsfield[:, int(0.05 * size) : int(0.08 * size)] = 100
    return LabelMap(array, grid.affine, default_table()), Volume(hounsfield, grid.affine)


def with_specks(mask: LabelMap, seed: int = 0) -> LabelMap:
    """A mask as a generator may draw it."""
    rng = np.random.default_rng(seed)
    array = mask.array.copy()
    speck = rng.random(array.shape, np.float32) < _SPECKS
    array[speck] = rng.choice(np.array([0, *mask.labels], np.uint8), np.count_nonzero(speck))
    return mask.with_array(array)


def timed(step: Callable[[], Any]) -> tuple[Any, float, float]:
    """The outcome, and seconds of the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    outcome = step()
    return outcome, time.perf_counter() - clock, time.process_time() - processor


def main() -> None:
    """Reads the command line, prints a row for every step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="voxels along each axis")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    mask, ct = patient(given.size)
    bundle = describe_bundle("nv-rflow-ct")
    whole = add_body(mask, ct)
    generator = bundle.manifest.mask_generator
    one_piece = generator.one_piece if generator is not None else []
    drawn, small = with_specks(whole), with_specks(add_body(patient(96)[0]))
    steps: dict[str, Callable[[], Any]] = {
        "check": lambda: check_mask_for(whole, bundle),
        "envelope with a CT": lambda: add_body(mask, ct),
        "envelope without": lambda: add_body(mask),
        "clean-up": lambda: clean_up(drawn, one_piece=one_piece),
        "clean-up of 96³": lambda: clean_up(small, one_piece=one_piece),
        "another patient": lambda: vary_mask(whole, seed=1),
    }
    print(f"{given.size}³ voxels, {len(whole.labels)} labels, {os.cpu_count()} cores, MAISI {maisi.__version__}")
    print(f"{'':22}{'seconds':>9}{'processor':>11}{'bound':>7}")
    rows = []
    for name, step in steps.items():
        _, clock, processor = timed(step)
        rows.append({"step": name, "seconds": round(clock, 2), "processor": round(processor, 2), "bound": BOUNDS[name]})
        print(f"{name:22}{clock:9.2f}{processor:11.2f}{BOUNDS[name]:7.3g}", flush=True)
    if given.json:
        given.json.write_text(json.dumps({"size": given.size, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
