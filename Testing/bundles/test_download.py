from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from MAISILib.bundles import catalogue, hub, licences
from MAISILib.bundles.bundle import open_bundle
from MAISILib.bundles.download import download, remove
from MAISILib.bundles.weights import sha256_of
from MAISILib.errors import BundleError, Cancelled, DownloadError, LicenceError
from Testing.bundles.hub_server import COMMIT, Hub
from Testing.tiny_bundle import make_tiny_bundle

UNET = "models/diff_unet_3d_rflow-ct.pt"


@pytest.fixture
def hub_server(tiny_catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the files of nv-tiny; the environment points to it."""
    served = Hub()
    for path in (tiny_catalogue / "models").iterdir():
        served.files["nvidia/tiny", f"models/{path.name}"] = path.read_bytes()
    server = served.start()
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", served.address)
    yield served
    server.shutdown()
    server.server_close()


@pytest.fixture
def large_unet(hub_server: Hub, tiny_catalogue: Path) -> bytes:
    """The UNet's checkpoint with optimizer state, so large that a transfer can break in the middle."""
    data = torch.load(tiny_catalogue / UNET, weights_only=True)
    torch.save({**data, "optimizer": torch.arange(500_000.0)}, tiny_catalogue / UNET)
    content = (tiny_catalogue / UNET).read_bytes()
    hub_server.files["nvidia/tiny", UNET] = content
    return content


def nothing_installed() -> bool:
    return not catalogue.installed_folder("nv-tiny").exists()


def test_downloaded_bundle_works_and_knows_where_it_came_from(hub_server: Hub) -> None:
    seen: list[tuple[int, int]] = []
    folder = download("nv-tiny", accept_licence=True, on_progress=lambda done, total: seen.append((done, total)))
    bundle = open_bundle("nv-tiny")
    assert bundle.folder == folder
    assert bundle.verify() == []
    assert bundle.scale_factor() == 1.25
    entry = bundle.manifest.networks["diffusion"]
    content = hub_server.files["nvidia/tiny", UNET]
    assert (entry.sha256, entry.bytes) == (sha256_of(folder / UNET), len(content))
    assert bundle.manifest.sources["revision"] == COMMIT  # "main" was pinned
    assert bundle.manifest.sources["files"]["diffusion"]["revision"] == COMMIT
    assert any("taken from the diffusion UNet" in note for note in bundle.manifest.sources["notes"])
    total = sum(len(content) for content in hub_server.files.values())
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert not list(folder.glob(".*"))
    assert not (catalogue.data_folder() / "downloads" / "nv-tiny").exists()


def test_second_download_asks_nobody(hub_server: Hub) -> None:
    folder = download("nv-tiny", accept_licence=True)
    hub_server.requests.clear()
    assert download("nv-tiny") == folder
    assert hub_server.requests == []


def test_licence_must_be_accepted_once(hub_server: Hub, data_folder: Path) -> None:
    with pytest.raises(LicenceError) as caught:
        download("nv-tiny")
    assert "NVIDIA Open Model License (https://www.nvidia.com" in str(caught.value)
    assert "maisi bundles download nv-tiny --accept-licence" in str(caught.value)
    assert hub_server.requests == []
    download("nv-tiny", accept_licence=True)
    remembered = json.loads((data_folder / "licences.json").read_text())
    assert [entry["name"] for entry in remembered.values()] == ["NVIDIA Open Model License"]
    remove("nv-tiny")
    download("nv-tiny")
    (data_folder / "licences.json").write_text("{")
    assert not licences.is_accepted(catalogue.downloadable()["nv-tiny"].licence)


def test_broken_transfer_goes_on_where_it_stopped(hub_server: Hub, large_unet: bytes) -> None:
    hub_server.break_after[UNET] = 1_000_000
    folder = download("nv-tiny", accept_licence=True)
    assert (folder / UNET).read_bytes() == large_unet
    first, second = hub_server.ranges(UNET)
    assert first is None
    assert second is not None
    assert 500_000 < int(second.removeprefix("bytes=").rstrip("-")) <= 1_000_000


def test_cancelled_download_installs_nothing_and_resumes_later(hub_server: Hub, large_unet: bytes) -> None:
    cancel = threading.Event()
    sizes = {path: len(content) for (_, path), content in hub_server.files.items()}
    before = sizes["models/autoencoder_v1.pt"]

    def progress(done: int, total: int) -> None:
        if done > before + 500_000:
            cancel.set()

    with pytest.raises(Cancelled):
        download("nv-tiny", accept_licence=True, on_progress=progress, cancel=cancel)
    assert nothing_installed()
    assert all(state.state != "installed" for state in catalogue.list_bundles())
    folder = download("nv-tiny")
    assert (folder / UNET).read_bytes() == large_unet
    resumed = hub_server.ranges(UNET)[-1]
    assert resumed is not None
    assert int(resumed.removeprefix("bytes=").rstrip("-")) >= 250_000
    assert len(hub_server.ranges("models/autoencoder_v1.pt")) == 1


def test_corrupted_file_is_refused_and_fetched_again(hub_server: Hub) -> None:
    hub_server.corrupt.add(UNET)
    with pytest.raises(DownloadError, match=r"rflow-ct\.pt.*arrived damaged.*SHA-256 is [0-9a-f]{64}, the hub"):
        download("nv-tiny", accept_licence=True)
    assert nothing_installed()
    hub_server.corrupt.clear()
    assert open_bundle(download("nv-tiny")).verify() == []


def test_file_that_the_catalogue_does_not_know_is_refused(hub_server: Hub) -> None:
    path = catalogue.resources_folder() / "bundles" / "catalogue" / "nv-tiny.json"
    template = json.loads(path.read_text())
    template["networks"]["autoencoder"]["sha256"] = "0" * 64
    path.write_text(json.dumps(template))
    with pytest.raises(DownloadError, match="the catalogue says 0000"):
        download("nv-tiny", accept_licence=True)
    assert nothing_installed()


def test_weights_that_do_not_fit_are_not_installed(hub_server: Hub) -> None:
    hub_server.files["nvidia/tiny", UNET] = hub_server.files["nvidia/tiny", "models/autoencoder_v1.pt"]
    with pytest.raises(BundleError, match="do not fit the network"):
        download("nv-tiny", accept_licence=True)
    assert nothing_installed()


def test_mask_library_is_unpacked(hub_server: Hub) -> None:
    add_masks(hub_server, "all_masks_tiny/case_1.nii.gz")
    folder = download("nv-tiny", accept_licence=True)
    assert (folder / "datasets" / "all_masks_tiny" / "case_1.nii.gz").read_bytes() == b"mask"
    assert not (folder / "datasets" / "all_masks_tiny.zip").exists()
    assert open_bundle("nv-tiny").manifest.masks is not None
    remove("nv-tiny")
    folder = download("nv-tiny", with_masks=False)
    assert not (folder / "datasets").exists()
    assert open_bundle("nv-tiny").manifest.masks is None


@pytest.mark.parametrize("member", ["../../evil", "/evil", "all_masks_tiny/../../../evil", "..\\..\\evil"])
def test_mask_library_cannot_write_elsewhere(hub_server: Hub, member: str) -> None:
    add_masks(hub_server, member)
    with pytest.raises(BundleError, match="outside of the folder"):
        download("nv-tiny", accept_licence=True)
    assert nothing_installed()
    assert not list(catalogue.data_folder().rglob("evil"))


def add_masks(hub_server: Hub, member: str) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(member, b"mask")
    hub_server.files["nvidia/tiny", "datasets/all_masks_tiny.zip"] = packed.getvalue()
    hub_server.files["nvidia/tiny", "datasets/index.json"] = b"[]"
    path = catalogue.resources_folder() / "bundles" / "catalogue" / "nv-tiny.json"
    template = json.loads(path.read_text())
    template["masks"] = {"index": "datasets/index.json", "format": "published"}
    template["sources"]["data"] = ["datasets/index.json", "datasets/all_masks_tiny.zip"]
    path.write_text(json.dumps(template))


def test_proxy_of_the_environment_is_used(hub_server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("http_proxy", hub_server.address)
    monkeypatch.setenv("HTTP_PROXY", hub_server.address)
    download("nv-tiny", accept_licence=True)
    assert all(request.target.startswith("http://hub.invalid/nvidia/tiny/") for request in hub_server.requests)
    assert open_bundle("nv-tiny").manifest.sources["endpoint"] == "http://hub.invalid"


def test_unreachable_hub_says_what_to_check(hub_server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"http://127\.0\.0\.1:9/nvidia/tiny"):
        download("nv-tiny", accept_licence=True)
    assert nothing_installed()


def test_gated_repository_asks_for_a_token(hub_server: Hub) -> None:
    hub_server.gated = True
    with pytest.raises(DownloadError, match="HF_TOKEN"):
        download("nv-tiny", accept_licence=True)


@pytest.mark.parametrize(
    ("repository", "revision", "path", "said"),
    [
        ("nvidia/none", "main", UNET, "no such repository"),
        ("nvidia/tiny", "gone", UNET, "no such revision"),
        ("nvidia/tiny", "main", "models/none.pt", "no such file"),
    ],
)
def test_what_is_not_on_the_hub_is_named(hub_server: Hub, repository: str, revision: str, path: str, said: str) -> None:
    with pytest.raises(DownloadError, match=said):
        hub.resolve(hub.RemoteFile(repository, revision, path))


def test_full_disk_is_noticed_before_the_transfer(hub_server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("MAISILib.bundles.download._SPARE_BYTES", 10**18)
    with pytest.raises(DownloadError, match=r"GB are free\. Make room, or set MAISI_DATA"):
        download("nv-tiny", accept_licence=True)
    assert hub_server.ranges(UNET) == []


def test_removed_bundle_is_gone(hub_server: Hub) -> None:
    folder = download("nv-tiny", accept_licence=True)
    remove("nv-tiny")
    assert not folder.exists()
    with pytest.raises(BundleError, match="is not installed"):
        remove("nv-tiny")


def test_embedded_bundle_stays(hub_server: Hub, data_folder: Path) -> None:
    with pytest.raises(BundleError, match="cannot be removed"):
        remove("built-in")
    assert open_bundle("built-in").verify() == []
    with pytest.raises(BundleError, match="nothing to download"):
        download("built-in")


@pytest.mark.parametrize("name", ["nv-tine", "../bundles", "/", ""])
def test_unknown_names_are_refused(hub_server: Hub, data_folder: Path, name: str) -> None:
    make_tiny_bundle(data_folder / "bundles" / "mine")
    with pytest.raises(BundleError):
        download(name, accept_licence=True)
    with pytest.raises(BundleError):
        remove(name)
    assert (data_folder / "bundles" / "mine" / "bundle.json").exists()
