from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.blocks.crossattention import CrossAttentionBlock
from monai.networks.blocks.selfattention import SABlock
from monai.networks.blocks.spatialattention import SpatialAttentionBlock
from torch.utils._python_dispatch import TorchDispatchMode

from MAISILib.bundles.networks import build_network
from MAISILib.diffusion.networks import Conditions, control_residuals, embed_mask, predict
from Testing.diffusion.tiny_networks import LATENT, TinyNetworks, random_bits
from Testing.tiny_bundle import tiny_definitions, tiny_states


def batch(tiny: TinyNetworks) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """Two samples that differ in everything."""
    sides = [tiny.conditions(1).tensors(), tiny.conditions(9).tensors()]
    inputs = {name: torch.cat([side[name] for side in sides]) for name in sides[0]}
    inputs["spacing"][1] *= 2
    return torch.randn(2, *LATENT), torch.tensor([980.5, 120.0]), inputs, torch.cat([random_bits(3), random_bits(4)])


def test_spacing_and_regions_enter_times_100() -> None:
    inputs = Conditions(modality=9, spacing=(0.75, 0.75, 2.5), top_region=0, bottom_region=3).tensors()
    assert inputs["class_labels"].tolist() == [9]
    assert inputs["class_labels"].dtype == torch.long
    assert inputs["spacing"].tolist() == [[75.0, 75.0, 250.0]]
    assert inputs["top_region"].tolist() == [[100.0, 0.0, 0.0, 0.0]]
    assert inputs["bottom_region"].tolist() == [[0.0, 0.0, 0.0, 100.0]]


def test_regions_that_are_not_given_are_left_out() -> None:
    assert set(Conditions(modality=1, spacing=(1.0, 1.0, 1.0)).tensors()) == {"class_labels", "spacing"}


