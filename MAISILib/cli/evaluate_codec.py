"""``maisi evaluate codec``: what a bundle's autoencoder loses of real images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from MAISILib.cli import options

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle
    from MAISILib.codec.codec import Codec


def codec_of(bundle: Bundle, device: str) -> Codec:
    """The bundle's autoencoder, loaded."""
    from MAISILib.codec.codec import Codec, IntensityScale
    from MAISILib.generation.plan import choose_device

    device, intensity = choose_device(device), bundle.manifest.intensity
    scale = IntensityScale(intensity.kind, intensity.low, intensity.high)
    return Codec(bundle.load("autoencoder", device), 1.0, scale, device=device)


def run(
    data: Annotated[
        Path, typer.Argument(help="Real CTs, with or without masks: a folder, a list of paths, one image.")
    ],
    bundle: options.BundleOption = "head-neck-mini",
    spacing: options.Spacing = None,
    images: Annotated[int | None, typer.Option("--images", help="At most so many; default all.")] = None,
    lpips_backbone: Annotated[
        Path | None, typer.Option("--lpips-backbone", help="Weights of SqueezeNet 1.1, to measure LPIPS as well.")
    ] = None,
    lpips_weights: Annotated[
        Path | None, typer.Option("--lpips-weights", help="Its layers' weights: squeeze.pth of LPIPS 0.1.")
    ] = None,
    skip_bad: options.SkipBad = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Measure PSNR, SSIM and the error in HU, whole, in the body and per label, of images through the autoencoder."""
    from MAISILib.bundles.bundle import open_bundle
    from MAISILib.cli.running import cancel_on_interrupt, measuring_line, progress_on_stderr
    from MAISILib.errors import RequestError
    from MAISILib.generation.progress import Progress
    from MAISILib.quality.image_sets import find_images

    if (lpips_backbone is None) is not (lpips_weights is None):
        raise RequestError("LPIPS needs both files: --lpips-backbone and --lpips-weights.")
    opened = open_bundle(bundle)
    intensity = opened.manifest.intensity
    if intensity.kind != "ct":
        raise RequestError(f"Bundle {bundle!r} is for MR; errors are measured in HU. Give one for CT.")
    cases = find_images(data, limit=images)
    with cancel_on_interrupt() as cancel, progress_on_stderr(measuring_line, measuring_line) as on_progress:
        from MAISILib.quality.codec_evaluation import evaluate_codec
        from MAISILib.quality.perceptual_distance import PerceptualDistance

        def on_case(done: int, total: int, name: str) -> None:
            cancel.check()
            on_progress(Progress("codec", done, total, name))

        perceptual = None
        if lpips_backbone is not None and lpips_weights is not None:
            perceptual = PerceptualDistance(lpips_backbone, lpips_weights)
        codec = codec_of(opened, device)
        report = evaluate_codec(
            cases,
            lambda image: codec.decode(codec.encode(image)),
            opened.labels,
            compression=opened.compression,
            bounds=(intensity.low, intensity.high),
            spacing=spacing,
            perceptual=perceptual,
            skip_bad=skip_bad,
            on_case=on_case,
        )
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
        return
    typer.echo("\n".join([report.table(), *(f"left out: {reason}" for reason in report.left_out)]))
