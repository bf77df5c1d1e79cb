"""Reads the network JSON that published MAISI models come with (``config_network_rflow.json`` and its kin).

The file is data here: known keys are read, ``@name`` references to top-level keys are resolved, known ``_target_``
names are mapped to our own builders. Nothing is evaluated; ``$`` expressions, which such a file could use to run
code, are refused wherever they stand. (None of the published files has one.)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from MAISILib.bundles.manifest import NetworkName, ScheduleEntry
from MAISILib.bundles.networks import network_name
from MAISILib.errors import BundleError, did_you_mean

#: Key in a published file → our name of the network.
_NETWORK_KEYS: dict[str, NetworkName] = {
    "autoencoder_def": "autoencoder",
    "diffusion_unet_def": "diffusion",
    "controlnet_def": "controlnet",
    "mask_generation_autoencoder_def": "mask_autoencoder",
    "mask_generation_diffusion_def": "mask_diffusion",
}
_SCHEDULE_KEYS = ("noise_scheduler", "mask_generation_noise_scheduler")
_KNOWN_KEYS = {
    *_NETWORK_KEYS,
    *_SCHEDULE_KEYS,
    "spatial_dims",
    "image_channels",
    "latent_channels",
    "include_body_region",
    "mask_generation_latent_shape",
    "mask_generation_scale_factor",
}
#: Networks that newer published files name and that this program cannot build; they are left out, with this reason.
_UNSUPPORTED = {
    "DiffusionModelUNetMaisiAdaGN": "the second-generation mask generator (AdaGN, 19 conditions) is not supported",
}
_RFLOW = "monai.networks.schedulers.rectified_flow.RFlowScheduler"
_DDPM = "monai.networks.schedulers.ddpm.DDPMScheduler"
#: Scheduler arguments with no bearing on sampling, and those that must have one value to mean what we do.
_RFLOW_TRAINING = {"use_discrete_timesteps", "sample_method", "loc", "scale", "spatial_dim"}
_RFLOW_FIXED = {"transform_scale": 1.0, "steps_offset": 0}
_DDPM_FIXED = {"clip_sample": False, "variance_type": "fixed_small"}


@dataclass(frozen=True)
class PublishedNetworks:
    """What a published network JSON says.

    Attributes:
        definitions: Network definitions with all references resolved.
        schedule: Noise schedule of the diffusion network, None when the file names none.
        mask_schedule: The mask generator's.
        body_region_input: Whether the networks take body regions.
        mask_latent_shape: ``(C, X, Y, Z)`` of the mask generator's latent.
        mask_scale_factor: Scale factor of the mask generator's latents.
        unsupported: Networks that were left out, and why.
        ignored: Top-level keys that are not known.
    """

    definitions: dict[NetworkName, dict[str, Any]]
    schedule: ScheduleEntry | None = None
    mask_schedule: ScheduleEntry | None = None
    body_region_input: bool = False
    mask_latent_shape: tuple[int, ...] | None = None
    mask_scale_factor: float | None = None
    unsupported: dict[NetworkName, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def read_network_json(path: str | Path) -> PublishedNetworks:
    """Reads a published network JSON.

    Raises:
        BundleError: Not JSON, a ``$`` expression, a reference that leads nowhere or in a circle, an unknown
            ``_target_``, or a scheduler setting that would change the result.
    """
    path = Path(path)
    try:
        return parse_network_json(json.loads(path.read_text(encoding="utf-8-sig")), str(path))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: not valid JSON ({error}).") from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error}).") from error


def parse_network_json(data: Any, where: str) -> PublishedNetworks:
    """As ``read_network_json``, for JSON that is already in memory; ``where`` names it in messages."""
    if not isinstance(data, dict):
        raise BundleError(f"{where}: holds a {type(data).__name__}; a JSON object is needed.")
    _refuse_expressions(data, where)
    known = {key: _resolved(data[key], data, f"{where}: {key}", (key,)) for key in data if key in _KNOWN_KEYS}
    definitions: dict[NetworkName, dict[str, Any]] = {}
    unsupported: dict[NetworkName, str] = {}
    for key, name in _NETWORK_KEYS.items():
        if key not in known:
            continue
        if not isinstance(known[key], dict):
            raise BundleError(f"{where}: {key} is {known[key]!r}; an object with '_target_' is needed.")
        reason = _UNSUPPORTED.get(str(known[key].get("_target_", "")).rpartition(".")[2])
        if reason is not None:
            unsupported[name] = reason
            continue
        network_name(known[key], f"{where}: {key}")
        definitions[name] = known[key]
    schedules = [_schedule(known[key], f"{where}: {key}") if key in known else None for key in _SCHEDULE_KEYS]
    shape = known.get("mask_generation_latent_shape")
    return PublishedNetworks(
        definitions=definitions,
        schedule=schedules[0],
        mask_schedule=schedules[1],
        body_region_input=bool(known.get("include_body_region", False)),
        mask_latent_shape=None if shape is None else tuple(int(n) for n in shape),
        mask_scale_factor=known.get("mask_generation_scale_factor"),
        unsupported=unsupported,
        ignored=[key for key in data if key not in _KNOWN_KEYS],
    )


def _refuse_expressions(value: Any, where: str) -> None:
    if isinstance(value, str) and value.lstrip().startswith(("$", "@$")):
        raise BundleError(
            f"{where}: {value!r} is an expression, and evaluating it would run code from the file. It was refused. "
            "Replace it with its value."
        )
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        _refuse_expressions(str(key) if isinstance(value, dict) else None, where)
        _refuse_expressions(item, f"{where}: {key}")


def _resolved(value: Any, top: dict[str, Any], where: str, path: tuple[str, ...]) -> Any:
    """``value`` with each ``@name`` replaced by the top-level value of that name; ``path`` is how we came here."""
    if isinstance(value, dict):
        return {key: _resolved(item, top, f"{where}.{key}", path) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, top, where, path) for item in value]
    if not (isinstance(value, str) and value.startswith("@")):
        return value
    name = value[1:]
    if name in path:
        raise BundleError(f"{where}: the reference {value!r} leads in a circle ({' → '.join((*path, name))}).")
    if name not in top:
        raise BundleError(f"{where}: the reference {value!r} leads nowhere.{did_you_mean(name, top)}")
    return _resolved(top[name], top, where, (*path, name))


def _schedule(data: Any, where: str) -> ScheduleEntry:
    target = data.get("_target_") if isinstance(data, dict) else None
    if target in (_RFLOW, "RFlowScheduler"):
        kind, fixed, ignored = "rflow", _RFLOW_FIXED, _RFLOW_TRAINING
        names = {
            "num_train_timesteps": "train_timesteps",
            "use_timestep_transform": "use_timestep_transform",
            "base_img_size_numel": "base_latent_voxels",
        }
        entry: dict[str, Any] = {"use_timestep_transform": False}
    elif target in (_DDPM, "DDPMScheduler"):
        kind, fixed, ignored = "ddpm", _DDPM_FIXED, {"clip_sample_values"}
        names = {
            "num_train_timesteps": "train_timesteps",
            "beta_start": "beta_start",
            "beta_end": "beta_end",
            "schedule": "beta_schedule",
            "prediction_type": "prediction_type",
        }
        # MONAI's own defaults; its clip_sample defaults to True, which is not what MAISI was trained with.
        entry = {"beta_schedule": "linear_beta", "beta_start": 1e-4, "beta_end": 2e-2, "use_timestep_transform": False}
    else:
        raise BundleError(f"{where}: unknown scheduler {target!r} in '_target_'. Known: RFlowScheduler, DDPMScheduler.")
    for key, value in data.items():
        if key in names:
            entry[names[key]] = value
        elif key in fixed:
            if value != fixed[key]:
                raise BundleError(f"{where}.{key}: {value!r} is not supported; {fixed[key]!r} is needed.")
        elif key not in ignored and key != "_target_":
            raise BundleError(f"{where}: unknown scheduler argument {key!r}.{did_you_mean(key, [*names, *fixed])}")
    try:
        return ScheduleEntry(kind=kind, **entry)
    except ValueError as error:
        raise BundleError(f"{where}: a scheduler argument does not fit: {error}") from None
