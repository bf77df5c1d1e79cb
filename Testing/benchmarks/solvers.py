"""How near solvers come to the exact path of a model, by the number of evaluations of its networks.

``make bench``, or ``python Testing/benchmarks/solvers.py [--bundle B] [--masks N] [--size X Y Z] [--out FOLDER]``. For
each mask of the bundle's library all solvers start from the same noise. Their latents and images are compared with
those of a long run on times that are even, which stands for the exact path; two time paths are tried: *even*, and
*bent* as the bundle has it. Beside that stand the figures that tell a good CT: medians of bone and soft tissue (label
body), the scatter of soft tissue, and Dice of bone above 180 HU with the mask's. Whatever has been computed is kept in
``--out``, so that a broken run goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import MAISILib as maisi
from MAISILib.anatomy.masks import label_bits
from MAISILib.codec.codec import Codec, IntensityScale
from MAISILib.codec.strategies import Strategy
from MAISILib.diffusion.networks import Conditions
from MAISILib.diffusion.sampler import Denoiser, sample_latent
from MAISILib.diffusion.schedules import FlowSchedule, schedule_of
from MAISILib.diffusion.solver_names import SOLVER_NAMES, Sampling
from MAISILib.diffusion.solvers import make_solver
from MAISILib.generation.conditioning import ConditioningMask, prepare

#: Value above which a voxel counts as bone, and label names, as `head-neck-mini` has them.
BONE_HU = 180.0
FIGURES = ("latent", "hu", "bone", "soft", "scatter", "dice")
#: The comparison that decides about a default: few evaluations against this many of Euler.
FEW, MANY = 10, 30


class Study:
    """Networks, masks, and a folder in which results are kept.

    Args:
        bundle: A rectified flow model with a mask library.
        folder: Of results.
        size: Voxels of the images; ``None`` for the recommended.
        reference: Solver and steps of the long run.
    """

    def __init__(
        self, bundle: maisi.Bundle, folder: Path, size: tuple[int, int, int] | None, reference: Sampling
    ) -> None:
        self.bundle, self.reference = bundle, reference
        self._request = maisi.GenerateRequest(output_size=size, quality_check=False)
        self._settings, self._source = prepare(bundle, self._request)
        networks = "-".join(digest[:6] for digest in bundle.weights_sha256().values())
        shape = "x".join(map(str, self._settings.size))
        self._folder = folder / f"{bundle.name}-{networks}-{shape}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._networks = bundle.load("diffusion"), bundle.load("controlnet")
        intensity = bundle.manifest.intensity
        scale = IntensityScale(intensity.kind, intensity.low, intensity.high)
        self._codec = Codec(bundle.load("autoencoder"), bundle.scale_factor(), scale)
        bent = schedule_of(bundle.manifest.schedule)
        assert isinstance(bent, FlowSchedule), "the study is about rectified flow"
        self.paths = {"even": FlowSchedule(bent.train_timesteps, use_timestep_transform=False), "bent": bent}

    def masks(self, count: int) -> Iterator[tuple[str, ConditioningMask]]:
        """So many different masks of the library, always the same ones."""
        seen: set[str] = set()
        for seed in range(100 * count):
            mask = self._source.for_sample(seed)
            assert mask is not None
            name = Path(str(mask.source["entry"])).name.partition(".")[0]
            if name not in seen and len(seen) < count:
                seen.add(name)
                yield name, mask

    def latent(self, name: str, mask: ConditioningMask, path: str, sampling: Sampling) -> tuple[torch.Tensor, float]:
        """A mask's latent and the seconds that it took, computed or kept from before; the noise is the mask's."""
        file = self._folder / f"{name}-{path}-{sampling.solver}-{sampling.steps}.npz"
        if not file.is_file():
            started = time.perf_counter()
            x, y, z = (n // self.bundle.compression for n in self._settings.size)
            conditions = Conditions(self._settings.modality_code, mask.model.spacing)
            bits = torch.from_numpy(np.ascontiguousarray(label_bits(mask.model.array)))[None].float()
            latent = sample_latent(
                Denoiser(*self._networks, conditions, bits),
                self.paths[path],
                make_solver(sampling.solver, "rflow"),
                (self.bundle.latent_channels, x, y, z),
                steps=sampling.steps,
                seed=int.from_bytes(name.encode()[-7:], "big"),
            )
            part = file.with_suffix(".part.npz")
            np.savez(part, latent=latent.numpy(), seconds=time.perf_counter() - started)
            part.replace(file)
        stored = np.load(file)
        return torch.from_numpy(stored["latent"]), float(stored["seconds"])

    @torch.inference_mode()
    def image(self, latent: torch.Tensor) -> np.ndarray:
        """The CT of a latent in HU."""
        return self._codec.decode(latent, Strategy())

    def row(self, name: str, mask: ConditioningMask, path: str, sampling: Sampling) -> dict[str, Any]:
        """All figures of one run."""
        exact, _ = self.latent(name, mask, "even", self.reference)
        latent, seconds = self.latent(name, mask, path, sampling)
        labels, bone, body = (mask.model.array, *(self.bundle.labels.find(n).value for n in ("bone", "body")))
        image, exact_image = self.image(latent), self.image(exact)
        inside = labels > 0
        found, drawn = (image > BONE_HU) & inside, labels == bone
        return {
            "mask": name,
            "path": path,
            "solver": sampling.solver,
            "steps": sampling.steps,
            "evaluations": sampling.evaluations,
            "seconds": seconds,
            "latent": float((latent - exact).square().mean().sqrt() / exact.square().mean().sqrt()),
            "hu": float(np.sqrt(np.mean((image - exact_image)[inside] ** 2))),
            "bone": float(np.median(image[drawn])),
            "soft": float(np.median(image[labels == body])),
            "scatter": float(np.std(image[labels == body])),
            "dice": float(2 * (found & drawn).sum() / max(1, found.sum() + drawn.sum())),
        }


def runs(evaluations: list[int], bent_evaluations: list[int]) -> list[tuple[str, Sampling]]:
    """Time path, solver and steps of everything that is compared."""
    found = []
    for path, counts in (("even", evaluations), ("bent", bent_evaluations)):
        for solver in SOLVER_NAMES["rflow"]:
            for count in (c for c in counts if c <= FEW or solver in ("euler", "heun")):
                steps = [n for n in range(1, count + 1) if Sampling(solver, n).evaluations <= count]
                found += [(path, Sampling(solver, steps[-1]))] if steps else []
    return list(dict.fromkeys(found))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean figures over the masks of each path, solver and number of steps, with standard errors (``…_se``)."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["path"], row["solver"], row["steps"], row["evaluations"]), []).append(row)
    means = []
    for (path, solver, steps, evaluations), group in groups.items():
        mean: dict[str, Any] = {"path": path, "solver": solver, "steps": steps, "evaluations": evaluations}
        for figure in FIGURES:
            values = [row[figure] for row in group]
            mean[figure] = statistics.fmean(values)
            mean[f"{figure}_se"] = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        means.append(mean)
    return means


def comparison(rows: list[dict[str, Any]], path: str) -> dict[str, Any] | None:
    """The nearest of the runs with few evaluations beside Euler's with many, pair by pair on one time path."""
    here = [row for row in rows if row["path"] == path]
    euler = {r["mask"]: r for r in here if (r["solver"], r["evaluations"]) == ("euler", MANY)}
    few = [mean for mean in summary(here) if mean["evaluations"] <= FEW]
    if not euler or not few:
        return None
    best = min(few, key=lambda mean: mean["latent"])
    pairs = [(row, euler[row["mask"]]) for row in here if all(row[key] == best[key] for key in ("solver", "steps"))]
    told: dict[str, Any] = {"path": path, **{key: best[key] for key in ("solver", "steps", "evaluations")}}
    told["nearer"] = sum(one["latent"] < other["latent"] for one, other in pairs)
    told["of"] = len(pairs)
    for figure in FIGURES:
        differences = [one[figure] - other[figure] for one, other in pairs]
        told[figure] = statistics.fmean(differences)
        told[f"{figure}_se"] = statistics.stdev(differences) / len(pairs) ** 0.5 if len(pairs) > 1 else None
    return told