@torch.no_grad()
def test_prediction_without_mask_is_monais(tiny: TinyNetworks) -> None:
    x, times, inputs, _ = batch(tiny)
    torch.testing.assert_close(
        predict(tiny.unet, x, times, inputs), tiny.plain_unet(x, times, inputs), rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
def test_prediction_with_mask_is_monais(tiny: TinyNetworks) -> None:
    x, times, inputs, bits = batch(tiny)
    residuals = control_residuals(tiny.controlnet, x, times, embed_mask(tiny.controlnet, bits), inputs["class_labels"])
    ours = predict(tiny.unet, x, times, inputs, residuals)
    torch.testing.assert_close(ours, tiny.plain_both(x, times, inputs, bits), rtol=1e-5, atol=1e-5)
    assert (ours - predict(tiny.unet, x, times, inputs)).abs().max() > 1e-2  # the mask is not without effect


@torch.no_grad()
def test_residuals_are_monais(tiny: TinyNetworks) -> None:
    x, times, inputs, bits = batch(tiny)
    labels = inputs["class_labels"] if tiny.kind == "rflow" else None
    down, middle = tiny.controlnet(x=x, timesteps=times, controlnet_cond=bits, class_labels=labels)
    ours = control_residuals(tiny.controlnet, x, times, embed_mask(tiny.controlnet, bits), inputs["class_labels"])
    for mine, theirs in zip(ours, [*down, middle], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_mask_embedded_once_serves_every_step(tiny: TinyNetworks) -> None:
    _, _, inputs, bits = batch(tiny)
    embedding = embed_mask(tiny.controlnet, bits)
    before = embedding.clone()
    for time in (1000.0, 500.0, 0.0):
        x, times = torch.randn(2, *LATENT), torch.full((2,), time)
        residuals = control_residuals(tiny.controlnet, x, times, embedding, inputs["class_labels"])
        ours = predict(tiny.unet, x, times, inputs, residuals)
        torch.testing.assert_close(ours, tiny.plain_both(x, times, inputs, bits), rtol=1e-5, atol=1e-5)
    assert torch.equal(embedding, before)


@torch.no_grad()
@pytest.mark.parametrize("name", ["spacing", "class_labels", "top_region", "bottom_region"])
def test_every_input_that_a_network_has_changes_its_prediction(tiny: TinyNetworks, name: str) -> None:
    x, times, inputs, _ = batch(tiny)
    known = {"spacing", "class_labels"} if tiny.kind == "rflow" else {"spacing", "top_region", "bottom_region"}
    changed = dict(inputs)
    if name in changed:
        changed[name] = changed[name].flip(-1) if name != "class_labels" else changed[name] + 1
    if name == "spacing":
        changed[name] = inputs[name] * 3
    moved = (predict(tiny.unet, x, times, changed) - predict(tiny.unet, x, times, inputs)).abs().max()
    assert (float(moved) > 1e-4) == (name in known)


@pytest.mark.parametrize("kind", ["rflow", "ddpm"])
def test_unet_and_controlnet_learn_together(kind: Any) -> None:
    definitions, states = tiny_definitions(kind), tiny_states(tiny_definitions(kind))
    unet, controlnet = (build_network(definitions[n]).train() for n in ("diffusion", "controlnet"))
    unet.load_state_dict(states["diffusion"])
    controlnet.load_state_dict(states["controlnet"])
    x, times, inputs, bits = batch(TinyNetworks(kind, unet, controlnet))
    residuals = control_residuals(controlnet, x, times, embed_mask(controlnet, bits), inputs["class_labels"])
    predict(unet, x, times, inputs, residuals).square().mean().backward()
    for network in (unet, controlnet):
        without = [n for n, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
        assert without == []
        moved = [n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()]
        assert len(moved) > 0.9 * len(list(network.parameters()))
    assert controlnet.controlnet_cond_embedding.conv_in.conv.weight.grad.any()  # type: ignore[union-attr]


@torch.no_grad()
def test_residuals_and_latent_of_the_caller_stay_as_they_were(tiny: TinyNetworks) -> None:
    x, times, inputs, bits = batch(tiny)
    residuals = control_residuals(tiny.controlnet, x, times, embed_mask(tiny.controlnet, bits), inputs["class_labels"])
    before = [x.clone(), *(r.clone() for r in residuals)]
    first = predict(tiny.unet, x, times, inputs, residuals)
    assert all(torch.equal(a, b) for a, b in zip(before, [x, *residuals], strict=True))
    assert torch.equal(first, predict(tiny.unet, x, times, inputs, residuals))


class LargestTensor(TorchDispatchMode):
    """Numbers in the largest tensor that an operation gave."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        for each in given if isinstance(given, (tuple, list)) else [given]:
            if isinstance(each, torch.Tensor):
                self.numbers = max(self.numbers, each.numel())
        return given


@torch.no_grad()
def test_attention_is_monais_without_a_matrix_of_all_pairs() -> None:
    """24³ voxels of attention: 13824² pairs would be 0.7 GB for each head. The same twice, bit for bit."""
    block = SpatialAttentionBlock(3, 16, 8, norm_num_groups=8)
    block.attn.use_flash_attention = True  # as build_network sets it
    x = torch.randn(1, 16, 24, 24, 24)
    with LargestTensor() as largest:
        ours = block(x)
    assert largest.numbers <= 3 * x.numel()
    assert torch.equal(block(x), ours)
    part = x[..., :6]
    ours = block(part)
    block.attn.use_flash_attention = False
    with LargestTensor() as largest:
        torch.testing.assert_close(block(part), ours, rtol=1e-5, atol=1e-5)
    assert largest.numbers >= (24 * 24 * 6) ** 2


def test_attention_of_built_networks_is_never_the_one_with_all_pairs(tiny: TinyNetworks) -> None:
    for network in (tiny.unet, tiny.controlnet):
        ways = [m.use_flash_attention for m in network.modules() if isinstance(m, (SABlock, CrossAttentionBlock))]
        assert ways
        assert all(ways)
