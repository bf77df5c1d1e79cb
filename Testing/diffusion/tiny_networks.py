"""A tiny UNet and ControlNet with their inputs, and MONAI's own way to call them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from MAISILib.bundles.networks import build_network
from MAISILib.diffusion.networks import Conditions
from Testing.tiny_bundle import tiny_definitions, tiny_states

LATENT = (4, 8, 8, 8)


@dataclass(frozen=True)
class TinyNetworks:
    kind: Literal["rflow", "ddpm"]
    unet: Any
    controlnet: Any

    @classmethod
    def build(cls, kind: Literal["rflow", "ddpm"]) -> TinyNetworks:
        definitions = tiny_definitions(kind)
        states = tiny_states(definitions, seed=7)
        networks = {name: build_network(definitions[name]) for name in ("diffusion", "controlnet")}
        for name, network in networks.items():
            network.load_state_dict(states[name])
            network.requires_grad_(False)
        return cls(kind, networks["diffusion"], networks["controlnet"])

    def conditions(self, modality: int = 1) -> Conditions:
        regions = {"top_region": 1, "bottom_region": 2} if self.kind == "ddpm" else {}
        return Conditions(modality=modality, spacing=(1.5, 1.5, 2.0), **regions)

    def plain_unet(
        self, x: torch.Tensor, times: torch.Tensor, inputs: dict[str, torch.Tensor], **residuals: Any
    ) -> Any:
        """MONAI's ``forward``, as the published scripts call it."""
        names = {"spacing": "spacing_tensor", "class_labels": "class_labels"}
        if self.kind == "ddpm":
            names = {
                "spacing": "spacing_tensor",
                "top_region": "top_region_index_tensor",
                "bottom_region": "bottom_region_index_tensor",
            }
        return self.unet(x=x, timesteps=times, **{names[k]: v for k, v in inputs.items() if k in names}, **residuals)

    def plain_both(
        self, x: torch.Tensor, times: torch.Tensor, inputs: dict[str, torch.Tensor], bits: torch.Tensor
    ) -> Any:
        """MONAI's ControlNet, then its UNet with the residuals; the mask is embedded in each call."""
        class_labels = inputs["class_labels"] if self.kind == "rflow" else None
        down, middle = self.controlnet(x=x, timesteps=times, controlnet_cond=bits, class_labels=class_labels)
        return self.plain_unet(
            x, times, inputs, down_block_additional_residuals=down, mid_block_additional_residual=middle
        )


def random_bits(seed: int = 3) -> torch.Tensor:
    """A mask of blocks with random labels as 8 binary channels ``(1, 8, 16, 16, 16)``."""
    labels = torch.randint(0, 256, (1, 1, 4, 4, 4), generator=torch.Generator().manual_seed(seed))
    labels = labels.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    return torch.cat([(labels >> k) & 1 for k in range(8)], dim=1).float()
