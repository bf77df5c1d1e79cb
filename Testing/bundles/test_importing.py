from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from MAISILib.bundles import catalogue
from MAISILib.bundles.bundle import Bundle, open_bundle
from MAISILib.bundles.importing import import_folder, import_notes, variants_in
from MAISILib.errors import BundleError, LicenceError, RequestError
from MAISILib.generation.mask_wish import MaskWish
from Testing.bundles.conftest import write_published
from Testing.tiny_bundle import SCALE_FACTOR, make_tiny_bundle, tiny_definitions, tiny_states
from Testing.tiny_mask_generator import tiny_mask_definitions


@pytest.fixture(autouse=True)
def leaves_no_rubbish(data_folder: Path) -> object:
    yield
    assert not list(data_folder.glob("staging/*"))


def test_published_layout_is_imported_as_safetensors(published: Path) -> None:
    bundle = import_folder(published, accept_licence=True)
    assert bundle.name == "nv-rflow-ct"
    assert open_bundle("nv-rflow-ct").folder == bundle.folder
    assert bundle.verify() == []
    assert bundle.manifest.scale_factor == SCALE_FACTOR
    assert {entry.format for entry in bundle.manifest.networks.values()} == {"safetensors"}
    assert not list(bundle.folder.rglob("*.pt"))
    states = tiny_states(tiny_definitions())
    for network in ("autoencoder", "diffusion"):
        for name, value in bundle.load(network).state_dict().items():
            assert torch.equal(value, states[network][name].half().float()), name
    controlnet = bundle.load("controlnet").state_dict()
    assert torch.equal(controlnet["time_embed.0.weight"], bundle.load("diffusion").state_dict()["time_embed.0.weight"])
    notes = "\n".join(import_notes(bundle))
    assert "networks: autoencoder, diffusion, controlnet" in notes
    assert "not there: mask_autoencoder, mask_diffusion" in notes
    assert "controlnet: 4 weights taken from the diffusion UNet" in notes
    assert bundle.manifest.controllable == []
    assert (published / "models" / "autoencoder_v1.pt").exists()


def test_files_can_be_kept_as_they_are(published: Path) -> None:
    bundle = import_folder(published, name="kept", accept_licence=True, convert=False)
    assert bundle.folder.name == "kept"
    source = published / "models" / "diff_unet_3d_rflow-ct.pt"
    assert (bundle.folder / "models" / source.name).read_bytes() == source.read_bytes()
    assert bundle.verify() == []
    assert bundle.manifest.networks["diffusion"].sha256 is not None


def test_ddpm_variant_is_recognised(tmp_path: Path) -> None:
    bundle = import_folder(write_published(tmp_path / "p", "ddpm"), accept_licence=True)
    assert bundle.name == "nv-ddpm-ct"
    assert (bundle.manifest.schedule.kind, bundle.manifest.schedule.steps) == ("ddpm", 1000)
    assert bundle.manifest.body_region_input


def test_folder_with_two_variants_asks_which(published: Path) -> None:
    shutil.copy(published / "models" / "diff_unet_3d_rflow-ct.pt", published / "models" / "diff_unet_3d_ddpm-ct.pt")
    assert variants_in(published) == ["nv-rflow-ct", "nv-ddpm-ct"]
    with pytest.raises(BundleError, match="holds nv-rflow-ct, nv-ddpm-ct"):
        import_folder(published, accept_licence=True)
    assert import_folder(published, name="nv-rflow-ct", accept_licence=True).name == "nv-rflow-ct"


def test_masks_come_along(published: Path) -> None:
    masks = published / "datasets" / "all_masks_flexible_size_and_spacing_4000"
    masks.mkdir(parents=True)
    (masks / "case.nii.gz").write_bytes(b"mask")
    (published / "datasets" / "candidate_masks_flexible_size_and_spacing_4000.json").write_text("[]")
    (published / "datasets" / "all_anatomy_size_conditions.json").write_text("[]")
    bundle = import_folder(published, accept_licence=True)
    assert bundle.manifest.masks is not None
    assert bundle.path(bundle.manifest.masks.index).is_file()
    assert bundle.path("datasets/all_masks_flexible_size_and_spacing_4000/case.nii.gz").is_file()
    assert bundle.path("datasets/all_anatomy_size_conditions.json").is_file()


def test_licence_must_be_accepted(published: Path) -> None:
    with pytest.raises(LicenceError, match="--accept-licence"):
        import_folder(published)
    import_folder(published, accept_licence=True)
    import_folder(published, name="again")


def test_name_can_be_used_once(published: Path) -> None:
    import_folder(published, accept_licence=True)
    with pytest.raises(BundleError, match="maisi bundles remove nv-rflow-ct"):
        import_folder(published)


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden"])
def test_name_cannot_be_a_path(published: Path, name: str) -> None:
    with pytest.raises(BundleError, match="no name for a bundle"):
        import_folder(published, name=name, accept_licence=True)


