"""Convolutions of the built networks: PyTorch's result, by the fast library."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from MAISILib.bundles.convolution import Convolution
from MAISILib.bundles.networks import build_network
from Testing.tiny_bundle import tiny_definitions


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 1, 0), ((1, 3, 5), 1, (0, 1, 2))])
def test_result_is_that_of_conv3d(kernel: int, stride: int, padding: int) -> None:
    layer = nn.Conv3d(6, 10, kernel, stride, padding)
    x = torch.randn(1, 6, 8, 7, 5)
    with torch.no_grad():
        expected = layer(x)
        layer.__class__ = Convolution  # pyright: ignore[reportAttributeAccessIssue]
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
def test_networks_convolve_small_samples_by_onednn() -> None:
    network = build_network(tiny_definitions()["autoencoder"])
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        network.decode(torch.randn(1, 4, 4, 4, 4))  # type: ignore[operator]
    names = {event.key for event in seen.key_averages()}
    assert "aten::mkldnn_convolution" in names
    assert "aten::slow_conv3d_forward" not in names


def test_gradients_are_those_of_conv3d() -> None:
    layer = nn.Conv3d(4, 4, 3, padding=1)
    x = torch.randn(1, 4, 5, 5, 5)
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    expected = layer.weight.grad.clone()
    layer.weight.grad = None
    layer.__class__ = Convolution  # pyright: ignore[reportAttributeAccessIssue]
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, expected)


def test_reduced_precision_goes_through() -> None:
    layer = nn.Conv3d(4, 4, 3, padding=1)
    layer.__class__ = Convolution  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(1, 4, 5, 5, 5)).dtype == torch.bfloat16
