"""Recipes: what a training is asked to do, as validated JSON. Defaults are the published ones (arXiv:2409.11169)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from MAISILib.errors import TrainingError, did_you_mean
from MAISILib.training.images import ImageSettings

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
Part = Annotated[float, Field(ge=0, le=1)]
#: Not 0: an item of nothing but air would have no weight at all.
AirWeight = Annotated[float, Field(gt=0, le=1)]

HOW_TO_GET_PERCEPTUAL_WEIGHTS = (
    "Download resnet_10_23dataset.pth of MedicalNet (MIT licence) from "
    "https://huggingface.co/TencentMedicalNet/MedicalNet-Resnet10 and name the file in the recipe's "
    "'perceptual_weights'."
)


class Recipe(BaseModel):
    """What every training has.

    Attributes:
        seed: Of the order of the data and of everything drawn for an item.
        steps: Optimiser steps.
        batch: Items per process and forward pass.
        accumulate: Forward passes per step.
        optimizer: ``adam`` or ``adamw``.
        rate: Peak learning rate.
        rate_schedule: ``constant``; ``polynomial`` (power 2 to 0); ``cosine`` (to 2 %); ``epochs`` (``epoch_factors``).
        epoch_factors: (epochs, factor) one after the other; the last factor stays.
        warmup: Steps of linear rise before the schedule.
        weight_decay: Decoupled for ``adamw``.
        clip: Largest norm of the gradient; ``None`` does not clip.
        average_decay: Decay of the moving average of the weights; ``None`` keeps none.
        precision: Of the networks' arithmetic; weights, losses and optimiser stay float32.
        checkpoint_activations: Compute activations again in the backward pass rather than keep them.
        validate_every: Steps between validations; 0 validates at the end only.
        best_metric: Validation figure (smaller is better) that decides which weights are kept as the best.
        patience: Validations without improvement before the training stops early; ``None`` never does.
        save_minutes: Minutes between checkpoints.
        init_from: Bundle (name or folder), or folder of an ended run, to start from; ``None``: random weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: What a resumed run may have otherwise; a start is behind it.
    may_change: ClassVar[frozenset[str]] = frozenset({"save_minutes", "init_from"})

    seed: int = 0
    steps: Count
    batch: Count = 1
    accumulate: Count = 1
    optimizer: Literal["adam", "adamw"] = "adam"
    rate: Positive = 1e-4
    rate_schedule: Literal["constant", "polynomial", "cosine", "epochs"] = "constant"
    epoch_factors: Annotated[list[tuple[Count, Positive]], Field(min_length=1)] = [(10, 0.01), (10, 0.1), (1, 1.0)]
    warmup: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Positive | None = None
    average_decay: Annotated[float, Field(gt=0, lt=1)] | None = 0.999
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    checkpoint_activations: bool = False
    validate_every: Annotated[int, Field(ge=0)] = 0
    best_metric: str | None = None
    patience: Count | None = None
    save_minutes: Positive = 3.0
    init_from: str | None = None

    @model_validator(mode="after")
    def _patience_has_a_figure(self) -> Recipe:
        if self.patience is not None and self.best_metric is None:
            raise ValueError("patience needs a best_metric: the figure that has to get better")
        return self

    @property
    def remarks(self) -> tuple[str, ...]:
        """What people should be told before the first step."""
        return ()

    def rate_at(self, step: int, epoch: float) -> float:
        """Learning rate of a step (from 0), which lies ``epoch`` epochs into the training."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        if self.rate_schedule == "polynomial":
            return self.rate * (1 - done) ** 2
        if self.rate_schedule == "cosine":
            return self.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        if self.rate_schedule == "epochs":
            end = 0.0
            for epochs, factor in self.epoch_factors:
                end += epochs
                if epoch < end:
                    return self.rate * factor
            return self.rate * self.epoch_factors[-1][1]
        return self.rate


class AutoencoderRecipe(Recipe):
    """Volume autoencoder: absolute (and squared) error, KL, perceptual and adversarial terms.

    Attributes:
        definition: The autoencoder.
        data: How images are read, cropped and varied.
        labels_of: Bundle whose label table says which labels change places in a mirror; ``None``: the public one.
        absolute_weight: Of the absolute error (L1).
        squared_weight: Of the squared error (L2).
        air_weight: Weight of voxels outside the body (label 0, where items have a label map), against 1 inside.
        kl_weight: Of the Kullback–Leibler term.
        perceptual_weight: Of the perceptual term (:mod:`MAISILib.training.perceptual`).
        perceptual_weights: File with the weights of its network; ``None`` leaves the term out. Nothing is downloaded.
        adversarial_weight: Of the least-squares patch GAN; 0 trains no discriminator.
        initial_log_variance: Bias of the posterior's log-variance at the start; ``None`` keeps the network's own.
        linear_start: Start as the best linear code of the images (:mod:`MAISILib.training.linear_start`).
    """

    network: Literal["autoencoder"] = "autoencoder"
    definition: dict[str, Any]
    data: ImageSettings = ImageSettings()
    labels_of: str | None = None
    absolute_weight: Annotated[float, Field(ge=0)] = 1.0
    squared_weight: Annotated[float, Field(ge=0)] = 0.0
    air_weight: AirWeight = 1.0
    kl_weight: Annotated[float, Field(ge=0)] = 1e-7
    perceptual_weight: Annotated[float, Field(ge=0)] = 0.3
    perceptual_weights: Path | None = None
    adversarial_weight: Annotated[float, Field(ge=0)] = 0.1
    initial_log_variance: float | None = None
    linear_start: bool = False
    rate_schedule: Literal["constant", "polynomial", "cosine", "epochs"] = "epochs"

    @property
    def remarks(self) -> tuple[str, ...]:
        """Whether the perceptual term is left out, and what to do about it."""
        if self.perceptual_weight == 0 or self.perceptual_weights is not None:
            return ()
        return (f"The perceptual term is left out: its network has no weights. {HOW_TO_GET_PERCEPTUAL_WEIGHTS}",)

    @model_validator(mode="after")
    def _terms_go_together(self) -> AutoencoderRecipe:
        if self.absolute_weight == self.squared_weight == 0:
            raise ValueError("absolute_weight and squared_weight are both 0: nothing would be reconstructed")
        if self.adversarial_weight > 0 and min(self.data.patch_size) < 32:
            raise ValueError("the discriminator halves patches four times: give a patch_size of at least 32")
        return self


class LatentCrop(BaseModel):
    """Learning from boxes of latents that hold part of the body, which costs less than whole latents.

    Attributes:
        size: Latent voxels of a box; divisible by what the UNet halves.
        probability: Of a box; else the whole latent is taken, so that the network knows whole volumes as well. Between
            0 and 1 it needs batches of one (``accumulate`` more), since items of a batch have equal shapes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: tuple[Count, Count, Count]
    probability: Part = 1.0


