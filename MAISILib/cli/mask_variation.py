"""``maisi mask vary``, ``insert`` and ``clean``: other patients, lesions and tidier masks of a mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from MAISILib.cli import options

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle
    from MAISILib.volumes import LabelMap

File = Annotated[Path, typer.Argument(help="Label map in the bundle's labels: NIfTI, NRRD or .seg.nrrd.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The mask to write (.nii.gz).")]
Picture = Annotated[Path | None, typer.Option("--picture", help="Write a picture of the new mask (PNG).")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same mask.")]


def register(app: typer.Typer) -> None:
    """Adds the three commands to ``maisi mask``."""
    app.command("vary")(vary_command)
    app.command("insert")(insert_command)
    app.command("clean")(clean_command)


def vary_command(
    file: File,
    out: Out,
    bundle: options.BundleOption = "head-neck-mini",
    seed: Seed = 0,
    rotation: Annotated[float, typer.Option("--rotation", help="Turn by up to so many degrees about each axis.")] = 5.0,
    scale: Annotated[float, typer.Option("--scale", help="Make the patient larger or smaller by this part.")] = 0.05,
    bend: Annotated[float, typer.Option("--bend", help="Bend everything by up to so many mm.")] = 5.0,
    organs: Annotated[float, typer.Option("--organs", help="Make each organ larger or smaller by this part.")] = 0.12,
    lesions: Annotated[float, typer.Option("--lesions", help="Change diameters of lesions by this part.")] = 0.25,
    move: Annotated[float, typer.Option("--move", help="Move lesions by up to so many mm in their hosts.")] = 20.0,
    picture: Picture = None,
    as_json: options.Json = False,
) -> None:
    """Make another patient of a mask: turned, bent, with organs of other sizes and lesions at other places.

    0 leaves a change out. No label is added or lost.
    """
    from MAISILib.anatomy.variation import Variation, vary_mask

    variation = Variation(rotation, scale, bend, organs, lesions, move)
    mask, _ = _read(file, bundle)
    _write(vary_mask(mask, seed, variation), out, picture, f"variation {seed} of {file.name}", as_json)


def insert_command(
    file: File,
    out: Out,
    tumour: Annotated[str, typer.Option("--tumour", "--tumor", help="The lesion: a label of the bundle with a host.")],
    diameter: Annotated[str, typer.Option("--diameter", help="Of a sphere of its volume, for example 12mm or 1.2cm.")],
    host: Annotated[str | None, typer.Option("--host", help="What it lies in; default: what may host it.")] = None,
    shape: Annotated[str, typer.Option("--shape", help="round, ellipsoid, lobulated or spiculated.")] = "lobulated",
    at: Annotated[
        tuple[float, float, float] | None, typer.Option("--at", help="Where: R A S in mm. Default is by the seed.")
    ] = None,
    bundle: options.BundleOption = "head-neck-mini",
    seed: Seed = 0,
    picture: Picture = None,
    as_json: options.Json = False,
) -> None:
    """Put a new lesion into a mask. It takes voxels of its host only. For several, use the command again."""
    from dataclasses import asdict

    from MAISILib.anatomy.lesion_insertion import insert_lesion

    mask, _ = _read(file, bundle)
    made = insert_lesion(mask, tumour, options.millimeters(diameter), host=host, shape=shape, center_mm=at, seed=seed)
    described = {"insertion": asdict(made.insertion)}
    _write(made.mask, out, picture, f"{file.name} with a {made.insertion.lesion}", as_json, **described)


def clean_command(
    file: File,
    out: Out,
    bundle: options.BundleOption = "head-neck-mini",
    one_piece: Annotated[
        list[str] | None,
        typer.Option("--one-piece", help="Organ of one piece, to lose its others. Default: those of the bundle."),
    ] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="Label to remove. Repeat for several.")] = None,
    keep_lesions: Annotated[bool, typer.Option("--keep-lesions", help="Keep lesions outside of their hosts.")] = False,
    picture: Picture = None,
    as_json: options.Json = False,
) -> None:
    """Tidy a mask: one patient without holes, organs in one piece, lesions in their hosts. Small lesions stay."""
    from MAISILib.anatomy.mask_cleanup import clean_up

    mask, opened = _read(file, bundle)
    generator = opened.manifest.mask_generator
    pieces = [mask.table.find(name).value for name in one_piece or (generator.one_piece if generator else ())]
    unwanted = [mask.table.find(name).value for name in remove or ()]
    cleaned = clean_up(mask, one_piece=pieces, unwanted=unwanted, lesions_in_hosts=not keep_lesions)
    _write(cleaned, out, picture, f"{file.name}, cleaned up", as_json)


def _read(file: Path, bundle_name: str) -> tuple[LabelMap, Bundle]:
    from MAISILib.anatomy.masks import check_mask
    from MAISILib.bundles.bundle import describe_bundle
    from MAISILib.files.images import read_mask

    bundle = describe_bundle(bundle_name)
    mask = read_mask(file, bundle.labels)
    check_mask(mask, bundle.labels)
    return mask, bundle


def _write(made: LabelMap, out: Path, picture: Path | None, title: str, as_json: bool, **more: object) -> None:
    from MAISILib.files.nifti import write_labels
    from MAISILib.files.preview import write_preview

    write_labels(made, out, title, synthetic=False)
    if picture is not None:
        write_preview(picture, None, made, title=title, notice="")
    notes = list(made.notes)
    if as_json:
        typer.echo(json.dumps({"mask": str(out), "notes": notes, **more}, indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join([*notes, f"{out} holds the mask."]))
