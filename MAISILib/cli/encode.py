"""``maisi encode``: images to latents, once, for the training of diffusion models."""

from __future__ import annotations

import json
import time
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from MAISILib.cli import options

if TYPE_CHECKING:
    from MAISILib.generation.progress import Progress


class Precision(str, Enum):
    """Types in which latents are stored."""

    float16 = "float16"
    float32 = "float32"


def run(
    data: Annotated[Path, typer.Option("--data", help="Datalist (JSON), or folder of images and segmentations.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the latents; what it holds already is kept.")],
    bundle: Annotated[
        str | None, typer.Option("--bundle", "-b", help="Name of a bundle, or its folder; default is head-neck-mini.")
    ] = None,
    autoencoder: Annotated[
        Path | None,
        typer.Option("--autoencoder", help="Run folder of maisi train autoencoder, instead of a bundle."),
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--base", help="Folder that paths in the datalist start from; default is its own.")
    ] = None,
    fold: Annotated[int, typer.Option("--fold", help="Items of this fold are held out; -1 holds out none.")] = 0,
    mirrored: Annotated[bool, typer.Option("--mirrored", help="Also encode every training patient mirrored.")] = False,
    size: Annotated[
        tuple[int, int, int] | None, typer.Option("--size", help="Resample all images to x y z voxels.")
    ] = None,
    spacing: options.Spacing = None,
    keep_voxels: Annotated[
        bool, typer.Option("--keep-voxels", help="Do not resample; only fill up with air to a legal size.")
    ] = False,
    modality: Annotated[
        str | None, typer.Option("--modality", help="Of images whose datalist does not say; default is the bundle's.")
    ] = None,
    precision: Annotated[
        Precision, typer.Option("--precision", help="Type of the stored latents.")
    ] = Precision.float16,
    skip_bad: options.SkipBad = False,
    device: options.Device = "auto",
    memory: options.Memory = None,
    as_json: options.Json = False,
) -> None:
    """Encode images to latents, with their segmentations on the same grid and a datalist that names both.

    Run it again after a break, or with more images: only what is missing or has changed is encoded.
    """
    from MAISILib.bundles.bundle import open_bundle
    from MAISILib.cli.running import cancel_on_interrupt, progress_on_stderr
    from MAISILib.errors import RequestError
    from MAISILib.files.atomic import check_writable
    from MAISILib.training.datalist import read_datalist
    from MAISILib.training.encoding import GridRule, check_request, encode_items

    def on_skip(reason: str) -> None:
        typer.echo(f"left out: {reason}", err=True)

    started = time.perf_counter()
    limit = options.memory_bytes(memory)
    rule = GridRule(keep_voxels, size, spacing)
    if autoencoder is not None:
        from MAISILib.training.run_encoding import check_run, encode_with_run

        if bundle is not None:
            raise RequestError("--autoencoder and --bundle name two autoencoders. Give one.")
        check_run(autoencoder, rule, modality)
        encode = partial(encode_with_run, autoencoder)
    else:
        opened = open_bundle(bundle or "head-neck-mini")
        check_request(opened, rule, modality)
        encode = partial(encode_items, opened)
    check_writable(out)
    items = read_datalist(data, base=base, fold=fold, skip_bad=skip_bad, on_skip=on_skip)
    with cancel_on_interrupt() as cancel, progress_on_stderr(_line, _title) as on_progress:
        from MAISILib.generation.plan import choose_device  # PyTorch: only now that all else is known to be good

        done = encode(
            items,
            out,
            grid=rule,
            modality=modality,
            mirrored=mirrored,
            precision=precision.value,
            device=choose_device(device),
            memory=limit,
            skip_bad=skip_bad,
            on_skip=on_skip,
            on_progress=on_progress,
            cancel=cancel,
        )
    skipped = [*items.skipped, *done.skipped]
    if as_json:
        seconds = round(time.perf_counter() - started, 1)
        told = {"datalist": str(done.datalist), "encoded": done.encoded, "kept": done.kept, "skipped": skipped}
        typer.echo(json.dumps({**told, "seconds": seconds}, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{done.datalist}: {len(done.encoded)} encoded, {len(done.kept)} kept, {len(skipped)} left out")


def _line(progress: Progress) -> str:
    """A line for each image."""
    return f"{progress.stage} {progress.done}/{progress.total} {progress.message}"


def _title(progress: Progress) -> str:
    return progress.message
