"""Encoding: on which grid, with what origin, and what is done again."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from MAISILib.anatomy.labels import LabelTable, default_table
from MAISILib.bundles.bundle import Bundle
from MAISILib.bundles.catalogue import downloadable
from MAISILib.bundles.weights import sha256_of
from MAISILib.codec.codec import Codec, IntensityScale
from MAISILib.codec.strategies import Strategy
from MAISILib.errors import Cancelled, FileFormatError, OutOfMemory, RequestError
from MAISILib.files.images import read_image, read_mask
from MAISILib.files.nifti import write_labels, write_volume
from MAISILib.generation.progress import CancelToken, Progress
from MAISILib.training.datalist import DataItem, Datalist, read_datalist
from MAISILib.training.encoding import Encoded, GridRule, check_request, encode_items, grid_step
from MAISILib.training.latent_files import read_header, read_posterior
from MAISILib.training.latents import LatentDataset
from MAISILib.training.mirroring import mirrored_labels
from MAISILib.volumes import Grid, LabelMap, Volume
from Testing.tiny_bundle import make_tiny_bundle

RIGHT_KIDNEY, LEFT_KIDNEY = 5, 14


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny"))


@pytest.fixture
def table() -> LabelTable:
    return default_table()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two patients of 14×16×17 voxels of 4 mm with two kidneys, and one without a label."""
    folder = tmp_path / "data"
    for number in range(3):
        write_patient(folder, f"p{number}", seed=number, label=number < 2)
    return folder


def write_patient(folder: Path, name: str, seed: int = 0, *, label: bool = True) -> None:
    grid = Grid.axis_aligned((14, 16, 17), (4.0, 4.0, 4.0), (10.0, 20.0, 30.0))
    values = np.random.default_rng(seed).integers(-1000, 1000, grid.shape).astype(np.int16)
    write_volume(Volume(values, grid.affine), folder / f"{name}_ct.nii.gz")
    if label:
        labels = np.full(grid.shape, 200, np.uint8)
        labels[2:5, 4:12, 4:12], labels[10:13, 4:9, 4:12] = RIGHT_KIDNEY, LEFT_KIDNEY
        write_labels(LabelMap(labels, grid.affine, default_table()), folder / f"{name}_seg.nii.gz")


def encode(bundle: Bundle, data: Path | Datalist, out: Path, **options: Any) -> Encoded:
    items = data if isinstance(data, Datalist) else read_datalist(data)
    return encode_items(bundle, items, out, **{"table": default_table(), **options})


