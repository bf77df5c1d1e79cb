"""The volume autoencoder's training: reconstruction, KL, perceptual and adversarial terms (MAISI, arXiv:2409.11169)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from MAISILib.anatomy.labels import default_table
from MAISILib.bundles.bundle import open_bundle
from MAISILib.bundles.networks import build_network, compression_factor
from MAISILib.training.activation_checkpointing import checkpoint_activations
from MAISILib.training.datalist import Datalist
from MAISILib.training.images import ImageDataset
from MAISILib.training.initial_weights import start_from
from MAISILib.training.linear_start import measure_code, start_as_linear_code
from MAISILib.training.perceptual import PerceptualDistance
from MAISILib.training.recipes import AutoencoderRecipe
from MAISILib.training.task import DatasetTask, Tensors, generator_of

#: The published discriminator: three layers, 32 channels at the first, instance norm.
_DISCRIMINATOR: dict[str, Any] = {
    "spatial_dims": 3,
    "num_layers_d": 3,
    "channels": 32,
    "in_channels": 1,
    "out_channels": 1,
    "norm": "INSTANCE",
}

#: PSNR ends at 100 dB: nothing but air may come back without any error.
_LEAST_SQUARED_ERROR = 1e-10

#: (reconstruction, image) ``(N, 1, X, Y, Z)`` → distance per sample ``(N,)``.
Perceptual = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class AutoencoderTask(DatasetTask[ImageDataset]):
    """Learns to code images.

    Args:
        recipe: Definition and weights of the terms.
        training: Images to learn from, patches of one shape.
        validation: Held-out images.
        perceptual: The perceptual distance, where its weights are there.
    """

    name = "autoencoder"
    judged_by: tuple[str, ...] = ("mae",)

    def __init__(
        self,
        recipe: AutoencoderRecipe,
        training: ImageDataset,
        validation: ImageDataset,
        perceptual: Perceptual | None = None,
    ) -> None:
        super().__init__(training, validation)
        self._recipe, self._perceptual = recipe, perceptual
        torch.manual_seed(recipe.seed)
        autoencoder = build_network(recipe.definition).train()
        if recipe.init_from is not None:
            start_from({"autoencoder": autoencoder}, recipe.init_from)
        elif recipe.linear_start:
            code = measure_code(training, recipe.definition["latent_channels"], recipe.seed)
            images = (training.load(i, random.Random(i)).image[None] for i in range(min(8, len(training))))
            start_as_linear_code(autoencoder, code, images, -8.0 if (v := recipe.initial_log_variance) is None else v)
        elif recipe.initial_log_variance is not None:
            start_with_small_deviation(autoencoder, recipe.initial_log_variance)
        if recipe.checkpoint_activations:
            checkpoint_activations(autoencoder)
        self.networks: dict[str, nn.Module] = {"autoencoder": autoencoder}
        self.phases: dict[str, tuple[str, ...]] = {"main": ("autoencoder",)}
        if recipe.adversarial_weight > 0:
            from monai.networks.nets.patchgan_discriminator import PatchDiscriminator

            self.networks["discriminator"] = PatchDiscriminator(**_DISCRIMINATOR)
            self.phases = {"generator": ("autoencoder",), "discriminator": ("discriminator",)}

    def load_item(self, index: int, rng: random.Random) -> Tensors:
        """``image`` ``(1, X, Y, Z)``, ``weight`` of the same shape, the posterior's ``noise`` ``(C, x, y, z)``."""
        sample = self._training.load(index, rng)
        factor, channels = compression_factor(self._recipe.definition), self._recipe.definition["latent_channels"]
        shape = [n // factor for n in sample.image.shape[1:]]
        noise = torch.randn((channels, *shape), generator=generator_of(rng))
        return {"image": sample.image, "weight": self._weight(sample.image, sample.label), "noise": noise}

    def _weight(self, image: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        if label is None:
            return torch.ones_like(image)
        return torch.where(label > 0, 1.0, self._recipe.air_weight)

    def losses(self, phase: str, batch: Tensors) -> Tensors:
        """Phase ``main`` or ``generator``: the autoencoder's terms; ``discriminator``: real against reconstructed."""
        if phase == "discriminator":
            return self._discriminator_losses(batch)
        recipe, image = self._recipe, batch["image"]
        autoencoder: Any = self.networks["autoencoder"]
        mean, deviation = autoencoder.encode(image)
        output = autoencoder.decode(mean + deviation * batch["noise"]).float()
        error = (output - image).abs()
        dims, weight = (1, 2, 3, 4), batch["weight"]
        per_voxel = recipe.absolute_weight * error + recipe.squared_weight * error**2
        reconstruction = (weight * per_voxel).sum(dims) / weight.sum(dims)
        kl = kl_divergence(mean.float(), deviation.float())
        losses = {"loss": reconstruction + recipe.kl_weight * kl, "reconstruction": reconstruction, "kl": kl}
        if self._perceptual is not None:
            losses["perceptual"] = self._perceptual(output, image)
            losses["loss"] = losses["loss"] + recipe.perceptual_weight * losses["perceptual"]
        if "discriminator" in self.networks:
            losses["adversarial"] = _distance(self.networks["discriminator"](output)[-1], 1.0)
            losses["loss"] = losses["loss"] + recipe.adversarial_weight * losses["adversarial"]
            batch["reconstruction"] = output.detach()
        return losses

    def _discriminator_losses(self, batch: Tensors) -> Tensors:
        """Least squares: real images towards 1, reconstructions towards 0."""
        discriminator = self.networks["discriminator"]
        real = _distance(discriminator(batch["image"])[-1], 1.0)
        made = _distance(discriminator(batch["reconstruction"])[-1], 0.0)
        return {"loss": 0.5 * (real + made)}

    def validate_item(self, index: int, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """From the posterior mean: PSNR in dB and mean absolute error in [0, 1], in the body where it is known."""
        sample = self._validation.load(index, random.Random(index))
        device = next(networks["autoencoder"].parameters()).device
        image = sample.image[None].to(device)
        network: Any = networks["autoencoder"]
        output = reconstruct(network, image, self._recipe.data.val_sliding_window_patch_size)
        error = output.clamp(0, 1) - image
        if sample.label is not None and sample.label.any():
            error = error[sample.label[None].to(device) > 0]
        squared = max(float((error**2).mean()), _LEAST_SQUARED_ERROR)
        return {"psnr_db": -10 * math.log10(squared), "mae": float(error.abs().mean())}


def autoencoder_task(recipe: AutoencoderRecipe, data: Datalist) -> tuple[AutoencoderTask, float | None]:
    """The task for a datalist; an autoencoder has no scale factor.

    Raises:
        TrainingError: ``perceptual_weights`` is not the file that it should be, or the bundle in ``init_from`` has
            another autoencoder.
    """
    table = open_bundle(recipe.labels_of).labels if recipe.labels_of else default_table()
    training, validation = (
        ImageDataset(items, recipe.data, table, training=is_training)
        for items, is_training in ((data.training, True), (data.validation, False))
    )
    perceptual = None
    if recipe.perceptual_weight > 0 and recipe.perceptual_weights is not None:
        perceptual = PerceptualDistance(recipe.perceptual_weights)
    return AutoencoderTask(recipe, training, validation, perceptual), None


def kl_divergence(mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Each sample's divergence from the standard normal, summed over the latent: ``(N, C, …)`` → ``(N,)``."""
    variance = deviation**2
    return 0.5 * (mean**2 + variance - torch.log(variance) - 1).flatten(1).sum(1)


def start_with_small_deviation(autoencoder: nn.Module, log_variance: float = -8.0) -> None:
    """Sets the bias of the posterior's log-variance, so that early training is not drowned in sampling noise."""
    for name, parameter in autoencoder.named_parameters():
        if name.startswith("quant_conv_log_sigma") and name.endswith("bias"):
            nn.init.constant_(parameter, log_variance)


def reconstruct(autoencoder: Any, image: torch.Tensor, window: tuple[int, int, int] | None) -> torch.Tensor:
    """The image after coding, ``(1, 1, X, Y, Z)``: as a whole, or in overlapping windows where it is larger."""
    if window is None or all(n <= w for n, w in zip(image.shape[2:], window, strict=True)):
        return autoencoder.reconstruct(image).float()
    from monai.inferers.inferer import SlidingWindowInferer

    inferer = SlidingWindowInferer(roi_size=window, overlap=0.4, mode="gaussian")
    return inferer(image, autoencoder.reconstruct).float()  # type: ignore[union-attr]


def _distance(scores: torch.Tensor, wanted: float) -> torch.Tensor:
    return ((scores.float() - wanted) ** 2).flatten(1).mean(1)