class DiffusionRecipe(Recipe):
    """Diffusion UNet on stored latents: absolute error of the velocity (rectified flow) or of the noise (DDPM).

    Attributes:
        definition: The UNet.
        schedule: Fields of the bundle manifest's ``schedule``.
        loss: ``l1`` or ``l2``.
        velocity_weight: With noise prediction: how much more than at the last moments an error may weigh where there
            is little image left in the noise (:func:`MAISILib.training.denoising.weight_of_times`). 1 weighs all times
            alike, as published, which teaches a small network texture long before shape.
        scale_factor: ``None`` takes that of a bundle in ``init_from``, or else measures one over the deviation of all
            training latents.
        sample_posterior: Draw latents from mean and deviation anew each time; else the mean is used.
        air_weight: Weight of latent voxels outside the body, where items have a label map.
        crop: Learn from boxes of the latents; ``None`` takes whole latents.
        time_power: Times are drawn as T·u^power with uniform u: above 1 more of them lie near the image.
        pass_through_start: Start by handing the noise through (:mod:`MAISILib.training.pass_through`).
        modality_dropout: Part of the items that are told ``coarse_modality`` instead, so that guidance works.
        coarse_modality: The class code of the unconditional input.
        controlnet: Definition of a ControlNet that is trained together with the UNet; ``None`` trains the UNet alone.
        mask_dropout: With ``controlnet``: part of the items that the UNet sees without their mask.
        label_dropout: With ``controlnet``: probability of each label to become body, so that masks without it work.
    """

    network: Literal["diffusion"] = "diffusion"
    definition: dict[str, Any]
    schedule: dict[str, Any] = {"kind": "rflow"}
    loss: Literal["l1", "l2"] = "l1"
    velocity_weight: Annotated[float, Field(ge=1)] = 1.0
    scale_factor: Positive | None = None
    sample_posterior: bool = True
    air_weight: AirWeight = 1.0
    crop: LatentCrop | None = None
    time_power: Positive = 1.0
    pass_through_start: bool = False
    modality_dropout: Part = 0.1
    coarse_modality: int = 0
    controlnet: dict[str, Any] | None = None
    mask_dropout: Part = 0.15
    label_dropout: Part = 0.0
    batch: Count = 2
    rate: Positive = 1e-5
    rate_schedule: Literal["constant", "polynomial", "cosine", "epochs"] = "polynomial"

    @model_validator(mode="after")
    def _one_shape_in_a_batch(self) -> DiffusionRecipe:
        if self.crop is not None and 0 < self.crop.probability < 1 and self.batch > 1:
            raise ValueError("a crop with a probability between 0 and 1 gives items of two shapes; set batch to 1")
        return self


