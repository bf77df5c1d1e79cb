"""Makes the embedded bundle ``head-neck-mini`` from the OpenKBP CTs, stage after stage; each resumes where it stopped.

``python -m MAISILib.training.head_neck_mini --data OPENKBP --out RUN`` where OPENKBP holds ``train/`` and
``validation/``. The trainings are those of ``maisi train`` with the recipes in ``Resources/recipes/head-neck-mini``.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from MAISILib.files.atomic import write_text
from MAISILib.jobs.folder import Event
from MAISILib.resources import resource
from MAISILib.training.datalist import LATENTS_NAME, read_datalist
from MAISILib.training.encoding import GridRule
from MAISILib.training.head_neck_bundle import DDPM, FLOW, MASKS, NAME, HeadNeckRuns, label_table, make_bundles
from MAISILib.training.head_neck_data import prepare_patients
from MAISILib.training.run_encoding import encode_with_run
from MAISILib.training.start import start_training

STAGES = ("data", "autoencoder", "latents", "diffusion", "ddpm", "mask-autoencoder", "mask-diffusion", "bundle")


def train(data: Path, out: Path, stages: Sequence[str] = STAGES, recipes: Path | None = None) -> None:
    """Runs the given stages in order.

    Args:
        data: Folder with ``train`` and ``validation``.
        out: Run folder; the bundles are written to ``out/bundle`` and ``out/bundle-ddpm``.
        stages: Which of :data:`STAGES`.
        recipes: Folder with other recipes than those that the embedded bundle is made with.

    Raises:
        MaisiError: Data, recipes or an earlier stage are missing, or a training failed.
    """
    runs = HeadNeckRuns(out, recipes or resource("recipes", NAME))
    latents = out / "latents" / LATENTS_NAME
    prepare(data, runs)
    if "autoencoder" in stages:
        _train("autoencoder", "autoencoder", runs.pairs, runs)
    if "latents" in stages:
        encode_patients(runs)
    if "diffusion" in stages:
        _train("diffusion", FLOW[0], latents, runs)
        _train_on("diffusion", FLOW, latents, runs)
    if "ddpm" in stages:
        _train_on("diffusion", (FLOW[-1], *DDPM), latents, runs)
    if "mask-autoencoder" in stages:
        _train("mask-autoencoder", "mask-autoencoder", runs.pairs, runs)
    if "mask-diffusion" in stages:
        autoencoder = str(out / "mask-autoencoder")
        _train("mask-diffusion", MASKS[0], runs.pairs, runs, autoencoder=autoencoder)
        _train_on("mask-diffusion", MASKS, runs.pairs, runs, autoencoder=autoencoder)
    if "bundle" in stages:
        make_bundles(runs, _say)


def prepare(data: Path, runs: HeadNeckRuns) -> Path:
    """The patients on the model's grids; returns their data list."""
    settings = runs.recipe("patients")
    return prepare_patients(
        data,
        runs.pairs.parent,
        label_table(),
        tuple(settings["shape"]),
        [tuple(spacing) for spacing in settings["spacings"]],
        seed=settings["seed"],
        on_progress=_say,
    )


def _train(kind: str, name: str, data: Path, runs: HeadNeckRuns, **fields: Any) -> None:
    """Trains, or goes on, or does nothing where the run has reached its last step."""
    recipe = runs.recipe_path(name)
    if fields:  # what only this making knows
        recipe = runs.out / f"{name}.json"
        write_text(recipe, json.dumps({**runs.recipe(name), **fields}, indent=1) + "\n")
    outcome = start_training(kind, recipe, data, runs.out / name, resume=True, on_event=_tell)
    _say(f"{name}: {outcome.steps} steps in {outcome.seconds / 60:.0f} min, {outcome.figures}")


def _train_on(kind: str, chain: Sequence[str], data: Path, runs: HeadNeckRuns, **fields: Any) -> None:
    """Trains all but the first, each from the weights of the one before it."""
    for before, name in itertools.pairwise(chain):
        _train(kind, name, data, runs, **fields, init_from=str(runs.out / before))


def encode_patients(runs: HeadNeckRuns) -> None:
    """Posterior of every crop and of its mirror image, by the autoencoder as the bundle stores it (fp16)."""
    encode_with_run(
        runs.out / "autoencoder",
        read_datalist(runs.pairs),
        runs.out / "latents",
        grid=GridRule(keep=True),  # patients are on the model's grids already
        mirrored=True,
        on_progress=lambda p: _say(f"encode {p.done}/{p.total}") if p.done % 100 == 0 else None,
    )


def _tell(event: Event) -> None:
    if event.message or event.done % 50 == 0:
        figures = "  ".join(f"{name} {np.format_float_positional(v, 4)}" for name, v in event.metrics.items())
        _say(f"{event.stage} {event.done}/{event.total} {event.message or figures}")


def _say(message: str) -> None:
    print(message, flush=True)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and validation/ of OpenKBP")
    parser.add_argument("--out", type=Path, required=True, help="run folder; give the same one to resume")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only these stages; default all")
    given = parser.parse_args()
    train(given.data, given.out, given.stage or STAGES)


if __name__ == "__main__":
    main()
