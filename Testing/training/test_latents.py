"""Latents for training: drawn from the posterior, scaled, from the right autoencoder."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from MAISILib.errors import FileFormatError, RequestError, TrainingError
from MAISILib.training.datalist import DataItem, read_datalist
from MAISILib.training.latent_files import LatentHeader, latent_grid, write_latent
from MAISILib.training.latents import LatentDataset, latent_scale_factor
from MAISILib.volumes import Grid

OURS, THEIRS = "a" * 64, "b" * 64
SHAPE = (4, 3, 2, 5)


def latent(
    path: Path,
    mean: torch.Tensor | float = 1.0,
    deviation: torch.Tensor | float = 0.5,
    *,
    sha256: str = OURS,
    **header: Any,
) -> DataItem:
    """Writes a latent of an image of 6×4×10 voxels of 2×2×3 mm."""
    grid = Grid.axis_aligned((6, 4, 10), (2.0, 2.0, 3.0))
    fields: dict[str, Any] = {
        "affine": latent_grid(grid, 2).affine.tolist(),
        "image_affine": grid.affine.tolist(),
        "image_shape": grid.shape,
        "image_spacing": grid.spacing,
        "autoencoder_sha256": sha256,
        "source": "a.nii.gz",
        "source_sha256": "0" * 64,
        "modality": "ct",
        "precision": "float32",
    }
    filled = torch.zeros(SHAPE)
    write_latent(path, filled + mean, filled + deviation, LatentHeader.model_validate({**fields, **header}))
    return DataItem(path.name.removesuffix("_emb.safetensors"), path)


def published(path: Path, value: float = 2.0, **sidecar: Any) -> Path:
    array = np.full((3, 2, 5, 4), value, np.float32)
    array[..., 1] = -value
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)  # type: ignore[attr-defined]
    if sidecar:
        path.with_name(path.name + ".json").write_text(json.dumps(sidecar))
    return path


def write_mask(path: Path, shape: tuple[int, ...] = (6, 4, 10), affine: np.ndarray | None = None) -> Path:
    where = Grid.axis_aligned((6, 4, 10), (2.0, 2.0, 3.0)).affine if affine is None else affine
    nib.save(nib.Nifti1Image(np.full(shape, 200, np.uint8), where), path)  # type: ignore[attr-defined]
    return path


def test_a_latent_is_drawn_from_its_posterior_and_scaled(tmp_path: Path) -> None:
    dataset = LatentDataset([latent(tmp_path / "a_emb.safetensors")], scale_factor=2.0)
    drawn = torch.stack([dataset.load(0, random.Random(seed)).latent for seed in range(200)])
    assert drawn.shape == (200, *SHAPE)
    assert drawn.dtype == torch.float32
    assert float(drawn.mean()) == pytest.approx(2.0, abs=0.05)
    assert float(drawn.std()) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drawn[7], dataset.load(0, random.Random(7)).latent)
    mean = LatentDataset([latent(tmp_path / "a_emb.safetensors")], sample=False).load(0, random.Random(7)).latent
    assert torch.equal(mean, torch.ones(SHAPE))


def test_conditions_come_with_the_latent(tmp_path: Path) -> None:
    item = latent(tmp_path / "a_emb.safetensors", modality="mri_t2")
    sample = LatentDataset([item]).load(0, random.Random(0))
    assert (sample.modality_code, sample.label, sample.regions) == (10, None, (None, None))
    assert sample.spacing == pytest.approx((2, 2, 3))
    fields: dict[str, Any] = {"top_region_index": (0, 1, 0, 0), "bottom_region_index": (0, 0, 0, 1), "modality": 3}
    item = DataItem("a", item.image, write_mask(tmp_path / "a_mask.nii.gz"), **fields)
    sample = LatentDataset([item]).load(0, random.Random(0))
    assert (sample.modality_code, sample.regions) == (3, (1, 3))
    assert sample.label is not None
    assert sample.label.dtype == torch.uint8
    assert sample.label.shape == (6, 4, 10)


def test_names_of_a_bundle_come_first(tmp_path: Path) -> None:
    item = latent(tmp_path / "a_emb.safetensors", modality="angio")
    assert LatentDataset([item], modalities={"angio": 70}).load(0, random.Random(0)).modality_code == 70
    with pytest.raises(RequestError, match="a: unknown modality 'angio'"):
        LatentDataset([item])


def test_latents_from_another_autoencoder_are_refused_by_hash(tmp_path: Path) -> None:
    ours = latent(tmp_path / "ours_emb.safetensors")
    theirs = latent(tmp_path / "theirs_emb.safetensors", sha256=THEIRS)
    assert LatentDataset([ours], autoencoder_sha256=OURS).autoencoder_sha256 == OURS
    assert LatentDataset([theirs]).autoencoder_sha256 == THEIRS
    for items, wanted in (([theirs], OURS), ([ours, theirs], None)):
        with pytest.raises(FileFormatError, match=r"theirs_emb.*another autoencoder") as told:
            LatentDataset(items, autoencoder_sha256=wanted)
        assert OURS in str(told.value)
        assert THEIRS in str(told.value)


def test_the_scale_factor_counts_every_latent_and_its_deviation(tmp_path: Path) -> None:
    means = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)) * 3 + 1
    items = [latent(tmp_path / f"{i}_emb.safetensors", mean, 2.0) for i, mean in enumerate(means)]
    of_means = 1 / float(means.std(correction=0))
    assert latent_scale_factor(LatentDataset(items, sample=False)) == pytest.approx(of_means)
    dataset = LatentDataset(items)
    factor = latent_scale_factor(dataset)
    assert factor == pytest.approx((1 / of_means**2 + 4) ** -0.5)
    scaled = dataset.scaled(factor)
    drawn = torch.stack([scaled.load(seed % 2, random.Random(seed)).latent for seed in range(400)])
    assert float(drawn.std()) == pytest.approx(1, abs=0.03)
    assert latent_scale_factor(scaled) == pytest.approx(factor)


def test_there_is_no_scale_factor_without_variance(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="0 latents have no variance"):
        latent_scale_factor(LatentDataset([]))
    item = latent(tmp_path / "a_emb.safetensors", 1.0, 0.0)
    with pytest.raises(FileFormatError, match="1 latents have no variance"):
        latent_scale_factor(LatentDataset([item]))


def test_latents_stay_in_memory(tmp_path: Path) -> None:
    item = latent(tmp_path / "a_emb.safetensors")
    kept, read = LatentDataset([item]), LatentDataset([item], cache=False)
    first = kept.load(0, random.Random(3)).latent
    assert torch.equal(first, read.load(0, random.Random(3)).latent)
    item.image.unlink()
    assert torch.equal(kept.scaled(2.0).load(0, random.Random(3)).latent, first * 2)
    with pytest.raises(FileFormatError, match="does not exist"):
        read.load(0, random.Random(3))


def test_published_latents_are_read(tmp_path: Path) -> None:
    path = published(
        tmp_path / "a_emb.nii.gz",
        spacing=[1.0, 1.5, 2.0],
        modality="mri",
        top_region_index=[1, 0, 0, 0],
        bottom_region_index=[0, 1, 0, 0],
        dim=[12, 8, 20],
    )
    sample = LatentDataset([DataItem("a", path)], scale_factor=3.0, autoencoder_sha256=OURS).load(0, random.Random(0))
    assert sample.latent.shape == SHAPE
    assert [float(sample.latent[c].mean()) for c in range(4)] == [6, -6, 6, 6]
    assert (sample.spacing, sample.modality_code, sample.regions) == ((1, 1.5, 2), 8, (0, 1))


def test_a_published_list_of_images_finds_their_latents(tmp_path: Path) -> None:
    published(tmp_path / "scan_emb.nii.gz")
    source = tmp_path / "list.json"
    source.write_text(json.dumps({"training": [{"image": "scan.nii.gz", "spacing": [1, 1, 1]}]}))
    (item,) = read_datalist(source).training
    assert (item.name, item.image.name) == ("scan", "scan_emb.nii.gz")
    assert LatentDataset([item]).load(0, random.Random(0)).spacing == (1, 1, 1)


def test_what_published_latents_lack_is_asked_for(tmp_path: Path) -> None:
    path = published(tmp_path / "a_emb.nii.gz")
    with pytest.raises(FileFormatError, match=r"a_emb\.nii\.gz: no spacing"):
        LatentDataset([DataItem("a", path)])
    published(tmp_path / "a_emb.nii.gz", spacing=[1, "two", 3])
    with pytest.raises(FileFormatError, match=r"its spacing is .*3 numbers are needed"):
        LatentDataset([DataItem("a", path)])
    path.with_name("a_emb.nii.gz.json").write_text("[")
    with pytest.raises(FileFormatError, match=r"a_emb\.nii\.gz\.json cannot be read"):
        LatentDataset([DataItem("a", path)])


def test_label_maps_that_do_not_fit_their_latent_are_refused(tmp_path: Path) -> None:
    item = latent(tmp_path / "a_emb.safetensors")
    source = tmp_path / "list.json"
    source.write_text(json.dumps({"training": [{"image": item.image.name, "label": "a_mask.nii.gz"}]}))
    write_mask(tmp_path / "a_mask.nii.gz")
    assert len(read_datalist(source).training) == 1
    write_mask(tmp_path / "a_mask.nii.gz", affine=np.eye(4))
    with pytest.raises(FileFormatError, match="does not lie where the encoded image lay"):
        read_datalist(source)
    path = published(tmp_path / "b_emb.nii.gz", spacing=[1, 1, 1])
    for shape, fits in (((12, 8, 20), True), ((12, 8, 10), False), ((7, 5, 11), False)):
        source.write_text(json.dumps({"training": [{"image": path.name, "label": "b.nii.gz"}]}))
        write_mask(tmp_path / "b.nii.gz", shape)
        if fits:
            sample = LatentDataset(read_datalist(source).training).load(0, random.Random(0))
            assert sample.label is not None
            assert tuple(sample.label.shape) == shape
        else:
            with pytest.raises(FileFormatError, match="not the same whole number"):
                read_datalist(source)


def test_files_that_are_no_latents_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a_emb.safetensors"
    for content in (b"", b"junk" * 100):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match="a_emb"):
            LatentDataset([DataItem("a", path)])
    save_file({"mean": torch.zeros(SHAPE)}, path)
    with pytest.raises(FileFormatError, match="does not say how it was made"):
        LatentDataset([DataItem("a", path)])
    image = tmp_path / "a.nii.gz"
    with pytest.raises(FileFormatError, match="is an image, and latents are needed"):
        LatentDataset([DataItem("a", image)])


def test_a_latent_of_a_newer_version_says_so(tmp_path: Path) -> None:
    item = latent(tmp_path / "a_emb.safetensors")
    content = item.image.read_bytes()
    item.image.write_bytes(content.replace(b'\\"version\\":1', b'\\"version\\":9'))
    with pytest.raises(FileFormatError, match=r"field 'version'.*update"):
        LatentDataset([item])


def test_broken_numbers_are_never_stored(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"deviation of a\.nii\.gz is NaN or infinite"):
        latent(tmp_path / "a_emb.safetensors", 1.0, float("nan"))
    assert not (tmp_path / "a_emb.safetensors").exists()
