"""Fine-tuning: a user's labelled images in, a bundle out that knows what is labelled in them.

Only the ControlNet learns; autoencoder and UNet are the parent's. Its losses are the published ones for lesions: more
weight inside the label, and a contrast with the same mask whose label became its host, which also keeps everything
around as it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from MAISILib.anatomy.labels import LabelTable
from MAISILib.bundles.bundle import Bundle
from MAISILib.errors import RequestError
from MAISILib.files.atomic import write_text
from MAISILib.files.nifti import write_labels, write_volume
from MAISILib.files.preview import write_preview
from MAISILib.generation.progress import CancelToken
from MAISILib.jobs.folder import Event, OnEvent
from MAISILib.training.cases import Case
from MAISILib.training.controlnet_task import ControlNetTask
from MAISILib.training.datalist import DataItem, Datalist, read_datalist, write_datalist
from MAISILib.training.denoising import make_schedule
from MAISILib.training.derived_bundle import write_derived_bundle
from MAISILib.training.durations import DURATIONS
from MAISILib.training.encoding import GridRule, encode_items
from MAISILib.training.finetune_data import Preparation, PreparedCase, prepare_cases
from MAISILib.training.latents import LatentDataset
from MAISILib.training.recipes import ControlNetRecipe
from MAISILib.training.rendering import Renderer, difference_of
from MAISILib.training.start import run_task

#: With so many cases, one in :data:`_HELD_OUT_OF` of them is held out for validation and comparison.
_ENOUGH_CASES, _HELD_OUT_OF = 3, 6
#: Solver steps of the pictures during the training, and of the comparison at its end.
_PICTURE_STEPS, _COMPARISON_STEPS = 8, 20
_SEED = 20260101
_CASES_NAME = "prepared.json"


@dataclass(frozen=True)
class FineTuning:
    """What a fine-tuning is asked to do.

    Args:
        preparation: Bundle, label table, mapping and focus labels, from ``plan_preparation``.
        cases: The user's cases.
        out: Folder of the new bundle. Work is done in ``<out>-training`` beside it, which can be deleted afterwards.
        steps: Training steps.
        recipe: Fields of :class:`ControlNetRecipe` to change.
    """

    preparation: Preparation
    cases: Sequence[Case]
    out: Path
    steps: int = DURATIONS["normal"]
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        """Where pairs, latents, checkpoint, events and pictures lie."""
        return self.out.with_name(f"{self.out.name}-training")


@dataclass(frozen=True)
class FineTuned:
    """What came of it.

    Args:
        bundle: Folder of the new bundle.
        cases: Names of the cases that were learned from.
        held_out: Names of those that were not.
        metrics: Change inside and outside the focus labels against the parent, last validation, steps, seconds.
        comparison: Picture of parent and new model on the same noise.
    """

    bundle: Path
    cases: tuple[str, ...]
    held_out: tuple[str, ...]
    metrics: dict[str, float]
    comparison: Path

    def to_dict(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {
            "bundle": str(self.bundle),
            "cases": list(self.cases),
            "held_out": list(self.held_out),
            "metrics": self.metrics,
            "comparison": str(self.comparison),
        }


def finetune(
    wish: FineTuning,
    *,
    resume: bool = False,
    skip_bad: bool = False,
    device: str = "auto",
    cancel: CancelToken | None = None,
    on_event: OnEvent = lambda event: None,
    on_skip: Callable[[str], None] = lambda reason: None,
) -> FineTuned:
    """Trains and writes the new bundle.

    Args:
        wish: What to do.
        resume: Go on with the work in ``wish.work``.
        skip_bad: Leave out cases that cannot be used.
        device: As for training.
        cancel: Ends the training after its present step, saved.
        on_event: Hears what goes on.
        on_skip: Called with name and reason of each case left out.

    Raises:
        MaisiError: Cases, labels or bundle do not fit, or the training failed. No half bundle is left.
    """
    if not wish.preparation.focus:
        raise RequestError("Nothing to learn: name a new label (--new-label), or a label of the bundle (--focus).")
    cancel = cancel or CancelToken()
    bundle, table = wish.preparation.bundle, wish.preparation.table
    prepared = _prepared(wish, resume, skip_bad, cancel, on_event, on_skip)
    latents = _latents(wish, cancel, on_event)
    # More than one network on the same device: the renderer keeps UNet and autoencoder, the task shares the UNet.
    unet = bundle.load("diffusion")
    task, recipe = _task(wish, unet, latents)
    shown = prepared[-1]  # a held-out one where there are any
    renderer = _LazyRenderer(bundle, unet)

    def on_validation(step: int, networks: dict[str, nn.Module], folder: Path) -> list[Path]:
        image = renderer.get(networks["controlnet"]).image(
            networks["controlnet"], shown.mask, steps=_PICTURE_STEPS, seed=_SEED
        )
        path = folder / "pictures" / f"step-{step:05d}.png"
        write_preview(path, image, shown.mask, f"{shown.name}, step {step}")
        return [path]

    run = wish.work / "controlnet"
    outcome = run_task(
        task, recipe, run, None, resume=resume, device=device, cancel=cancel, on_event=on_event,
        on_validation=on_validation,
    )  # fmt: skip
    tuned = build_and_load(bundle, outcome.weights["controlnet"])
    metrics, comparison = _compare(wish, unet, tuned, shown)
    metrics |= {"steps": outcome.steps, "seconds": round(outcome.seconds, 1)}
    metrics |= {f"validation {name}": value for name, value in outcome.figures.items()}
    held_out = tuple(item.name for item in latents.validation)
    learned = tuple(case.name for case in prepared if case.name not in held_out)
    on_event(Event("bundle", 0, 1, f"writing {wish.out}"))
    folder = write_derived_bundle(
        bundle,
        wish.out,
        table,
        outcome.weights["controlnet"],
        [(case.name, case.mask) for case in prepared],
        {
            "recipe": "maisi finetune",
            "cases": len(learned),
            "held_out_cases": len(held_out),
            "focus": [table[value].name for value in wish.preparation.focus],
            "mapping": wish.preparation.mapping.notes(),
            "metrics": {name: round(value, 4) for name, value in metrics.items()},
            "training": recipe.model_dump(mode="json", exclude={"init_from", "definition"}),
        },
    )
    return FineTuned(folder, learned, held_out, metrics, comparison)


def build_and_load(bundle: Bundle, weights: Path) -> nn.Module:
    """The bundle's ControlNet with other weights, in evaluation mode."""
    from MAISILib.bundles.networks import build_network
    from MAISILib.bundles.weights import check_and_load, read_state_dict

    network = build_network(bundle.entry("controlnet").definition)
    return check_and_load(network, read_state_dict(weights, "safetensors"), str(weights)).float()


