"""``maisi demo``: one sample of the embedded model, from nothing, in under a minute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from MAISILib.cli import options


def run(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("demo"),
    seed: options.Seed = 7,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Make a head-and-neck CT, its segmentation, a preview and a Slicer scene with the embedded model."""
    from MAISILib.cli.running import generate_into
    from MAISILib.generation.request import GenerateRequest

    written = generate_into(
        out, "head-neck-mini", GenerateRequest(anatomy=["mandible"], seed=seed), device=device, scene=True
    )
    if as_json:
        typer.echo(json.dumps(written, indent=2, ensure_ascii=False))
        return
    folder = Path(written["samples"][0]["folder"])
    typer.echo("A synthetic CT (not a patient), its segmentation, a picture of both, and a scene for 3D Slicer:")
    for name in ("image.nii.gz", "mask.nii.gz", "preview.png", "provenance.json"):
        typer.echo(f"  {folder / name}")
    typer.echo(f"  {written['scene']}")