def test_wrong_weights_are_not_installed(published: Path) -> None:
    models = published / "models"
    shutil.copy(models / "controlnet_3d_rflow-ct.pt", models / "diff_unet_3d_rflow-ct.pt")
    with pytest.raises(BundleError, match="do not fit the network"):
        import_folder(published, accept_licence=True)
    with pytest.raises(BundleError, match="not on this computer"):
        open_bundle("nv-rflow-ct")


def test_mask_generator_that_does_not_fit_is_left_out(published: Path) -> None:
    models = published / "models"
    shutil.copy(models / "diff_unet_3d_rflow-ct.pt", models / "mask_generation_diffusion_unet.pt")
    bundle = import_folder(published, accept_licence=True)
    assert "mask_diffusion" not in bundle.manifest.networks
    assert bundle.manifest.mask_generator is None
    assert any("mask_diffusion left out" in note for note in import_notes(bundle))


def test_mask_generator_is_imported_with_its_table(published: Path) -> None:
    definitions = tiny_mask_definitions(classes=125, sizes=10)
    states = tiny_states(definitions)
    models = published / "models"
    torch.save(states["mask_autoencoder"], models / "mask_generation_autoencoder.pt")
    diffusion = {"unet_state_dict": states["mask_diffusion"], "scale_factor": torch.tensor(1.5)}
    torch.save(diffusion, models / "mask_generation_diffusion_unet.pt")
    config = published / "configs" / "config_network_rflow.json"
    data = json.loads(config.read_text())
    data["mask_generation_autoencoder_def"] = definitions["mask_autoencoder"]
    data["mask_generation_diffusion_def"] = definitions["mask_diffusion"]
    data |= {"mask_generation_latent_shape": [4, 8, 8, 8], "mask_generation_scale_factor": 1.5}
    config.write_text(json.dumps(data))
    (published / "datasets").mkdir()
    rows = [{"organ_size": [0.5] * 5 + [-1.0] * 5}]
    (published / "datasets" / "all_anatomy_size_conditions.json").write_text(json.dumps(rows))

    bundle = import_folder(published, accept_licence=True)
    generator = bundle.manifest.mask_generator
    assert generator is not None
    assert (generator.size, generator.spacing, generator.scale_factor) == ((16, 16, 16), (1.5, 1.5, 1.5), 1.5)
    wish = MaskWish(bundle, {"Liver": 0.8, "hepatic tumor": 0.3})
    assert wish.conditions(0) == [0.5, 0.8, 0.5, 0.5, 0.5, -1, -1, 0.3, -1, -1]
    assert len(wish.classes) == 125
    with pytest.raises(RequestError, match=r"one lesion at most; lung tumor, hepatic tumor"):
        MaskWish(bundle, {"lung tumor": 0.5, "hepatic tumor": 0.3})


def test_without_its_weights_no_mask_generator_is_promised(published: Path) -> None:
    bundle = import_folder(published, accept_licence=True)
    assert (bundle.manifest.mask_generator, bundle.manifest.controllable) == (None, [])


def test_newer_mask_generator_is_reported(published: Path) -> None:
    (published / "models" / "mask_generation_diffusion_unet_v2.pt").write_bytes(b"x")
    config = published / "configs" / "config_network_rflow.json"
    data = json.loads(config.read_text())
    data["mask_generation_diffusion_def"] = {"_target_": "scripts.adagn_unet.DiffusionModelUNetMaisiAdaGN"}
    config.write_text(json.dumps(data))
    notes = import_notes(import_folder(published, accept_licence=True))
    assert sum("second-generation" in note for note in notes) == 2


def test_code_in_the_network_file_stops_the_import(published: Path) -> None:
    config = published / "configs" / "config_network_rflow.json"
    config.write_text(config.read_text().replace('"spatial_dims": 3', '"spatial_dims": "$print(1)"'))
    with pytest.raises(BundleError, match="would run code"):
        import_folder(published, accept_licence=True)


def test_our_own_bundle_is_imported_whole(tmp_path: Path) -> None:
    source = make_tiny_bundle(tmp_path / "source", name="mine")
    (source / "masks").mkdir()
    (source / "masks" / "one.nii.gz").write_bytes(b"mask")
    bundle = import_folder(source)
    assert bundle.folder == catalogue.installed_folder("mine")
    assert bundle.path("masks/one.nii.gz").read_bytes() == b"mask"
    assert bundle.weights_sha256() == Bundle(source).weights_sha256()
    assert [label.value for label in bundle.labels] == [200, 1, 23, 28]
    assert import_folder(source, name="other").name == "other"


def test_tampered_bundle_is_not_imported(tmp_path: Path, edit: Callable[..., None]) -> None:
    source = make_tiny_bundle(tmp_path / "source")
    with (source / "autoencoder.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match="SHA-256"):
        import_folder(source)


@pytest.mark.parametrize("missing", ["models/autoencoder_v1.pt", "models/diff_unet_3d_rflow-ct.pt"])
def test_folder_without_a_needed_file_says_which(published: Path, missing: str) -> None:
    (published / missing).unlink()
    with pytest.raises(BundleError, match=r"autoencoder_v1\.pt is missing|nor published weights"):
        import_folder(published, accept_licence=True)


def test_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        import_folder(tmp_path / "none")