def show(rows: list[dict[str, Any]], reference: Sampling) -> None:
    """Prints the table, and what decides about a default."""
    print(f"\ndistance from {reference.solver} with {reference.steps} even steps, mean over masks")
    print("path  solver  steps evaluations   latent    HU    bone    soft scatter   dice")
    for m in summary(rows):
        print(
            f"{m['path']:5} {m['solver']:7}{m['steps']:6}{m['evaluations']:12}{m['latent']:9.4f}{m['hu']:6.1f}"
            f"{m['bone']:8.0f}{m['soft']:8.0f}{m['scatter']:8.0f}{m['dice']:7.3f}"
        )
    for told in filter(None, (comparison(rows, path) for path in ("even", "bent"))):
        print(
            f"{told['path']}: {told['solver']} with {told['evaluations']} evaluations is nearer than Euler with {MANY} "
            f"on {told['nearer']} of {told['of']} masks; it differs by (standard error)"
        )
        for figure in FIGURES:
            error = "" if told[f"{figure}_se"] is None else f" ({told[f'{figure}_se']:.2g})"
            print(f"    {figure:8}{told[figure]:+.3g}{error}")


def main() -> None:
    """Reads the command line, computes what is not there yet, and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="head-neck-mini", help="name or folder")
    parser.add_argument("--masks", type=int, default=16, help="of the library")
    parser.add_argument("--size", type=int, nargs=3, help="voxels x y z; default is the bundle's")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[6, 10, 20, 30], help="on even times")
    parser.add_argument("--bent-evaluations", type=int, nargs="+", default=[6, 10, 30], help="on the bundle's times")
    parser.add_argument("--reference", default="heun:200", help="solver and steps that stand for the exact path")
    parser.add_argument("--out", type=Path, default=Path("build/solver-study"), help="folder that keeps results")
    parser.add_argument("--threads", type=int, help="of PyTorch; default is its own")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    solver, _, steps = given.reference.partition(":")
    study = Study(maisi.open_bundle(given.bundle), given.out, given.size, Sampling(solver, int(steps)))
    rows: list[dict[str, Any]] = []
    for name, mask in study.masks(given.masks):
        for path, sampling in runs(given.evaluations, given.bent_evaluations):
            rows.append(study.row(name, mask, path, sampling))
            last = rows[-1]
            print(
                f"{name} {path} {sampling.solver} {sampling.steps}: {last['latent']:.4f}, {last['seconds']:.1f} s",
                flush=True,
            )
    show(rows, study.reference)
    if given.json:
        told = [comparison(rows, path) for path in ("even", "bent")]
        figures = {"reference": given.reference, "rows": rows, "means": summary(rows), "comparison": told}
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
