"""``maisi evaluate quality``: does each image show what its mask says?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from MAISILib.cli import options


def run(
    source: Annotated[
        Path, typer.Argument(help="Results or other CTs with masks: a folder, a list of paths, or one image.")
    ],
    bundle: options.BundleOption = "head-neck-mini",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for report.html, quality.csv, quality.json.")] = Path(
        "quality"
    ),
    pictures: Annotated[int, typer.Option("--pictures", min=0, help="Show so many cases, from the worst on.")] = 40,
    as_json: options.Json = False,
) -> None:
    """Check brightness of organs and agreement with the mask; write a report with pictures, the worst cases first."""
    from MAISILib.bundles.bundle import describe_bundle
    from MAISILib.cli.running import cancel_on_interrupt, measuring_line, progress_on_stderr
    from MAISILib.errors import RequestError
    from MAISILib.files.atomic import check_writable
    from MAISILib.generation.progress import Progress
    from MAISILib.quality.hu_check import read_ranges
    from MAISILib.quality.image_sets import find_images
    from MAISILib.quality.quality_evaluation import evaluate_quality, read_or_nothing
    from MAISILib.quality.quality_report import write_report

    opened = describe_bundle(bundle)
    if opened.manifest.intensity.kind != "ct":
        raise RequestError(f"Bundle {bundle!r} is for MR, which has no Hounsfield units to check. Give one for CT.")
    table = opened.quality_path()
    ranges = read_ranges(table) if table else []
    cases = {case.name: case for case in find_images(source)}
    check_writable(out)
    with cancel_on_interrupt() as cancel, progress_on_stderr(measuring_line, measuring_line) as on_progress:

        def on_case(done: int, total: int, name: str) -> None:
            cancel.check()
            on_progress(Progress("quality", done, total, name))

        checked = evaluate_quality(list(cases.values()), opened.labels, ranges, on_case)
        written = checked.write_tables(out)
        title = f"Quality of {source.resolve().name}, by the table of {opened.name}"
        report = write_report(
            checked,
            lambda name: read_or_nothing(cases[name], opened.labels),
            out / "report.html",
            title=title,
            pictures=pictures,
        )
    if as_json:
        files = [str(path) for path in (report, *written)]
        typer.echo(json.dumps({**checked.to_dict(), "files": files}, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{checked}\n{report}")
