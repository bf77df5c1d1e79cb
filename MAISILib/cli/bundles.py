"""``maisi bundles``: what models there are, and getting, making, checking and removing them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from MAISILib.cli import options
from MAISILib.errors import BundleError

if TYPE_CHECKING:
    from MAISILib.bundles.catalogue import BundleState

app = typer.Typer(help="List, verify, download, import, make and remove model bundles.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="Name of a bundle.")]
Accept = Annotated[bool, typer.Option("--accept-licence", help="You have read the licence and accept it.")]


@app.command("list")
def list_command(as_json: options.Json = False) -> None:
    """List the bundles that can be used, and those that can be downloaded."""
    from MAISILib.bundles.catalogue import list_bundles

    states = list_bundles()
    if as_json:
        _print_json([_described(state) for state in states])
        return
    for state in states:
        size = f"{state.bytes / 1e6:6.0f} MB" if state.bytes else "         "
        typer.echo(
            f"{state.name:<18} {state.state:<12} {size}  {state.title}  [{state.licence.name}] {state.problem}".rstrip()
        )


@app.command("verify")
def verify_command(bundle: Name, as_json: options.Json = False) -> None:
    """Check every file of a bundle against its manifest."""
    from MAISILib.bundles.bundle import open_bundle

    problems = open_bundle(bundle).verify()
    if as_json:
        _print_json({"bundle": bundle, "problems": problems})
    elif not problems:
        typer.echo(f"{bundle}: every file is as its manifest says.")
    if problems:
        raise BundleError(f"{bundle}: {'; '.join(problems)}. Download or import it again.")


@app.command("download")
def download_command(bundle: Name, accept_licence: Accept = False, as_json: options.Json = False) -> None:
    """Download a bundle of the catalogue; an interrupted download goes on where it stopped."""
    from MAISILib.bundles.catalogue import downloadable
    from MAISILib.bundles.download import download
    from MAISILib.bundles.licences import is_accepted

    known = downloadable().get(bundle)
    if known and not accept_licence and not is_accepted(known.licence) and sys.stdin.isatty():
        typer.echo(f"The weights of {bundle} come under the {known.licence.name}: {known.licence.url}", err=True)
        accept_licence = typer.confirm("Have you read it, and do you accept it?", err=True)
    folder = download(bundle, accept_licence=accept_licence, on_progress=_report_bytes())
    _tell({"bundle": bundle, "folder": str(folder)}, f"{bundle} is in {folder}.", as_json)


@app.command("import")
def import_command(
    folder: Annotated[
        Path, typer.Argument(help="A bundle folder, or one in the published layout (models/, configs/).")
    ],
    name: Annotated[
        str | None, typer.Option("--name", help="What to call it; which variant, if there are several.")
    ] = None,
    accept_licence: Accept = False,
    keep_format: Annotated[bool, typer.Option("--keep-format", help="Copy checkpoints as they are.")] = False,
    as_json: options.Json = False,
) -> None:
    """Install a bundle from a folder, for machines without internet."""
    from MAISILib.bundles.importing import import_folder, import_notes

    bundle = import_folder(folder, name=name, accept_licence=accept_licence, convert=not keep_format)
    notes = import_notes(bundle)
    text = "\n".join([f"{bundle.name} is in {bundle.folder}.", *(f"  {note}" for note in notes)])
    _tell({"bundle": bundle.name, "folder": str(bundle.folder), "notes": notes}, text, as_json)


@app.command("make")
def make_command(
    manifest: Annotated[
        Path,
        typer.Option("--manifest", help="JSON with the fields of bundle.json but the networks; see docs/training.md."),
    ],
    run: Annotated[
        list[str], typer.Option("--run", help="autoencoder=RUN, diffusion=RUN, controlnet=RUN. Repeat for each.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the bundle.")],
    as_json: options.Json = False,
) -> None:
    """Put trainings together into a bundle."""
    from MAISILib.training.run_bundle import make_bundle

    runs: dict[str, Path] = {}
    for given in run:
        name, equals, folder = given.partition("=")
        if not equals or not folder or name in runs:
            raise BundleError(f"--run {given}: give each network once, as NETWORK=RUN, for example diffusion=runs/d.")
        runs[name] = Path(folder)
    folder = make_bundle(manifest, runs, out)
    _tell({"folder": str(folder), "networks": list(runs)}, f"The bundle is in {folder}.", as_json)


@app.command("remove")
def remove_command(bundle: Name, as_json: options.Json = False) -> None:
    """Delete an installed bundle."""
    from MAISILib.bundles.download import remove

    remove(bundle)
    _tell({"removed": bundle}, f"{bundle} was removed.", as_json)


def _described(state: BundleState) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": state.name,
        "title": state.title,
        "state": state.state,
        "bytes": state.bytes,
        "folder": str(state.folder) if state.folder else None,
        "licence": state.licence.model_dump(),
        "problem": state.problem,
    }
    if (manifest := state.manifest) is not None:
        row |= {"modality": manifest.modality, "recommended": [r.model_dump() for r in manifest.recommended]}
    return row


def _report_bytes() -> Any:
    last = -1

    def report(done: int, total: int) -> None:
        nonlocal last
        percent = 100 * done // max(1, total)
        if percent != last:
            print(f"\r{done / 1e6:.0f} of {total / 1e6:.0f} MB ({percent} %)", end="", file=sys.stderr, flush=True)
            last = percent

    return report


def _tell(data: dict[str, Any], text: str, as_json: bool) -> None:
    _print_json(data) if as_json else typer.echo(text)


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