def test_latents_say_where_they_lie_and_what_they_were_made_from(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    done = encode(bundle, data, tmp_path / "out")
    assert done.encoded == ("p0", "p1", "p2")
    header = read_header(tmp_path / "out" / "p0_emb.safetensors")
    assert header.autoencoder_sha256 == bundle.weights_sha256()["autoencoder"]
    assert (header.source, header.source_sha256) == ("p0_ct.nii.gz", sha256_of(data / "p0_ct.nii.gz"))
    assert header.label_sha256 == sha256_of(data / "p0_seg.nii.gz")
    assert (header.modality, header.mirrored, header.version) == ("ct", False, 1)
    image = read_image(data / "p0_ct.nii.gz").grid
    assert header.image_shape == (16, 16, 16)  # nearest multiples of 4
    encoded = header.image_grid
    np.testing.assert_allclose(encoded.field_of_view, image.field_of_view)
    np.testing.assert_allclose(encoded.center, image.center)
    latent = Grid((8, 8, 8), np.asarray(header.affine))
    np.testing.assert_allclose(latent.field_of_view, image.field_of_view)
    np.testing.assert_allclose(latent.center, image.center)


def test_mean_and_deviation_are_those_of_the_autoencoder_not_scaled(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    grid = GridRule(keep=True, step=4)
    for precision, tolerance in (("float16", 2e-3), ("float32", 1e-6)):
        out = tmp_path / precision
        encode(bundle, data, out, grid=grid, precision=precision)
        mean, deviation = read_posterior(out / "p2_emb.safetensors")
        assert deviation is not None
        assert str(mean.dtype) == f"torch.{precision}"
        array = np.full((16, 16, 20), -1000.0)
        array[1:15, :, 1:18] = read_image(data / "p2_ct.nii.gz").array  # air around it, voxels as they were
        unit = torch.from_numpy((array.astype(np.float32) + 1000) / 2000)[None, None]
        with torch.no_grad():
            expected = bundle.load("autoencoder").encode(unit)  # type: ignore[operator]
        assert torch.allclose(mean.float(), expected[0][0], atol=tolerance, rtol=tolerance)
        assert torch.allclose(deviation.float(), expected[1][0], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("rule", "shape", "spacing"),
    [
        (GridRule(step=8), (16, 16, 16), (3.5, 4.0, 4.25)),
        (GridRule(step=128), (128, 128, 128), (0.4375, 0.5, 0.53125)),
        (GridRule(size=(8, 16, 32)), (8, 16, 32), (7.0, 4.0, 2.125)),
        (GridRule(size=(8, 16, 32), spacing=(5.0, 5.0, 2.0)), (8, 16, 32), (5.0, 5.0, 2.0)),
        (GridRule(spacing=(2.0, 2.0, 8.0), step=8), (32, 32, 16), (2.0, 2.0, 8.0)),
        (GridRule(spacing=(4.0, 4.0, 4.0), step=8), (16, 16, 24), (4.0, 4.0, 4.0)),
        (GridRule(keep=True, step=8), (16, 16, 24), (4.0, 4.0, 4.0)),
        (GridRule(), (14, 16, 17), (4.0, 4.0, 4.0)),
    ],
)
def test_grid_rules(rule: GridRule, shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    image = Grid.axis_aligned((14, 16, 17), (4.0, 4.0, 4.0), (10.0, 20.0, 30.0))
    grid = rule.of(image)
    assert grid.shape == shape
    assert grid.spacing == pytest.approx(spacing)
    within = 2.1 if spacing == image.spacing else 1e-6  # where voxels are kept, an odd one lies on one side
    np.testing.assert_allclose(grid.center, image.center, atol=within)


def test_sizes_that_networks_were_trained_on_decide_the_step(bundle: Bundle) -> None:
    assert grid_step(bundle) == 4
    for name, manifest in downloadable().items():
        if name.startswith("nv-"):
            published = Bundle.__new__(Bundle)
            published.manifest = manifest
            assert grid_step(published) == 128


def test_what_cannot_be_asked_for_is_refused(bundle: Bundle) -> None:
    for fields in ({"keep": True, "size": (8, 8, 8)}, {"size": (0, 8, 8)}, {"size": (9, 8, 8), "step": 4}):
        with pytest.raises(RequestError):
            GridRule(**fields)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"'tiny' needs multiples of 4.*\(12, 8, 8\)"):
        check_request(bundle, GridRule(size=(11, 8, 8)))
    with pytest.raises(RequestError, match=r"'cr'.*'ct'"):
        check_request(bundle, GridRule(), "cr")


def test_masks_lie_on_the_grid_of_the_image_and_the_list_names_both(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    done = encode(bundle, data, tmp_path / "out", grid=GridRule(spacing=(2.0, 2.0, 4.0)))
    mask = read_mask(tmp_path / "out" / "p0_mask.nii.gz", default_table())
    header = read_header(tmp_path / "out" / "p0_emb.safetensors")
    assert mask.grid.same_as(header.image_grid)
    assert mask.labels == [RIGHT_KIDNEY, LEFT_KIDNEY, 200]
    entries = json.loads(done.datalist.read_text())["training"]
    assert entries[0] == {
        "image": "p0_emb.safetensors",
        "label": "p0_mask.nii.gz",
        "modality": "ct",
        "dim": [28, 32, 20],
        "spacing": [2, 2, 4],
        "top_region_index": [0, 0, 1, 0],
        "bottom_region_index": [0, 0, 1, 0],
    }
    assert "label" not in entries[2]
    sample = LatentDataset(read_datalist(tmp_path / "out").training).load(0, random.Random(0))
    assert sample.label is not None
    assert sample.latent.shape == (4, 14, 16, 10)
    assert sample.label.shape == (28, 32, 20)
    assert (sample.modality_code, sample.regions) == (1, (2, 2))


def test_mirrored_patients_are_items_of_their_own(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    items = read_datalist(data).training
    split = Datalist(items[:1], items[1:2])
    done = encode(bundle, split, tmp_path / "out", mirrored=True)
    assert done.encoded == ("p0", "p0-mirrored", "p1")
    lists = json.loads(done.datalist.read_text())
    assert [entry["image"] for entry in lists["validation"]] == ["p1_emb.safetensors"]  # never mirrored
    plain, mirror = (read_mask(tmp_path / "out" / f"p0{m}_mask.nii.gz", default_table()) for m in ("", "-mirrored"))
    np.testing.assert_array_equal(mirror.array, mirrored_labels(plain.array, default_table()))
    right = np.argwhere(mirror.array == RIGHT_KIDNEY)[:, 0].mean()
    assert right < np.argwhere(mirror.array == LEFT_KIDNEY)[:, 0].mean()
    assert (mirror.array == RIGHT_KIDNEY).sum() < (mirror.array == LEFT_KIDNEY).sum()
    one, other = (read_posterior(tmp_path / "out" / f"p0{m}_emb.safetensors")[0] for m in ("", "-mirrored"))
    assert read_header(tmp_path / "out" / "p0-mirrored_emb.safetensors").mirrored
    assert not torch.allclose(one, other, atol=1e-2)
    assert not torch.allclose(one.flip(1), other, atol=1e-2)  # the latent of a mirrored image is no mirrored latent


def test_only_what_is_missing_or_changed_is_encoded(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode(bundle, data, out)
    listed = (out / "latents.json").read_text()
    again = encode(bundle, data, out)
    assert (again.encoded, again.kept) == ((), ("p0", "p1", "p2"))
    assert (out / "latents.json").read_text() == listed
    (out / "p0_emb.safetensors").unlink()
    (out / "p1_mask.nii.gz").unlink()
    (out / "p2_emb.safetensors").write_bytes(b"damaged")
    assert encode(bundle, data, out).encoded == ("p0", "p1", "p2")
    write_patient(data, "p1", seed=7)
    assert encode(bundle, data, out).encoded == ("p1",)
    (data / "p2_seg.nii.gz").write_bytes((data / "p0_seg.nii.gz").read_bytes())
    assert encode(bundle, data, out).encoded == ("p2",)
    assert encode(bundle, data, out, grid=GridRule(size=(16, 16, 20))).encoded == ("p0", "p1", "p2")
    assert encode(bundle, data, out, grid=GridRule(size=(16, 16, 20)), precision="float32").kept == ()
    other = Bundle(make_tiny_bundle(tmp_path / "other", seed=1))
    assert encode(other, data, out, grid=GridRule(size=(16, 16, 20)), precision="float32").kept == ()


def test_an_unbroken_run_and_one_that_was_broken_off_give_the_same(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    encode(bundle, data, tmp_path / "unbroken")
    cancel = CancelToken()

    def stop_at_second(progress: Progress) -> None:
        if progress.done == 1:
            cancel.cancel()

    with pytest.raises(Cancelled):
        encode(bundle, data, tmp_path / "broken", on_progress=stop_at_second, cancel=cancel)
    left = sorted(path.name for path in (tmp_path / "broken").iterdir())
    assert "p0_emb.safetensors" in left
    assert not any(name.startswith((".", "latents", "p2")) for name in left)
    assert "p0" in encode(bundle, data, tmp_path / "broken").kept
    for path in (tmp_path / "unbroken").iterdir():
        assert path.read_bytes() == (tmp_path / "broken" / path.name).read_bytes()


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[Strategy]:
    """The ways that images have gone through the encoder."""
    taken: list[Strategy] = []
    original = Codec.posterior

    def watched(self: Codec, image: Any, intensity: Any, how: Strategy, **options: Any) -> Any:
        taken.append(how)
        return original(self, image, intensity, how, **options)

    monkeypatch.setattr(Codec, "posterior", watched)
    return taken


def test_little_memory_gives_the_same_latents(
    bundle: Bundle, data: Path, tmp_path: Path, ways: list[Strategy], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (48, 48, 48)
    rule, items = GridRule(size=size), Datalist(read_datalist(data).training[:1], ())
    encode(bundle, items, tmp_path / "plenty", grid=rule, precision="float32")
    codec = Codec(bundle.load("autoencoder"), 1.0, IntensityScale())
    whole = codec.way_to_encode(size, 1e12).bytes
    free = lambda device: psutil.Process().memory_info().rss + whole // 2  # noqa: E731
    monkeypatch.setattr("MAISILib.training.encoding_memory.available_bytes", free)
    encode(bundle, items, tmp_path / "little", grid=rule, precision="float32")
    assert [way.name for way in ways] == ["whole", "recompute"]
    plenty, little = (read_posterior(tmp_path / folder / "p0_emb.safetensors") for folder in ("plenty", "little"))
    for one, other in zip(plenty, little, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_an_image_that_no_way_fits_is_refused_with_what_it_needs(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match=r"Encoding 16×16×16 voxels on cpu needs at least .* asked for.*--size"):
        encode(bundle, data, tmp_path / "out", memory=1_000_000)
    assert not (tmp_path / "out" / "latents.json").exists()


def test_a_cancel_stops_within_an_image(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    class LateCancel(CancelToken):
        checks = 0

        def check(self) -> None:
            self.checks += 1
            if self.checks == 5:  # once before the image, then at every tile
                self.cancel()
            super().check()

    with pytest.raises(Cancelled):
        encode(bundle, data, tmp_path / "out", cancel=LateCancel())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["p0_mask.nii.gz"]


def test_unreadable_images_are_named_and_the_others_go_on(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    whole = (data / "p1_ct.nii.gz").read_bytes()
    (data / "p1_ct.nii.gz").write_bytes(whole[: len(whole) // 2])  # its header is still there
    with pytest.raises(FileFormatError, match=r"1 images cannot be encoded; the others are done.*p1: .*p1_ct\.nii\.gz"):
        encode(bundle, data, tmp_path / "out")
    assert (tmp_path / "out" / "p2_emb.safetensors").is_file()
    assert not (tmp_path / "out" / "latents.json").exists()
    told: list[str] = []
    done = encode(bundle, data, tmp_path / "out", skip_bad=True, on_skip=told.append, mirrored=True)
    assert (done.kept, done.encoded) == (("p0", "p2"), ("p0-mirrored", "p2-mirrored"))
    assert len(told) == 1
    assert tuple(told) == done.skipped
    assert len(read_datalist(tmp_path / "out").training) == 4


def test_latents_are_not_encoded_again(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    encode(bundle, data, tmp_path / "out")
    with pytest.raises(FileFormatError, match="is a stored latent already"):
        encode(bundle, tmp_path / "out", tmp_path / "again")


def test_a_codec_without_a_bundle_encodes_images_as_they_are(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    codec = Codec(bundle.load("autoencoder"), 3.0, IntensityScale())
    items = read_datalist(data)
    with pytest.raises(RequestError, match="SHA-256"):
        encode_items(codec, items, tmp_path / "out")
    with pytest.raises(FileFormatError, match=r"\(14, 16, 17\) voxels are no multiple"):
        encode_items(codec, items, tmp_path / "out", autoencoder_sha256="a" * 64)
    encode_items(codec, items, tmp_path / "out", autoencoder_sha256="a" * 64, grid=GridRule(size=(16, 16, 16)))
    encode(bundle, data, tmp_path / "bundle", grid=GridRule(size=(16, 16, 16)))
    one, other = (read_posterior(tmp_path / folder / "p0_emb.safetensors")[0] for folder in ("out", "bundle"))
    assert torch.equal(one, other)
    assert LatentDataset(read_datalist(tmp_path / "out").training).autoencoder_sha256 == "a" * 64


def test_mr_is_mapped_by_its_own_percentiles(bundle: Bundle, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 3000, (16, 16, 16)).astype(np.int16)
    for factor in (1, 3):
        write_volume(Volume((values * factor).astype(np.int16), np.eye(4)), tmp_path / f"mr{factor}.nii.gz")
    items = tuple(DataItem(f"mr{f}", tmp_path / f"mr{f}.nii.gz", modality="mri_t1") for f in (1, 3))
    encode(bundle, Datalist(items, ()), tmp_path / "out")
    one, three = (read_posterior(tmp_path / "out" / f"mr{f}_emb.safetensors")[0].float() for f in (1, 3))
    assert torch.allclose(one, three, atol=2e-3)
    strange = replace(items[0], modality="mri_t9")
    with pytest.raises(FileFormatError, match="mr1: Unknown modality 'mri_t9'"):
        encode(bundle, Datalist((strange,), ()), tmp_path / "out2")


def test_an_image_named_like_another_ones_mirrored_patient_is_refused(
    bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    write_patient(data, "P1-mirrored", seed=7)
    with pytest.raises(RequestError, match=r"P1-mirrored_ct.* would both be named 'p1-mirrored'"):
        encode(bundle, data, tmp_path / "out", mirrored=True)
    assert not (tmp_path / "out").exists()
    assert "P1-mirrored" in encode(bundle, data, tmp_path / "out").encoded  # nothing is mirrored: no harm
