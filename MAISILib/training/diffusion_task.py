"""The diffusion UNet's training on latents: alone (published), or with a ControlNet (small models, small data).

Together, a small model learns sooner: in most items the ControlNet shows the mask to the UNet, in the others its
residuals are zero, so that the UNet still learns to work alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from MAISILib.bundles.networks import build_network
from MAISILib.diffusion.networks import control_residuals, embed_mask, predict
from MAISILib.diffusion.schedules import FlowSchedule
from MAISILib.training.activation_checkpointing import checkpoint_activations
from MAISILib.training.denoising import (
    as_body,
    box_of,
    check_conditions,
    condition_inputs,
    diffusion_item,
    labels_of,
    labels_to_forget,
    make_schedule,
    mask_bits,
    prediction_target,
    validation_batches,
    weight_of_times,
    weighted_mean,
)
from MAISILib.training.initial_weights import bundle_of, start_unet_from
from MAISILib.training.latents import LatentDataset, latent_facts, latent_scale_factor
from MAISILib.training.pass_through import start_with_pass_through
from MAISILib.training.recipes import DiffusionRecipe
from MAISILib.training.task import DatasetTask, Tensors

if TYPE_CHECKING:
    from MAISILib.training.datalist import Datalist


class DiffusionTask(DatasetTask[LatentDataset]):
    """Learns velocity (rectified flow) or noise (DDPM).

    Args:
        recipe: Definitions, schedule, dropouts.
        training: Latents to learn from, of one shape.
        validation: Held-out latents.
    """

    name = "diffusion"
    judged_by: tuple[str, ...] = ("loss",)

    def __init__(
        self,
        recipe: DiffusionRecipe,
        training: LatentDataset,
        validation: LatentDataset,
    ) -> None:
        super().__init__(training, validation)
        self._recipe = recipe
        self.schedule = make_schedule(recipe.schedule)
        torch.manual_seed(recipe.seed)
        self.networks: dict[str, nn.Module] = {"diffusion": build_network(recipe.definition).train()}
        if recipe.pass_through_start:
            start_with_pass_through(
                self.networks["diffusion"], -1.0 if isinstance(self.schedule, FlowSchedule) else 1.0
            )
        if recipe.controlnet is not None:
            self.networks["controlnet"] = build_network(recipe.controlnet).train()
        start_unet_from(self.networks, "diffusion", recipe.init_from, self.schedule)
        if recipe.checkpoint_activations:
            for network in self.networks.values():
                checkpoint_activations(network)
        self.phases: dict[str, tuple[str, ...]] = {"main": tuple(self.networks)}

    def load_item(self, index: int, rng: random.Random) -> Tensors:
        """See :func:`diffusion_item`; with a ControlNet also ``bits`` ``(8, X, Y, Z)`` and if they are shown to it."""
        recipe, sample = self._recipe, self._training.load(index, rng)
        if recipe.crop is not None and rng.random() < recipe.crop.probability:
            sample = box_of(sample, recipe.crop.size, rng)
        item = diffusion_item(sample, self.schedule, rng, recipe.air_weight, recipe.time_power)
        if rng.random() < recipe.modality_dropout:
            item["class_labels"] = torch.tensor(recipe.coarse_modality)
        check_conditions(item, self.networks["diffusion"], self.item_name(index))
        if recipe.controlnet is not None:
            labels = labels_of(sample, self.item_name(index))
            item["bits"] = mask_bits(as_body(labels, labels_to_forget(labels, recipe.label_dropout, rng)))
            item["masked"] = torch.tensor(float(rng.random() >= recipe.mask_dropout)).view(1, 1, 1, 1)
        return item

    def losses(self, phase: str, batch: Tensors) -> Tensors:
        """Weighted error of the prediction, per sample."""
        error = self._error(self.networks, batch)
        per_voxel = error.abs() if self._recipe.loss == "l1" else error**2
        weight = weight_of_times(self.schedule, batch["time"], self._recipe.velocity_weight)
        return {"loss": weighted_mean(per_voxel, batch["weight"]) * weight}

    def _error(self, networks: Mapping[str, nn.Module], batch: Tensors) -> torch.Tensor:
        noisy = self.schedule.noisy(batch["clean"], batch["noise"], batch["time"])
        inputs = condition_inputs(batch)
        residuals = None
        if "bits" in batch:
            controlnet = networks["controlnet"]
            embedding = embed_mask(controlnet, batch["bits"].float())
            shown = control_residuals(controlnet, noisy, batch["time"], embedding, inputs.get("class_labels"))
            residuals = [residual * batch["masked"] for residual in shown]
        predicted = predict(networks["diffusion"], noisy, batch["time"], inputs, residuals).float()
        return predicted - prediction_target(self.schedule, batch)

    def validate_item(self, index: int, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """The loss at three fixed times with fixed noise, with the mask where there is a ControlNet."""
        rng = random.Random(index)
        sample = self._validation.load(index, rng)
        item = diffusion_item(sample, self.schedule, rng, self._recipe.air_weight)
        check_conditions(item, self.networks["diffusion"], self._validation.name(index))
        if self._recipe.controlnet is not None:
            labels = labels_of(sample, self._validation.name(index))
            item |= {"bits": mask_bits(labels), "masked": torch.ones(1, 1, 1, 1)}
        device = next(networks["diffusion"].parameters()).device
        batches = validation_batches(item, self.schedule, device)
        values = [weighted_mean(self._error(networks, batch).abs(), batch["weight"]) for batch in batches]
        return {"loss": float(torch.stack(values).mean())}


def diffusion_task(recipe: DiffusionRecipe, data: Datalist) -> tuple[DiffusionTask, float]:
    """The task for a datalist of latents, and their scale factor.

    A bundle in ``init_from`` knows its latents by its own scale factor, labels and modalities; otherwise the scale
    factor is measured.

    Raises:
        TrainingError: The bundle in ``init_from`` has other networks.
        FileFormatError: A latent cannot be read, or is from another autoencoder than the bundle's or the others'.
    """
    bundle = bundle_of(recipe.init_from)
    if bundle is None:
        training = LatentDataset(data.training, sample=recipe.sample_posterior)
        encoded_by = training.autoencoder_sha256
        validation = LatentDataset(data.validation, sample=False, autoencoder_sha256=encoded_by)
    else:
        training = LatentDataset.of_bundle(bundle, data.training, sample=recipe.sample_posterior)
        validation = LatentDataset.of_bundle(bundle, data.validation, sample=False)
    scale = recipe.scale_factor or (latent_scale_factor(training) if bundle is None else bundle.scale_factor())
    task = DiffusionTask(recipe, training.scaled(scale), validation.scaled(scale))
    task.facts = latent_facts(training.autoencoder_sha256, scale)
    return task, scale
