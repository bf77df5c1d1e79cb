"""How much memory a training step needs, with and without ``checkpoint_activations``: per voxel and for whole steps.

``python Testing/benchmarks/training_memory.py [--bundle NAME] [--json FILE]``. Networks and tensors have shapes but no
storage (PyTorch's fake tensors), so that published networks at published sizes are counted on any machine: every tensor
that lives at a moment of the forward and backward pass, by its bytes. What a kernel needs for itself while it runs is
not in it. Two sizes tell what grows with the voxels and what does not. ``--bundle head-neck-mini --real 64 64 64``
computes steps with real tensors on an image of that size, each in a process of its own, and prints how much that grew.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from MAISILib.bundles.bundle import open_bundle
from MAISILib.bundles.catalogue import downloadable
from MAISILib.bundles.manifest import Manifest, NetworkName
from MAISILib.bundles.networks import build_network, compression_factor, parameter_count
from MAISILib.diffusion.networks import control_residuals, embed_mask, predict
from MAISILib.training.activation_checkpointing import checkpoint_activations

#: Image sizes of the published figures, for the table of whole steps.
SIZES = ((256, 256, 128), (256, 256, 256), (512, 512, 128), (512, 512, 512))
#: Weight, gradient, two moments of Adam, moving average: float32 each.
LEARNING_BYTES, FROZEN_BYTES = 20, 4
#: What is trained → its networks that learn, and those that only compute.
TRAININGS: dict[str, tuple[tuple[NetworkName, ...], tuple[NetworkName, ...]]] = {
    "autoencoder": (("autoencoder",), ()),
    "UNet": (("diffusion",), ()),
    "ControlNet, UNet frozen": (("controlnet",), ("diffusion",)),
    "UNet and ControlNet": (("diffusion", "controlnet"), ()),
}


class LivingTensors(TorchDispatchMode):
    """Counts the bytes of all storages that were made since it began and are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._bytes: dict[int, int] = {}

    def ignore(self, tensor: torch.Tensor) -> None:
        """Leaves out a weight or gradient that lives all the time."""
        self._bytes[tensor.untyped_storage()._cdata] = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor):
                self._meet(tensor.untyped_storage())
        return outputs

    def _meet(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._bytes:
            return
        self._bytes[key] = storage.nbytes()
        self.now += self._bytes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._part, key)

    def _part(self, key: int) -> None:
        self.now -= self._bytes.pop(key)


def autoencoder_loss(networks: dict[str, Any], shape: tuple[int, ...]) -> torch.Tensor:
    """As the autoencoder's task computes it, for one image of this shape."""
    image = torch.zeros(1, 1, *shape)
    mean, deviation = networks["autoencoder"].encode(image)
    output = networks["autoencoder"].decode(mean + deviation * torch.zeros_like(mean)).float()
    return (output - image).abs().mean() + (mean.float() ** 2).mean()


def diffusion_loss(networks: dict[str, Any], channels: int, shape: tuple[int, ...], factor: int) -> torch.Tensor:
    """As the tasks of UNet and ControlNet compute it, for one latent of this shape."""
    latent, time = torch.zeros(1, channels, *shape), torch.zeros(1)
    inputs = {"class_labels": torch.zeros(1, dtype=torch.long), "spacing": torch.zeros(1, 3)}
    inputs |= {"top_region": torch.zeros(1, 4), "bottom_region": torch.zeros(1, 4)}
    residuals = None
    if "controlnet" in networks:
        bits = torch.zeros(1, 8, *(n * factor for n in shape), dtype=torch.uint8)
        embedding = embed_mask(networks["controlnet"], bits.float())
        residuals = control_residuals(networks["controlnet"], latent, time, embedding, inputs["class_labels"])
    return (predict(networks["diffusion"], latent, time, inputs, residuals).float() - latent).abs().mean()


