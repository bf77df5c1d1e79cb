"""Puts the runs of ``head-neck-mini`` together into bundles: one by rectified flow, one by DDPM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MAISILib.anatomy.labels import LabelTable, default_table
from MAISILib.anatomy.library import build_library
from MAISILib.bundles.manifest import MANIFEST_NAME
from MAISILib.files.atomic import atomic_folder, write_text
from MAISILib.resources import resource
from MAISILib.training.bundle_writer import write_bundle, write_statistics, write_trained
from MAISILib.training.checkpoint import read_checkpoint
from MAISILib.training.datalist import read_datalist
from MAISILib.training.head_neck import FROM_HU, body_mask
from MAISILib.training.head_neck_data import DATALIST_NAME, centred_masks
from MAISILib.training.mask_dataset import MaskDataset
from MAISILib.training.mask_recipes import MaskDiffusionRecipe
from MAISILib.training.recipes import read_json, read_recipe
from MAISILib.training.trained_networks import TrainedNetwork, trained_network
from MAISILib.training.trainer import CHECKPOINT_NAME
from MAISILib.volumes import Grid, LabelMap, Volume

NAME = "head-neck-mini"
#: Masks in the library: the patients who fill most of the grid.
LIBRARY_SIZE = 64
#: Groups of the HU check.
ORGANS = {
    "bone": (138,),
    "mandible": (137,),
    "air cavity": (139,),
    "soft tissue": (200,),
    "target": (140,),
    "spinal cord": (121,),
    "brain stem": (133,),
    "parotid glands": (134, 135),
    "larynx": (136,),
    "esophagus": (11,),
}
#: The trainings of UNet and ControlNet by rectified flow, each going on from the one before it.
FLOW = ("diffusion", "diffusion-refine", "diffusion-finish")
#: Those by DDPM; the first goes on from the last by rectified flow.
DDPM = ("diffusion-ddpm",)
#: The trainings of the mask UNet.
MASKS = ("mask-diffusion", "mask-diffusion-refine", "mask-diffusion-finish", "mask-diffusion-velocity")
_MASK_NETWORKS = {"mask_autoencoder": "mask-autoencoder", "mask_diffusion": MASKS[-1]}

Patients = list[tuple[str, Volume, LabelMap]]


@dataclass(frozen=True)
class HeadNeckRuns:
    """The trainings of one making of the bundle. Each is named like its recipe, for example ``diffusion-ddpm``.

    Args:
        out: Every training has a folder here.
        recipes: Their recipes.
    """

    out: Path
    recipes: Path

    @property
    def pairs(self) -> Path:
        """The data list of the patients."""
        return self.out / "pairs" / DATALIST_NAME

    def recipe_path(self, name: str) -> Path:
        """The recipe of a training."""
        return self.recipes / f"{name}.json"

    def recipe(self, name: str) -> dict[str, Any]:
        """What is in a recipe.

        Raises:
            TrainingError: It cannot be read.
        """
        return read_json(self.recipe_path(name))

    def has_ended(self, name: str) -> bool:
        """Whether a training has reached its end and left its weights."""
        return (self.out / name / "weights").is_dir()

    def steps(self, name: str) -> int:
        """Steps of a training so far.

        Raises:
            TrainingError: It has no checkpoint that can be read.
        """
        return read_checkpoint(self.out / name / CHECKPOINT_NAME).step

    def trained(self, name: str, network: str) -> TrainedNetwork:
        """A network as its training left it.

        Raises:
            TrainingError: The training has not ended.
        """
        return trained_network(self.out / name, network)

    def scale_factor(self, name: str, network: str) -> float:
        """What a diffusion training multiplied latents by.

        Raises:
            TrainingError: It has not ended.
        """
        found = self.trained(name, network).read().scale_factor
        assert found is not None, "start_training writes it"
        return found


def label_table() -> LabelTable:
    """The labels of both bundles."""
    return LabelTable.read(_labels_path(), base=default_table())


def make_bundles(runs: HeadNeckRuns, on_progress: Callable[[str], None] = lambda message: None) -> list[Path]:
    """Writes ``bundle``, and ``bundle-ddpm`` where its training has ended, into the folder of the runs.

    Both have the same autoencoder, labels, masks and statistics. The mask generator goes into ``bundle`` where its
    trainings have ended.

    Raises:
        TrainingError: The training ``autoencoder`` or the last of :data:`FLOW` has not ended.
        OutputError: A folder cannot be written.
    """
    patients = list(centred_masks(runs.pairs, label_table()))
    wanted = {"bundle": FLOW[-1], "bundle-ddpm": DDPM[-1]}
    made = []
    for name, diffusion in wanted.items():
        if name == "bundle" or runs.has_ended(diffusion):
            made.append(_make(runs, runs.out / name, diffusion, patients))
            on_progress(f"{made[-1]} is written")
    return made


def _make(runs: HeadNeckRuns, bundle: Path, diffusion: str, patients: Patients) -> Path:
    trained = {"autoencoder": "autoencoder", "diffusion": diffusion, "controlnet": diffusion}
    with atomic_folder(bundle, MANIFEST_NAME) as folder:
        (folder / "labels.csv").write_bytes(_labels_path().read_bytes())
        largest = sorted(patients, key=lambda patient: -int((patient[2].array > 0).sum()))[:LIBRARY_SIZE]
        largest.sort(key=lambda patient: patient[0])
        build_library(
            ((name.replace("_", "-"), library_mask(ct, mask)) for name, ct, mask in largest),
            folder / "masks",
            label_table(),
        )
        write_statistics(folder / "quality.csv", ((ct.array, mask.array) for _, ct, mask in patients), ORGANS)
        fields = runs.recipe("bundle")
        fields["scale_factor"] = runs.scale_factor(diffusion, "diffusion")
        if diffusion == DDPM[-1]:
            fields |= _ddpm(runs, fields)
        elif all(runs.has_ended(run) for run in _MASK_NETWORKS.values()):
            fields |= _mask_generator(runs, folder)
            trained |= _MASK_NETWORKS
        fields["networks"] = {
            name: write_trained(folder, runs.trained(run, name)).model_dump() for name, run in trained.items()
        }
        fields["made_by"]["metrics"] = {
            f"{name}_steps": sum(runs.steps(part) for part in _parts(run))
            for name, run in trained.items()
            if name != "controlnet"  # trained together with the UNet
        }
        write_bundle(folder, fields)
    return bundle


def _parts(run: str) -> tuple[str, ...]:
    """The trainings whose last is ``run``."""
    return next((chain for chain in (FLOW, DDPM, MASKS) if run == chain[-1]), (run,))


def _ddpm(runs: HeadNeckRuns, fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": f"{fields['name']}-ddpm",
        "title": f"{fields['title']}, DDPM",
        "schedule": runs.recipe(DDPM[-1])["schedule"],
    }


def _mask_generator(runs: HeadNeckRuns, folder: Path) -> dict[str, Any]:
    """Fields of the mask generator; writes the table of organ sizes that it was trained with."""
    recipe = read_recipe(runs.recipe_path(MASKS[-1]), MaskDiffusionRecipe)
    masks = MaskDataset(read_datalist(runs.pairs).training, recipe.data, on_skip=lambda reason: None)
    write_text(folder / "sizes.json", masks.size_table(recipe.controllable).to_json())
    entry = {
        "size": recipe.data.size,
        "spacing": recipe.data.spacing,
        "classes": recipe.data.classes,
        "schedule": recipe.schedule,
        "scale_factor": runs.scale_factor(MASKS[-1], "mask_diffusion"),
        "sizes": "sizes.json",
    }
    return {"controllable": recipe.controllable, "mask_generator": {**entry, **runs.recipe("mask-generator")}}


def _labels_path() -> Path:
    return resource("bundles", NAME, "labels.csv")


def library_mask(ct: Volume, mask: LabelMap) -> LabelMap:
    """A patient's mask as the library holds it, on the same grid of voxels.

    Organs are cut where they reach beyond the patient, as planners' contours do where the CT ends. The centre of the
    mask comes to the origin: where the patient lay in the scanner is nobody's business.
    """
    grid = Grid.axis_aligned(mask.grid.shape, mask.spacing)
    inside = body_mask(ct.array) | np.isin(mask.array, FROM_HU)
    return LabelMap(np.where(inside, mask.array, 0).astype(np.uint8), grid.affine, mask.table, mask.source)
