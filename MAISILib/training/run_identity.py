"""What a resumed run must have in common with the one that broke off: recipe, items, frozen networks, and the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from MAISILib.errors import TrainingError, did_you_mean
from MAISILib.training.checkpoint import check_same_run
from MAISILib.training.recipes import Recipe
from MAISILib.training.task import Task


def run_identity(task: Task, recipe: Recipe) -> dict[str, Any]:
    """Fields of the recipe that may not change, names of all items, and the task's facts."""
    return {
        **recipe.model_dump(mode="json", exclude=set(recipe.may_change)),
        "training items": [task.item_name(i) for i in range(task.item_count())],
        "held-out items": [task.validation_name(i) for i in range(task.validation_count())],
        **task.facts,
    }


def check_resumable(old: dict[str, Any], new: dict[str, Any], recipe: Recipe, folder: Path) -> None:
    """Refuses to go on with a run that was asked something else, or on other data.

    Args:
        old: Identity in the checkpoint.
        new: Identity of the present run.
        recipe: The present recipe.
        folder: The run, for the message.

    Raises:
        TrainingError: Names every field that differs, with both values.
    """
    fields = type(recipe).model_fields
    # A run from before a field of the recipe existed was made with what is its default now; one from before a fact was
    # kept says nothing against it.
    later = {
        name: fields[name].get_default(call_default_factory=True) if name in fields else new[name]
        for name in new.keys() - old.keys()
    }
    kept = {name: value for name, value in old.items() if name not in recipe.may_change}
    check_same_run({**later, **kept}, new, folder)


def check_best_metric(task: Task, recipe: Recipe) -> None:
    """Refuses a ``best_metric`` that the task is not judged by, before hours have gone into the training.

    Raises:
        TrainingError: Names the figures that there are.
    """
    wanted, known = recipe.best_metric, task.judged_by
    if wanted is not None and wanted not in known:
        raise TrainingError(
            f"best_metric {wanted!r} is no figure that the {task.name} is judged by (smaller is better); there are "
            f"{', '.join(known)}.{did_you_mean(wanted, known)}"
        )
