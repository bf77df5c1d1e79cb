"""Leaves out items that a training could not use, before it begins: every item is read once as the training will."""

from __future__ import annotations

import random
from collections.abc import Callable

from MAISILib.anatomy.labels import default_table
from MAISILib.bundles.bundle import open_bundle
from MAISILib.errors import MaisiError
from MAISILib.training.datalist import DataItem, Datalist, OnSkip, report_problems
from MAISILib.training.denoising import labels_of
from MAISILib.training.images import ImageDataset
from MAISILib.training.initial_weights import bundle_of
from MAISILib.training.latents import LatentDataset
from MAISILib.training.mask_dataset import MaskDataset
from MAISILib.training.mask_recipes import MaskAutoencoderRecipe, MaskDiffusionRecipe
from MAISILib.training.recipes import AutoencoderRecipe, ControlNetRecipe, DiffusionRecipe

#: Reads all of an item; raises a :class:`MaisiError` where it cannot be used.
ReadItem = Callable[[DataItem], object]


def without_bad(data: Datalist, read: ReadItem, on_skip: OnSkip) -> Datalist:
    """The items that can be read.

    Args:
        data: All items.
        read: One of this file's readers.
        on_skip: Called with the reason for each item left out.

    Raises:
        FileFormatError: No training item is left.
    """
    problems = []

    def is_good(item: DataItem) -> bool:
        try:
            read(item)
        except MaisiError as error:
            problems.append(f"{item.name}: {error}")
            return False
        return True

    training, validation = (tuple(filter(is_good, items)) for items in (data.training, data.validation))
    total = f"{len(data.training) + len(data.validation)} items"
    report_problems(problems, total, "No item is left to learn from", skip=bool(training), on_skip=on_skip)
    return Datalist(training, validation, (*data.skipped, *problems))


def image_reader(recipe: AutoencoderRecipe) -> ReadItem:
    """Reads images, with their label maps where they have some."""
    table = open_bundle(recipe.labels_of).labels if recipe.labels_of else default_table()
    return lambda item: ImageDataset([item], recipe.data, table, training=True).prepared(0)


def latent_reader(recipe: DiffusionRecipe | ControlNetRecipe) -> ReadItem:
    """Reads latents; with a ControlNet, all of them must have label maps."""
    bundle = bundle_of(recipe.init_from)
    table, modalities = (None, None) if bundle is None else (bundle.labels, bundle.manifest.modality)
    needs_labels = isinstance(recipe, ControlNetRecipe) or recipe.controlnet is not None

    def read(item: DataItem) -> None:
        sample = LatentDataset([item], table=table, modalities=modalities).load(0, random.Random(0))
        if needs_labels:
            labels_of(sample, item.name)

    return read


def mask_reader(recipe: MaskAutoencoderRecipe | MaskDiffusionRecipe) -> ReadItem:
    """Reads label maps; those of another grid are the data set's business."""
    table = MaskDataset([], recipe.data).table

    def read(item: DataItem) -> None:
        masks = MaskDataset([item], recipe.data, table, on_skip=lambda reason: None)
        for index in range(len(masks)):
            masks.load(index)

    return read
