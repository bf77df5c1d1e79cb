"""What a fine-tuning is asked to do, where it works, and what keeps it from starting. PyTorch is not loaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MAISILib.bundles.manifest import MANIFEST_NAME, read_manifest
from MAISILib.bundles.weights import sha256_of
from MAISILib.errors import BundleError, OutputError, RequestError, TrainingError
from MAISILib.files.atomic import check_replaceable
from MAISILib.files.checks import check_is_file
from MAISILib.jobs.folder import EVENTS_NAME, LOG_NAME, REQUEST_NAME, runs_elsewhere, work_folder
from MAISILib.training.durations import DURATIONS
from MAISILib.training.encoding import MIRRORED_SUFFIX
from MAISILib.training.label_mapping import Decision

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle
    from MAISILib.training.cases import Case
    from MAISILib.training.finetune_data import Preparation

#: What a fine-tuned bundle says in ``made_by``; only such a bundle is ever replaced by another fine-tuning.
RECIPE = "maisi finetune"
#: Folders of the work folder: training pairs, their latents, the run of the ControlNet.
PAIRS_NAME, LATENTS_NAME, RUN_NAME = "pairs", "latents", "controlnet"
#: The trainer's name for it; its module would load PyTorch.
_CHECKPOINT_NAME = "checkpoint.pt"
_KEY = "finetune"


@dataclass(frozen=True)
class FineTuning:
    """What a fine-tuning is asked to do.

    Args:
        preparation: Bundle, label table, mapping and focus labels, from ``plan_preparation``.
        cases: The user's cases.
        out: Folder of the new bundle. Work is done in ``<out>-training`` beside it, which can be deleted afterwards.
        steps: Training steps.
        recipe: Fields of :class:`~MAISILib.training.recipes.ControlNetRecipe` to change.
    """

    preparation: Preparation
    cases: Sequence[Case]
    out: Path
    steps: int = DURATIONS["normal"]
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        """Where pairs, latents, checkpoint, events and pictures lie."""
        return work_folder(self.out)

    @property
    def run(self) -> Path:
        """The ControlNet's run folder, in :attr:`work`."""
        return self.work / RUN_NAME

    def check(self, *, resume: bool = False) -> None:
        """Finds out what keeps the fine-tuning from starting, before anything is written.

        Args:
            resume: Whether it shall go on with the work in :attr:`work`.

        Raises:
            RequestError: Nothing to learn from or about, or the new bundle would lie in its parent.
            BundleError: The parent has no ControlNet, or weights of it are missing or damaged.
            OutputError: Something else is in the place of the bundle or of its work folder.
            TrainingError: The work folder holds a training, and ``resume`` is off; or one runs there.
        """
        bundle = self.preparation.bundle
        check_place(bundle, self.out, resume=resume)
        if not self.preparation.focus:
            raise RequestError("Nothing to learn: name a new label (--new-label), or a label of the bundle (--focus).")
        if not self.cases:
            raise RequestError("There are no cases to learn from.")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise RequestError(
                "Fine-tuning runs in one process; start it without torchrun. For several: maisi train controlnet."
            )
        names = {case.name.casefold() for case in self.cases}
        for case in self.cases:  # latents of mirrored patients are stored under such names
            if case.name.casefold() + MIRRORED_SUFFIX in names:
                raise RequestError(
                    f"Two cases are named {case.name!r} and '{case.name}{MIRRORED_SUFFIX}', which is what the mirrored "
                    "first one is called. Give one of them another name."
                )
        for network in bundle.manifest.networks:  # all of them are copied in the end
            bundle.check_file(network)

    def identity(self) -> dict[str, Any]:
        """What a resumed fine-tuning must have in common with the broken one: everything that was asked, as JSON.

        Files of the cases go in by their SHA-256, which needs reading them.
        """
        asked, bundle = self.preparation, self.preparation.bundle
        known = set(bundle.labels)
        identity = {
            "parent": [bundle.name, *(f"{name} {sha[:12]}" for name, sha in bundle.weights_sha256().items())],
            "new labels": {label.name: [label.value, label.host] for label in asked.table if label not in known},
            "focus": asked.focus,
            "mapping": _labels_by_segment(asked.mapping.segments),
            "body mapping": _labels_by_segment(asked.mapping.body_segments),
            "spacing": asked.spacing,
            "size": asked.size,
            "steps": self.steps,
            "recipe": self.recipe,
        }
        for case in self.cases:
            files = (case.image, case.segmentation, case.body_segmentation)
            identity[f"case {case.name}"] = [_digest(path) for path in files if path is not None]
        return json.loads(json.dumps(identity))

    def broken_off(self) -> dict[str, Any] | None:
        """The identity of the training that lies in the work folder, begun; else ``None``."""
        if not (self.run / _CHECKPOINT_NAME).is_file():
            return None
        return _read_identity(self.work) or {}

    def start_anew(self) -> None:
        """Removes what an earlier try has left in the work folder; latents stay, they are known by their files."""
        for name in (PAIRS_NAME, RUN_NAME):
            shutil.rmtree(self.work / name, ignore_errors=True)
        for name in (EVENTS_NAME, LOG_NAME):
            (self.work / name).unlink(missing_ok=True)


def check_place(bundle: Bundle, out: Path, *, resume: bool = False) -> None:
    """Finds out before the work that a bundle cannot be fine-tuned into a folder.

    Args:
        bundle: The parent.
        out: Folder of the new bundle.
        resume: Whether to go on with the work beside it.

    Raises:
        BundleError: The parent has no ControlNet.
        RequestError: The new bundle would lie in its parent.
        OutputError: Something else is in the place of the bundle or of its work folder.
        TrainingError: The work folder holds a training, and ``resume`` is off; or one runs there.
    """
    bundle.entry("controlnet")
    check_replaceable(out, MANIFEST_NAME)
    target = out.resolve()
    if target.is_relative_to(bundle.folder) or bundle.folder.is_relative_to(target):
        raise RequestError(f"{out}: the new bundle cannot lie in the one that it is made from. Choose another folder.")
    if (out / MANIFEST_NAME).is_file() and not _is_fine_tuned(out):
        raise OutputError(f"{out} holds a bundle that no fine-tuning has made. Choose another folder.")
    work = work_folder(out)
    check_replaceable(work, REQUEST_NAME)
    if (work / REQUEST_NAME).is_file() and _read_identity(work) is None:
        raise OutputError(f"{work} is needed for the work and holds something else. Choose another name for {out}.")
    if runs_elsewhere(work):
        raise TrainingError(f"A fine-tuning is at work in {work}. Stop that one, or wait for it.")
    if not resume and (work / RUN_NAME / _CHECKPOINT_NAME).is_file():
        raise TrainingError(
            f"{work} holds a training. --resume goes on with it; to start anew, delete that folder or choose another "
            "--out."
        )


def _is_fine_tuned(folder: Path) -> bool:
    try:
        return read_manifest(folder).made_by.get("recipe") == RECIPE
    except BundleError:
        return False


def as_request(identity: dict[str, Any]) -> dict[str, Any]:
    """How an identity stands in the work folder's ``request.json``."""
    return {_KEY: identity}


def _read_identity(work: Path) -> dict[str, Any] | None:
    try:
        identity = json.loads((work / REQUEST_NAME).read_text(encoding="utf-8"))[_KEY]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return identity if isinstance(identity, dict) else None


def _digest(path: Path) -> str:
    check_is_file(path)
    return sha256_of(path)[:12]


def _labels_by_segment(decisions: Sequence[Decision]) -> dict[str, int | None]:
    return {decision.segment: decision.label for decision in decisions}
