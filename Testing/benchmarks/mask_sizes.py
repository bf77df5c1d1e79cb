"""Does the mask generator do as it is told? Organs asked for small and large, against the real difference.

``make bench``, or ``python Testing/benchmarks/mask_sizes.py [--bundle B] [--seeds N] [--solver S] [--steps N]
[--json FILE]``. Only masks are made, no images. Percentiles are those of the training masks, of which the bundle's
table tells the volumes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import MAISILib as maisi
from MAISILib.generation.mask_generation import generated_volumes, real_volumes

PERCENTILES = (0.2, 0.8)


def measure(bundle: maisi.Bundle, anatomy: str, seeds: list[int], **sampling: Any) -> dict[str, Any]:
    """Mean volumes in mm³ for both percentiles, made and real, and the part of the real difference that was reached."""
    real = real_volumes(bundle, anatomy, PERCENTILES)
    made = [generated_volumes(bundle, anatomy, percentile, seeds, **sampling) for percentile in PERCENTILES]
    whole = [[volume for volume in volumes if volume is not None] for volumes in made]
    means = [float(np.mean(volumes)) if volumes else float("nan") for volumes in whole]
    return {
        "anatomy": anatomy,
        "real_mm3": real,
        "made_mm3": [round(mean, 1) for mean in means],
        "whole": [len(volumes) for volumes in whole],
        "response": round((means[1] - means[0]) / (real[1] - real[0]), 3),
    }


def main() -> None:
    """Reads the command line, prints a row for every controllable anatomy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="head-neck-mini", help="name or folder")
    parser.add_argument("--seeds", type=int, default=10, help="masks for each size")
    parser.add_argument("--solver", help="default is the bundle's")
    parser.add_argument("--steps", type=int, help="solver steps; default is the bundle's")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    bundle = maisi.open_bundle(given.bundle)
    if bundle.manifest.mask_generator is None:
        print(f"{bundle.name} has no mask generator: nothing to measure.")
        return
    started, rows = time.perf_counter(), []
    print(f"{'volumes in mm³':22}{'real 20 %':>11}{'80 %':>9}{'made 20 %':>11}{'80 %':>9}  {'whole':>7}  response")
    for anatomy in bundle.manifest.controllable:
        row = measure(bundle, anatomy, list(range(given.seeds)), solver=given.solver, steps=given.steps)
        rows.append(row)
        (low, high), (small, large) = row["real_mm3"], row["made_mm3"]
        volumes = f"{low:11.0f}{high:9.0f}{small:11.0f}{large:9.0f}"
        print(f"{anatomy:22}{volumes}  {'/'.join(map(str, row['whole'])):>7}  {row['response']:.2f}", flush=True)
    print(f"{time.perf_counter() - started:.0f} s for {2 * given.seeds * len(rows)} masks")
    if given.json:
        given.json.write_text(json.dumps({"bundle": str(bundle), "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
