"""Fine-tuning: a user's labelled images in, a bundle out that knows what is labelled in them.

Only the ControlNet learns; autoencoder and UNet are the parent's. Its losses are the published ones for lesions: more
weight inside the label, and a contrast with the same mask whose label became its host, which also keeps everything
around as it was.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from MAISILib.anatomy.masks import remove_tumors
from MAISILib.bundles.bundle import Bundle
from MAISILib.diffusion.schedules import schedule_of
from MAISILib.files.atomic import write_text
from MAISILib.files.nifti import read_labels, write_labels, write_volume
from MAISILib.files.preview import write_preview
from MAISILib.generation.plan import choose_device
from MAISILib.generation.progress import CancelToken
from MAISILib.jobs.folder import Event, JobFolder, OnEvent
from MAISILib.training.checkpoint import check_same_run
from MAISILib.training.controlnet_task import ControlNetTask
from MAISILib.training.datalist import DataItem, Datalist, OnSkip, read_datalist, write_datalist
from MAISILib.training.derived_bundle import write_derived_bundle
from MAISILib.training.encoding import GridRule, encode_items
from MAISILib.training.finetune_data import prepared_one_by_one
from MAISILib.training.finetune_request import (
    LATENTS_NAME,
    PAIRS_NAME,
    RECIPE,
    RUN_NAME,
    FineTuning,
    as_request,
)
from MAISILib.training.latents import LatentDataset
from MAISILib.training.recipes import ControlNetRecipe, parse_recipe
from MAISILib.training.rendering import Renderer, difference_of, write_comparison
from MAISILib.training.start import Outcome, run_task
from MAISILib.volumes import LabelMap, Volume

__all__ = ["FineTuned", "FineTuning", "build_and_load", "finetune"]

#: With so many cases, one in :data:`_HELD_OUT_OF` of them is held out for validation and comparison.
_ENOUGH_CASES, _HELD_OUT_OF = 3, 6
#: Solver steps of the pictures during the training, and of the comparison at its end.
_PICTURE_STEPS, _COMPARISON_STEPS = 8, 20
_SEED = 20260101


@dataclass(frozen=True)
class FineTuned:
    """What came of it.

    Args:
        bundle: Folder of the new bundle.
        cases: Names of the cases that were learned from.
        held_out: Names of those that were not.
        metrics: Of the comparison, see :func:`~MAISILib.training.rendering.difference_of`; validation of the weights;
            ``steps``, ``weights_step`` (the step that the weights are of) and ``seconds`` of the training.
        comparison: Picture of parent and new model on the same noise.
        notes: What to expect of so few cases.
    """

    bundle: Path
    cases: tuple[str, ...]
    held_out: tuple[str, ...]
    metrics: dict[str, float]
    comparison: Path
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {
            "bundle": str(self.bundle),
            "cases": list(self.cases),
            "held_out": list(self.held_out),
            "metrics": self.metrics,
            "comparison": str(self.comparison),
            "notes": list(self.notes),
        }


def finetune(
    wish: FineTuning,
    *,
    resume: bool = False,
    skip_bad: bool = False,
    device: str = "auto",
    cancel: CancelToken | None = None,
    on_event: OnEvent = lambda event: None,
    on_skip: OnSkip = lambda reason: None,
) -> FineTuned:
    """Trains and writes the new bundle.

    The work folder is a job folder: its ``events.jsonl`` tells all stages, also those of the training.

    Args:
        wish: What to do.
        resume: Go on with the training in ``wish.work``, if one was begun there.
        skip_bad: Leave out cases that cannot be used.
        device: As for training.
        cancel: Ends the training after its present step, saved.
        on_event: Hears what goes on; files are relative to the work folder.
        on_skip: Called with name and reason of each case left out.

    Raises:
        MaisiError: Cases, labels, bundle or folders do not fit, the work folder holds a training that was asked
            something else, or the training failed. No half bundle is left.
    """
    wish.check(resume=resume)
    device = choose_device(device)
    _recipe(wish, validated=False)  # a wish that does not fit is refused now
    identity, broken_off = wish.identity(), wish.broken_off()
    if broken_off is None:
        wish.start_anew()
    else:
        check_same_run(broken_off, identity, wish.work)
    job = JobFolder(wish.work)
    job.write_request(as_request(identity))

    def tell(event: Event) -> None:
        job.event(event)
        on_event(event)

    with job.running():
        return _Work(wish, device, cancel or CancelToken(), tell).go(skip_bad, on_skip)


def build_and_load(bundle: Bundle, weights: Path) -> nn.Module:
    """The bundle's ControlNet with other weights (safetensors), frozen and in evaluation mode."""
    from MAISILib.bundles.networks import build_network
    from MAISILib.bundles.weights import check_and_load, read_state_dict

    network = build_network(bundle.entry("controlnet").definition)
    return check_and_load(network, read_state_dict(weights, "safetensors"), str(weights))


