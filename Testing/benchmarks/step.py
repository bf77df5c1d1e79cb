"""One conditioned denoising step, published way and ours, in one run: time, and the largest difference of the outputs.

``make bench``, or ``python Testing/benchmarks/step.py [--latent X Y Z] [--rounds N] [--threads N]``: published
architecture with random weights, mask of 4 voxels for each latent voxel. The published way calls MONAI's ControlNet and
UNet, which embed the mask at every step, attend with the matrix of all pairs, and leave convolutions of small feature
maps to PyTorch's choice; ours embeds the mask before the first step. Both take turns, so that a busy machine slows both
down; the ratio is that of the fastest rounds. ``cpu s`` is processor time of all threads.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.apps.generation.maisi.networks.controlnet_maisi import ControlNetMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi

from MAISILib.bundles.networks import build_network
from MAISILib.diffusion.networks import Conditions
from MAISILib.diffusion.sampler import Denoiser

TRUNK: dict[str, Any] = {
    "spatial_dims": 3,
    "in_channels": 4,
    "num_channels": [64, 128, 256, 512],
    "attention_levels": [False, False, True, True],
    "num_head_channels": [0, 0, 32, 32],
    "num_res_blocks": 2,
    "num_class_embeds": 128,
    "resblock_updown": True,
    "include_fc": True,
}
UNET: dict[str, Any] = {**TRUNK, "out_channels": 4, "include_spacing_input": True}
CONTROLNET: dict[str, Any] = {
    **TRUNK,
    "conditioning_embedding_in_channels": 8,
    "conditioning_embedding_num_channels": [8, 32, 64],
}
#: The wanted ratio of times at a latent of 64×64×32, and the largest difference of predictions (of the order of 1).
WANTED_RATIO, WANTED_DIFFERENCE = 1.25, 1e-4


def published_and_ours(latent: tuple[int, int, int]) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Both ways as functions of a noisy latent, with the same weights, mask and conditions."""
    torch.manual_seed(0)
    unet, controlnet = DiffusionModelUNetMaisi(**UNET).eval(), ControlNetMaisi(**CONTROLNET).eval()
    for network in (unet, controlnet):
        for weight in network.parameters():  # MONAI starts some layers at zero, which would hide them
            if not weight.any():
                torch.nn.init.normal_(weight, std=0.02)
    ours = [build_network({"_target_": type(n).__name__, **d}) for n, d in ((unet, UNET), (controlnet, CONTROLNET))]
    for mine, theirs in zip(ours, (unet, controlnet), strict=True):
        mine.load_state_dict(theirs.state_dict(), assign=True)
    bits = torch.randint(0, 2, (1, 8, *(4 * n for n in latent))).float()
    conditions = Conditions(1, (1.5, 1.5, 2.0))
    inputs, times = conditions.tensors(), torch.tensor([500.0])

    def published(x: torch.Tensor) -> torch.Tensor:
        labels = inputs["class_labels"]
        down, middle = controlnet(x=x, timesteps=times, controlnet_cond=bits, class_labels=labels)
        return unet(
            x=x,
            timesteps=times,
            class_labels=labels,
            spacing_tensor=inputs["spacing"],
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        )

    with torch.inference_mode():
        denoiser = Denoiser(ours[0], ours[1], conditions, bits)
    return {"published": published, "ours": lambda x: denoiser(x, 500.0)}


@torch.inference_mode()
def measure(latent: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """Fastest seconds and processor seconds of both, their ratios, and the largest difference."""
    ways = published_and_ours(latent)
    x = torch.randn(1, TRUNK["in_channels"], *latent)
    outputs = {name: way(x) for name, way in ways.items()}  # warms up, too
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started, cpu = time.perf_counter(), time.process_time()
            way(x)
            seconds[name].append(time.perf_counter() - started)
            processor[name].append(time.process_time() - cpu)
    fastest = {name: (min(seconds[name]), min(processor[name])) for name in ways}
    return {
        "latent": list(latent),
        "threads": torch.get_num_threads(),
        **{f"{name}_seconds": found[0] for name, found in fastest.items()},
        **{f"{name}_cpu_seconds": found[1] for name, found in fastest.items()},
        "ratio": fastest["published"][0] / fastest["ours"][0],
        "cpu_ratio": fastest["published"][1] / fastest["ours"][1],
        "difference": float((outputs["ours"] - outputs["published"]).abs().max()),
        "output_deviation": float(outputs["published"].std()),
    }


def main() -> None:
    """Reads the command line and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latent", type=int, nargs=3, default=(32, 32, 16), help="voxels x y z, divisible by 8")
    parser.add_argument("--rounds", type=int, default=3, help="of both ways, after one to warm up")
    parser.add_argument("--threads", type=int, help="of PyTorch; default is its own")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    found = measure(tuple(given.latent), given.rounds)
    print(f"one step with a mask, latent {'×'.join(map(str, given.latent))}, {found['threads']} threads")
    print(f"{'way':12}{'seconds':>9}{'cpu s':>9}")
    for name in ("published", "ours"):
        print(f"{name:12}{found[f'{name}_seconds']:9.2f}{found[f'{name}_cpu_seconds']:9.2f}")
    print(f"{'ratio':12}{found['ratio']:9.2f}{found['cpu_ratio']:9.2f}   (wanted at 64×64×32: {WANTED_RATIO})")
    print(
        f"largest difference {found['difference']:.1e} (wanted: {WANTED_DIFFERENCE:.0e}); "
        f"outputs scatter by {found['output_deviation']:.2f}"
    )
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
