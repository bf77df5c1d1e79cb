from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from MAISILib.bundles.networks import build_network
from MAISILib.diffusion.networks import control_residuals, embed_mask, predict
from MAISILib.training.activation_checkpointing import checkpoint_activations
from Testing.diffusion.tiny_networks import LATENT, random_bits
from Testing.tiny_bundle import tiny_definitions, tiny_states

DEFINITIONS = tiny_definitions()
MASK_UNET: dict[str, Any] = {
    "_target_": "DiffusionModelUNet",
    "spatial_dims": 3,
    "in_channels": 4,
    "out_channels": 4,
    "channels": [16, 16],
    "attention_levels": [False, True],
    "num_head_channels": [0, 8],
    "num_res_blocks": 1,
    "norm_num_groups": 8,
    "with_conditioning": True,
    "cross_attention_dim": 10,
    "upcast_attention": True,
}


def built(name: str, definition: dict[str, Any]) -> Any:
    network = build_network(definition).train()
    network.load_state_dict(tiny_states({name: definition}, seed=3)[name])
    return network


def autoencoder(network: Any, inputs: torch.Tensor) -> torch.Tensor:
    mean, deviation = network.encode(inputs[:, :1])
    return network.decode(mean + deviation)


def unet(network: Any, inputs: torch.Tensor) -> torch.Tensor:
    conditions = {"class_labels": torch.tensor([1]), "spacing": torch.tensor([[100.0, 100.0, 200.0]])}
    return predict(network, inputs, torch.tensor([300.0]), conditions)


def controlnet(network: Any, inputs: torch.Tensor) -> torch.Tensor:
    embedding = embed_mask(network, random_bits())
    residuals = control_residuals(network, inputs, torch.tensor([300.0]), embedding, torch.tensor([1]))
    return torch.cat([residual.flatten() for residual in residuals])


def mask_unet(network: Any, inputs: torch.Tensor) -> torch.Tensor:
    return network(inputs, timesteps=torch.tensor([300]), context=torch.linspace(0, 1, 10).view(1, 1, 10))


CASES: dict[str, tuple[dict[str, Any], Callable[[Any, torch.Tensor], torch.Tensor]]] = {
    "autoencoder": (DEFINITIONS["autoencoder"], autoencoder),
    "diffusion": (DEFINITIONS["diffusion"], unet),
    "controlnet": (DEFINITIONS["controlnet"], controlnet),
    "mask_diffusion": (MASK_UNET, mask_unet),
}


def outcome(network: Any, call: Callable[[Any, torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Output of a forward pass, with gradients left in the network, and how many numbers the graph kept for them."""
    kept: dict[int, torch.Tensor] = {}
    own = {id(p) for p in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in own:
            kept[tensor.data_ptr()] = tensor
        return tensor

    inputs = torch.randn(1, *LATENT, generator=torch.Generator().manual_seed(1))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = call(network, inputs)
    output.square().mean().backward()
    return output.detach(), sum(tensor.numel() for tensor in kept.values())


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_same_and_less_is_kept(name: str) -> None:
    definition, call = CASES[name]
    plain, forgetful = built(name, definition), checkpoint_activations(built(name, definition))
    assert list(plain.state_dict()) == list(forgetful.state_dict())
    (expected, all_kept), (output, kept) = outcome(plain, call), outcome(forgetful, call)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    assert kept < 0.7 * all_kept
    moved = 0
    for (key, one), (_, two) in zip(plain.named_parameters(), forgetful.named_parameters(), strict=True):
        if one.grad is None:
            assert two.grad is None, key
            continue
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-6, atol=1e-9, msg=key)
        moved += bool(one.grad.any())
    assert moved > 0.8 * len(list(plain.parameters()))


def test_asking_twice_changes_nothing() -> None:
    once = checkpoint_activations(built("diffusion", DEFINITIONS["diffusion"]))
    kinds = [type(module) for module in once.modules()]
    assert [type(module) for module in checkpoint_activations(once).modules()] == kinds
