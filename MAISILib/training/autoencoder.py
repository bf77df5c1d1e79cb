"""Trains a volume autoencoder: absolute and squared error inside a weighted body, plus a small KL term."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from MAISILib.bundles.networks import build_network
from MAISILib.training.checkpoints import Run, cosine_rate
from MAISILib.training.crops import Crop, pick
from MAISILib.training.head_neck import mirror


def normalized(ct: np.ndarray) -> np.ndarray:
    """HU clipped to [−1000, 1000] and mapped to [0, 1] (MAISI's CT intensity)."""
    return (ct.clip(-1000, 1000) + 1000) / 2000


def start_with_small_deviation(autoencoder: nn.Module, log_variance: float = -8.0) -> None:
    """Sets the bias of the posterior's log-variance, so that early training is not drowned in sampling noise."""
    for name, parameter in autoencoder.named_parameters():
        if name.startswith("quant_conv_log_sigma") and name.endswith("bias"):
            nn.init.constant_(parameter, log_variance)


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor, body: torch.Tensor, squared: float) -> torch.Tensor:
    """Mean of ``|e| + squared·e²``, weight 1 in the body and 0.1 in the air around it. Shapes ``(N, 1, X, Y, Z)``."""
    weight = torch.where(body, 1.0, 0.1)
    error = (output.float() - target).abs()
    return (weight * (error + squared * error**2)).sum() / weight.sum()


def psnr(output: torch.Tensor, target: torch.Tensor, body: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB inside ``body``; both images lie in [0, 1] (= 2000 HU)."""
    mse = ((output.float().clamp(0, 1) - target) ** 2)[body].mean()
    return float(-10 * torch.log10(mse))


def train_autoencoder(
    recipe: dict[str, Any],
    crops: list[Crop],
    held_back: list[Crop],
    out: Path,
    on_progress: Callable[[str], None] = print,
) -> Run:
    """Trains for ``recipe["steps"]`` steps, resuming a run in ``out``.

    Args:
        recipe: ``definition``, ``seed``, ``steps``, ``batch``, ``rate``, ``kl_weight``, ``squared_weight``.
        crops: Training crops.
        held_back: Crops of other patients; PSNR on them is printed at every hundredth step.
        out: The run's folder.
    """
    torch.manual_seed(recipe["seed"])
    network = build_network(recipe["definition"]).train()
    start_with_small_deviation(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe["rate"], weight_decay=0.0)
    run = Run(out, {"autoencoder": network}, optimizer, recipe, average_decay=0.998)
    while run.step < recipe["steps"]:
        rng = run.random_for_step()
        images, bodies = [], []
        for _ in range(recipe["batch"]):
            ct, labels = pick(crops, rng).load()
            if rng.random() < 0.5:
                ct, labels = mirror(ct), mirror(labels)
            images.append(normalized(ct))
            bodies.append(labels > 0)
        target, body = torch.from_numpy(np.stack(images))[:, None], torch.from_numpy(np.stack(bodies))[:, None]
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(run.step, recipe["steps"], recipe["rate"])
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe["bfloat16"]):
            output, mean, deviation = network(target)
        mean, variance = mean.float(), deviation.float() ** 2
        kl = 0.5 * (mean**2 + variance - torch.log(variance) - 1).mean()
        error = reconstruction_loss(output, target, body, recipe["squared_weight"])
        optimizer.zero_grad()
        (error + recipe["kl_weight"] * kl).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        measured = psnr(output.detach(), target, body)
        run.advance({"loss": float(error.detach()), "kl": float(kl.detach()), "psnr": measured})
        if run.step % 100 == 0 or run.step == recipe["steps"]:
            on_progress(
                f"step {run.step}: PSNR {held_back_psnr(run, recipe, held_back):.2f} dB, {run.seconds / 60:.1f} min"
            )
    run.save()
    return run


@torch.inference_mode()
def held_back_psnr(run: Run, recipe: dict[str, Any], crops: list[Crop]) -> float:
    """Mean PSNR (dB, inside the body) of the averaged weights on the first crop of up to six held-back patients."""
    with torch.random.fork_rng(devices=[]):  # measuring must not move the random numbers of the training
        network = build_network(recipe["definition"])
    network.load_state_dict(run.averages["autoencoder"].weights)
    values = []
    for crop in crops[:6]:
        ct, labels = crop.load()
        target, body = torch.from_numpy(normalized(ct))[None, None], torch.from_numpy(labels > 0)[None, None]
        values.append(psnr(network.reconstruct(target), target, body))  # type: ignore[operator]
    return float(np.mean(values))
