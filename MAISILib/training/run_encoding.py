"""Encodes images with the autoencoder of a training, before there is a bundle that holds it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from MAISILib.anatomy.labels import default_table
from MAISILib.bundles.bundle import open_bundle
from MAISILib.bundles.networks import compression_factor
from MAISILib.codec.codec import Codec, IntensityScale
from MAISILib.errors import RequestError
from MAISILib.training.datalist import Datalist
from MAISILib.training.encoding import Encoded, GridRule, encode_items
from MAISILib.training.modalities import modality_code
from MAISILib.training.recipes import AutoencoderRecipe, parse_recipe
from MAISILib.training.trained_networks import TrainedNetwork, trained_network

NETWORK = "autoencoder"


def check_run(run: Path, grid: GridRule, modality: str | int | None = None) -> None:
    """Finds out what is wrong with a request before images are looked at.

    Raises:
        TrainingError: ``run`` is no ended training of an autoencoder.
        RequestError: A size that the autoencoder cannot take, or an unknown modality.
    """
    _stepped(trained_network(run, NETWORK), grid)
    if modality is not None:
        modality_code(modality)


def encode_with_run(
    run: Path,
    data: Datalist,
    out: Path,
    *,
    grid: GridRule | None = None,
    device: str = "cpu",
    **options: Any,
) -> Encoded:
    """As :func:`encode_items`, with the averaged autoencoder of a run as a bundle will hold it (rounded to fp16).

    Labels mean what the recipe's ``labels_of`` says. CT is what the training saw of it: -1000 to 1000 HU.

    Args:
        run: Run folder of ``maisi train autoencoder``.
        data: Images with their labels.
        out: Folder.
        grid: Which voxels; numbers of voxels are multiples of what one latent voxel stands for and, where the grid
            names no size, of the recipe's ``data.divisor``.
        device: Where the autoencoder runs.
        **options: Others of :func:`encode_items`.

    Raises:
        TrainingError: ``run`` is no ended training of an autoencoder.
        MaisiError: As :func:`encode_items`.
    """
    trained = trained_network(run, NETWORK)
    recipe = parse_recipe(trained.recipe, AutoencoderRecipe, str(run))
    return encode_items(
        Codec(trained.load().to(device), 1.0, IntensityScale(), device=device),
        data,
        out,
        autoencoder_sha256=trained.sha256,
        table=open_bundle(recipe.labels_of).labels if recipe.labels_of else default_table(),
        grid=_stepped(trained, grid or GridRule()),
        **options,
    )


def _stepped(trained: TrainedNetwork, grid: GridRule) -> GridRule:
    """The rule with the step that images must have, where it has none."""
    run, least = trained.weights.parents[1], compression_factor(trained.definition)
    if grid.size is not None and any(n % least for n in grid.size):
        raise RequestError(f"Size {grid.size}: the autoencoder of {run} needs multiples of {least}.")
    recipe = parse_recipe(trained.recipe, AutoencoderRecipe, str(run))
    step = least if grid.size is not None else math.lcm(least, recipe.data.divisor)
    return replace(grid, step=grid.step or step)
