"""``maisi evaluate novelty``: are the generated patients new, and unlike one another?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from MAISILib.cli import options


def run(
    generated: Annotated[Path, typer.Argument(help="Generated CTs: a folder, or a text file that lists them.")],
    training: Annotated[Path, typer.Argument(help="CTs that the model was trained on, likewise.")],
    bundle: options.BundleOption = "head-neck-mini",
    neighbours: Annotated[int, typer.Option("--neighbours", min=1, help="Tell so many of the nearest (JSON).")] = 3,
    pairs: Annotated[int, typer.Option("--pairs", min=0, help="Pairs to measure diversity on; 0 does not.")] = 100,
    size: options.Size = None,
    spacing: options.Spacing = None,
    skip_bad: options.SkipBad = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Find the nearest training volumes of each generated one, and say whether it is a copy; measure diversity."""
    from MAISILib.bundles.bundle import open_bundle
    from MAISILib.cli.running import cancel_on_interrupt, measuring_line, progress_on_stderr
    from MAISILib.errors import FileFormatError, RequestError
    from MAISILib.generation.progress import Progress
    from MAISILib.quality.counting import counted
    from MAISILib.quality.diversity import WINDOW, pairwise_similarity
    from MAISILib.quality.image_sets import find_images, named
    from MAISILib.quality.novelty import check_enough, find_copies
    from MAISILib.quality.signatures import read_signatures
    from MAISILib.volumes import Grid

    opened = open_bundle(bundle)
    best = opened.manifest.recommended[0]
    if opened.manifest.intensity.kind != "ct":
        raise RequestError(f"Bundle {bundle!r} is for MR; volumes are compared in HU. Give one for CT.")
    grid = Grid.axis_aligned(size or best.size, spacing or best.spacing)
    if any(n % opened.compression for n in grid.shape):
        raise RequestError(f"--size {grid.shape} must be divisible by the autoencoder's {opened.compression}.")
    if pairs and min(grid.shape) < 2 * WINDOW:
        raise RequestError(
            f"--size {grid.shape} is too small to measure diversity, which needs {2 * WINDOW} voxels along each axis. "
            "Give a larger size, or --pairs 0."
        )
    sets = [find_images(generated), find_images(training)]
    check_enough(len(sets[1]))
    with cancel_on_interrupt() as cancel, progress_on_stderr(measuring_line, measuring_line) as on_progress:
        from MAISILib.cli.evaluate_codec import codec_of

        def on_done(what: str, done: int, total: int, name: str = "") -> None:
            cancel.check()
            on_progress(Progress(what, done, total, name))

        codec = codec_of(opened, device)
        (made, unusable), (known, others) = (
            read_signatures(images, grid, lambda image: codec.encode(image)[0].numpy(), what, on_done)
            for images, what in zip(sets, ("generated", "training"), strict=True)
        )
        unusable += others
        if unusable and not (skip_bad and made):
            raise FileFormatError(named(unusable, sum(map(len, sets))))
        report = find_copies(made, known, neighbours=neighbours, left_out=unusable, on_done=on_done)
        alike: dict[str, Any] = {}
        for what, signatures in (("generated", made), ("training", known)) if pairs else ():
            if len(signatures) > 1:
                coarse = [signature.coarse for signature in signatures.values()]
                title = f"pairs, {what}"
                alike[what] = pairwise_similarity(
                    coarse, pairs=pairs, on_done=lambda done, total, title=title: on_done(title, done, total)
                )
    if as_json:
        told = {**report.to_dict(), "diversity": {what: asdict(found) for what, found in alike.items()}}
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    typer.echo(str(report))
    for what, found in alike.items():
        compared, scales = counted(found.pairs, f"{what} pair"), counted(found.scales, "scale")
        typer.echo(f"MS-SSIM of {compared}: {found.mean:.3f} ± {found.deviation:.3f} ({scales})")
