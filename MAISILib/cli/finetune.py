"""``maisi finetune``: a user's labelled cases become a bundle that knows the labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from MAISILib.cli import options


def run(
    cases: Annotated[
        Path, typer.Option("--cases", help='JSON: [{"image": ..., "segmentation": ..., "body_segmentation": ...}].')
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the new bundle.")],
    bundle: options.BundleOption = "head-neck-mini",
    new_label: Annotated[
        list[str] | None,
        typer.Option("--new-label", help="name=value:host, or name:host for the next free value. Repeatable."),
    ] = None,
    focus: Annotated[
        list[str] | None, typer.Option("--focus", help="Label that it is about; default: the new ones. Repeatable.")
    ] = None,
    edit: Annotated[
        list[str] | None, typer.Option("--map", help="segment=label, or segment=ignore. Repeatable.")
    ] = None,
    duration: Annotated[str, typer.Option("--duration", help="quick, normal or long.")] = "normal",
    steps: Annotated[int | None, typer.Option("--steps", help="Training steps, in place of --duration.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the work in OUT-training.")] = False,
    skip_bad: options.SkipBad = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Fine-tune a bundle's ControlNet on your own labels. The parent bundle stays as it is."""
    from MAISILib.bundles.bundle import open_bundle
    from MAISILib.cli.running import cancel_on_interrupt
    from MAISILib.cli.training_progress import events_on_stderr
    from MAISILib.files.atomic import check_writable
    from MAISILib.training.cases import read_cases
    from MAISILib.training.durations import steps_of
    from MAISILib.training.finetune_data import plan_preparation
    from MAISILib.training.finetune_request import FineTuning, check_place
    from MAISILib.training.label_mapping import parse_edit, propose_mapping
    from MAISILib.training.new_labels import extended_table, parse_new_labels

    def on_skip(reason: str) -> None:
        typer.echo(f"left out: {reason}", err=True)

    wanted_steps = steps_of(duration, steps)
    opened = open_bundle(bundle)
    check_place(opened, out, resume=resume)
    check_writable(out)
    new_labels = parse_new_labels(new_label or [], opened.labels)
    found = read_cases(cases, skip_bad=skip_bad, on_skip=on_skip)
    mapping = propose_mapping(found, opened.labels, new_labels)
    if edit:
        mapping = mapping.edited(dict(map(parse_edit, edit)), extended_table(opened.labels, new_labels))
    wish = FineTuning(plan_preparation(opened, mapping, new_labels, focus=focus or ()), found, out, wanted_steps)
    wish.check(resume=resume)
    for note in mapping.notes():
        typer.echo(note, err=True)
    with cancel_on_interrupt() as cancel, events_on_stderr() as on_event:
        from MAISILib.training.finetune import finetune  # PyTorch: now that the input is known to be good

        tuned = finetune(
            wish,
            resume=resume,
            skip_bad=skip_bad,
            device=device,
            cancel=cancel,
            on_event=on_event,
            on_skip=on_skip,
        )
    if as_json:
        typer.echo(json.dumps(tuned.to_dict(), indent=2, ensure_ascii=False))
        return
    told = "inside the label {before_inside:.0f} before, {after_inside:.0f} after".format(**tuned.metrics)
    if "outside_change" in tuned.metrics:
        told += "; elsewhere in the body changed by {outside_change:.0f} on average".format(**tuned.metrics)
    typer.echo(f"{tuned.bundle}: {told} ({tuned.comparison})")