def measure(manifest: Manifest, training: str, shape: tuple[int, ...], less: bool, narrow: bool) -> tuple[int, int]:
    """Bytes of activations after the forward pass, and the most in the whole step, on an image of this shape."""
    learning, frozen = TRAININGS[training]
    networks: dict[str, Any] = {}
    for name in (*learning, *frozen):
        networks[name] = build_network(manifest.networks[name].definition).requires_grad_(name in learning)
        if less:
            checkpoint_activations(networks[name])
    living = LivingTensors()
    for network in networks.values():
        for weight in network.parameters():
            living.ignore(weight)
            if weight.requires_grad:
                weight.grad = torch.zeros_like(weight)
                living.ignore(weight.grad)
    definition = manifest.networks["autoencoder"].definition
    factor = compression_factor(definition)
    latent = tuple(n // factor for n in shape)
    work: Callable[[], torch.Tensor] = (
        (lambda: autoencoder_loss(networks, shape))
        if training == "autoencoder"
        else (lambda: diffusion_loss(networks, definition["latent_channels"], latent, factor))
    )
    with living:
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            loss = work()
        kept = living.now
        loss.backward()
    return kept, living.peak


def voxels_of(manifest: Manifest, training: str, shape: tuple[int, ...]) -> int:
    """Voxels of what the network works on: the image for the autoencoder, its latent for the others."""
    factor = 1 if training == "autoencoder" else compression_factor(manifest.networks["autoencoder"].definition)
    return shape[0] * shape[1] * shape[2] // factor**3


def row_of(manifest: Manifest, training: str, narrow: bool) -> dict[str, Any]:
    """Bytes per voxel, and bytes that do not depend on them (narrow copies of the weights), plain and checkpointed."""
    row: dict[str, Any] = {"training": training, "precision": "bfloat16" if narrow else "float32"}
    small, large = (voxels_of(manifest, training, shape) for shape in (SIZES[0], SIZES[-1]))
    for less, name in ((False, "plain"), (True, "checkpointed")):
        counted = []
        for shape in (SIZES[0], SIZES[-1]):
            with FakeTensorMode():
                counted.append(measure(manifest, training, shape, less, narrow))
        (kept, peak), (large_kept, large_peak) = counted
        row[f"{name} kept"] = round((large_kept - kept) / (large - small))
        row[f"{name} peak"] = round((large_peak - peak) / (large - small))
        row[f"{name} fixed"] = max(0, peak - row[f"{name} peak"] * small)
    row["ratio"] = round(row["plain peak"] / row["checkpointed peak"], 2)
    return row


def compare_with_the_process(manifest: Manifest, training: str, shape: tuple[int, ...]) -> None:
    """Prints what is counted, and by how much a process grows that computes the step, plain and checkpointed."""
    for less, name in ((False, "plain"), (True, "checkpointed")):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            counted, grown = pool.submit(_grow, manifest, training, shape, less).result()
        print(f"{training:<24} {name:<13} {counted / 1e9:.3f} GB counted, the process grew by {grown / 1e9:.3f} GB")


def _grow(manifest: Manifest, training: str, shape: tuple[int, ...], less: bool) -> tuple[int, int]:
    """In a process of its own: libraries and buffers of kernels come with a first, smaller step."""
    measure(manifest, training, tuple(n // 4 for n in shape), less, narrow=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, peak = measure(manifest, training, shape, less, narrow=False)
    scale = 1 if sys.platform == "darwin" else 1024
    return peak, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * scale


def standing_gb(manifest: Manifest, training: str) -> float:
    """Weights, gradients, Adam and average, which do not grow with the size."""
    learning, frozen = TRAININGS[training]
    count = {
        n: parameter_count(build_network(manifest.networks[n].definition, device="meta")) for n in learning + frozen
    }
    return (sum(count[n] for n in learning) * LEARNING_BYTES + sum(count[n] for n in frozen) * FROZEN_BYTES) / 1e9


def main() -> None:
    """Counts and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="nv-rflow-ct")
    parser.add_argument("--real", type=int, nargs=3, metavar=("X", "Y", "Z"), help="compute with real tensors")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    manifest = downloadable().get(given.bundle) or open_bundle(given.bundle).manifest
    if given.real:
        for training in TRAININGS:
            compare_with_the_process(manifest, training, tuple(given.real))
        return
    rows = []
    print(f"{given.bundle}, bytes of activations per voxel (autoencoder: image voxel; others: latent voxel)")
    print(f"{'':<24} {'':<9} {'plain':>8} {'checkpointed':>13} {'ratio':>6}  kept after the forward pass")
    for training in TRAININGS:
        for narrow in (False, True):
            row = row_of(manifest, training, narrow)
            rows.append(row)
            print(
                f"{training:<24} {row['precision']:<9} {row['plain peak']:>8} {row['checkpointed peak']:>13} "
                f"{row['ratio']:>6}  {row['plain kept']} and {row['checkpointed kept']}",
                flush=True,
            )
    print("\nGB of a whole step with one item, plain / checkpointed: activations, weights, gradients, Adam, average")
    for row in rows:
        standing, row["gb"] = standing_gb(manifest, row["training"]), {}
        for size in SIZES:
            count = voxels_of(manifest, row["training"], size)
            row["gb"]["×".join(map(str, size))] = [
                round(standing + (row[f"{name} fixed"] + row[f"{name} peak"] * count) / 1e9, 1)
                for name in ("plain", "checkpointed")
            ]
        told = "  ".join(f"{size}: {plain} / {less}" for size, (plain, less) in row["gb"].items())
        print(f"{row['training']:<24} {row['precision']:<9} {told}")
    if given.json:
        content = {"bundle": given.bundle, "trainings": rows}
        given.json.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
