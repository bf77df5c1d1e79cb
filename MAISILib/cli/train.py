"""``maisi train``: one network, from a recipe and data into a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from MAISILib.cli import options


def run(
    network: Annotated[
        str,
        typer.Argument(help="autoencoder, diffusion, controlnet, or mask-generator: which part, its recipe says."),
    ],
    recipe: Annotated[Path, typer.Option("--recipe", help="What to train and how, as JSON; see docs/training.md.")],
    data: Annotated[
        Path, typer.Option("--data", help="Data list (JSON) or folder: images and masks; for diffusion their latents.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder: checkpoint, events, weights.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    fold: Annotated[int, typer.Option("--fold", help="Items of this fold of the data list are held out.")] = 0,
    skip_bad: options.SkipBad = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Train a network. Several processes: torchrun --nproc_per_node=2 -m MAISILib train ... with the same options."""
    from MAISILib.cli.running import cancel_on_interrupt
    from MAISILib.cli.training_progress import events_on_stderr
    from MAISILib.files.atomic import check_writable

    check_writable(out)
    with cancel_on_interrupt() as cancel, events_on_stderr() as on_event:
        from MAISILib.training.start import start_training

        outcome = start_training(
            network,
            recipe,
            data,
            out,
            resume=resume,
            device=device,
            fold=fold,
            skip_bad=skip_bad,
            cancel=cancel,
            on_event=on_event,
            on_skip=lambda reason: typer.echo(f"left out: {reason}", err=True),
        )
    if not outcome.weights:  # another process of the run tells
        return
    if as_json:
        typer.echo(json.dumps(outcome.to_dict(), indent=2, ensure_ascii=False))
        return
    figures = "".join(f", {name} {value:.4g}" for name, value in outcome.figures.items())
    typer.echo(f"{outcome.steps} steps in {outcome.seconds / 60:.1f} min{figures}")
    for path in outcome.weights.values():
        typer.echo(str(path))
