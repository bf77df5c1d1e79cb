from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from MAISILib.bundles.published import parse_network_json, read_network_json
from MAISILib.errors import BundleError
from Testing.bundles.conftest import network_json


def test_references_are_resolved_and_the_schedule_is_ours(tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text(json.dumps(network_json("rflow")))
    found = read_network_json(tmp_path / "net.json")
    assert found.definitions["diffusion"]["spatial_dims"] == 3
    assert found.definitions["autoencoder"]["latent_channels"] == 4
    assert set(found.definitions) == {"autoencoder", "diffusion", "controlnet"}
    assert found.schedule is not None
    assert (found.schedule.kind, found.schedule.steps, found.schedule.use_timestep_transform) == ("rflow", 30, True)
    assert found.mask_latent_shape == (4, 64, 64, 64)
    assert found.mask_scale_factor == pytest.approx(1.0055984)
    assert not found.body_region_input


def test_ddpm_schedule_keeps_its_betas() -> None:
    found = parse_network_json(network_json("ddpm"), "net.json")
    assert found.schedule is not None
    assert (found.schedule.kind, found.schedule.steps) == ("ddpm", 1000)
    assert (found.schedule.beta_start, found.schedule.beta_end) == (0.0015, 0.0195)
    assert found.body_region_input


def test_code_in_a_network_file_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    code = f"$__import__('pathlib').Path({str(mark)!r}).touch()"
    places: list[dict[str, Any]] = [
        {"autoencoder_def": {"_target_": "AutoencoderKlMaisi", "spatial_dims": code}},
        {"image_channels": code},
        {"unknown": {"deep": [1, code]}},
        {"autoencoder_def": {code: 1}},
        {"latent_channels": "@" + code},
    ]
    for change in places:
        with pytest.raises(BundleError, match="would run code"):
            parse_network_json({**network_json(), **change}, "net.json")
    assert not mark.exists()


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "evil.AutoencoderKlMaisi", "", None, 3])
def test_unknown_target_is_refused(target: Any) -> None:
    data = network_json()
    data["autoencoder_def"]["_target_"] = target
    with pytest.raises(BundleError, match=r"net\.json: autoencoder_def: unknown network"):
        parse_network_json(data, "net.json")
    data = network_json()
    data["noise_scheduler"]["_target_"] = target
    with pytest.raises(BundleError, match="noise_scheduler: unknown scheduler"):
        parse_network_json(data, "net.json")


def test_second_generation_mask_generator_is_left_out_with_a_reason() -> None:
    data = {
        **network_json(),
        "mask_generation_diffusion_def": {"_target_": "scripts.adagn_unet.DiffusionModelUNetMaisiAdaGN"},
    }
    found = parse_network_json(data, "net.json")
    assert "mask_diffusion" not in found.definitions
    assert "second-generation" in found.unsupported["mask_diffusion"]


def test_circles_and_dead_ends_are_named() -> None:
    with pytest.raises(BundleError, match="in a circle"):
        parse_network_json({"image_channels": "@latent_channels", "latent_channels": "@image_channels"}, "net.json")
    with pytest.raises(BundleError, match=r"leads nowhere\. Did you mean 'latent_channels'"):
        parse_network_json({"latent_channels": 4, "image_channels": "@latent_chanels"}, "net.json")


def test_reference_to_a_reference_is_followed() -> None:
    found = parse_network_json(
        {**network_json(), "spatial_dims": "@image_channels", "image_channels": "@latent_channels"}, "net.json"
    )
    assert found.definitions["autoencoder"]["spatial_dims"] == 4


@pytest.mark.parametrize(
    ("key", "value"), [("prediction_type", "sample"), ("clip_sample", True), ("num_train_timesteps", 0), ("x", 1)]
)
def test_scheduler_setting_that_would_change_the_result_is_refused(key: str, value: Any) -> None:
    data = network_json("ddpm")
    data["noise_scheduler"][key] = value
    with pytest.raises(BundleError, match="noise_scheduler"):
        parse_network_json(data, "net.json")


def test_a_ddpm_may_predict_velocity() -> None:
    data = network_json("ddpm")
    data["noise_scheduler"]["prediction_type"] = "v_prediction"
    schedule = parse_network_json(data, "net.json").schedule
    assert schedule is not None
    assert schedule.prediction_type == "v_prediction"


def test_unknown_keys_are_reported() -> None:
    assert parse_network_json({**network_json(), "my_note": "hello"}, "net.json").ignored == ["my_note"]


@pytest.mark.parametrize("text", ["", "[]", "{'a': 1}", '{"a":' * 100_000])
def test_text_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "net.json").write_text(text)
    with pytest.raises(BundleError, match=r"net\.json"):
        read_network_json(tmp_path / "net.json")
