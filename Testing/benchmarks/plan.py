"""The plan's memory and time against what is measured, over requests that nothing was fitted to.

``make bench``, or ``python Testing/benchmarks/plan.py [--small] [--json FILE]``. Each request is planned first, in a
process of its own, with this computer's measured speed and no earlier run to learn from; then it is carried out in
another one, without a quality check, which may ask for another attempt. Memory is the process's peak; *grew* is what it
grew by beyond what it had after planning, against the plan without the process itself. Requests are of
``head-neck-mini`` and of the published networks with random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import MAISILib as maisi

MINI, PUBLISHED = "head-neck-mini", "published"
#: Bundle and request, by name. Published sizes are small, so that two cores end within minutes.
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mini 48×48×32": (MINI, {"output_size": (48, 48, 32), "spacing": (7, 7, 5), "mask": "none", "steps": 6}),
    "mini 64×64×64": (MINI, {"output_size": (64, 64, 64), "spacing": (6, 6, 4), "mask": "none", "steps": 10}),
    "mini 96×72×64 mask": (MINI, {"output_size": (96, 72, 64), "spacing": (5, 5, 4), "steps": 4}),
    "mini 96×96×96": (MINI, {"output_size": (96, 96, 96), "spacing": (5, 5, 4), "mask": "none", "steps": 4}),
    "mini 128×128×64 guided": (
        MINI,
        {"output_size": (128, 128, 64), "spacing": (4, 4, 4), "guidance_scale": 2, "steps": 2},
    ),
    "mini 128×128×128": (MINI, {"output_size": (128, 128, 128), "spacing": (4, 4, 3), "mask": "none", "steps": 2}),
    "mini 128³ in 0.75 GB": (
        MINI,
        {"output_size": (128, 128, 128), "spacing": (4, 4, 3), "mask": "none", "steps": 1, "memory": "0.75GB"},
    ),
    "mini 112×80×96 heun": (
        MINI,
        {"output_size": (112, 80, 96), "spacing": (4.5, 4.5, 3), "solver": "heun", "steps": 3},
    ),
    "mini 128×104×112 in 0.8 GB": (
        MINI,
        {"output_size": (128, 104, 112), "spacing": (4, 4, 3), "mask": "none", "steps": 1, "memory": "0.8GB"},
    ),
    "published 64×64×64": (PUBLISHED, {"output_size": (64, 64, 64), "mask": "none", "steps": 4}),
    "published 96×64×64 mask": (PUBLISHED, {"output_size": (96, 64, 64), "steps": 2}),
    "published 96×96×64": (PUBLISHED, {"output_size": (96, 96, 64), "mask": "none", "steps": 2}),
    "published 128×128×64 tiles": (
        PUBLISHED,
        {"output_size": (128, 128, 64), "mask": "none", "steps": 2, "memory": "2GB"},
    ),
    "published 96×128×96 in 2.2 GB": (
        PUBLISHED,
        {"output_size": (96, 128, 96), "mask": "none", "steps": 1, "memory": "2.2GB"},
    ),
    "published 128³": (PUBLISHED, {"output_size": (128, 128, 128), "mask": "none", "steps": 1}),
}
#: Bars of both: measured may differ by so much from planned.
MEMORY_BAR, TIME_BAR = 0.15, 0.30


def written(bundle: str, _: dict[str, Any]) -> dict[str, Any]:
    """Writes a bundle of the published networks with random weights, and one mask of a box."""
    import numpy as np
    import torch

    from MAISILib.anatomy.labels import default_table
    from MAISILib.anatomy.library import build_library
    from MAISILib.bundles.catalogue import downloadable
    from MAISILib.bundles.manifest import Manifest, NetworkEntry, write_manifest
    from MAISILib.bundles.networks import build_network
    from MAISILib.bundles.weights import save_safetensors, sha256_of
    from MAISILib.volumes import Grid, LabelMap

    folder, manifest = Path(bundle), downloadable()["nv-rflow-ct"]
    networks = {}
    for name in ("autoencoder", "diffusion", "controlnet"):
        definition = manifest.networks[name].definition
        torch.manual_seed(0)
        state = {k: v.half() for k, v in build_network(definition).state_dict().items()}
        path = save_safetensors(state, folder / f"{name}.safetensors")
        networks[name] = NetworkEntry(
            definition=definition, weights=path.name, sha256=sha256_of(path), bytes=path.stat().st_size
        )
    array = np.zeros((64, 64, 64), np.uint8)
    array[8:-8, 8:-8, 8:-8] = 200
    table = default_table()
    build_library(
        [("box", LabelMap(array, Grid.axis_aligned(array.shape, (4.0, 4.0, 4.0)).affine, table, "box"))],
        folder / "library",
        table,
    )
    changes: dict[str, Any] = {
        "name": PUBLISHED,
        "networks": networks,
        "scale_factor": 1.0,
        "limits": {},
        "quality": None,
        "masks": {"index": "library/masks.json", "format": "maisi"},
        "controllable": [],
        "mask_generator": None,
        "sources": {},
    }
    write_manifest(Manifest.model_validate({**manifest.model_dump(), **changes}), folder)
    return {"bundle": bundle}


def request_of(fields: dict[str, Any]) -> maisi.GenerateRequest:
    """The request of one attempt."""
    return maisi.GenerateRequest(**fields, quality_check=False)


def planned(bundle: str, fields: dict[str, Any]) -> dict[str, Any]:
    """What the plan says."""
    started = time.perf_counter()
    plan = maisi.plan(maisi.open_bundle(bundle), request_of(fields), device="cpu")
    return {**plan.to_dict(), "planning_seconds": time.perf_counter() - started}


def measured(bundle: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Carries a request out; seconds of its stages, and the memory before and at the peak."""
    import psutil

    from MAISILib.generation import pipeline, plan

    opened, request = maisi.open_bundle(bundle), request_of(fields)
    made = plan.plan(opened, request, device="cpu")
    made = plan.replace(made, available_bytes=2**62)  # it runs however little the plan thinks of it
    before = psutil.Process().memory_info().rss
    sample = next(pipeline.generate_samples(opened, request, device="cpu", planned=made))
    return {
        "seconds": sum(sample.provenance["seconds"].values()),
        "stage_seconds": sample.provenance["seconds"],
        "peak_bytes": peak_bytes(),
        "grew_bytes": peak_bytes() - before,
    }


