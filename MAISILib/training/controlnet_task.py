"""The ControlNet's training beside a frozen UNet: regions that count more, and lesions that differ from their host.

The region-specific contrastive loss (MAISI-v2, arXiv:2508.05772, section 3) compares the prediction for a mask with the
one for the same mask whose lesions became their host tissue: inside a lesion the two shall differ, outside the second
shall be as right as the first.

With ``preserve`` the weights that it starts from teach what lies around the lesions, so that a few cases with a new
label do not change the rest (knowledge distillation, arXiv:1503.02531, in one region).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from MAISILib.anatomy.labels import LabelTable
from MAISILib.bundles.bundle import open_bundle
from MAISILib.bundles.networks import build_network
from MAISILib.bundles.weights import check_weights, fit_published
from MAISILib.diffusion.networks import control_residuals, embed_mask, predict
from MAISILib.diffusion.schedules import Schedule, schedule_of
from MAISILib.errors import TrainingError
from MAISILib.training.activation_checkpointing import checkpoint_activations
from MAISILib.training.denoising import (
    as_body,
    at_latent_voxels,
    box_of,
    check_conditions,
    condition_inputs,
    diffusion_item,
    labels_of,
    labels_to_forget,
    mask_bits,
    prediction_target,
    relabelled,
    validation_batches,
    weighted_mean,
)
from MAISILib.training.latents import LatentDataset, latent_facts
from MAISILib.training.recipes import ControlNetRecipe
from MAISILib.training.task import DatasetTask, Tensors

if TYPE_CHECKING:
    from MAISILib.training.datalist import Datalist

#: Latent voxels by which a lesion's region grows before the rest counts as its surroundings: a latent voxel is decoded
#: together with its neighbours, and those of a lesion show its rim.
REGION_DILATION = 2


class ControlNetTask(DatasetTask[LatentDataset]):
    """Learns to show masks to a UNet that stays as it is.

    Args:
        recipe: Weights, contrast and dropouts.
        unet: Frozen here; its device follows the training's.
        controlnet_definition: The ControlNet to build.
        schedule: The UNet's noise schedule.
        training: Latents with label maps, of one shape.
        validation: Held-out latents.
        table: What the labels mean; hosts of lesions come from here.
        initial: Weights of the ControlNet to start from; ``None`` copies what the UNet has of the same name and shape.

    Raises:
        TrainingError: A label of the recipe is unknown or has no host, or the ControlNet does not belong to the UNet.
        BundleError: ``initial`` does not fit the definition.
    """

    name = "controlnet"
    judged_by: tuple[str, ...] = ("loss", "region_loss")

    def __init__(
        self,
        recipe: ControlNetRecipe,
        unet: nn.Module,
        controlnet_definition: dict[str, Any],
        schedule: Schedule,
        training: LatentDataset,
        validation: LatentDataset,
        table: LabelTable,
        initial: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        super().__init__(training, validation)
        self._recipe, self.schedule = recipe, schedule
        self._hosts = _hosts(recipe, table)
        self._unet = unet.eval().requires_grad_(False)
        torch.manual_seed(recipe.seed)
        controlnet = build_network(controlnet_definition).train()
        _start(controlnet, unet, initial)
        if recipe.checkpoint_activations:
            checkpoint_activations(controlnet)
            checkpoint_activations(unet)
        self._focus = sorted({*recipe.weighted_labels, *recipe.contrastive_labels})
        self._healthy = {value: host for value, host in table.hosts().items() if value in self._focus}
        self._parent = copy.deepcopy(controlnet).eval().requires_grad_(False) if recipe.preserve else None
        self.networks: dict[str, nn.Module] = {"controlnet": controlnet}
        self.phases: dict[str, tuple[str, ...]] = {"main": ("controlnet",)}

    def load_item(self, index: int, rng: random.Random) -> Tensors:
        """See :func:`MAISILib.training.denoising.diffusion_item`, and what the mask adds.

        Returns:
            Also ``bits`` ``(8, X, Y, Z)``; ``weight`` ``(1, x, y, z)`` is raised in the weighted labels. With contrast
            also ``host_bits``, the mask without its lesions, and ``lesion`` and ``around`` ``(1, x, y, z)``, where
            predictions shall differ and where they shall not. With ``preserve`` also ``parent_bits``, the mask as the
            first weights know it, and ``learned`` ``(1, x, y, z)``, where the data teach.
        """
        recipe, name = self._recipe, self.item_name(index)
        sample = self._training.load(index, rng)
        labels_of(sample, name)
        if recipe.crop is not None and rng.random() < recipe.crop.probability:
            sample = box_of(sample, recipe.crop.size, rng, [*recipe.weighted_labels, *recipe.contrastive_labels])
        labels = labels_of(sample, name)
        item = diffusion_item(sample, self.schedule, rng, recipe.air_weight)
        if rng.random() < recipe.modality_dropout:
            item["class_labels"] = torch.tensor(recipe.coarse_modality)
        check_conditions(item, self._unet, name)
        item["weight"] = item["weight"] * (1 + (recipe.weighted_loss - 1) * self._weighted(labels, item["clean"]))
        learned = {*recipe.weighted_labels, *recipe.contrastive_labels}
        forgotten = labels_to_forget(labels, recipe.label_dropout, rng, learned)
        item["bits"] = mask_bits(as_body(labels, forgotten))
        if self._hosts:
            item["host_bits"] = mask_bits(as_body(relabelled(labels, self._hosts), forgotten))
            item["lesion"] = _on_latent(labels, self._hosts, item["clean"])
            item["around"] = 1 - _grown(item["lesion"])
        if self._parent is not None:
            item["parent_bits"] = mask_bits(as_body(relabelled(labels, self._healthy), forgotten))
            item["learned"] = _grown(_on_latent(labels, self._focus, item["clean"]))
        return item

    def _weighted(self, labels: np.ndarray, latent: torch.Tensor) -> torch.Tensor:
        return _on_latent(labels, self._recipe.weighted_labels, latent)

    def losses(self, phase: str, batch: Tensors) -> Tensors:
        """``mean(w·|v̂ − v|) + λ·(lesion + around)``, per sample; with contrast also its three parts."""
        controlnet, target = self.networks["controlnet"], self._target(batch)
        predicted = self._predicted(controlnet, batch, batch["bits"])
        error = (predicted - target).abs()
        per_voxel = error if self._recipe.loss == "l1" else error**2
        loss = (per_voxel * batch["weight"]).flatten(1).mean(1)
        if not self._hosts:
            return {"loss": loss}
        lesion, around = self._contrast(controlnet, batch, predicted, target)
        total = loss + self._recipe.contrastive_weight * (lesion + around)
        return {"loss": total, "prediction": loss, "lesion": lesion, "around": around}

    def _target(self, batch: Tensors) -> torch.Tensor:
        """What shall be predicted: the data's, and with ``preserve`` the first weights' prediction around the focus."""
        target = prediction_target(self.schedule, batch)
        if self._parent is None:
            return target
        parent = self._parent.to(target.device)
        with torch.no_grad():
            taught = self._predicted(parent, batch, batch["parent_bits"])
        return torch.where(batch["learned"] > 0, target, taught)

    def _contrast(
        self, controlnet: nn.Module, batch: Tensors, predicted: torch.Tensor, target: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both terms of the contrastive loss; 0 for samples without a lesion, which cost no second prediction.

        Inside: ``ReLU(δ − mean|f(m) − f(m_free)|) − δ``, so that the two move apart until they differ by δ. Outside:
        ``mean|f(m_free) − v|``.
        """
        ill = batch["lesion"].flatten(1).any(1)
        zero = predicted.new_zeros(len(predicted))
        if not ill.any():
            return zero, zero
        part = {name: value[ill] for name, value in batch.items()}
        healthy = self._predicted(controlnet, part, part["host_bits"])
        margin = self._recipe.contrastive_margin
        apart = weighted_mean((predicted[ill] - healthy).abs(), part["lesion"])
        lesion = nn.functional.relu(margin - apart) - margin
        # A lesion may fill the picture: then there are no surroundings.
        around = (healthy - target[ill]).abs() * part["around"]
        around = around.flatten(1).sum(1) / (part["around"].flatten(1).sum(1) * around.shape[1]).clamp(min=1)
        return zero.masked_scatter(ill, lesion), zero.masked_scatter(ill, around)

    def _predicted(self, controlnet: nn.Module, batch: Tensors, bits: torch.Tensor) -> torch.Tensor:
        unet, time, inputs = self._unet, batch["time"], condition_inputs(batch)
        if next(unet.parameters()).device != time.device:
            unet.to(time.device)
        noisy = self.schedule.noisy(batch["clean"], batch["noise"], time)
        embedding = embed_mask(controlnet, bits.float())
        residuals = control_residuals(controlnet, noisy, time, embedding, inputs.get("class_labels"))
        return predict(unet, noisy, time, inputs, residuals).float()

    def validate_item(self, index: int, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """Absolute error at three fixed times with fixed noise.

        Returns:
            ``loss`` over all voxels (air by its weight); ``region_loss`` in weighted labels, where the mask has some.
        """
        rng, name = random.Random(index), self._validation.name(index)
        sample = self._validation.load(index, rng)
        labels = labels_of(sample, name)
        item = diffusion_item(sample, self.schedule, rng, self._recipe.air_weight)
        check_conditions(item, self._unet, name)
        item |= {"bits": mask_bits(labels), "region": self._weighted(labels, item["clean"])}
        controlnet = networks["controlnet"]
        rows: dict[str, list[torch.Tensor]] = {}
        for batch in validation_batches(item, self.schedule, next(controlnet.parameters()).device):
            predicted = self._predicted(controlnet, batch, batch["bits"])
            error = (predicted - prediction_target(self.schedule, batch)).abs()
            rows.setdefault("loss", []).append(weighted_mean(error, batch["weight"]))
            if batch["region"].any():
                rows.setdefault("region_loss", []).append(weighted_mean(error, batch["region"]))
        return {figure: float(torch.stack(values).mean()) for figure, values in rows.items()}


def controlnet_task(recipe: ControlNetRecipe, data: Datalist) -> tuple[ControlNetTask, float]:
    """The task for a datalist of latents, and their scale factor; UNet, labels and start come from ``init_from``.

    Raises:
        TrainingError: The recipe names no bundle, or one without a ControlNet and no definition.
        FileFormatError: Latents from another autoencoder than the bundle's.
    """
    if recipe.init_from is None:
        raise TrainingError("A ControlNet learns beside a UNet: name the bundle that has it in the recipe's init_from.")
    bundle = open_bundle(recipe.init_from)
    own = bundle.manifest.networks.get("controlnet")
    definition = recipe.definition or (own.definition if own else None)
    if definition is None:
        raise TrainingError(
            f"Bundle '{bundle.name}' has no ControlNet: give a definition in the recipe, with its UNet's channels, "
            "blocks and attention (docs/training.md says what else is in it)."
        )
    initial = bundle.load("controlnet").state_dict() if own and own.definition == definition else None
    sha256, scale = bundle.weights_sha256(), bundle.scale_factor()

    task = ControlNetTask(
        recipe,
        bundle.load("diffusion"),
        definition,
        schedule_of(bundle.manifest.schedule),
        LatentDataset.of_bundle(bundle, data.training, sample=recipe.sample_posterior),
        LatentDataset.of_bundle(bundle, data.validation, sample=False),
        bundle.labels,
        initial,
    )
    task.facts = {**latent_facts(sha256["autoencoder"], scale), "frozen UNet": sha256["diffusion"]}
    return task, scale


def _on_latent(labels: np.ndarray, wanted: list[int] | dict[int, int], latent: torch.Tensor) -> torch.Tensor:
    return at_latent_voxels(torch.from_numpy(np.isin(labels, list(wanted))), latent.shape)


def _grown(region: torch.Tensor) -> torch.Tensor:
    """A region ``(1, x, y, z)`` of zeros and ones and what lies next to it."""
    return nn.functional.max_pool3d(region[None], 2 * REGION_DILATION + 1, 1, REGION_DILATION)[0]


def _hosts(recipe: ControlNetRecipe, table: LabelTable) -> dict[int, int]:
    """Contrastive label → host; empty where the recipe wants no contrast."""
    hosts = table.hosts()
    for value in [*recipe.weighted_labels, *recipe.contrastive_labels]:
        if value not in table:
            raise TrainingError(f"The recipe names label {value}, which the label table {table.name!r} does not have.")
    for value in recipe.contrastive_labels:
        if value not in hosts:
            raise TrainingError(
                f"Label {table.describe(value)} is to be contrasted with its host, and has none in the label table "
                f"{table.name!r}. Name the tissue that is there without it, or take it out of contrastive_labels."
            )
    if recipe.contrastive_weight == 0:
        return {}
    chosen = {}
    for value in recipe.contrastive_labels:
        host = hosts[value]
        while host in recipe.contrastive_labels:  # a lesion in a lesion: both are gone in the mask to compare with
            host = hosts[host]
        chosen[value] = host
    return chosen


def _start(controlnet: nn.Module, unet: nn.Module, initial: Mapping[str, torch.Tensor] | None) -> None:
    """Loads the first weights: ``initial``, with gaps filled from the UNet, as published checkpoints have them."""
    own = controlnet.state_dict()
    fitted, report = fit_published(own, initial or {}, donor=unet.state_dict())
    if initial is None:
        # The UNet's time embedding also carries the spacing, so that its projections have another width.
        may_differ = ("controlnet_", "time_emb_proj.weight")
        alone = own.keys() - set(report.filled)
        strange = sorted(n for n in alone if not (n.startswith(may_differ) or n.endswith(may_differ)))
        if strange:
            raise TrainingError(
                f"The ControlNet's definition does not fit its UNet: {len(strange)} weights have no counterpart of the "
                f"same name and shape, for example {strange[0]}. Give it the UNet's channels, blocks and attention."
            )
        fitted = {**own, **fitted}
    check_weights(own, fitted, "weights to start from")
    controlnet.load_state_dict(fitted)
