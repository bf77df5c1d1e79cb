"""One sample of the embedded model from a cold start: time, peak memory, and what the plan had said.

``make bench``, or ``python Testing/benchmarks/full_sample.py [--json FILE]``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MAISI = [sys.executable, "-m", "MAISILib"]
REQUEST = ["--bundle", "head-neck-mini", "--anatomy", "mandible", "--seed", "7"]


def timed(command: list[str]) -> tuple[float, float, str]:
    """Seconds, peak memory of the largest child so far in GB, and standard output."""
    started = time.perf_counter()
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    scale = 1e-9 if sys.platform == "darwin" else 1024e-9
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * scale, finished.stdout


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    target = parser.parse_args().json
    figures: dict[str, object] = {"machine": platform.platform(), "cores": os.cpu_count()}
    figures["import_seconds"] = round(timed([sys.executable, "-c", "import MAISILib"])[0], 2)
    figures["help_seconds"] = round(timed([*MAISI, "--help"])[0], 2)
    plan = json.loads(timed([*MAISI, "plan", *REQUEST, "--json"])[2])
    with tempfile.TemporaryDirectory() as folder:
        seconds, peak, output = timed([*MAISI, "generate", *REQUEST, "--out", folder, "--json"])
    written = json.loads(output)
    sample = written["samples"][0]
    figures |= {
        "generate_seconds": round(seconds, 1),
        "generate_peak_gb": round(peak, 2),
        "attempts": sample["attempts"],
        "stage_seconds": sample["seconds"],
        "planned_seconds": round(plan["seconds"], 1),
        "planned_peak_gb": round(plan["peak_bytes"] / 1e9, 2),
    }
    for name, value in figures.items():
        print(f"{name:<20} {value}")
    if target is not None:
        target.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
