"""``maisi mask library``: masks to start from, found by what they hold, and libraries of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from MAISILib.cli import options
from MAISILib.errors import BundleError

app = typer.Typer(help="Search a library of masks, or build one.", no_args_is_help=True)


@app.command("search")
def search_command(
    anatomy: options.Anatomy = None,
    body_region: options.Region = None,
    size: options.Size = None,
    spacing: options.Spacing = None,
    bundle: options.BundleOption = "head-neck-mini",
    field_of_view: Annotated[
        tuple[float, float, float] | None,
        typer.Option("--field-of-view", help="Wanted extent in mm, instead of size and spacing.", metavar="X Y Z"),
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0.0, help="Voxel sizes that differ by less (relative) are the same.")
    ] = 0.001,
    library: Annotated[
        Path | None,
        typer.Option(
            "--library", help="Index of another library than the bundle's: masks.json, or the published JSON."
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Show at most so many.")] = 10,
    as_json: options.Json = False,
) -> None:
    """List the masks that hold all of the anatomies, best first: of this size and spacing, then the nearest view."""
    from MAISILib.anatomy.library import MaskLibrary
    from MAISILib.bundles.bundle import describe_bundle

    opened = describe_bundle(bundle)
    entry = opened.manifest.masks
    if library is not None:
        masks = MaskLibrary.open(library, "auto", opened.labels)
    elif entry is not None:
        masks = MaskLibrary.open(opened.path(entry.index), entry.format, opened.labels)
    else:
        raise BundleError(f"Bundle {bundle!r} has no mask library. Give one of your own with --library.")
    labels = [opened.labels.find(name).value for name in anatomy or ()]
    found = masks.search(
        labels,
        size,
        spacing,
        field_of_view=field_of_view,
        tolerance=tolerance,
        body_regions=body_region,
        limit=limit,
    )
    absence = masks.absence(found)
    rows = [
        {
            "file": str(masks.folder / candidate.entry.file),
            "size": candidate.entry.size,
            "spacing": candidate.entry.spacing,
            "regions": candidate.entry.regions,
            "anatomies": [opened.labels[v].name for v in sorted(candidate.entry.labels) if v in opened.labels],
            "exact": candidate.exact,
            "distance_mm": round(candidate.distance_mm, 3),
            "reason": candidate.reason,
        }
        for candidate in found
    ]
    if absence:
        typer.echo(absence, err=True)
    if as_json:
        typer.echo(json.dumps({"masks": rows, "searched": len(masks)}, indent=2, ensure_ascii=False))
        return
    for row in rows:
        typer.echo(f"{row['file']}\n    {row['reason']}; {', '.join(row['anatomies'])}")


@app.command("build")
def build_command(
    folder: Annotated[Path, typer.Argument(help="Folder or zip of masks (.nii.gz, .nii) in the bundle's labels.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the library.")],
    bundle: options.BundleOption = "head-neck-mini",
    as_json: options.Json = False,
) -> None:
    """Build a library of masks, with an index that is searched without opening them."""
    from MAISILib.anatomy.library import MaskLibrary, build_library
    from MAISILib.bundles.bundle import describe_bundle

    labels = describe_bundle(bundle).labels
    index = build_library(folder, out, labels)
    count = len(MaskLibrary.open(index, "maisi", labels))
    if as_json:
        typer.echo(json.dumps({"index": str(index), "masks": count}, indent=2, ensure_ascii=False))
    else:
        typer.echo(f"{index} lists {count} masks.")
