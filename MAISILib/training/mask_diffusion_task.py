"""The mask UNet's training: latents of masks, with the sizes of organs as the context of cross-attention."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from MAISILib.anatomy.organ_sizes import NOT_TOLD, SizeTable
from MAISILib.bundles.bundle import Bundle, open_bundle
from MAISILib.bundles.networks import build_network
from MAISILib.bundles.weights import sha256_of
from MAISILib.diffusion.schedules import FlowSchedule
from MAISILib.training.datalist import Datalist
from MAISILib.training.denoising import make_schedule, prediction_target, validation_batches, weight_of_times
from MAISILib.training.initial_weights import start_unet_from
from MAISILib.training.mask_autoencoder_task import NETWORK as AUTOENCODER
from MAISILib.training.mask_autoencoder_task import open_mask_autoencoder
from MAISILib.training.mask_dataset import MaskDataset, MaskLatents
from MAISILib.training.mask_recipes import MaskDiffusionRecipe
from MAISILib.training.pass_through import start_with_pass_through
from MAISILib.training.task import DatasetTask, Tensors, generator_of

NETWORK = "mask_diffusion"


class MaskDiffusionTask(DatasetTask[MaskLatents]):
    """Learns the noise (DDPM) or the velocity (rectified flow) in latents of masks.

    Args:
        recipe: Definition, schedule, dropouts.
        training: Masks to learn from.
        validation: Held-out masks.
        autoencoder: A trained mask autoencoder.

    Attributes:
        sizes: Sizes of the controllable anatomies among the training masks; belongs into the bundle.
        scale_factor: What latents are multiplied by; belongs into the bundle.
    """

    name = "mask-diffusion"
    judged_by: tuple[str, ...] = ("loss",)

    def __init__(
        self, recipe: MaskDiffusionRecipe, training: MaskDataset, validation: MaskDataset, autoencoder: nn.Module
    ) -> None:
        self.sizes: SizeTable = training.size_table(recipe.controllable)
        labels = [training.table.find(name).value for name in recipe.controllable]

        def latents(masks: MaskDataset) -> MaskLatents:
            return MaskLatents(masks, autoencoder, recipe.variants, recipe.seed, labels, cache=recipe.data.cache)

        super().__init__(latents(training), latents(validation))
        self._recipe = recipe
        self.schedule = make_schedule(recipe.schedule)
        self.scale_factor = recipe.scale_factor or self._training.scale_factor()
        torch.manual_seed(recipe.seed)
        network = build_network(recipe.definition).train()
        if recipe.pass_through_start:
            start_with_pass_through(network, -1.0 if isinstance(self.schedule, FlowSchedule) else 1.0)
        self.networks: dict[str, nn.Module] = {NETWORK: network}
        start_unet_from(self.networks, NETWORK, recipe.init_from, self.schedule)
        self.phases: dict[str, tuple[str, ...]] = {"main": (NETWORK,)}

    def load_item(self, index: int, rng: random.Random) -> Tensors:
        """A variation of a mask: ``clean`` and ``noise`` ``(C, x, y, z)``, ``time``, ``conditions`` ``(1, D)``."""
        item = self._item(self._training, index, rng, rng.randrange(self._recipe.variants))
        if rng.random() < self._recipe.condition_dropout:
            item["conditions"] = torch.full_like(item["conditions"], NOT_TOLD)
        return item

    def _item(self, latents: MaskLatents, index: int, rng: random.Random, variant: int | None) -> Tensors:
        device = next(self.networks[NETWORK].parameters()).device
        clean, deviation, sizes = latents.load(index, variant, device)
        if self._recipe.sample_posterior and variant is not None:
            clean = clean + deviation * torch.randn(clean.shape, generator=generator_of(rng))
        drawn = rng.random() * self.schedule.train_timesteps
        if isinstance(self.schedule, FlowSchedule):
            time = torch.tensor(self.schedule.bend(drawn, clean[0].numel()), dtype=torch.float32)
        else:
            time = torch.tensor(int(drawn), dtype=torch.long)
        return {
            "clean": clean * self.scale_factor,
            "noise": torch.randn(clean.shape, generator=generator_of(rng)),
            "time": time,
            "conditions": torch.tensor([self.sizes.training_vector(sizes, rng)], dtype=torch.float32),
        }

    def losses(self, phase: str, batch: Tensors) -> Tensors:
        """Mean error of the prediction, per sample."""
        error = self._error(self.networks[NETWORK], batch)
        per_voxel = error.abs() if self._recipe.loss == "l1" else error**2
        weight = weight_of_times(self.schedule, batch["time"], self._recipe.velocity_weight)
        return {"loss": per_voxel.flatten(1).mean(1) * weight}

    def _error(self, network: Any, batch: Tensors) -> torch.Tensor:
        noisy = self.schedule.noisy(batch["clean"], batch["noise"], batch["time"])
        predicted = network(noisy, batch["time"], context=batch["conditions"]).float()
        return predicted - prediction_target(self.schedule, batch)

    def validate_item(self, index: int, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """The absolute error at three fixed times with fixed noise."""
        network = networks[NETWORK]
        item = self._item(self._validation, index, random.Random(index), None)
        batches = validation_batches(item, self.schedule, next(network.parameters()).device)
        return {"loss": float(np.mean([float(self._error(network, batch).abs().mean()) for batch in batches]))}


def mask_diffusion_task(recipe: MaskDiffusionRecipe, data: Datalist) -> tuple[MaskDiffusionTask, float]:
    """The task for a datalist, and its scale factor.

    Raises:
        TrainingError: ``autoencoder`` names no trained mask autoencoder, or a mask holds labels that are no classes.
        MaskError: A controllable anatomy is whole in fewer than two masks.
    """
    autoencoder = open_mask_autoencoder(recipe.autoencoder)
    training = MaskDataset(data.training, recipe.data)
    validation = MaskDataset(data.validation, recipe.data, training.table)
    task = MaskDiffusionTask(recipe, training, validation, autoencoder)
    assert recipe.autoencoder is not None, "it was opened"
    task.facts = {"mask autoencoder": _autoencoder_sha256(recipe.autoencoder)}
    return task, task.scale_factor


def _autoencoder_sha256(where: str) -> str:
    """Of the weights in a run folder, or in a bundle."""
    run = Path(where)
    if (run / "request.json").is_file():
        return sha256_of(run / "weights" / f"{AUTOENCODER}.safetensors")
    bundle = Bundle(where) if run.is_dir() else open_bundle(where)
    return bundle.weights_sha256()[AUTOENCODER]
