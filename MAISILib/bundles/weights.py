"""Reads and writes network weights without ever running code from the file.

Two formats: safetensors, and torch checkpoints (``.pt``) read with ``weights_only=True``. Published checkpoints come in
several layouts: a bare state dict, or a dict that holds it under ``unet_state_dict``, ``controlnet_state_dict`` or
``state_dict`` beside ``scale_factor``, ``epoch``, ``loss`` and sometimes optimizer state. Everything but the weights
and the scale factor is left alone.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from MAISILib.errors import BundleError, FileFormatError
from MAISILib.files.atomic import atomic_path
from MAISILib.files.checks import file_sha256

if TYPE_CHECKING:
    import torch
    from torch import nn

_STATE_KEYS = ("unet_state_dict", "controlnet_state_dict", "state_dict")
_SHOWN = 10
_REPAIR = "Download or import the bundle again."
#: Networks built with ``include_fc=False`` have no output projection in their attention blocks. The published DDPM
#: checkpoints carry one all the same: the code that trained them made it and never used it (MONAI issue 7991).
_UNUSED_PROJECTION = re.compile(r"\.attn\.out_proj\.(weight|bias)$")


@dataclass(frozen=True)
class Checkpoint:
    """Weights as they lie in a file (types not yet cast; on the CPU), and the latent scale factor if it holds one."""

    weights: dict[str, torch.Tensor]
    scale_factor: float | None = None


@dataclass(frozen=True)
class LoadReport:
    """What was done so that a published checkpoint fits: keys taken from the diffusion UNet, unused keys left out."""

    filled: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


def read_state_dict(path: str | Path, format: Literal["safetensors", "torch"]) -> dict[str, torch.Tensor]:
    """The weights in a file, by name. As ``read_checkpoint``."""
    return read_checkpoint(path, format).weights


def read_checkpoint(path: str | Path, format: Literal["safetensors", "torch"]) -> Checkpoint:
    """Reads weights safely. Tensors may be views of the file: copy them before it is changed.

    Args:
        path: The file.
        format: ``"safetensors"`` or ``"torch"``.

    Raises:
        BundleError: Missing, empty, cut short, not a checkpoint (for example an HTML error page), or holding anything
            but tensors and plain numbers where a state dict is needed. Code in the file is never run.
    """
    path = Path(path)
    _check_first_bytes(path)
    return _read_safetensors(path) if format == "safetensors" else _read_torch(path)


def _check_first_bytes(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(200)
    except FileNotFoundError:
        raise BundleError(f"{path}: the weights are missing. {_REPAIR}") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if not start:
        raise BundleError(f"{path}: the file is empty; a download was probably cut off. {_REPAIR}")
    if start.lstrip()[:1] == b"<":
        raise BundleError(f"{path}: holds a web page (HTML), not weights; a proxy or login page answered. {_REPAIR}")
    if start.startswith(b"version https://git-lfs"):
        raise BundleError(f"{path}: is a Git LFS pointer, not the weights. Run 'git lfs pull', or download the bundle.")


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:  # type: ignore[no-untyped-call]
            scale = (file.metadata() or {}).get("scale_factor")
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise BundleError(f"{path}: not a complete safetensors file ({_first_line(error)}). {_REPAIR}") from error
    return Checkpoint(weights, _scale_factor(scale, path))


def _read_torch(path: Path) -> Checkpoint:
    data = _unpickle_plain_data(path)
    if not isinstance(data, Mapping):
        raise BundleError(f"{path}: holds a {type(data).__name__}; a dict of weights is needed.")
    scale = _scale_factor(data.get("scale_factor"), path)
    state: Any = next((data[key] for key in _STATE_KEYS if key in data), data)
    return Checkpoint(_only_tensors(state, path), scale)


def _unpickle_plain_data(path: Path) -> Any:
    import torch

    zipped = zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals(_plain_numpy()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:GLOBAL|function|class) <?(\w+(?:\.\w+)+)", str(error))
        if refused is None:
            raise BundleError(f"{path}: not a complete torch checkpoint ({_first_line(error)}). {_REPAIR}") from error
        raise BundleError(
            f"{path}: holds more than weights ({refused[1]}); loading it could run code from the file, so it was "
            "refused and nothing was run. Ask its author for a checkpoint with tensors only, or for safetensors."
        ) from None
    except Exception as error:  # what the unpickler raises on garbage is anybody's guess
        raise BundleError(f"{path}: not a complete torch checkpoint ({_first_line(error)}). {_REPAIR}") from error


def _plain_numpy() -> list[Any]:
    """Numpy's number types, under the names that numpy 1 and numpy 2 pickle them with. Published files hold losses."""
    import numpy as np

    try:
        from numpy._core.multiarray import scalar  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:  # numpy 1
        from numpy.core.multiarray import scalar  # pyright: ignore[reportAttributeAccessIssue]
    kinds = [type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "?")]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [np.dtype, *kinds, *((scalar, name) for name in names)]


