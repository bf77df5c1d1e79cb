"""Less memory for training: activations inside a block are computed again in the backward pass rather than kept.

Costs one more forward pass of the blocks. Weights, gradients and names of the state dict stay the same.
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)


def checkpoint_activations(network: AnyNetwork) -> AnyNetwork:
    """Makes residual and attention blocks, and a ControlNet's mask embedding, forget what they can compute again.

    Args:
        network: One of :data:`MAISILib.bundles.networks.NETWORK_CLASSES`; changed in place.

    Returns:
        The same network.
    """
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import MaisiResBlock
    from monai.networks.blocks.spatialattention import SpatialAttentionBlock
    from monai.networks.nets.controlnet import ControlNetConditioningEmbedding
    from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock, SpatialTransformer

    kinds = (
        MaisiResBlock,
        DiffusionUNetResnetBlock,
        SpatialAttentionBlock,
        SpatialTransformer,
        ControlNetConditioningEmbedding,
    )
    blocks: list[nn.Module] = [module for module in network.modules() if isinstance(module, kinds)]
    for module in network.modules():
        if isinstance(module, ControlNetConditioningEmbedding):
            # It works at the size of the image: while it is computed again, its parts must forget, too.
            blocks.extend(module.blocks)
    for block in blocks:
        if not isinstance(block, _Forgetful):
            # A subclass rather than a module around the block: that would change the names of the weights.
            block.__class__ = _forgetful(type(block))  # pyright: ignore[reportAttributeAccessIssue]
    return network


class _Forgetful(nn.Module):
    def forward(self, *args: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return super().forward(*args, **named)
        return checkpoint(super().forward, *args, use_reentrant=False, **named)


@cache
def _forgetful(block: type[nn.Module]) -> type[nn.Module]:
    return type(f"Forgetful{block.__name__}", (_Forgetful, block), {})
