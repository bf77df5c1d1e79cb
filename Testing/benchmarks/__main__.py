"""Runs the benchmarks that need nothing but the project, in small versions of a few minutes each: ``make bench``.

``python -m Testing.benchmarks [NAME ...] [--out FOLDER]``. Tables are printed, figures go to ``build/bench/NAME.json``.
The commands of the large versions stand in ``docs/performance.md``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

_WAYS = ["--ways", "monai", "whole", "layers", "recompute", "windows", "windows-256", "windows-512"]
#: Name → script and its arguments.
BENCHMARKS: dict[str, list[str]] = {
    "cold-start": ["cold_start"],
    "sample": ["full_sample"],
    "plan": ["plan", "--small"],
    "step": ["step"],
    "decode-published": ["decode", "--latent", "16", "16", "16", *_WAYS],
    "decode-head-neck-mini": ["decode", "--bundle", "head-neck-mini", "--latent", "40", "28", "32", *_WAYS],
    "encode-published": ["decode", "--encode", "--latent", "16", "16", "16", *_WAYS[:6]],
    "solvers": ["solvers", *["--masks", "2", "--size", "48", "48", "32", "--reference", "heun:60"]],
    "mask-solvers": ["mask_solvers", *["--vectors", "2", "--ways", "ancestral:200", "ancestral:50", "ddim:50"]],
    "mask-sizes": ["mask_sizes", "--seeds", "2"],
    "masks": ["masks"],
    "training-memory": ["training_memory"],
}


def main() -> None:
    """Runs one after the other; a benchmark that fails ends the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default all")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of the figures")
    given = parser.parse_args()
    if unknown := set(given.names) - BENCHMARKS.keys():
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.names or BENCHMARKS:
        script, *arguments = BENCHMARKS[name]
        print(f"== {name}: {script}.py {' '.join(arguments)}", flush=True)
        command = [sys.executable, "-m", f"Testing.benchmarks.{script}", *arguments]
        subprocess.run([*command, "--json", str(given.out / f"{name}.json")], check=True)


if __name__ == "__main__":
    main()
