"""Builds MONAI's MAISI networks from a definition: a ``_target_`` name and constructor arguments.

Definitions come from a bundle manifest or from a published network JSON. Nothing in them is evaluated: the target must
be one of the five networks below, the arguments must be parameters of its constructor, and their values plain data.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from MAISILib.errors import BundleError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

#: Class name → where MONAI (1.6) keeps it. Published files name them by their full path.
NETWORK_CLASSES = {
    "AutoencoderKlMaisi": "monai.apps.generation.maisi.networks.autoencoderkl_maisi",
    "DiffusionModelUNetMaisi": "monai.apps.generation.maisi.networks.diffusion_model_unet_maisi",
    "ControlNetMaisi": "monai.apps.generation.maisi.networks.controlnet_maisi",
    "DiffusionModelUNet": "monai.networks.nets.diffusion_model_unet",
}

#: Arguments that say how the published scripts run on a GPU, not what the network is. We run networks our own way.
_RUNTIME_ARGUMENTS = {
    "use_flash_attention": False,
    "norm_float16": False,
    "print_info": False,
    "save_mem": False,
    "num_splits": 1,
    "use_checkpointing": False,
}


def network_name(definition: dict[str, Any], where: str) -> str:
    """The class name that a definition asks for, without importing MONAI.

    Raises:
        BundleError: The target is not one of ``NETWORK_CLASSES``.
    """
    target = str(definition.get("_target_", ""))
    name = target.rpartition(".")[2]
    module = NETWORK_CLASSES.get(name)
    if module is None or target not in (name, f"{module}.{name}"):
        raise BundleError(
            f"{where}: unknown network {target!r} in '_target_'. Known networks: {', '.join(NETWORK_CLASSES)}."
        )
    return name


def network_class(definition: dict[str, Any], where: str) -> type[nn.Module]:
    """The MONAI class that a definition names.

    Raises:
        BundleError: The target is not one of ``NETWORK_CLASSES``.
    """
    name = network_name(definition, where)
    return getattr(importlib.import_module(NETWORK_CLASSES[name]), name)


def build_network(definition: dict[str, Any], where: str = "network definition", device: str = "cpu") -> nn.Module:
    """Builds a network on the CPU, in float32 and evaluation mode, with random weights.

    GroupNorm is PyTorch's own (MONAI's loops over the groups in Python; results agree to float rounding), attention is
    ``scaled_dot_product_attention`` on every device, and small feature maps are convolved by oneDNN on a CPU too.

    Args:
        definition: ``_target_`` and constructor arguments, with all references resolved.
        where: Name of the file or field, for error messages.
        device: ``"meta"`` builds the shapes only: no memory, no random numbers.

    Raises:
        BundleError: Unknown network, unknown argument, or a value that the constructor refuses.
    """
    import torch

    cls = network_class(definition, where)
    known = set(inspect.signature(cls.__init__).parameters) - {"self"}
    arguments = {k: v for k, v in definition.items() if k != "_target_"}
    for name in arguments:
        if name not in known:
            raise BundleError(f"{where}: {cls.__name__} has no argument {name!r}.{did_you_mean(name, known)}")
    arguments.update({k: v for k, v in _RUNTIME_ARGUMENTS.items() if k in known})
    try:
        with torch.device(device):
            network = cls(**arguments)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, RuntimeError) as error:
        raise BundleError(f"{where}: {cls.__name__} cannot be built from these arguments: {error}") from error
    return _prepare(network).eval()


def parameter_count(network: nn.Module) -> int:
    """Number of trainable and frozen weights."""
    return sum(p.numel() for p in network.parameters())


def _prepare(network: nn.Module) -> nn.Module:
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import MaisiGroupNorm3D
    from torch.nn import Conv3d, GroupNorm

    from MAISILib.bundles.convolution import Convolution

    for module in network.modules():
        if type(module) is Conv3d:
            module.__class__ = Convolution  # pyright: ignore[reportAttributeAccessIssue] - same parameters, same result, faster
        if isinstance(module, MaisiGroupNorm3D):
            module.__class__ = GroupNorm  # pyright: ignore[reportAttributeAccessIssue] - same parameters, same result, no Python loop
        if hasattr(module, "use_flash_attention"):
            setattr(module, "use_flash_attention", True)  # noqa: B010 - MONAI's name for scaled_dot_product_attention
    return network


def compression_factor(autoencoder: dict[str, Any]) -> int:
    """Image voxels per latent voxel along one axis: every level of the autoencoder but the last halves the grid."""
    return 2 ** (len(autoencoder["num_channels"]) - 1)


def latent_divisor(unet: dict[str, Any]) -> int:
    """What each axis of a latent must be divisible by, so that the UNet's skip connections meet again."""
    return 2 ** (len(unet.get("num_channels", unet.get("channels", ()))) - 1)
