"""Compiled networks, as far as they can be tried without a GPU: up to the call of the compiler."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from MAISILib.diffusion.acceleration import accelerated, check_accelerator
from MAISILib.diffusion.networks import Conditions, control_residuals, embed_mask, predict
from MAISILib.errors import RequestError
from Testing.diffusion.tiny_networks import TinyNetworks


@pytest.mark.parametrize("accelerator", ["compile", "tensorrt"])
@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_device_that_cannot_is_named(accelerator: Any, device: str) -> None:
    with pytest.raises(RequestError, match=f"'{accelerator}' needs an NVIDIA GPU.*'{device}'.*Leave out --accelerate"):
        check_accelerator(accelerator, device)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "polygraphy" else object())
    with pytest.raises(RequestError, match=r"not installed: polygraphy\. Install them \('pip install polygraphy'\)"):
        check_accelerator("tensorrt", "cuda:0")
    check_accelerator("compile", "cuda")
    check_accelerator("none", "cpu")


@torch.inference_mode()
@pytest.mark.parametrize("accelerator", ["compile", "tensorrt"])
def test_the_compiler_gets_the_networks_and_the_result_is_theirs(
    accelerator: Any, tiny: TinyNetworks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: dict[str, Any] = {}

    def trt_compile(model: Any, path: str, arguments: dict[str, Any]) -> Any:
        compiled[path] = arguments
        if "output_lists" in arguments:  # an engine gives lists within a tuple
            forward = model.forward
            model.forward = lambda *inputs: (forward(*inputs),)
        return model

    monkeypatch.setattr("monai.networks.trt_compiler.trt_compile", trt_compile)
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: compiled.update({type(self).__name__: options})
    )
    engines = tmp_path / "engines" / "tiny-4x8x8x8"
    unet, controlnet = accelerated(accelerator, tiny.unet, tiny.controlnet, engines, torch.float16)
    x, times, bits = torch.randn(1, 4, 8, 8, 8), torch.tensor([500.0]), torch.ones(1, 8, 16, 16, 16)
    inputs = Conditions(1, (1.0, 2.0, 3.0), 0, 1).tensors()
    embedding = embed_mask(tiny.controlnet, bits)
    assert torch.equal(embed_mask(controlnet, bits), embedding)
    residuals = control_residuals(tiny.controlnet, x, times, embedding, inputs["class_labels"])
    told = control_residuals(controlnet, x, times, embedding, inputs["class_labels"])
    assert all(torch.equal(a, b) for a, b in zip(told, residuals, strict=True))
    for given in (None, residuals):
        assert torch.equal(predict(unet, x, times, inputs, given), predict(tiny.unet, x, times, inputs, given))
    if accelerator == "tensorrt":
        assert compiled[f"{engines}-unet"] == {"precision": "fp16"}
        assert compiled[f"{engines}-controlnet"]["output_lists"] == [[-1]]
        assert engines.parent.is_dir()
    else:
        assert compiled == {"_Prediction": {"dynamic": False}, "_Control": {"dynamic": False}}
    assert accelerated("none", tiny.unet, None, engines, torch.float32) == (tiny.unet, None)