class _Work:
    """The walk from cases to bundle."""

    def __init__(self, wish: FineTuning, device: str, cancel: CancelToken, tell: OnEvent) -> None:
        self._wish, self._device, self._cancel, self._tell = wish, device, cancel, tell
        self._bundle, self._focus = wish.preparation.bundle, wish.preparation.focus

    def go(self, skip_bad: bool, on_skip: OnSkip) -> FineTuned:
        prepared = self._prepare(skip_bad, on_skip)
        count = max(1, len(prepared) // _HELD_OUT_OF) if len(prepared) >= _ENOUGH_CASES else 0
        learned, held_out = prepared[: len(prepared) - count], prepared[len(prepared) - count :]
        notes = _expectation(len(learned), count)
        if notes:
            self._tell(Event("prepare", len(prepared), len(prepared), notes))
        latents = self._encode(learned, held_out)
        unet = self._bundle.load("diffusion")
        renderer = Renderer(self._bundle, unet, self._device)  # training and pictures share the UNet
        name, mask = prepared[-1].name, self._mask(prepared[-1])  # a held-out one where there are any
        outcome, recipe = self._train(unet, latents, renderer, name, mask)
        metrics, comparison = self._compare(renderer, outcome, name, mask)
        metrics |= {"steps": outcome.steps, "weights_step": outcome.weights_step, "seconds": round(outcome.seconds, 1)}
        metrics |= {f"validation {name}": value for name, value in outcome.figures.items()}
        made_by = {
            "recipe": RECIPE,
            "cases": len(learned),
            "held_out_cases": count,
            "focus": [self._wish.preparation.table[value].name for value in self._focus],
            "mapping": self._wish.preparation.mapping.notes(),
            "metrics": {name: round(value, 4) for name, value in metrics.items()},
            "training": recipe.model_dump(mode="json", exclude={"init_from", "definition"}),
        }
        self._cancel.check()
        self._tell(Event("bundle", 0, 1, f"writing {self._wish.out}"))
        folder = write_derived_bundle(
            self._bundle,
            self._wish.out,
            self._wish.preparation.table,
            outcome.weights["controlnet"],
            map(self._mask, prepared),
            self._focus,
            made_by,
        )
        self._tell(Event("bundle", 1, 1, f"{folder} is ready"))
        return FineTuned(
            folder,
            tuple(case.name for case in learned),
            tuple(case.name for case in held_out),
            metrics,
            comparison,
            (notes,) if notes else (),
        )

    def _prepare(self, skip_bad: bool, on_skip: OnSkip) -> list[DataItem]:
        """Training pairs on disk; images of many patients do not fit into the memory."""
        folder, modality = self._wish.work / PAIRS_NAME, next(iter(self._bundle.manifest.modality))

        def on_progress(done: int, total: int, name: str) -> None:
            self._cancel.check()
            self._tell(Event("prepare", done, total, name))

        cases, items = self._wish.cases, []
        notes: dict[str, tuple[str, ...]] = {}
        for case in prepared_one_by_one(
            self._wish.preparation, cases, skip_bad=skip_bad, on_skip=on_skip, on_progress=on_progress
        ):
            image, label = folder / f"{case.name}_image.nii.gz", folder / f"{case.name}_seg.nii.gz"
            write_volume(case.image, image, case.name, synthetic=False)
            write_labels(case.mask, label, case.name, synthetic=False)
            items.append(DataItem(case.name, image, label, modality))
            notes[case.name] = case.notes
            self._tell(Event("prepare", len(items), len(cases), f"{case.name}: {' '.join(case.notes)}"))
        write_text(folder / "notes.json", json.dumps(notes, indent=1, ensure_ascii=False) + "\n")
        return items

    def _mask(self, item: DataItem) -> LabelMap:
        assert item.label is not None, "pairs have one"
        return read_labels(item.label, self._wish.preparation.table)

    def _encode(self, learned: list[DataItem], held_out: list[DataItem]) -> Datalist:
        """The pairs' latents; those that are there already stay."""
        folder = self._wish.work / PAIRS_NAME
        write_datalist(folder / "datalist.json", learned, held_out)
        encoded = encode_items(
            self._bundle,
            read_datalist(folder / "datalist.json", fold=None),
            self._wish.work / LATENTS_NAME,
            table=self._wish.preparation.table,
            grid=GridRule(keep=True),
            mirrored=True,
            device=self._device,
            cancel=self._cancel,
            on_progress=lambda p: self._tell(Event("encode", p.done, p.total, p.message)),
        )
        return read_datalist(encoded.datalist, fold=None)

    def _train(
        self, unet: nn.Module, latents: Datalist, renderer: Renderer, name: str, mask: LabelMap
    ) -> tuple[Outcome, ControlNetRecipe]:
        recipe = _recipe(self._wish, bool(latents.validation))
        table = self._wish.preparation.table
        task = ControlNetTask(
            recipe,
            unet,
            self._bundle.entry("controlnet").definition,
            schedule_of(self._bundle.manifest.schedule),
            LatentDataset.of_bundle(self._bundle, latents.training, sample=recipe.sample_posterior, table=table),
            LatentDataset.of_bundle(self._bundle, latents.validation, sample=False, table=table),
            table,
            self._bundle.load("controlnet").state_dict(),
        )

        def on_validation(step: int, networks: dict[str, nn.Module], folder: Path) -> list[Path]:
            image = renderer.image(networks["controlnet"], mask, steps=_PICTURE_STEPS, seed=_SEED)
            path = folder / "pictures" / f"step-{step:05d}.png"
            write_preview(path, image, mask, f"{name}, step {step}", focus=self._focus)
            return [path]

        outcome = run_task(
            task,
            recipe,
            self._wish.run,
            None,
            resume=True,  # that it may go on was checked
            device=self._device,
            cancel=self._cancel,
            on_event=lambda e: self._tell(replace(e, file=f"{RUN_NAME}/{e.file}") if e.file else e),
            on_validation=on_validation,
        )
        return outcome, recipe

    def _compare(
        self, renderer: Renderer, outcome: Outcome, name: str, mask: LabelMap
    ) -> tuple[dict[str, float], Path]:
        """Parent and new model on the same patient and noise: figures, and a picture with one above the other.

        The parent sees the hosts of labels that it does not know.
        """
        self._tell(Event("compare", 0, 1, "parent and new model on the same noise"))
        known = set(self._bundle.labels)
        parents_mask = remove_tumors(mask, [label.value for label in mask.table if label not in known])
        parent = self._bundle.load("controlnet", self._device)
        tuned = build_and_load(self._bundle, outcome.weights["controlnet"]).to(self._device)

        def image(controlnet: nn.Module, mask: LabelMap) -> Volume:
            return renderer.image(controlnet, mask, steps=_COMPARISON_STEPS, seed=_SEED, check=self._cancel.check)

        before, after = image(parent, parents_mask), image(tuned, mask)
        path = self._wish.work / "comparison.png"
        rows = {f"{name}: before": before, f"{name}: after": after}
        write_comparison(path, rows, mask, self._focus)
        self._tell(Event("picture", 1, 1, file=path.name))
        return difference_of(before, after, mask, self._focus), path


def _expectation(learned: int, held_out: int) -> str:
    """What to expect of so few cases; empty where one is held out to tell."""
    if held_out:
        return ""
    what = "One case: the model learns the look of this one example and may repeat it wherever it is asked for."
    if learned > 1:
        what = f"{learned} cases: the model learns the look of these few."
    return f"{what} None is held out: nothing tells how it does on other patients. Three or more cases allow that."


def _recipe(wish: FineTuning, validated: bool) -> ControlNetRecipe:
    """How the ControlNet is trained: all defaults of fine-tuning, and what the wish changes in them."""
    bundle, focus = wish.preparation.bundle, list(wish.preparation.focus)
    hosted = [value for value in focus if value in wish.preparation.table.hosts()]
    fields: dict[str, Any] = {
        "init_from": bundle.name,
        "steps": wish.steps,
        "seed": _SEED,
        "batch": 1,
        "accumulate": 2,
        "rate": 2e-4,
        "rate_schedule": "cosine",
        "warmup": min(30, wish.steps // 4),
        "clip": 1.0,
        "average_decay": 0.99,
        "weighted_labels": focus,
        "weighted_loss": 20.0,
        "contrastive_weight": 0.1 if hosted else 0.0,
        "contrastive_labels": hosted,
        "contrastive_margin": 0.5,  # the published 2 makes a lesion of +300 HU one of +480
        "preserve": True,
        "crop": {"size": _box(bundle), "probability": 0.8},
        "label_dropout": 0.05,
        "validate_every": max(25, wish.steps // 6),
    }
    if validated or "patience" in wish.recipe:  # which waits for a figure; where none is held out, for nothing
        fields |= {"best_metric": "region_loss", "patience": 4}
    return parse_recipe({**fields, **wish.recipe}, ControlNetRecipe, "recipe of the fine-tuning")


def _box(bundle: Bundle) -> tuple[int, int, int]:
    """Half the recommended latent along each axis, as the UNet divides it: what costs an eighth and shows the organ."""
    step = bundle.size_divisor // bundle.compression
    size = bundle.manifest.recommended[0].size
    x, y, z = (max(step, round(n / bundle.compression / 2 / step) * step) for n in size)
    return x, y, z
