"""Decoding: MONAI's way, ours whole and in tiles, and the published windows: time, memory, difference from the whole.

``make bench``, or ``python Testing/benchmarks/decode.py [--latent X Y Z] [--encode] [--memory 8GB ...] [--ways W ...]``
on the published architecture with random weights, or on ``--bundle head-neck-mini``. Each way runs in a process of its
own, after a small volume to warm up; its peak is what the process grew by from there on. Windows have the published
settings' proportions to the latent. ``cpu s`` is processor time of all threads: on a busy machine it says more than
seconds do; ``ratio`` is its ratio to the first way's, most often MONAI's.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

PUBLISHED = {
    "_target_": "AutoencoderKlMaisi",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 4,
    "num_channels": [64, 128, 256],
    "num_res_blocks": [2, 2, 2],
    "attention_levels": [False, False, False],
    "norm_num_groups": 32,
    "norm_eps": 1e-6,
    "with_encoder_nonlocal_attn": False,
    "with_decoder_nonlocal_attn": False,
}
#: Published settings: edges of a window as parts of the latent, for a latent of 64³ or 128³, and their overlap.
WINDOWS = {
    "windows": ((48 / 64, 48 / 64, 48 / 64), 0.6666),  # the scripts' defaults
    "windows-256": ((48 / 64, 48 / 64, 64 / 64), 0.6666),  # 256³ on 16 GB
    "windows-512": ((64 / 128, 64 / 128, 48 / 128), 0.4),  # 512³ on 24 GB
}
WAYS = ("monai", "whole", "layers", "recompute", *WINDOWS)
#: HU between 0 and 1 of the network's output.
HU = 2000.0


def options() -> argparse.ArgumentParser:
    """The command line; the last two options are for the child processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latent", type=int, nargs=3, default=(16, 16, 16), help="voxels x y z")
    parser.add_argument("--bundle", help="an installed bundle instead of the published architecture")
    parser.add_argument("--encode", action="store_true", help="measure the encoder, on the latent's image")
    parser.add_argument("--ways", nargs="*", default=WAYS[:5], choices=WAYS, help="which of them")
    parser.add_argument("--memory", nargs="*", default=[], help="also what the plan takes for these, such as 8GB")
    parser.add_argument("--threads", type=int, help="of PyTorch; default is its own")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    return parser


def build(bundle: str | None, loops: bool) -> Any:
    """The autoencoder with the same weights each time; ``loops`` is MONAI's own GroupNorm, one group after another."""
    import torch

    from MAISILib.bundles.bundle import open_bundle
    from MAISILib.bundles.networks import build_network

    torch.manual_seed(0)
    network = open_bundle(bundle).load("autoencoder", "cpu") if bundle else build_network(PUBLISHED)
    if loops:
        from monai.apps.generation.maisi.networks.autoencoderkl_maisi import MaisiGroupNorm3D

        norms: list[Any] = [m for m in network.modules() if isinstance(m, torch.nn.GroupNorm)]
        for norm in norms:
            norm.__class__ = MaisiGroupNorm3D
            norm.norm_float16 = norm.print_info = norm.save_mem = False
    return network