def _only_tensors(state: Any, path: Path) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(state, Mapping) or not state:
        raise BundleError(f"{path}: holds no weights. Is it the checkpoint of a network?")
    other = [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))]
    if other:
        raise BundleError(
            f"{path}: no state dict found: {_listed([str(name) for name in other])} hold no tensors. "
            f"Expected weights at the top level or under {' or '.join(repr(k) for k in _STATE_KEYS)}."
        )
    if all(name.startswith("module.") for name in state):  # saved from a DistributedDataParallel wrapper
        return {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


def _scale_factor(value: Any, path: Path) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        number = float("nan")
    if not 0 < number < float("inf"):
        raise BundleError(f"{path}: scale_factor is {value!r}; a positive number is needed. {_REPAIR}")
    return number


def fit_published(
    expected: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    donor: Mapping[str, torch.Tensor] | None = None,
) -> tuple[dict[str, torch.Tensor], LoadReport]:
    """Makes the two allowances that published checkpoints need; everything else is left for ``check_weights``.

    Args:
        expected: State dict of the network (the meta device is enough).
        weights: State dict of the file.
        donor: The diffusion UNet's weights, when ``weights`` are a ControlNet's: fills keys that are missing, where
            name and shape are the same.

    Returns:
        The fitted state dict, and which keys were filled and dropped.
    """
    dropped = [name for name in weights if name not in expected and _UNUSED_PROJECTION.search(name)]
    fitted = {name: value for name, value in weights.items() if name not in set(dropped)}
    filled = []
    for name, value in expected.items():
        if name not in fitted and donor is not None and name in donor and donor[name].shape == value.shape:
            fitted[name] = donor[name]
            filled.append(name)
    return fitted, LoadReport(filled, dropped)


def check_weights(expected: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Accepts ``weights`` if they are exactly what a network needs, key by key.

    Args:
        expected: State dict of the network (the meta device is enough).
        weights: State dict of the file.
        where: Name of the file, for the message.

    Raises:
        BundleError: Missing, unexpected, wrongly shaped, wrongly typed or not finite weights, with their names.
    """
    import torch

    shared = [name for name in expected if name in weights]
    shapes = [
        f"{n} {tuple(weights[n].shape)} instead of {tuple(expected[n].shape)}"
        for n in shared
        if weights[n].shape != expected[n].shape
    ]
    kinds = [n for n in shared if expected[n].is_floating_point() and not weights[n].is_floating_point()]
    problems = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "of wrong shape": shapes,
        "not floating-point": kinds,
    }
    found = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in problems.items() if names]
    if found:
        raise BundleError(
            f"{where}: the weights do not fit the network. Weights {'; '.join(found)}. "
            "Either the file belongs to another network, or the definition in the manifest is wrong."
        )
    broken = [n for n in shared if weights[n].is_floating_point() and not bool(torch.isfinite(weights[n]).all())]
    if broken:
        raise BundleError(f"{where}: {len(broken)} weights hold NaN or infinity: {_listed(broken)}. {_REPAIR}")


def check_and_load(network: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> nn.Module:
    """Checks ``state`` key by key and puts a float32 copy of it into ``network``.

    Args:
        network: Built by ``build_network``; may be on the meta device.
        state: Weights of any floating-point type.
        where: Name of the file, for error messages.

    Returns:
        The same network, frozen, in evaluation mode.

    Raises:
        BundleError: As ``check_weights``.
    """
    import torch

    expected = network.state_dict()
    check_weights(expected, state, where)
    copied = {
        name: state[name].to(device="cpu", dtype=torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for name, value in expected.items()
    }
    network.load_state_dict(copied, strict=True, assign=True)
    left = [name for name, tensor in [*network.named_parameters(), *network.named_buffers()] if tensor.is_meta]
    if left:
        raise BundleError(f"{where}: {_listed(left)} are in no state dict; the network cannot be loaded.")
    return network.eval().requires_grad_(False)


def save_safetensors(
    state: Mapping[str, torch.Tensor],
    path: str | Path,
    dtype: torch.dtype | None = None,
    *,
    scale_factor: float | None = None,
) -> Path:
    """Writes weights as safetensors, as a whole or not at all.

    Args:
        state: Weights by name.
        path: The file; its folder is made if missing.
        dtype: Type of floating-point weights, float16 if None. A tensor with values beyond its range stays float32.
        scale_factor: Latent scale factor to keep with the weights.

    Raises:
        BundleError: A weight is NaN or infinite.
        OutputError: The file cannot be written.
    """
    import torch
    from safetensors.torch import save_file

    path, dtype = Path(path), dtype or torch.float16
    broken = [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise BundleError(f"{path}: not written: {len(broken)} weights hold NaN or infinity: {_listed(broken)}.")
    metadata = {"format": "pt"} | ({} if scale_factor is None else {"scale_factor": repr(float(scale_factor))})
    with atomic_path(path) as temporary:
        save_file({name: _narrowed(value, dtype) for name, value in state.items()}, str(temporary), metadata)
        temporary.chmod(0o644)  # safetensors writes files that only their owner may read
    return path


def _narrowed(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    import torch

    value = value.detach().cpu()
    if value.is_floating_point():
        narrow = value.to(dtype)
        value = narrow if bool(torch.isfinite(narrow).all()) else value.to(torch.float32)
    return value.clone(memory_format=torch.contiguous_format)


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file of weights, as `file_sha256`.

    Raises:
        BundleError: The file cannot be read.
    """
    try:
        return file_sha256(Path(path))
    except FileFormatError as error:
        raise BundleError(f"{error} {_REPAIR}") from error


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