class ControlNetRecipe(Recipe):
    """ControlNet beside the frozen UNet of the bundle ``init_from``, started from its weights.

    Attributes:
        definition: The ControlNet; ``None`` takes the one of the bundle in ``init_from``.
        crop: Learn from boxes of the latents, as for the UNet.
        weighted_labels: Labels whose latent voxels count ``weighted_loss`` times.
        weighted_loss: Published: 100.
        contrastive_weight: λ of the region-specific contrastive loss; 0 leaves it out.
        contrastive_labels: Its regions; every label here has a host in the label table.
        contrastive_margin: δ of that loss.
        preserve: Around the weighted and contrastive labels the weights that it starts from are the teacher instead of
            the data, so that little changes there.
        label_dropout: Probability of each other label to become body.
        modality_dropout: Part of the items that are told ``coarse_modality`` instead.
        coarse_modality: The class code of the unconditional input.
        loss: ``l1`` or ``l2``.
        air_weight: Weight of latent voxels outside the body.
        sample_posterior: As for the UNet.
    """

    may_change: ClassVar[frozenset[str]] = frozenset({"save_minutes"})  # the frozen UNet comes from init_from

    network: Literal["controlnet"] = "controlnet"
    definition: dict[str, Any] | None = None
    crop: LatentCrop | None = None
    weighted_labels: list[int] = []
    weighted_loss: Positive = 100.0
    contrastive_weight: Annotated[float, Field(ge=0)] = 0.0
    contrastive_labels: list[int] = []
    contrastive_margin: Positive = 2.0
    preserve: bool = False
    label_dropout: Part = 0.0
    modality_dropout: Part = 0.0
    coarse_modality: int = 0
    loss: Literal["l1", "l2"] = "l1"
    air_weight: AirWeight = 1.0
    sample_posterior: bool = True
    batch: Count = 1
    optimizer: Literal["adam", "adamw"] = "adamw"
    rate: Positive = 1e-5
    rate_schedule: Literal["constant", "polynomial", "cosine", "epochs"] = "polynomial"


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def read_recipe(path: Path, kind: type[AnyRecipe]) -> AnyRecipe:
    """Reads a recipe file.

    Raises:
        TrainingError: Not there, not JSON, for another network, or a field that does not fit.
    """
    return parse_recipe(read_json(path), kind, str(path))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        TrainingError: Not there, or no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise TrainingError(f"{path}: the recipe cannot be read ({error}). Give a JSON file.") from None
    if not isinstance(data, dict):
        raise TrainingError(f"{path}: a recipe is a JSON object; this is a {type(data).__name__}.")
    return data


def parse_recipe(data: dict[str, Any], kind: type[AnyRecipe], where: str) -> AnyRecipe:
    """Checks a recipe that is already in memory; ``where`` names it in messages.

    Raises:
        TrainingError: As :func:`read_recipe`.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = []
        for problem in error.errors()[:8]:
            name = ".".join(map(str, problem["loc"]))
            if problem["type"] == "extra_forbidden":
                known = did_you_mean(str(problem["loc"][-1]), kind.model_fields)
                problems.append(f"{name!r} is no field of this recipe.{known}")
            elif problem["type"] == "missing":
                problems.append(f"{name!r} is missing")
            elif not name:  # fields that do not go together
                problems.append(problem["msg"].removeprefix("Value error, "))
            else:
                problems.append(f"{name!r} is {problem['input']!r}: {problem['msg']}")
        raise TrainingError(f"{where}: {'; '.join(problems)}") from None
