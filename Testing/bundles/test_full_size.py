"""A bundle with the real channel counts, in the published layout, with random weights."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from MAISILib.bundles import catalogue
from MAISILib.bundles.bundle import open_bundle
from MAISILib.bundles.importing import import_folder, import_notes
from MAISILib.bundles.networks import build_network, parameter_count

pytestmark = pytest.mark.slow


def write_random_weights(folder: Path, name: str) -> None:
    """Half-precision weights for every network of a catalogue bundle, one network in memory at a time."""
    generator = torch.Generator().manual_seed(0)
    for network, entry in catalogue.downloadable()[name].networks.items():
        expected = build_network(entry.definition, network, device="meta").state_dict()
        state: dict[str, Any] = {
            key: (torch.rand(value.shape, generator=generator) - 0.5).mul_(0.04).half()
            for key, value in expected.items()
            if not (network == "controlnet" and key.startswith(("time_embed", "conv_in")))
        }
        content: dict[str, Any] = state
        if network in ("diffusion", "mask_diffusion"):
            content = {"unet_state_dict": state, "scale_factor": torch.tensor(1.02), "epoch": 1, "loss": 0.5}
        elif network == "controlnet":
            content = {"controlnet_state_dict": state, "epoch": 1}
        (folder / entry.weights).parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, folder / entry.weights)
        del state, content
        gc.collect()


def test_full_size_bundle_is_imported_listed_verified_and_run(tmp_path: Path) -> None:
    write_random_weights(tmp_path / "published", "nv-rflow-ct")
    started = time.monotonic()
    bundle = import_folder(tmp_path / "published", accept_licence=True)
    print(f"import: {time.monotonic() - started:.0f} s")
    state = next(state for state in catalogue.list_bundles() if state.name == "nv-rflow-ct")
    assert state.state == "installed"
    assert state.bytes == pytest.approx(2 * 476e6, rel=0.02)
    assert any("controlnet: 6 weights taken from the diffusion UNet" in note for note in import_notes(bundle))
    bundle = open_bundle("nv-rflow-ct")
    assert bundle.verify() == []
    assert (bundle.compression, bundle.latent_channels, bundle.size_divisor) == (4, 4, 32)
    assert bundle.scale_factor() == pytest.approx(1.02)
    controlnet, diffusion = bundle.load("controlnet"), bundle.load("diffusion")
    assert parameter_count(diffusion) == pytest.approx(180.5e6, rel=1e-3)
    x, t, modality = torch.randn(1, 4, 16, 16, 8), torch.tensor([1000.0]), torch.tensor([1])
    with torch.no_grad():
        down, middle = controlnet(x, t, controlnet_cond=torch.zeros(1, 8, 64, 64, 32), class_labels=modality)
        velocity = diffusion(
            x,
            t,
            spacing_tensor=torch.full((1, 3), 150.0),
            class_labels=modality,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        )
    assert velocity.shape == x.shape
    assert torch.isfinite(velocity).all()


def test_a_network_loads_in_a_second_or_so(tmp_path: Path) -> None:
    write_random_weights(tmp_path / "published", "nv-rflow-mr-brain")
    for path in (tmp_path / "published" / "models").glob("*"):
        assert path.stat().st_size < 400e6
    bundle = import_folder(tmp_path / "published", accept_licence=True, convert=False)
    assert bundle.name == "nv-rflow-mr-brain"
    started = time.monotonic()
    bundle.load("diffusion")
    print(f"load: {time.monotonic() - started:.1f} s")