class _LazyRenderer:
    """A renderer on the device on which the training runs, made when the first picture is wanted."""

    def __init__(self, bundle: Bundle, unet: nn.Module) -> None:
        self._bundle, self._unet, self._made = bundle, unet, None

    def get(self, network: nn.Module) -> Renderer:
        if self._made is None:
            self._made = Renderer(self._bundle, self._unet, str(next(network.parameters()).device))
        return self._made


def _prepared(
    wish: FineTuning,
    resume: bool,
    skip_bad: bool,
    cancel: CancelToken,
    on_event: OnEvent,
    on_skip: Callable[[str], None],
) -> list[PreparedCase]:
    """All cases as training pairs, also on disk; the held-out ones last."""

    def on_progress(done: int, total: int, name: str) -> None:
        cancel.check()
        on_event(Event("prepare", done, total, name))

    prepared = prepare_cases(wish.preparation, wish.cases, skip_bad=skip_bad, on_skip=on_skip, on_progress=on_progress)
    folder = wish.work / "pairs"
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    count = max(1, len(prepared) // _HELD_OUT_OF) if len(prepared) >= _ENOUGH_CASES else 0
    items = []
    for case in prepared:
        image, label = folder / f"{case.name}_image.nii.gz", folder / f"{case.name}_seg.nii.gz"
        write_volume(case.image, image, case.name, synthetic=False)
        write_labels(case.mask, label, case.name, synthetic=False)
        items.append(DataItem(case.name, image, label, next(iter(wish.preparation.bundle.manifest.modality))))
    split = len(items) - count
    write_datalist(folder / "datalist.json", items[:split], items[split:])
    notes = {case.name: list(case.notes) for case in prepared}
    write_text(wish.work / _CASES_NAME, json.dumps(notes, indent=1, ensure_ascii=False) + "\n")
    return prepared


def _latents(wish: FineTuning, cancel: CancelToken, on_event: OnEvent) -> Datalist:
    encoded = encode_items(
        wish.preparation.bundle,
        read_datalist(wish.work / "pairs" / "datalist.json", fold=None),
        wish.work / "latents",
        table=wish.preparation.table,
        grid=GridRule(keep=True),
        mirrored=True,
        cancel=cancel,
        on_progress=lambda p: on_event(Event("encode", p.done, p.total, p.message)),
    )
    return read_datalist(encoded.datalist, fold=None)


def _task(wish: FineTuning, unet: nn.Module, latents: Datalist) -> tuple[ControlNetTask, ControlNetRecipe]:
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
        "crop": {"size": _box(bundle), "probability": 0.8},
        "label_dropout": 0.05,
        "validate_every": max(25, wish.steps // 6),
    }
    if latents.validation:
        fields |= {"best_metric": "region_loss", "patience": 4}
    recipe = ControlNetRecipe(**{**fields, **wish.recipe})
    sha256 = bundle.weights_sha256()["autoencoder"]

    def dataset(items: Sequence[DataItem], sample: bool) -> LatentDataset:
        return LatentDataset(
            items, autoencoder_sha256=sha256, scale_factor=bundle.scale_factor(), sample=sample,
            table=wish.preparation.table, modalities=bundle.manifest.modality,
        )  # fmt: skip

    task = ControlNetTask(
        recipe,
        unet,
        bundle.entry("controlnet").definition,
        make_schedule(bundle.manifest.schedule.model_dump()),
        dataset(latents.training, True),
        dataset(latents.validation, False),
        wish.preparation.table,
        bundle.load("controlnet").state_dict(),
    )
    return task, recipe


def _box(bundle: Bundle) -> tuple[int, int, int]:
    """Half the recommended latent along each axis, as the UNet divides it: what costs an eighth and shows the organ."""
    step = bundle.size_divisor // bundle.compression
    size = bundle.manifest.recommended[0].size
    x, y, z = (max(step, round(n / bundle.compression / 2 / step) * step) for n in size)
    return x, y, z


def _compare(wish: FineTuning, unet: nn.Module, tuned: nn.Module, shown: PreparedCase) -> tuple[dict[str, float], Path]:
    """Parent and new model on the same patient and noise: figures, and a picture with one above the other.

    The parent, which does not know new labels, sees their hosts.
    """
    bundle = wish.preparation.bundle
    renderer = Renderer(bundle, unet.cpu())
    before = renderer.image(bundle.load("controlnet"), shown.mask_free, steps=_COMPARISON_STEPS, seed=_SEED)
    after = renderer.image(tuned, shown.mask, steps=_COMPARISON_STEPS, seed=_SEED)
    path = wish.work / "comparison.png"
    _write_comparison(path, before, after, shown, wish.preparation.table)
    return difference_of(before, after, shown.mask, wish.preparation.focus), path


def _write_comparison(path: Path, before: Any, after: Any, shown: PreparedCase, table: LabelTable) -> None:
    from PIL import Image

    from MAISILib.files.atomic import atomic_path
    from MAISILib.files.preview import draw_preview

    above = draw_preview(before, shown.mask, f"{shown.name}: before")
    below = draw_preview(after, shown.mask, f"{shown.name}: after")
    picture = Image.new("RGB", (above.width, above.height + below.height))
    picture.paste(above, (0, 0))
    picture.paste(below, (0, above.height))
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