def strategy_for(way: str, layers: Any, shape: Any, weights: int) -> Any:
    """Slabs of 16 for ``layers``, the leanest for ``recompute``; for an amount of memory what the plan would take."""
    from MAISILib.codec.choosing import choose, counted
    from MAISILib.codec.layers import sizes
    from MAISILib.codec.strategies import Strategy, candidates
    from MAISILib.generation.plan import PROCESS_BYTES
    from MAISILib.generation.request import bytes_of

    if way == "whole":
        return counted(layers, shape, Strategy())
    if way == "layers":
        _, y, z = max(sizes(layers, shape), key=math.prod)
        return counted(layers, shape, Strategy("layers", (16, y, z)))
    if way == "recompute":
        found = [counted(layers, shape, s) for s in candidates(layers, shape, "device") if s.name == way]
        return min(found, key=lambda choice: choice.bytes)
    return choose(layers, shape, bytes_of(way) - PROCESS_BYTES - weights, disk=1e15)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """One way, in this process; its output goes to ``given.output``."""
    import torch
    from monai.inferers.inferer import SlidingWindowInferer

    from MAISILib.codec.layers import decoder_layers, encoder_layers
    from MAISILib.codec.streaming import stream

    if given.threads:
        torch.set_num_threads(given.threads)
    way, network = given.run, build(given.bundle, loops=given.run == "monai" or given.run in WINDOWS)
    layers = encoder_layers(network) if given.encode else decoder_layers(network)
    module = network.encoder if given.encode else network.decoder
    factor = 2 ** sum(layer.kind in ("down", "up", "transposed") for layer in layers) if given.encode else 1
    shape = tuple(n * factor for n in given.latent)
    row: dict[str, Any] = {"way": way, "counted_gb": None}
    if way == "monai":
        work = module
    elif way in WINDOWS:
        parts, overlap = WINDOWS[way]
        edges = [max(1, round(n * part)) for n, part in zip(shape, parts, strict=True)]
        row["strategy"] = f"windows of {'×'.join(map(str, edges))} with overlap {overlap}"
        work = lambda x: SlidingWindowInferer(edges, 1, overlap, mode="gaussian")(x, module)  # noqa: E731
    else:
        weights = 4 * sum(p.numel() for p in network.parameters())
        choice = strategy_for(way, layers, shape, weights)
        row |= {"counted_gb": choice.bytes / 1e9, "flops": choice.cost.flops, "strategy": str(choice.strategy)}
        work = lambda x: stream(layers, x, choice.strategy)  # noqa: E731
    torch.manual_seed(1)
    volume = torch.randn(1, layers[0].in_channels, *shape)
    with torch.inference_mode():
        module(torch.randn(1, layers[0].in_channels, *(4 * factor,) * 3))
        before, started, processor = peak_bytes(), time.perf_counter(), time.process_time()
        output = work(volume)
        row |= {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - processor}
    np.save(given.output, output[0].numpy())
    return row | {"peak_gb": (peak_bytes() - before) / 1e9, "process_gb": peak_bytes() / 1e9}


def peak_bytes() -> int:
    """The most memory that this process has had."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_own_process(way: str, output: Path) -> dict[str, Any]:
    """Runs `measure` with this process's arguments for one way."""
    command = [sys.executable, __file__, *sys.argv[1:], "--run", way, "--output", str(output)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"way": way, "failed": f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Reads the command line and prints a row for each way."""
    given = options().parse_args()
    if given.run:
        print(json.dumps(measure(given)))
        return
    rows: list[dict[str, Any]] = []
    unit = "" if given.encode else " HU"
    size = "×".join(map(str, given.latent))
    print(f"{'encode' if given.encode else 'decode'}, latent {size}, {given.bundle or 'published architecture'}")
    heads = "".join(f"{head:>9}" for head in ("seconds", "cpu s", "ratio", "peak GB", "counted", "process"))
    print(f"{'way':12}{heads}{'largest difference':>20}")
    with tempfile.TemporaryDirectory() as folder:
        reference = None
        for way in [*given.ways, *given.memory]:
            path = Path(folder) / "output.npy"
            row = in_own_process(way, path)
            rows.append(row)
            if "failed" in row:
                print(f"{way:12}{row['failed']}", flush=True)
                continue
            output = np.load(path)
            reference = output if reference is None else reference
            row["difference"] = float(np.abs(output - reference).max()) * (1 if given.encode else HU)
            row["ratio"] = row["cpu_seconds"] / next(r["cpu_seconds"] for r in rows if "failed" not in r)
            counted = f"{row['counted_gb']:9.2f}" if row["counted_gb"] is not None else " " * 9
            print(
                f"{way:12}{row['seconds']:9.1f}{row['cpu_seconds']:9.1f}{row['ratio']:9.2f}{row['peak_gb']:9.2f}{counted}"
                f"{row['process_gb']:9.2f}{row['difference']:17.2g}{unit:3}  {row.get('strategy', '')}",
                flush=True,
            )
    if given.json:
        given.json.write_text(json.dumps({"latent": given.latent, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
