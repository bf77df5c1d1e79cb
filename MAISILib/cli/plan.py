"""``maisi plan``: what a request would cost, without doing it."""

from __future__ import annotations

import json

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
    windows: options.Windows = False,
    memory: options.Memory = None,
    precision: options.Precision = None,
    accelerate: options.Accelerate = None,
    request: options.RequestFile = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Say how long a request would take and how much memory it needs. Nothing is loaded or written."""
    wanted = options.build_request(
        request_file=request,
        mask=mask,
        no_mask=no_mask,
        vary=vary,
        insert=insert,
        insert_host=insert_host,
        insert_shape=insert_shape,
        generate_mask=generate_mask,
        size_of=size_of,
        windows=windows,
        anatomy=anatomy,
        body_region=body_region,
        mask_ct=mask_ct,
        modality=modality,
        output_size=size,
        spacing=spacing,
        steps=steps,
        solver=solver,
        preset=preset,
        mask_steps=mask_steps,
        mask_solver=mask_solver,
        schedule=schedule,
        guidance_scale=guidance,
        seed=seed,
        count=count,
        memory=memory,
        precision=precision,
        accelerate=accelerate,
    )
    from MAISILib.bundles.bundle import open_bundle
    from MAISILib.generation.conditioning import prepare

    opened = open_bundle(bundle)
    prepared = prepare(opened, wanted)
    from MAISILib.generation.pipeline import plan_request  # PyTorch: only now that the request is known to be good

    planned = plan_request(opened, wanted, device, prepared)
    typer.echo(json.dumps(planned.to_dict(), indent=2) if as_json else str(planned))
