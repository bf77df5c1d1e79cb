"""How the diffusion UNet and the ControlNet are called: MONAI's modules, our walk through them.

The walk equals MONAI's own ``forward`` (a test holds us to it) with three differences: residuals are added out of
place, so that UNet and ControlNet can be trained together; the ControlNet's mask embedding is computed apart, once per
mask rather than once per step; inputs that a network does not have are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

#: Spacing in mm and one-hot body regions enter the network multiplied by this (MAISI, arXiv:2409.11169, section 3).
CONDITION_SCALE = 100.0


@dataclass(frozen=True)
class Conditions:
    """What the networks are told beside the mask.

    Args:
        modality: Class code of the bundle's modality table.
        spacing: Voxel size of the image in mm ``(x, y, z)``.
        top_region: Index 0–3 (head, chest, abdomen, lower) of the top-most region, or ``None``.
        bottom_region: Same for the bottom-most region.
    """

    modality: int
    spacing: tuple[float, float, float]
    top_region: int | None = None
    bottom_region: int | None = None

    def tensors(self, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """Network inputs of one sample: ``class_labels (1,)``, ``spacing (1, 3)``; where given, regions ``(1, 4)``."""
        inputs = {
            "class_labels": torch.tensor([self.modality], dtype=torch.long, device=device),
            "spacing": torch.tensor([self.spacing], dtype=torch.float32, device=device) * CONDITION_SCALE,
        }
        for name, region in (("top_region", self.top_region), ("bottom_region", self.bottom_region)):
            if region is not None:
                one_hot = torch.zeros(1, 4, device=device)
                one_hot[0, region] = CONDITION_SCALE
                inputs[name] = one_hot
        return inputs


class CompiledNetwork:
    """A network whose walk was compiled; everything else is the network's own.

    Args:
        network: UNet or ControlNet.
        walk: Does what :func:`predict` or :func:`control_residuals` does with the network, with the arguments after it.
    """

    def __init__(self, network: nn.Module, walk: Callable[..., Any]) -> None:
        self.network, self.walk = network, walk

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


def _embedding(network: Any, x: torch.Tensor, times: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
    from monai.networks.nets.diffusion_model_unet import get_timestep_embedding

    channels = network.time_embed[0].in_features
    embedding = network.time_embed(get_timestep_embedding(times, channels).to(x.dtype))
    if network.num_class_embeds is not None:
        embedding = embedding + network.class_embedding(class_labels).to(x.dtype)
    return embedding


def _walk_down(network: Any, h: torch.Tensor, embedding: torch.Tensor) -> list[torch.Tensor]:
    features = [h]
    for block in network.down_blocks:
        h, outputs = block(hidden_states=h, temb=embedding, context=None)
        features.extend(outputs)
    return features


def embed_mask(controlnet: nn.Module, bits: torch.Tensor) -> torch.Tensor:
    """The ControlNet's view of a mask, the same at every step: bits ``(N, 8, X, Y, Z)`` → ``(N, C, X/f, Y/f, Z/f)``."""
    return controlnet.controlnet_cond_embedding(bits)  # type: ignore[operator]


def control_residuals(
    controlnet: Any,
    x: torch.Tensor,
    times: torch.Tensor,
    mask_embedding: torch.Tensor,
    class_labels: torch.Tensor | None,
) -> list[torch.Tensor]:
    """What the ControlNet adds to the UNet: one tensor for every skip connection, then one for the middle block."""
    if isinstance(controlnet, CompiledNetwork):
        return controlnet.walk(x, times, mask_embedding, class_labels)
    embedding = _embedding(controlnet, x, times, class_labels)
    features = _walk_down(controlnet, controlnet.conv_in(x) + mask_embedding, embedding)
    middle = controlnet.middle_block(hidden_states=features[-1], temb=embedding, context=None)
    residuals = [block(f) for block, f in zip(controlnet.controlnet_down_blocks, features, strict=True)]
    return [*residuals, controlnet.controlnet_mid_block(middle)]


def predict(
    unet: Any,
    x: torch.Tensor,
    times: torch.Tensor,
    inputs: dict[str, torch.Tensor],
    residuals: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """The UNet's prediction (velocity or noise), ``(N, C, X, Y, Z)`` like ``x``.

    Args:
        unet: A ``DiffusionModelUNetMaisi``.
        x: Noisy latents.
        times: Training timesteps ``(N,)``.
        inputs: As of :meth:`Conditions.tensors`, with N rows.
        residuals: As of :func:`control_residuals`.
    """
    if isinstance(unet, CompiledNetwork):
        return unet.walk(x, times, inputs, residuals)
    embedding = _embedding(unet, x, times, inputs.get("class_labels"))
    parts = [embedding]
    if unet.include_top_region_index_input:
        parts.append(unet.top_region_index_layer(inputs["top_region"]))
    if unet.include_bottom_region_index_input:
        parts.append(unet.bottom_region_index_layer(inputs["bottom_region"]))
    if unet.include_spacing_input:
        parts.append(unet.spacing_layer(inputs["spacing"]))
    embedding = torch.cat(parts, dim=1)
    features = _walk_down(unet, unet.conv_in(x), embedding)
    if residuals is not None:
        features = [f + r for f, r in zip(features, residuals[:-1], strict=True)]
    # MONAI adds residuals in place, so the last of them reaches the middle block too; published weights rely on it.
    h = unet.middle_block(features[-1], embedding, None)
    if residuals is not None:
        h = h + residuals[-1]
    for block in unet.up_blocks:
        count = len(block.resnets)
        h = block(hidden_states=h, res_hidden_states_list=features[-count:], temb=embedding, context=None)
        features = features[:-count]
    return unet.out(h)
