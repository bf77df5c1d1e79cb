"""The mask autoencoder's training: from the eight bits of a label map to a class for every voxel."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses.dice import DiceLoss
from torch import nn

from MAISILib.bundles.bundle import Bundle, open_bundle
from MAISILib.bundles.networks import build_network, compression_factor
from MAISILib.bundles.weights import check_and_load, read_state_dict
from MAISILib.errors import TrainingError
from MAISILib.training.autoencoder import kl_divergence, start_with_small_deviation
from MAISILib.training.datalist import Datalist
from MAISILib.training.initial_weights import start_from
from MAISILib.training.mask_dataset import MaskDataset
from MAISILib.training.mask_recipes import MaskAutoencoderRecipe
from MAISILib.training.task import DatasetTask, Tensors, generator_of

NETWORK = "mask_autoencoder"


class MaskAutoencoderTask(DatasetTask[MaskDataset]):
    """Learns to code label maps.

    Args:
        recipe: Definition and weights of the terms.
        training: Label maps to learn from.
        validation: Held-out label maps.
    """

    name = "mask-autoencoder"
    judged_by: tuple[str, ...] = ("dice_loss",)

    def __init__(self, recipe: MaskAutoencoderRecipe, training: MaskDataset, validation: MaskDataset) -> None:
        super().__init__(training, validation)
        self._recipe = recipe
        torch.manual_seed(recipe.seed)
        network = build_network(recipe.definition).train()
        if recipe.init_from is not None:
            start_from({NETWORK: network}, recipe.init_from)
        elif recipe.initial_log_variance is not None:
            start_with_small_deviation(network, recipe.initial_log_variance)
        self.networks: dict[str, nn.Module] = {NETWORK: network}
        self.phases: dict[str, tuple[str, ...]] = {"main": (NETWORK,)}
        self._class_of = torch.zeros(256, dtype=torch.long)
        self._class_of[recipe.data.classes] = torch.arange(len(recipe.data.classes))
        self._dice = DiceLoss(softmax=True, to_onehot_y=True, include_background=False, reduction="none")

    def load_item(self, index: int, rng: random.Random) -> Tensors:
        """``labels`` ``(1, X, Y, Z)`` uint8, and the posterior's ``noise`` ``(C, x, y, z)``."""
        labels = self._training.vary(self._training.load(index), rng)
        if self._recipe.patch_size is not None:
            labels = _patch(labels, self._recipe.patch_size, rng)
        factor, channels = compression_factor(self._recipe.definition), self._recipe.definition["latent_channels"]
        noise = torch.randn((channels, *(n // factor for n in labels.shape)), generator=generator_of(rng))
        return {"labels": torch.from_numpy(np.ascontiguousarray(labels))[None], "noise": noise}

    def losses(self, phase: str, batch: Tensors) -> Tensors:
        """Cross-entropy, Dice loss over the classes that are there, and the Kullback–Leibler term, per sample."""
        recipe, labels = self._recipe, batch["labels"]
        network: Any = self.networks[NETWORK]
        mean, deviation = network.encode(_bits(labels))
        logits = network.decode(mean + deviation * batch["noise"]).float()
        classes = self._class_of.to(labels.device)[labels.long()]
        cross_entropy = nn.functional.cross_entropy(logits, classes[:, 0], reduction="none").flatten(1).mean(1)
        per_class = self._dice(logits, classes).flatten(1)
        there = torch.stack([(classes.flatten(1) == c).any(1) for c in range(1, logits.shape[1])], dim=1).float()
        dice = (per_class * there).sum(1) / there.sum(1).clamp(min=1)
        kl = kl_divergence(mean.float(), deviation.float())
        loss = recipe.cross_entropy_weight * cross_entropy + recipe.dice_weight * dice + recipe.kl_weight * kl
        return {"loss": loss, "cross_entropy": cross_entropy, "dice_loss": dice, "kl": kl}

    def validate_item(self, index: int, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """Dice of what comes back from the posterior mean: of every label that is there, and their mean."""
        network: Any = networks[NETWORK]
        labels = torch.from_numpy(self._validation.load(index).copy()).to(next(network.parameters()).device)
        mean, _ = network.encode(_bits(labels[None, None]))
        classes = torch.tensor(self._recipe.data.classes, dtype=torch.uint8, device=labels.device)
        output = classes[network.decode(mean).argmax(1)[0]]
        figures = {}
        for label in (int(v) for v in labels.unique() if v):
            wanted, found = labels == label, output == label
            figures[f"dice of {label}"] = float(2 * (wanted & found).sum() / (wanted.sum() + found.sum()))
        mean_dice = sum(figures.values()) / max(1, len(figures))
        return {"dice": mean_dice, "dice_loss": 1 - mean_dice, **figures}


def mask_autoencoder_task(recipe: MaskAutoencoderRecipe, data: Datalist) -> tuple[MaskAutoencoderTask, float | None]:
    """The task for a datalist; an autoencoder has no scale factor.

    Raises:
        TrainingError: No label map is on the recipe's grid.
    """
    training = MaskDataset(data.training, recipe.data)
    return MaskAutoencoderTask(recipe, training, MaskDataset(data.validation, recipe.data, training.table)), None


def open_mask_autoencoder(where: str | None) -> nn.Module:
    """A trained mask autoencoder, frozen.

    Args:
        where: Run folder of its training, or name or folder of a bundle that has one.

    Raises:
        TrainingError: ``None``, or a run without weights.
        BundleError: No such bundle, or its weights do not fit.
    """
    if where is None:
        raise TrainingError(
            "The mask diffusion network learns on latents of a mask autoencoder. Name its run folder or a bundle in "
            "'autoencoder'."
        )
    run = Path(where) / "request.json"
    if not run.is_file():
        return Bundle(where).load(NETWORK) if Path(where).is_dir() else open_bundle(where).load(NETWORK)
    weights = Path(where) / "weights" / f"{NETWORK}.safetensors"
    if not weights.is_file():
        raise TrainingError(f"{weights} is missing. Let the training of the mask autoencoder end first.")
    recipe = MaskAutoencoderRecipe.model_validate(json.loads(run.read_text(encoding="utf-8"))["train"])
    return check_and_load(build_network(recipe.definition), read_state_dict(weights, "safetensors"), str(weights))


def _bits(labels: torch.Tensor) -> torch.Tensor:
    """``(N, 1, X, Y, Z)`` uint8 → ``(N, 8, X, Y, Z)`` float32."""
    places = torch.arange(8, device=labels.device, dtype=torch.uint8).view(1, 8, 1, 1, 1)
    return ((labels >> places) & 1).float()


def _patch(labels: np.ndarray, size: tuple[int, int, int], rng: random.Random) -> np.ndarray:
    """A box with at least one labelled voxel: of nothing but air, nothing can be learned."""
    if any(n < p for n, p in zip(labels.shape, size, strict=True)):
        raise TrainingError(f"patch_size {size} is larger than the masks of {labels.shape} voxels.")
    anywhere = np.flatnonzero(labels)
    place = int(anywhere[rng.randrange(len(anywhere))]) if len(anywhere) else 0
    voxel = np.unravel_index(place, labels.shape)
    start = [
        rng.randint(max(0, int(v) - p + 1), min(int(v), n - p))
        for v, n, p in zip(voxel, labels.shape, size, strict=True)
    ]
    return labels[tuple(slice(s, s + p) for s, p in zip(start, size, strict=True))]