def peak_bytes() -> int:
    """The most memory that this process has had."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_own_process(what: str, bundle: str, fields: dict[str, Any], data: Path) -> dict[str, Any]:
    """Runs `planned`, `measured` or `written` in a new process with a folder of its own for measured speeds.

    Linux counts the memory of the process that starts another as the peak of that one: this one stays small.
    """
    command = [sys.executable, __file__, "--run", what, bundle, json.dumps(fields)]
    environment = {**os.environ, "MAISI_DATA": str(data)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str, published: Path, data: Path) -> dict[str, Any]:
    """One request, planned and carried out."""
    bundle, fields = REQUESTS[name]
    bundle = str(published) if bundle == PUBLISHED else bundle
    plan = in_own_process("planned", bundle, fields, data)
    # A run teaches the plans after it; here each plan shall know the probe only.
    with tempfile.TemporaryDirectory() as apart:
        run = in_own_process("measured", bundle, fields, Path(apart))
    stages = {stage["name"]: stage["seconds"] for stage in plan["stages"]}
    return {
        "request": name,
        "decode": plan["decode"],
        "planned_seconds": sum(stages.values()),
        "seconds": run["seconds"],
        "time_ratio": sum(stages.values()) / run["seconds"],
        "planned_gb": plan["peak_bytes"] / 1e9,
        "peak_gb": run["peak_bytes"] / 1e9,
        "memory_ratio": plan["peak_bytes"] / run["peak_bytes"],
        "planned_growth_gb": max(stage["bytes"] for stage in plan["stages"]) / 1e9,
        "grew_gb": run["grew_bytes"] / 1e9,
        "planned_stages": stages,
        "stages": run["stage_seconds"],
        "planning_seconds": plan["planning_seconds"],
    }


def main() -> None:
    """Reads the command line and prints a row for each request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="only requests that end within seconds")
    parser.add_argument("--only", nargs="*", help="names of requests")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        what, bundle, fields = given.run
        tasks = {"planned": planned, "measured": measured, "written": written}
        print(json.dumps(tasks[what](bundle, json.loads(fields))))
        return
    names = given.only or (list(REQUESTS)[:3] if given.small else list(REQUESTS))
    print(f"{'request':28}{'planned':>9}{'took':>8}{'ratio':>7}{'planned':>10}{'peak':>7}{'ratio':>7}", end="")
    print(f"{'planned':>10}{'grew':>7}  decode")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        published = Path(folder) / "published"
        if any(REQUESTS[name][0] == PUBLISHED for name in names):
            in_own_process("written", str(published), {}, Path(folder) / "data")
        for name in names:
            rows.append(row := compare(name, published, Path(folder) / "data"))
            print(
                f"{name:28}{row['planned_seconds']:9.1f}{row['seconds']:8.1f}{row['time_ratio']:7.2f}"
                f"{row['planned_gb']:10.2f}{row['peak_gb']:7.2f}{row['memory_ratio']:7.2f}"
                f"{row['planned_growth_gb']:10.2f}{row['grew_gb']:7.2f}  {row['decode']}",
                flush=True,
            )
    time_held = sum(abs(1 - row["time_ratio"]) <= TIME_BAR for row in rows)
    memory_held = sum(abs(1 - row["memory_ratio"]) <= MEMORY_BAR for row in rows)
    print(f"time within {TIME_BAR:.0%}: {time_held} of {len(rows)}; memory within {MEMORY_BAR:.0%}: ", end="")
    print(f"{memory_held} of {len(rows)}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
