"""Tiny bundles, in our layout and in the published one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from MAISILib.bundles import catalogue
from MAISILib.bundles.bundle import Bundle
from Testing.tiny_bundle import SCALE_FACTOR, make_tiny_bundle, tiny_definitions, tiny_states


@pytest.fixture
def tiny(tmp_path: Path) -> Bundle:
    return Bundle(make_tiny_bundle(tmp_path / "tiny"))


@pytest.fixture
def edit(tmp_path: Path) -> Callable[..., None]:
    """Changes fields of a bundle.json as a user with a text editor would."""

    def change(folder: Path, **fields: Any) -> None:
        path = folder / "bundle.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def write_published(folder: Path, kind: str = "rflow", extra: dict[str, Any] | None = None) -> Path:
    """Tiny weights in the published layout, with the network JSON that belongs to them."""
    import torch

    definitions = tiny_definitions("ddpm" if kind == "ddpm" else "rflow")
    states = tiny_states(definitions)
    (folder / "models").mkdir(parents=True)
    (folder / "configs").mkdir()
    torch.save(states["autoencoder"], folder / "models" / "autoencoder_v1.pt")
    diffusion = {
        "epoch": 1,
        "loss": 0.5,
        "num_train_timesteps": 1000,
        "scale_factor": torch.tensor(SCALE_FACTOR),
        "unet_state_dict": {name: value.half() for name, value in states["diffusion"].items()},
        **(extra or {}),
    }
    torch.save(diffusion, folder / "models" / f"diff_unet_3d_{kind}-ct.pt")
    # As published: what the ControlNet shares with the frozen UNet may be left out.
    shared = [n for n, v in states["controlnet"].items() if n in states["diffusion"] and n.startswith("time_embed")]
    controlnet = {name: value for name, value in states["controlnet"].items() if name not in shared}
    torch.save({"controlnet_state_dict": controlnet, "epoch": 2}, folder / "models" / f"controlnet_3d_{kind}-ct.pt")
    (folder / "configs" / f"config_network_{kind}.json").write_text(json.dumps(network_json(kind)))
    return folder


def network_json(kind: str = "rflow") -> dict[str, Any]:
    """A network JSON in the published form, for the tiny networks."""
    definitions = tiny_definitions("ddpm" if kind == "ddpm" else "rflow")
    for definition in definitions.values():
        definition["spatial_dims"] = "@spatial_dims"
    definitions["autoencoder"]["latent_channels"] = "@latent_channels"
    rflow = {
        "_target_": "monai.networks.schedulers.rectified_flow.RFlowScheduler",
        "num_train_timesteps": 1000,
        "use_discrete_timesteps": False,
        "use_timestep_transform": True,
        "sample_method": "uniform",
        "scale": 1.4,
    }
    ddpm = {
        "_target_": "monai.networks.schedulers.ddpm.DDPMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.0015,
        "beta_end": 0.0195,
        "schedule": "scaled_linear_beta",
        "clip_sample": False,
    }
    return {
        "spatial_dims": 3,
        "image_channels": 1,
        "latent_channels": 4,
        "include_body_region": kind == "ddpm",
        "mask_generation_latent_shape": [4, 64, 64, 64],
        "autoencoder_def": definitions["autoencoder"],
        "diffusion_unet_def": definitions["diffusion"],
        "controlnet_def": definitions["controlnet"],
        "mask_generation_scale_factor": 1.0055984258651733,
        "noise_scheduler": ddpm if kind == "ddpm" else rflow,
    }


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return write_published(tmp_path / "published")


@pytest.fixture
def tiny_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: Path) -> Path:
    """A catalogue whose one downloadable bundle, nv-tiny, is small; returns the folder with its files."""
    template = catalogue.downloadable()["nv-rflow-ct"].model_dump(mode="json")
    definitions = tiny_definitions("rflow")
    files = {
        "autoencoder": "models/autoencoder_v1.pt",
        "diffusion": "models/diff_unet_3d_rflow-ct.pt",
        "controlnet": "models/controlnet_3d_rflow-ct.pt",
    }
    template["name"] = "nv-tiny"
    template["networks"] = {
        name: {"definition": definitions[name], "weights": path, "format": "torch"} for name, path in files.items()
    }
    template["masks"] = None
    template["sources"] = {"repository": "nvidia/tiny", "revision": "main", "files": files, "data": []}
    resources = tmp_path / "Resources"
    (resources / "bundles" / "catalogue").mkdir(parents=True)
    (resources / "bundles" / "catalogue" / "nv-tiny.json").write_text(json.dumps(template))
    make_tiny_bundle(resources / "bundles" / "built-in")
    monkeypatch.setattr(catalogue, "resources_folder", lambda: resources)
    return published
