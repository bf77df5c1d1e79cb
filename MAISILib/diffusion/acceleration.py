"""Compiled forms of the UNet's and the ControlNet's walk, for NVIDIA GPUs.

On a CPU nothing is compiled: there compiling took longer than whole runs (docs/performance.md).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from MAISILib.diffusion.networks import CompiledNetwork, control_residuals, predict
from MAISILib.errors import RequestError

Accelerator = Literal["none", "compile", "tensorrt"]
#: What MONAI's ``trt_compile`` needs beside PyTorch: import name → package.
_TENSORRT_PACKAGES = {
    "tensorrt": "tensorrt",
    "polygraphy": "polygraphy",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "cuda": "cuda-python",
}


def check_accelerator(accelerator: Accelerator, device: str) -> None:
    """Makes sure that an accelerator can be used.

    Raises:
        RequestError: The device is no NVIDIA GPU, or packages are missing.
    """
    if accelerator == "none":
        return
    if not device.startswith("cuda"):
        raise RequestError(
            f"Acceleration by {accelerator!r} needs an NVIDIA GPU, and this run is on {device!r}. "
            "Leave out --accelerate, or choose --device cuda."
        )
    if accelerator == "tensorrt":
        missing = [name for module, name in _TENSORRT_PACKAGES.items() if importlib.util.find_spec(module) is None]
        if missing:
            raise RequestError(
                f"Acceleration by TensorRT needs packages that are not installed: {', '.join(missing)}. "
                f"Install them ('pip install {' '.join(missing)}'), or leave out --accelerate."
            )


def accelerated(
    accelerator: Accelerator, unet: nn.Module, controlnet: nn.Module | None, engines: Path, precision: torch.dtype
) -> tuple[Any, Any]:
    """These networks with their walks compiled, or as they are. Compiling happens at the first call.

    Args:
        accelerator: After `check_accelerator`.
        unet: On the GPU.
        controlnet: Likewise, or ``None``.
        engines: Where TensorRT keeps its engines: path and start of their names. They hold for these weights and this
            size of latent only, so the name has to tell both.
        precision: Of the arithmetic.
    """
    if accelerator == "none":
        return unet, controlnet
    prediction, control = _Prediction(unet), None if controlnet is None else _Control(controlnet)
    if accelerator == "compile":
        prediction.compile(dynamic=False)
        if control is not None:
            control.compile(dynamic=False)
    else:
        from monai.networks.trt_compiler import trt_compile

        engines.parent.mkdir(parents=True, exist_ok=True)
        arguments = {"precision": {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(precision, "fp32")}
        trt_compile(prediction, f"{engines}-unet", arguments)
        if control is not None:
            trt_compile(control, f"{engines}-controlnet", {**arguments, "output_lists": [[-1]]})
    return CompiledNetwork(unet, _called(prediction)), control and CompiledNetwork(control.controlnet, _listed(control))


class _Prediction(nn.Module):
    """The UNet's walk with every input by its name, as exporters need it."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        x: torch.Tensor,
        times: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        spacing: torch.Tensor | None = None,
        top_region: torch.Tensor | None = None,
        bottom_region: torch.Tensor | None = None,
        residuals: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        named = {
            "class_labels": class_labels,
            "spacing": spacing,
            "top_region": top_region,
            "bottom_region": bottom_region,
        }
        inputs = {name: value for name, value in named.items() if value is not None}
        return predict(self.unet, x, times, inputs, residuals)


class _Control(nn.Module):
    """The ControlNet's walk likewise."""

    def __init__(self, controlnet: nn.Module) -> None:
        super().__init__()
        self.controlnet = controlnet

    def forward(
        self,
        x: torch.Tensor,
        times: torch.Tensor,
        mask_embedding: torch.Tensor,
        class_labels: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        return control_residuals(self.controlnet, x, times, mask_embedding, class_labels)


def _called(prediction: nn.Module) -> Callable[..., torch.Tensor]:
    """With the arguments of :func:`predict`."""

    def call(
        x: torch.Tensor,
        times: torch.Tensor,
        inputs: dict[str, torch.Tensor],
        residuals: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        return prediction(x, times, residuals=residuals, **inputs)

    return call


def _listed(control: nn.Module) -> Callable[..., list[torch.Tensor]]:
    """With the arguments of :func:`control_residuals`; engines give the list within a tuple."""

    def call(*inputs: torch.Tensor) -> list[torch.Tensor]:
        result = control(*inputs)
        return list(result[0]) if isinstance(result, tuple) else list(result)

    return call
