"""``maisi generate``: volumes and segmentations into a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from MAISILib.cli import options


def run(
    bundle: options.BundleOption = "head-neck-mini",
    anatomy: options.Anatomy = None,
    body_region: options.Region = None,
    mask: options.MaskFile = None,
    mask_ct: options.MaskCt = None,
    no_mask: options.NoMask = False,
    vary: options.Vary = None,
    insert: options.Insert = None,
    insert_host: options.InsertHost = None,
    insert_shape: options.InsertShape = None,
    generate_mask: options.GenerateMask = False,
    size_of: options.SizeOf = None,
    modality: options.Modality = None,
    size: options.Size = None,
    spacing: options.Spacing = None,
    steps: options.Steps = None,
    solver: options.Solver = None,
    preset: options.Preset = None,
    mask_steps: options.MaskSteps = None,
    mask_solver: options.MaskSolver = None,
    schedule: options.Schedule = None,
    guidance: options.Guidance = None,
    seed: options.Seed = None,
    count: options.Count = None,
    first_index: options.FirstIndex = None,
    windows: options.Windows = False,
    memory: options.Memory = None,
    precision: options.Precision = None,
    accelerate: options.Accelerate = None,
    request: options.RequestFile = None,
    no_quality_check: Annotated[
        bool, typer.Option("--no-quality-check", help="Keep every sample as it comes, unjudged.")
    ] = False,
    replay: Annotated[Path | None, typer.Option("--replay", help="provenance.json of a sample to make again.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("out"),
    scene: Annotated[bool, typer.Option("--scene", help="Also write scene.mrb for 3D Slicer.")] = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Make synthetic volumes with their segmentations.

    Each sample becomes a folder with image.nii.gz, mask.nii.gz, provenance.json and preview.png.
    """
    from MAISILib.cli.running import generate_into

    asked: dict[str, Any] = {
        "request_file": request,
        "mask": mask,
        "no_mask": no_mask,
        "vary": vary,
        "insert": insert,
        "insert_host": insert_host,
        "insert_shape": insert_shape,
        "generate_mask": generate_mask,
        "size_of": size_of,
        "windows": windows,
        "anatomy": anatomy,
        "body_region": body_region,
        "mask_ct": mask_ct,
        "modality": modality,
        "output_size": size,
        "spacing": spacing,
        "steps": steps,
        "solver": solver,
        "preset": preset,
        "mask_steps": mask_steps,
        "mask_solver": mask_solver,
        "schedule": schedule,
        "guidance_scale": guidance,
        "seed": seed,
        "count": count,
        "memory": memory,
        "precision": precision,
        "accelerate": accelerate,
        "first_index": first_index,
        "quality_check": False if no_quality_check else None,
    }
    if replay is not None:
        from MAISILib.generation.provenance import read_replay

        options.refuse_beside_replay(asked)
        bundle, wanted, recorded = read_replay(replay)
    else:
        wanted, recorded = options.build_request(**asked), None
    written = generate_into(out, bundle, wanted, device=device, scene=scene, recorded=recorded)
    if as_json:
        typer.echo(json.dumps(written, indent=2, ensure_ascii=False))
        return
    for sample in written["samples"]:
        typer.echo("\n    ".join([f"{sample['folder']}: {sample['quality']}", *sample["mask"]]))
    if written["scene"]:
        typer.echo(written["scene"])
