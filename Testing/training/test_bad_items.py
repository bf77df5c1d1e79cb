"""``--skip-bad``: every kind of training goes on without the items that it could not use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from MAISILib.errors import FileFormatError
from MAISILib.training.bad_items import ReadItem, image_reader, latent_reader, mask_reader, without_bad
from MAISILib.training.datalist import DataItem, Datalist, read_datalist
from MAISILib.training.latent_files import LatentHeader, latent_grid, read_header, write_latent
from MAISILib.training.mask_recipes import MaskAutoencoderRecipe
from MAISILib.training.recipes import AutoencoderRecipe, DiffusionRecipe
from MAISILib.volumes import Grid

GRID = Grid.axis_aligned((8, 8, 8), (4.0, 4.0, 4.0))


def write(path: Path, value: float, at_corner: float | None = None) -> Path:
    array = np.full(GRID.shape, value, np.float32)
    array[0, 0, 0] = value if at_corner is None else at_corner
    nib.save(nib.Nifti1Image(array, GRID.affine), path)  # type: ignore[attr-defined]
    return path


def write_latents(folder: Path, name: str, *, label_corner: float = 0.0, label: bool = True) -> DataItem:
    path = folder / f"{name}_emb.safetensors"
    header: dict[str, Any] = {
        "affine": latent_grid(GRID, 2).affine.tolist(),
        "image_affine": GRID.affine.tolist(),
        "image_shape": GRID.shape,
        "image_spacing": GRID.spacing,
        "autoencoder_sha256": "a" * 64,
        "source": "a.nii.gz",
        "source_sha256": "0" * 64,
        "modality": "ct",
    }
    write_latent(path, torch.ones(4, 4, 4, 4), torch.ones(4, 4, 4, 4), LatentHeader.model_validate(header))
    return DataItem(name, path, write(folder / f"{name}_mask.nii.gz", 200, label_corner) if label else None)


def kept(data: Datalist, read: ReadItem) -> tuple[list[str], list[str]]:
    """Names of the items that are left, and what was told about the others."""
    told: list[str] = []
    left = without_bad(data, read, told.append)
    assert list(left.skipped) == told
    return [item.name for item in (*left.training, *left.validation)], told


def test_images_with_bad_voxels_are_left_out_of_training_and_validation(tmp_path: Path) -> None:
    for name, corner, label in (("good", 0, 1), ("nan", np.nan, 1), ("above", 0, 300), ("held", 0, 1), ("bad", 0, 0.5)):
        write(tmp_path / f"{name}_ct.nii.gz", 40, corner)
        write(tmp_path / f"{name}_seg.nii.gz", 1, label)
    found = {item.name: item for item in read_datalist(tmp_path).training}
    data = Datalist(tuple(found[n] for n in ("above", "good", "nan")), (found["bad"], found["held"]))
    reader = image_reader(AutoencoderRecipe(steps=1, definition={}))
    names, told = kept(data, reader)
    assert names == ["good", "held"]
    assert [reason.split(":")[0] for reason in told] == ["above", "nan", "bad"]
    assert "300" in told[0]
    with pytest.raises(
        FileFormatError, match=r"No item is left.*: 1 of 2 items.*\s+nan: .*nan_ct\.nii\.gz has no value"
    ):
        without_bad(Datalist((found["nan"],), (found["held"],)), reader, told.append)


def test_latents_with_bad_numbers_or_label_maps_are_left_out(tmp_path: Path) -> None:
    items = [
        write_latents(tmp_path, "good"),
        write_latents(tmp_path, "nan"),
        write_latents(tmp_path, "above", label_corner=300),
        write_latents(tmp_path, "plain", label=False),
    ]
    broken = {"mean": torch.full((4, 4, 4, 4), torch.nan), "deviation": torch.ones(4, 4, 4, 4)}
    header = read_header(items[1].image).model_dump_json()
    save_file(broken, str(items[1].image), {"maisi_latent": header})
    data = Datalist(tuple(items), ())
    names, told = kept(data, latent_reader(DiffusionRecipe(steps=1, definition={})))
    assert names == ["good", "plain"]
    assert ["NaN or infinity" in told[0], "300" in told[1]] == [True, True]
    names, told = kept(data, latent_reader(DiffusionRecipe(steps=1, definition={}, controlnet={})))
    assert names == ["good"]
    assert "plain has no label map" in told[2]


def test_label_maps_that_a_mask_generator_cannot_learn_are_left_out(tmp_path: Path) -> None:
    masks = {"good": 1, "above": 300, "other": 77}
    items = tuple(DataItem(name, write(tmp_path / f"{name}.nii.gz", 0, label)) for name, label in masks.items())
    fields = {"classes": [0, 1], "size": GRID.shape, "spacing": GRID.spacing}
    recipe = MaskAutoencoderRecipe.model_validate(
        {"steps": 1, "definition": {"in_channels": 8, "out_channels": 2}, "data": fields}
    )
    names, told = kept(Datalist(items, ()), mask_reader(recipe))
    assert names == ["good"]
    assert ["300" in told[0], "no classes of this generator: 77" in told[1]] == [True, True]
