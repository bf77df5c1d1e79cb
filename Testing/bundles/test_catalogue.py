from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from MAISILib.bundles import catalogue
from MAISILib.bundles.bundle import open_bundle
from MAISILib.bundles.networks import build_network, parameter_count
from MAISILib.errors import BundleError
from Testing.tiny_bundle import make_tiny_bundle

NVIDIA = ["nv-ddpm-ct", "nv-rflow-ct", "nv-rflow-mr", "nv-rflow-mr-brain"]
#: Millions of parameters, as measured on the published networks.
MILLIONS = {
    "autoencoder": 20.9,
    "diffusion": 180.5,
    "controlnet": 72.0,
    "mask_autoencoder": 5.3,
    "mask_diffusion": 197.2,
}


def test_catalogue_lists_the_published_bundles() -> None:
    states = {state.name: state for state in catalogue.list_bundles()}
    for name in NVIDIA:
        assert states[name].state == "to download"
        assert states[name].licence.must_accept
        assert states[name].licence.url.startswith("https://")
        assert states[name].folder is None
    assert "Non-Commercial" in states["nv-rflow-mr"].licence.name


@pytest.mark.parametrize("name", NVIDIA)
def test_published_networks_have_the_published_number_of_parameters(name: str) -> None:
    for network, entry in catalogue.downloadable()[name].networks.items():
        millions = parameter_count(build_network(entry.definition, network, device="meta")) / 1e6
        if "rflow" in name or network not in ("diffusion", "controlnet"):
            assert round(millions, 1) == MILLIONS[network], network
        if name == "nv-ddpm-ct" and network == "diffusion":
            assert entry.definition["include_top_region_index_input"]
            assert not {"num_class_embeds"} & entry.definition.keys()


@pytest.mark.parametrize("name", NVIDIA)
def test_recommended_sizes_are_legal(name: str) -> None:
    manifest = catalogue.downloadable()[name]
    for recommendation in manifest.recommended:
        manifest.limits.check_size(recommendation.size, 32)
        manifest.limits.check_spacing(recommendation.spacing)
        manifest.limits.check_field_of_view(recommendation.size, recommendation.spacing, recommendation.regions)
        assert recommendation.modality is None or recommendation.modality in manifest.modality


@pytest.mark.parametrize("name", NVIDIA)
def test_every_file_has_a_source(name: str) -> None:
    manifest = catalogue.downloadable()[name]
    assert set(manifest.sources["files"]) == set(manifest.networks)
    assert manifest.sources["repository"].startswith("nvidia/NV-Generate-")
    if manifest.masks is not None:
        assert manifest.masks.index in manifest.sources["data"]
    if manifest.quality is not None:
        assert (catalogue.resources_folder() / manifest.quality).is_file()


def test_modality_codes_are_those_of_the_table() -> None:
    with (catalogue.resources_folder() / "modalities.csv").open() as file:
        table = {row["modality"]: int(row["code"]) for row in csv.DictReader(file)}
    for manifest in catalogue.downloadable().values():
        assert all(table[name] == code for name, code in manifest.modality.items())
        codes = range(1, 8) if manifest.intensity.kind == "ct" else range(8, 128)
        assert all(code in codes for code in manifest.modality.values())


def test_installed_bundles_are_listed_and_opened_by_name(data_folder: Path) -> None:
    make_tiny_bundle(data_folder / "bundles" / "mine")
    state = next(state for state in catalogue.list_bundles() if state.name == "mine")
    assert state.state == "installed"
    assert state.bytes
    assert open_bundle("mine").folder == data_folder / "bundles" / "mine"


def test_damaged_bundle_does_not_break_the_list(data_folder: Path) -> None:
    folder = make_tiny_bundle(data_folder / "bundles" / "mine")
    (folder / "bundle.json").write_text("{}")
    state = next(state for state in catalogue.list_bundles() if state.name == "mine")
    assert state.state == "damaged"
    assert "name" in state.problem


def test_unknown_bundle_names_the_nearest() -> None:
    with pytest.raises(BundleError, match=r"There is no bundle 'nv-rflow-tc'.*Did you mean 'nv-rflow-ct'"):
        open_bundle("nv-rflow-tc")


def test_bundle_that_is_not_here_yet_says_how_to_get_it() -> None:
    with pytest.raises(BundleError, match="maisi bundles download nv-rflow-ct"):
        open_bundle("nv-rflow-ct")


def test_folder_is_opened_by_its_path(tmp_path: Path) -> None:
    folder = make_tiny_bundle(tmp_path / "some folder" / "Bündel", name="mine")
    assert open_bundle(str(folder)).name == "mine"
    assert open_bundle(folder).name == "mine"


def test_resources_are_found_inside_a_wheel_too(tmp_path: Path, repository: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(repository / "MAISILib", tmp_path / "site" / "MAISILib", ignore=ignore)
    shutil.copytree(repository / "Resources", tmp_path / "site" / "MAISILib" / "Resources", ignore=ignore)
    code = "from MAISILib.bundles.catalogue import *; print(resources_folder()); print(len(downloadable()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == [str(tmp_path / "site" / "MAISILib" / "Resources"), "4"]


def test_listing_bundles_imports_no_networks(repository: Path) -> None:
    code = (
        "import sys; from MAISILib.bundles import bundle, catalogue, download, importing, published; "
        "catalogue.list_bundles(); "
        "print([m for m in ('torch', 'monai', 'numpy', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
