"""Recipes of the mask generator's two networks (MAISI, arXiv:2409.11169, section 3.2)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from MAISILib.training.images import Size, Spacing
from MAISILib.training.recipes import Count, Part, Positive, Recipe

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LabelValue = Annotated[int, Field(ge=0, le=255)]


class MaskSettings(BaseModel):
    """How label maps are read and varied.

    Attributes:
        labels_of: Bundle whose label table says what the labels mean; ``None``: the public one.
        classes: The label of each output channel of the mask autoencoder; the first is 0, background.
        size: Voxels of the generator's grid.
        spacing: Its voxel size in mm.
        resample: Bring label maps of other voxel sizes or shapes onto the grid, centred; else they are left out.
        mirror: Probability of a mirrored patient, left and right labels exchanged.
        stretch: Largest relative change of the patient's size, drawn for each axis apart.
        cache: Keep label maps (and their latents) in memory, as long as a quarter of it stays free.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels_of: str | None = None
    classes: Annotated[list[LabelValue], Field(min_length=2, max_length=256)]
    size: Size
    spacing: Spacing
    resample: bool = True
    mirror: Part = 0.5
    stretch: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    cache: bool = True

    @model_validator(mode="after")
    def _classes_are_labels(self) -> MaskSettings:
        if self.classes[0] != 0 or len(set(self.classes)) != len(self.classes):
            raise ValueError("classes begin with 0 (background) and name every label once")
        return self


class MaskAutoencoderRecipe(Recipe):
    """Mask autoencoder: the eight bits of a label map in, one channel for each class out.

    Attributes:
        definition: The autoencoder, with 8 input channels and as many output channels as ``classes``.
        data: How label maps are read and varied.
        patch_size: Voxels of a training patch, which holds part of the patient; ``None`` takes whole masks.
        cross_entropy_weight: Of the cross-entropy, a mean over voxels.
        dice_weight: Of the soft Dice loss, a mean over the classes that a patch holds, without background.
        kl_weight: Of the Kullback–Leibler term, a sum over the latent.
        initial_log_variance: Bias of the posterior's log-variance at the start; ``None`` keeps the network's own.
    """

    network: Literal["mask-autoencoder"] = "mask-autoencoder"
    definition: dict[str, Any]
    data: MaskSettings
    patch_size: Size | None = None
    cross_entropy_weight: Weight = 1.0
    dice_weight: Weight = 1.0
    kl_weight: Weight = 1e-7
    initial_log_variance: float | None = None

    @model_validator(mode="after")
    def _definition_fits(self) -> MaskAutoencoderRecipe:
        channels = self.definition.get("in_channels"), self.definition.get("out_channels")
        if channels != (8, len(self.data.classes)):
            raise ValueError(
                f"{len(self.data.classes)} classes need 8 input and as many output channels, not {channels}"
            )
        return self


class MaskDiffusionRecipe(Recipe):
    """Diffusion UNet on the latents of masks, told the sizes of organs through cross-attention.

    Attributes:
        definition: The UNet, with ``cross_attention_dim`` equal to the number of ``controllable`` anatomies.
        data: How label maps are read and varied.
        autoencoder: The mask autoencoder: the run folder of its training, or a bundle.
        controllable: Names of the anatomies whose sizes it is told, in order.
        variants: So many variations (mirrored, stretched) of each mask are learned from.
        schedule: Fields of the bundle manifest's ``mask_generator.schedule``.
        loss: ``l1`` or ``l2``.
        velocity_weight: See :class:`MAISILib.training.recipes.DiffusionRecipe`.
        scale_factor: ``None`` measures one over the deviation of the training latents.
        sample_posterior: Draw latents from mean and deviation anew each time; else the mean is used.
        condition_dropout: Part of the items that are told nothing (every entry −2), so that guidance works.
        pass_through_start: Start by handing the noise through (:mod:`MAISILib.training.pass_through`).
    """

    # What the autoencoder is, its weights tell (the task's facts), not the way that leads there.
    may_change: ClassVar[frozenset[str]] = Recipe.may_change | {"autoencoder"}

    network: Literal["mask-diffusion"] = "mask-diffusion"
    definition: dict[str, Any]
    data: MaskSettings
    autoencoder: str | None = None
    controllable: Annotated[list[str], Field(min_length=1)]
    variants: Count = 1
    schedule: dict[str, Any] = Field(default={"kind": "ddpm"})
    loss: Literal["l1", "l2"] = "l1"
    velocity_weight: Annotated[float, Field(ge=1)] = 1.0
    scale_factor: Positive | None = None
    sample_posterior: bool = True
    condition_dropout: Part = 0.0
    pass_through_start: bool = False
    batch: Count = 2
    rate: Positive = 1e-5
    rate_schedule: Literal["constant", "polynomial", "cosine", "epochs"] = "polynomial"

    @model_validator(mode="after")
    def _definition_fits(self) -> MaskDiffusionRecipe:
        told = self.definition.get("cross_attention_dim")
        if told != len(self.controllable):
            raise ValueError(
                f"cross_attention_dim is {told}, but there are {len(self.controllable)} controllable anatomies"
            )
        return self
