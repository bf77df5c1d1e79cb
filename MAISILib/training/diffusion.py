"""Trains a rectified-flow UNet and a ControlNet together on cached latents.

The published recipe trains the UNet on images alone and then, with the UNet frozen, the ControlNet on image and mask.
A small model on a small data set learns sooner from both at once: in most steps the ControlNet shows the mask to the
UNet, in the others its residuals are zero, so that the UNet still learns to work alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from MAISILib.anatomy.masks import label_bits
from MAISILib.bundles.networks import build_network
from MAISILib.diffusion.networks import CONDITION_SCALE, control_residuals, embed_mask, predict
from MAISILib.diffusion.schedules import FlowSchedule
from MAISILib.training.autoencoder import normalized
from MAISILib.training.checkpoints import Run, cosine_rate
from MAISILib.training.crops import Crop, pick
from MAISILib.training.head_neck import BODY, mirror


@dataclass(frozen=True)
class LatentSet:
    """Encoded crops, ``<crop>-plain.npy`` and ``<crop>-mirrored.npy``: posterior means ``(C, x, y, z)`` float16."""

    folder: Path
    crops: list[Crop]
    scale_factor: float

    def load(self, crop: Crop, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
        """Scaled latent ``(C, x, y, z)`` float32 and labels ``(X, Y, Z)`` uint8."""
        latent = np.load(_latent_path(self.folder, crop, mirrored)).astype(np.float32) * self.scale_factor
        labels = crop.load()[1]
        return latent, mirror(labels, labels=True) if mirrored else labels


def _latent_path(folder: Path, crop: Crop, mirrored: bool) -> Path:
    return folder / f"{crop.path.stem}-{'mirrored' if mirrored else 'plain'}.npy"


@torch.inference_mode()
def encode_crops(
    autoencoder: nn.Module, crops: list[Crop], folder: Path, on_progress: Callable[[str], None] = print
) -> LatentSet:
    """Encodes every crop and its mirror image, skipping those already in ``folder``.

    The scale factor is one over the standard deviation over all latents, not over one batch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = squares = count = 0.0
    for number, crop in enumerate(crops):
        for mirrored in (False, True):
            path = _latent_path(folder, crop, mirrored)
            if not path.exists():
                ct = crop.load()[0]
                image = torch.from_numpy(normalized(mirror(ct) if mirrored else ct))[None, None]
                np.save(path, autoencoder.encode(image)[0][0].numpy().astype(np.float16))  # type: ignore[operator]
            latent = np.load(path).astype(np.float64)
            total, squares, count = total + latent.sum(), squares + (latent**2).sum(), count + latent.size
        if number % 100 == 0:
            on_progress(f"encoded {number + 1} of {len(crops)} crops")
    deviation = (squares / count - (total / count) ** 2) ** 0.5
    return LatentSet(folder, crops, float(1 / deviation))


def forget_some_labels(labels: np.ndarray, probability: float, rng: random.Random) -> np.ndarray:
    """Turns each label into body with the given probability, so that masks of users that lack it still work."""
    present = [int(v) for v in np.unique(labels) if v not in (0, BODY)]
    forgotten = [v for v in present if rng.random() < probability]
    return np.where(np.isin(labels, forgotten), BODY, labels).astype(np.uint8) if forgotten else labels


def train_flow(
    recipe: dict[str, Any], latents: LatentSet, out: Path, on_progress: Callable[[str], None] = print
) -> Run:
    """Trains for ``recipe["steps"]`` steps, resuming a run in ``out``.

    Args:
        recipe: ``unet`` and ``controlnet`` definitions, ``seed``, ``steps``, ``batch``, ``rate``, ``mask_dropout``,
            ``label_dropout``, ``modality_dropout``, ``air_weight``, ``bfloat16``.
        latents: Training latents.
        out: The run's folder.
    """
    torch.manual_seed(recipe["seed"])
    unet, controlnet = build_network(recipe["unet"]).train(), build_network(recipe["controlnet"]).train()
    networks = {"diffusion": unet, "controlnet": controlnet}
    parameters = [p for network in networks.values() for p in network.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe["rate"], weight_decay=0.01, betas=(0.9, 0.99))
    run = Run(out, networks, optimizer, {**recipe, "scale_factor": latents.scale_factor}, average_decay=0.998)
    schedule = FlowSchedule()
    while run.step < recipe["steps"]:
        batch = _batch(recipe, latents, run.random_for_step())
        times = torch.rand(recipe["batch"]) * schedule.train_timesteps
        times = torch.tensor([schedule.bend(float(t), batch.clean[0, 0].numel()) for t in times])
        noise = torch.randn_like(batch.clean)
        noisy = schedule.noisy(batch.clean, noise, times)
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(run.step, recipe["steps"], recipe["rate"], warmup=100)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe["bfloat16"]):
            embedding = embed_mask(controlnet, batch.bits)
            residuals = control_residuals(controlnet, noisy, times, embedding, batch.inputs["class_labels"])
            velocity = predict(unet, noisy, times, batch.inputs, [r * batch.masked for r in residuals])
        error = (velocity.float() - (batch.clean - noise)) ** 2
        loss = (error * batch.weight).sum() / (batch.weight.sum() * error.shape[1])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        run.advance({"loss": float(loss.detach())})
        if run.step % 100 == 0:
            on_progress(f"step {run.step}: loss {float(loss.detach()):.4f}, {run.seconds / 60:.1f} min")
    run.save()
    return run


@dataclass(frozen=True)
class _Batch:
    clean: torch.Tensor  # (N, C, x, y, z)
    bits: torch.Tensor  # (N, 8, X, Y, Z)
    weight: torch.Tensor  # (N, 1, x, y, z)
    masked: torch.Tensor  # (N, 1, 1, 1, 1), 0 where the mask is withheld
    inputs: dict[str, torch.Tensor]


def _batch(recipe: dict[str, Any], latents: LatentSet, rng: random.Random) -> _Batch:
    clean, masks, spacings = [], [], []
    for _ in range(recipe["batch"]):
        crop = pick(latents.crops, rng)
        latent, labels = latents.load(crop, mirrored=rng.random() < 0.5)
        clean.append(latent)
        masks.append(forget_some_labels(labels, recipe["label_dropout"], rng))
        spacings.append(crop.spacing)
    labels = np.stack(masks)
    body = torch.from_numpy(labels > 0)[:, None].float()
    stacked = torch.from_numpy(np.stack(clean))
    factor = body.shape[2] // stacked.shape[2]
    weight = nn.functional.max_pool3d(body, factor) * (1 - recipe["air_weight"]) + recipe["air_weight"]
    modality = [0 if rng.random() < recipe["modality_dropout"] else recipe["modality"] for _ in masks]
    masked = [0.0 if rng.random() < recipe["mask_dropout"] else 1.0 for _ in masks]
    return _Batch(
        stacked,
        torch.from_numpy(np.stack([label_bits(mask) for mask in masks])).float(),
        weight,
        torch.tensor(masked).view(-1, 1, 1, 1, 1),
        {"class_labels": torch.tensor(modality), "spacing": torch.tensor(spacings) * CONDITION_SCALE},
    )
