"""Starts a training from files: recipe, data, run folder. The command line and our own bundles come in here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MAISILib.bundles.weights import save_safetensors
from MAISILib.errors import TrainingError, did_you_mean
from MAISILib.generation.progress import CancelToken
from MAISILib.jobs.folder import OnEvent
from MAISILib.training.autoencoder import autoencoder_task
from MAISILib.training.bad_items import ReadItem, image_reader, latent_reader, mask_reader, without_bad
from MAISILib.training.checkpoint import read_checkpoint
from MAISILib.training.controlnet_task import controlnet_task
from MAISILib.training.datalist import Datalist, OnSkip, read_datalist
from MAISILib.training.diffusion_task import diffusion_task
from MAISILib.training.mask_autoencoder_task import mask_autoencoder_task
from MAISILib.training.mask_diffusion_task import mask_diffusion_task
from MAISILib.training.mask_recipes import MaskAutoencoderRecipe, MaskDiffusionRecipe
from MAISILib.training.recipes import (
    AutoencoderRecipe,
    ControlNetRecipe,
    DiffusionRecipe,
    Recipe,
    read_json,
    read_recipe,
)
from MAISILib.training.task import Task
from MAISILib.training.trainer import BEST_NAME, Trainer


@dataclass(frozen=True)
class Outcome:
    """What a training left behind.

    Args:
        folder: The run.
        steps: Steps taken, all sessions together.
        seconds: Time spent, all sessions together.
        figures: Validation of the weights.
        weights: Averaged weights, safetensors in fp16, by network: the last ones, or where the recipe names a
            ``best_metric`` those that validated best.
        weights_step: The step that they are of.
    """

    folder: Path
    steps: int
    seconds: float
    figures: dict[str, float]
    weights: dict[str, Path]
    weights_step: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {
            "run": str(self.folder),
            "steps": self.steps,
            "seconds": round(self.seconds, 1),
            "figures": self.figures,
            "weights": {name: str(path) for name, path in self.weights.items()},
            "weights_step": self.weights_step,
        }


def start_training(
    kind: str,
    recipe: Path,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    fold: int | None = 0,
    skip_bad: bool = False,
    cancel: CancelToken | None = None,
    on_event: OnEvent = lambda event: None,
    on_skip: OnSkip = print,
) -> Outcome:
    """Trains one kind of network.

    Args:
        kind: One of :data:`KINDS`, or ``mask-generator`` for the kind that the recipe's ``network`` names.
        recipe: JSON file.
        data: Data list, or folder of pairs; images for autoencoders, latents for diffusion.
        out: Run folder.
        resume: Go on with the run in ``out``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        fold: Items of this fold are held out.
        skip_bad: Read all of every item once, and leave out those that cannot be used rather than stop at them.
        cancel: Ends the run after its present step, saved.
        on_event: Hears the events of the job.
        on_skip: Hears which items were left out.

    Raises:
        TrainingError: Recipe or data do not fit, or the training failed.
    """
    recipe_kind, make_task, make_reader = KINDS[_kind(kind, recipe)]
    asked = read_recipe(recipe, recipe_kind)
    items = read_datalist(data, fold=fold, skip_bad=skip_bad, on_skip=on_skip)
    if skip_bad:
        items = without_bad(items, make_reader(asked), on_skip)
    task, scale_factor = make_task(asked, items)
    return run_task(task, asked, out, scale_factor, resume=resume, device=device, cancel=cancel, on_event=on_event)


def run_task(task: Task, recipe: Recipe, out: Path, scale_factor: float | None, **options: Any) -> Outcome:
    """Trains a task and exports its averaged weights into ``out/weights``, the UNet's with its scale factor.

    With a ``best_metric`` in the recipe, and held-out items to measure it on, these are the weights that were best.
    """
    trainer = Trainer(task, recipe, out, **options)
    figures, step = trainer.run(), trainer.step
    weights = {}
    if trainer.is_first:
        averages = {name: average.weights for name, average in trainer.averages.items()}
        if trainer.has_best:
            best = read_checkpoint(out / BEST_NAME)
            averages, figures, step = best.averages, best.figures, best.step
        for name, average in averages.items():
            path = out / "weights" / f"{name}.safetensors"
            weights[name] = save_safetensors(average, path, scale_factor=scale_factor)
    return Outcome(out, trainer.step, trainer.seconds, figures, weights, step)


def _kind(named: str, recipe: Path) -> str:
    """The kind of training; a mask generator is two networks, and the recipe says which."""
    if named == "mask-generator":
        named = str(read_json(recipe).get("network"))
    if named not in KINDS:
        known = [*KINDS, "mask-generator"]
        raise TrainingError(f"Unknown training {named!r}; there are {', '.join(known)}.{did_you_mean(named, known)}")
    return named


#: Kind of training → its recipe; what makes its task (and the latents' scale factor) from a recipe and data; what makes
#: from a recipe a function that reads an item as the training does.
KINDS: dict[
    str,
    tuple[
        type[Recipe],
        Callable[[Any, Datalist], tuple[Task, float | None]],
        Callable[[Any], ReadItem],
    ],
] = {
    "autoencoder": (AutoencoderRecipe, autoencoder_task, image_reader),
    "diffusion": (DiffusionRecipe, diffusion_task, latent_reader),
    "controlnet": (ControlNetRecipe, controlnet_task, latent_reader),
    "mask-autoencoder": (MaskAutoencoderRecipe, mask_autoencoder_task, mask_reader),
    "mask-diffusion": (MaskDiffusionRecipe, mask_diffusion_task, mask_reader),
}
