"""``maisi mask``: what a mask holds, masks of other programs, the body around a mask, and libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from MAISILib.cli import mask_library, mask_variation, options
from MAISILib.errors import MaskError

app = typer.Typer(help="Check, convert, complete, find and vary masks.", no_args_is_help=True)
app.add_typer(mask_library.app, name="library")
mask_variation.register(app)
File = Annotated[Path, typer.Argument(help="Label map: NIfTI, NRRD or .seg.nrrd.")]


@app.command("check")
def check_command(
    file: File,
    bundle: options.BundleOption = "head-neck-mini",
    ct: Annotated[Path | None, typer.Option("--ct", help="CT of the same patient, shown in the picture.")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Write a picture of the mask (PNG).")] = None,
    as_json: options.Json = False,
) -> None:
    """Say what a mask holds, and what about it will make bad images with a bundle."""
    from MAISILib.bundles.bundle import describe_bundle
    from MAISILib.generation.mask_check import check_mask_file

    mask, report = check_mask_file(file, describe_bundle(bundle))
    if picture is not None:
        from MAISILib.files.images import read_image
        from MAISILib.files.preview import write_preview

        write_preview(picture, read_image(ct, may_lean=True) if ct else None, mask, title=file.name, notice="")
    typer.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if as_json else str(report))
    if not report.is_usable:
        raise MaskError(f"{file} cannot be used with {bundle!r} as it is: see the errors in the report.")


@app.command("convert")
def convert_command(
    file: Annotated[
        Path,
        typer.Argument(help="NIfTI, NRRD, .seg.nrrd, DICOM-SEG, or a folder with a file for each structure."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The mask to write (.nii.gz).")],
    read_as: Annotated[
        str,
        typer.Option(
            "--from",
            help="totalsegmentator, totalsegmentator-mr, totalsegmentator-v1, vista3d, bundle (its own numbers), auto, "
            "or a csv file with number, name and label.",
        ),
    ] = "auto",
    ct: Annotated[
        Path | None,
        typer.Option("--ct", help="The CT it was made from (NIfTI, NRRD or DICOM folder): the mask gets its grid."),
    ] = None,
    bundle: options.BundleOption = "head-neck-mini",
    as_json: options.Json = False,
) -> None:
    """Make a mask in a bundle's labels of a segmentation from another program."""
    from MAISILib.anatomy.mask_conversion import convert
    from MAISILib.bundles.bundle import describe_bundle
    from MAISILib.files.images import read_segments
    from MAISILib.files.nifti import write_labels
    from MAISILib.files.segment_folders import read_segment_folder
    from MAISILib.files.segment_placing import place_on_ct

    labels = describe_bundle(bundle).labels
    segmentation = read_segment_folder(file) if file.is_dir() else read_segments(file, largest=65535)
    if ct is not None:
        segmentation = place_on_ct(segmentation, ct, file.name)
    mask, conversion = convert(segmentation, labels, file.name, read_as)
    write_labels(mask, out, f"converted from {file.name}", synthetic=False)
    if as_json:
        typer.echo(json.dumps({**conversion.to_dict(), "mask": str(out)}, indent=2, ensure_ascii=False))
    else:
        typer.echo(f"{conversion}\n{out} holds the mask. See maisi mask check.")


@app.command("envelope")
def envelope_command(
    file: File,
    out: Annotated[Path, typer.Option("--out", "-o", help="The mask to write (.nii.gz).")],
    ct: Annotated[
        Path | None, typer.Option("--ct", help="CT of the same patient; without one the body is a hull.")
    ] = None,
    margin: Annotated[
        float, typer.Option("--margin", min=0.0, help="Without a CT: mm between the labels and the skin.")
    ] = 10.0,
    bundle: options.BundleOption = "head-neck-mini",
    as_json: options.Json = False,
) -> None:
    """Put a body (label 200) around the organs of a mask. No organ is changed."""
    from MAISILib.anatomy.envelope import add_body
    from MAISILib.bundles.bundle import describe_bundle
    from MAISILib.files.images import read_image, read_mask
    from MAISILib.files.nifti import write_labels

    mask = read_mask(file, describe_bundle(bundle).labels)
    completed = add_body(mask, read_image(ct, may_lean=True) if ct else None, margin_mm=margin)
    write_labels(completed, out, f"{file.name} with a body", synthetic=False)
    notes = completed.notes
    if as_json:
        typer.echo(json.dumps({"mask": str(out), "notes": list(notes)}, indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join([*notes, f"{out} holds the mask."]))
