"""Folders of small CTs for tests: columns of textured soft tissue with a spine and an airway, in air."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from MAISILib.anatomy.labels import default_table
from MAISILib.files.nifti import write_labels, write_volume
from MAISILib.quality.slice_features import body_of
from MAISILib.volumes import Grid, LabelMap, Volume

SHAPE = (24, 20, 16)
SPACING = (6.0, 6.0, 4.0)


def patient(seed: int) -> np.ndarray:
    """A column of textured soft tissue with a spine and an airway, in air, and two empty slices at the bottom."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")
    width, depth = rng.uniform(8, 10), rng.uniform(7, 9)
    texture = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.2) * 250
    body = ((x - 11.5) / width) ** 2 + ((y - 9.5) / depth) ** 2 < 1
    image = np.where(body, 40 + rng.normal(0, 5) + texture, -1000)
    image[body & ((x - 11.5) ** 2 + (y - 6) ** 2 < 7)] = 600 + rng.normal(0, 30)
    image[body & ((x - 11.5) ** 2 + (y - 13) ** 2 < 5)] = -900
    return np.where(z < 2, -1000, image).clip(-1000, 1000)


def volume(array: np.ndarray, spacing: tuple[float, float, float] = SPACING) -> Volume:
    """The array along R, A and S."""
    return Volume(array, Grid.axis_aligned(array.shape, spacing).affine)  # type: ignore[arg-type]


def write_ct(path: Path, array: np.ndarray, spacing: tuple[float, float, float] = SPACING) -> Path:
    """Writes an image as int16 HU."""
    write_volume(volume(array.round().astype(np.int16), spacing), path)
    return path


def write_patients(folder: Path, seeds: range, spacing: tuple[float, float, float] = SPACING) -> Path:
    """Writes ``p<seed>_ct.nii.gz`` for each seed."""
    for seed in seeds:
        write_ct(folder / f"p{seed}_ct.nii.gz", patient(seed), spacing)
    return folder


LIVER, BONE, GAS, BODY, TUMOR = 1, 33, 28, 200, 26


def patient_and_mask(seed: int) -> tuple[np.ndarray, LabelMap]:
    """A patient with an organ of 90 HU on one side and a lesion of 160 HU in it, and the mask of all that."""
    image = patient(seed)
    x, y, z = np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij")
    labels = np.where(body_of(image), BODY, 0).astype(np.uint8)
    labels[(labels > 0) & (image < -300)] = GAS
    labels[image > 350] = BONE
    organ = ((x - 6) ** 2 + (y - 9) ** 2 < 9 + seed % 3) & (z > 3) & (z < 13)
    lesion = (x - 6) ** 2 + (y - 9) ** 2 + (z - 8) ** 2 < 5
    image[organ], labels[organ] = image[organ] * 0.1 + 90, LIVER
    image[lesion], labels[lesion] = 160, TUMOR
    return image, LabelMap(labels, Grid.axis_aligned(SHAPE, SPACING).affine, default_table(), "phantom")


def write_case(folder: Path, image: np.ndarray, mask: LabelMap) -> Path:
    """Writes ``image.nii.gz`` and ``mask.nii.gz``, as a generated sample has them."""
    write_ct(folder / "image.nii.gz", image)
    write_labels(mask, folder / "mask.nii.gz")
    return folder
