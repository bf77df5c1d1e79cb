from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from MAISILib.bundles.bundle import Bundle, open_bundle
from MAISILib.bundles.weights import save_safetensors
from MAISILib.errors import BundleError
from Testing.bundles.conftest import write_published
from Testing.tiny_bundle import SCALE_FACTOR, make_tiny_bundle


@pytest.mark.parametrize("kind", ["rflow", "ddpm"])
def test_tiny_bundle_makes_an_image(tmp_path: Path, kind: str) -> None:
    bundle = open_bundle(make_tiny_bundle(tmp_path / "tiny", kind))  # type: ignore[arg-type]
    assert (bundle.compression, bundle.latent_channels, bundle.size_divisor) == (2, 4, 4)
    assert bundle.scale_factor() == SCALE_FACTOR
    assert bundle.verify() == []
    diffusion, controlnet, codec = (bundle.load(name) for name in ("diffusion", "controlnet", "autoencoder"))
    shared = {"class_labels": torch.tensor([1])} if kind == "rflow" else {}
    regions = ("top_region_index_tensor", "bottom_region_index_tensor") if kind == "ddpm" else ()
    with torch.no_grad():
        x, t = torch.randn(1, 4, 8, 8, 8), torch.tensor([500.0])
        down, middle = controlnet(x, t, controlnet_cond=torch.zeros(1, 8, 16, 16, 16), **shared)
        y = diffusion(
            x,
            t,
            spacing_tensor=torch.full((1, 3), 400.0),
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            **shared,
            **{name: torch.ones(1, 4) for name in regions},
        )
        image = codec.decode(y)  # pyright: ignore[reportCallIssue]
    assert image.shape == (1, 1, 16, 16, 16)
    assert torch.isfinite(image).all()
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in diffusion.parameters())


def test_labels_of_the_bundle_are_its_own(tiny: Bundle) -> None:
    assert [label.value for label in tiny.labels] == [200, 1, 23, 28]
    assert tiny.labels[1].name == "liver"


def test_tampered_weights_are_refused(tiny: Bundle) -> None:
    path = tiny.folder / "diffusion.safetensors"
    expected = tiny.manifest.networks["diffusion"].sha256
    state = {name: value + 1 for name, value in tiny.load("diffusion").state_dict().items()}
    save_safetensors(state, path)
    with pytest.raises(BundleError, match="Download or import the bundle again") as caught:
        tiny.load("diffusion")
    assert f"expected {expected}" in str(caught.value)
    assert tiny.weights_sha256()["diffusion"] in str(caught.value)
    assert len(tiny.verify()) == 1


def test_one_flipped_byte_is_noticed(tiny: Bundle) -> None:
    path = tiny.folder / "autoencoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="SHA-256"):
        tiny.load("autoencoder")


def test_missing_weights_are_named(tiny: Bundle) -> None:
    (tiny.folder / "controlnet.safetensors").unlink()
    with pytest.raises(BundleError, match=r"controlnet\.safetensors: the weights are missing"):
        tiny.load("controlnet")
    assert any("controlnet.safetensors" in problem for problem in tiny.verify())
    with pytest.raises(BundleError, match="missing"):
        tiny.weights_sha256()


def test_network_that_the_bundle_lacks_is_named(tmp_path: Path) -> None:
    bundle = Bundle(make_tiny_bundle(tmp_path / "tiny", with_controlnet=False))
    with pytest.raises(BundleError, match="has no controlnet network; it has autoencoder, diffusion"):
        bundle.load("controlnet")
    with pytest.raises(BundleError, match="Did you mean 'diffusion'"):
        bundle.load("difusion")


def test_weights_of_another_network_are_refused(tiny: Bundle, edit: Callable[..., None]) -> None:
    networks = tiny.manifest.model_dump(mode="json")["networks"]
    networks["autoencoder"]["weights"] = "diffusion.safetensors"
    networks["autoencoder"]["sha256"] = None
    edit(tiny.folder, networks=networks)
    with pytest.raises(BundleError, match=r"do not fit the network. Weights \d+ missing: .*; \d+ unexpected: "):
        Bundle(tiny.folder).load("autoencoder")


def test_own_controlnet_must_be_complete(tiny: Bundle, edit: Callable[..., None]) -> None:
    """Only published checkpoints are completed from the diffusion UNet."""
    state = tiny.load("controlnet").state_dict()
    del state["conv_in.conv.weight"]
    save_safetensors(state, tiny.folder / "controlnet.safetensors")
    networks = tiny.manifest.model_dump(mode="json")["networks"]
    networks["controlnet"]["sha256"] = None
    edit(tiny.folder, networks=networks)
    with pytest.raises(BundleError, match=r"1 missing: conv_in\.conv\.weight"):
        Bundle(tiny.folder).load("controlnet")


def test_published_checkpoints_load_in_place(tmp_path: Path, tiny: Bundle, edit: Callable[..., None]) -> None:
    write_published(tmp_path / "published")
    networks = tiny.manifest.model_dump(mode="json")["networks"]
    for name, file in (("diffusion", "diff_unet_3d_rflow-ct.pt"), ("controlnet", "controlnet_3d_rflow-ct.pt")):
        (tiny.folder / file).write_bytes((tmp_path / "published" / "models" / file).read_bytes())
        networks[name] |= {"weights": file, "format": "torch", "sha256": None}
    edit(tiny.folder, networks=networks, scale_factor=None)
    bundle = Bundle(tiny.folder)
    assert bundle.scale_factor() == SCALE_FACTOR
    controlnet, diffusion = bundle.load("controlnet"), bundle.load("diffusion")
    filled = bundle.reports["controlnet"].filled
    assert filled
    assert all(torch.equal(controlnet.state_dict()[name], diffusion.state_dict()[name]) for name in filled)
    assert bundle.reports["diffusion"].filled == []


def test_scale_factor_that_is_nowhere_is_asked_for(tiny: Bundle, edit: Callable[..., None]) -> None:
    edit(tiny.folder, scale_factor=None)
    with pytest.raises(BundleError, match="no scale factor"):
        Bundle(tiny.folder).scale_factor()


@pytest.mark.parametrize("relative", ["../x", "/etc/passwd", "a/../../x", "", "C:/x", "a\\b"])
def test_paths_stay_in_the_bundle(tiny: Bundle, relative: str) -> None:
    with pytest.raises(BundleError, match="tiny"):
        tiny.path(relative)


def test_links_out_of_the_bundle_are_refused(tiny: Bundle, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tiny.folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match="through a link"):
        tiny.path("link")


def test_incomplete_definition_is_named(tiny: Bundle, edit: Callable[..., None]) -> None:
    networks = tiny.manifest.model_dump(mode="json")["networks"]
    del networks["autoencoder"]["definition"]["latent_channels"]
    edit(tiny.folder, networks=networks)
    with pytest.raises(BundleError, match=r"networks\.autoencoder\.definition: 'latent_channels' is missing"):
        _ = Bundle(tiny.folder).latent_channels


def test_unknown_network_class_is_refused(tiny: Bundle, edit: Callable[..., None]) -> None:
    networks = tiny.manifest.model_dump(mode="json")["networks"]
    networks["diffusion"]["definition"]["_target_"] = "os.system"
    edit(tiny.folder, networks=networks)
    with pytest.raises(BundleError, match=r"networks\.diffusion\.definition: unknown network 'os.system'"):
        Bundle(tiny.folder).load("diffusion")
