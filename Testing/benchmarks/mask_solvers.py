"""Does the mask generator keep to sizes with few steps? The same vectors and noise with each solver.

``make bench``, or ``python Testing/benchmarks/mask_solvers.py [--bundle B] [--vectors N] [--ways SOLVER:STEPS ...]``.
Vectors are those of training masks that show every organ whole or not at all; each is drawn once by each way. The first
way is what the others are compared with. ``response`` is the slope of the volume that was made over the volume that was
asked for (1 is perfect, 0 is no control), over all organs; ``miss`` the mean distance in percentiles. In brackets stand
standard errors over the vectors. Volumes are kept in ``--out``, so that a broken run goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import MAISILib as maisi
from MAISILib.anatomy.organ_sizes import ABSENT, SizeTable, measure_sizes
from MAISILib.diffusion.solver_names import Sampling
from MAISILib.generation.mask_generation import most_likely_classes, sample_mask_latent
from MAISILib.generation.mask_wish import MaskWish

#: How often vectors are drawn anew for the standard error of a ratio.
RESAMPLES = 1000


class Study:
    """The networks of a mask generator, and a folder that keeps what they made.

    Args:
        bundle: With a mask generator.
        folder: Of results.
        precision: ``bfloat16`` or ``float32``, for the UNet of every way.
    """

    def __init__(self, bundle: maisi.Bundle, folder: Path, precision: str) -> None:
        self.bundle, self.wish = bundle, MaskWish(bundle, {})
        assert self.wish.size_table is not None, "the bundle tells no sizes"
        self.table: SizeTable = self.wish.size_table
        digests = bundle.weights_sha256()
        name = "-".join(digests[network][:6] for network in ("mask_autoencoder", "mask_diffusion"))
        self._folder = folder / f"{bundle.name}-{name}-{precision}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._bfloat16 = precision == "bfloat16"
        self._unet, self._autoencoder = bundle.load("mask_diffusion"), bundle.load("mask_autoencoder")

    def vectors(self, count: int) -> list[list[float]]:
        """So many vectors of training masks, always the same ones."""
        known = [[float(s) for s in row if s is not None] for row in self.table.rows if None not in row]
        random.Random(0).shuffle(known)
        return known[:count]

    def volumes(self, number: int, vector: list[float], sampling: Sampling) -> tuple[list[float | None], float]:
        """Volume in mm³ of each organ, ``None`` where it is cut off or absent, and the seconds that it took."""
        file = self._folder / f"{number:03}-{sampling.solver}-{sampling.steps}.json"
        if not file.is_file():
            started = time.perf_counter()
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
                latent = sample_mask_latent(self.bundle, self._unet, vector, number, sampling=sampling)
            seconds = time.perf_counter() - started
            classes = most_likely_classes(self._autoencoder, latent).numpy()
            sizes = measure_sizes(self.wish.finish(self.wish.classes[classes], vector), self.wish.labels)
            made = [None if size is None or not size.is_whole else size.volume_mm3 for size in sizes]
            part = file.with_suffix(".part")
            part.write_text(json.dumps({"volumes": made, "seconds": seconds}), encoding="utf-8")
            part.replace(file)
        kept = json.loads(file.read_text(encoding="utf-8"))
        return kept["volumes"], kept["seconds"]

    def pairs(self, vectors: list[list[float]], sampling: Sampling) -> tuple[np.ndarray, float]:
        """Volumes asked for and made, and both as percentiles: ``(vector, organ, 4)``, NaN where there is no pair."""
        table, seconds = np.full((len(vectors), len(self.table.names), 4), np.nan), []
        for number, vector in enumerate(vectors):
            volumes, took = self.volumes(number, vector, sampling)
            seconds.append(took)
            for organ, (name, percentile, made) in enumerate(zip(self.table.names, vector, volumes, strict=True)):
                if percentile != ABSENT and made is not None:
                    asked = self.table.volume(name, percentile)
                    table[number, organ] = asked, made, percentile, self.table.percentile(name, made)
        return table, float(np.mean(seconds))


def response(pairs: np.ndarray) -> float:
    """One slope of made over asked volumes for all organs, each about its mean and in parts of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an organ that no mask of a resample shows
        asked, made = (pairs[..., column] / np.nanmean(pairs[..., 0], axis=0) for column in (0, 1))
        asked, made = asked - np.nanmean(asked, axis=0), made - np.nanmean(made, axis=0)
    return float(np.nansum(asked * made) / np.nansum(asked**2))


def miss(pairs: np.ndarray) -> float:
    """Mean distance of percentiles."""
    return float(np.nanmean(np.abs(pairs[..., 3] - pairs[..., 2])))


def ratio(figure: Callable[[np.ndarray], float], pairs: np.ndarray, first: np.ndarray) -> tuple[float, float]:
    """A figure of one way over that of the first, and the standard error over vectors (bootstrap)."""
    draws = np.random.default_rng(0).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    error = np.std([figure(pairs[drawn]) / figure(first[drawn]) for drawn in draws])
    return figure(pairs) / figure(first), float(error)


def main() -> None:
    """Reads the command line, makes what is not there yet, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="head-neck-mini", help="name or folder")
    parser.add_argument("--vectors", type=int, default=24, help="masks for each way")
    parser.add_argument("--ways", nargs="+", default=["ancestral:1000", "ancestral:50", "ddim:50", "dpm++:50"])
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"], help="of the UNet")
    parser.add_argument("--threads", type=int, help="of PyTorch; default is its own")
    parser.add_argument("--out", type=Path, default=Path("build/mask-solvers"), help="folder that keeps results")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    study = Study(maisi.open_bundle(given.bundle), given.out, given.precision)
    vectors = study.vectors(given.vectors)
    print(f"{len(vectors)} vectors of {len(study.table.names)} organs")
    print(f"{'way':16}{'seconds':>8}{'pairs':>7}{'miss':>8}  ratio (error){'response':>11}  ratio (error)", flush=True)
    rows: list[dict[str, Any]] = []
    first: np.ndarray | None = None
    for way in given.ways:
        solver, _, steps = way.partition(":")
        pairs, seconds = study.pairs(vectors, Sampling(solver, int(steps)))
        first = pairs if first is None else first
        row = {"way": way, "seconds": seconds, "pairs": int(np.isfinite(pairs[..., 0]).sum())}
        print(f"{way:16}{seconds:8.1f}{row['pairs']:7}", end="")
        for name, figure, width in (("miss", miss, 8), ("response", response, 11)):
            times, error = ratio(figure, pairs, first)
            row |= {name: figure(pairs), f"{name}_ratio": times, f"{name}_ratio_error": error}
            print(f"{row[name]:{width}.3f}  {times:5.2f} ({error:.2f}) ", end="")
        rows.append(row)
        print(flush=True)
    if given.json:
        content = {"bundle": str(study.bundle), "vectors": vectors, "rows": rows}
        given.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
