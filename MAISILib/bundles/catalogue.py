"""Which bundles there are: the embedded one, those that can be downloaded, and those installed on this computer.

Bundles that can be downloaded are described by ``Resources/bundles/catalogue/*.json``: ordinary manifests whose
``sources`` say where the weights lie.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from MAISILib.bundles.manifest import MANIFEST_NAME, Licence, Manifest, parse_manifest, read_manifest
from MAISILib.errors import BundleError, did_you_mean
from MAISILib.resources import resources_folder


@dataclass(frozen=True)
class BundleState:
    """One line of the bundle list.

    Attributes:
        name: What ``open_bundle`` takes.
        title: For people.
        licence: Terms of the weights.
        state: ``embedded`` (comes with the program), ``installed``, ``to download``, or ``damaged``.
        bytes: Size of the weights, where known.
        folder: Where it lies, once it is there.
        problem: What is wrong with a damaged one.
        manifest: Its own, or the catalogue's before it is downloaded; ``None`` for a damaged one.
    """

    name: str
    title: str
    licence: Licence
    state: Literal["embedded", "installed", "to download", "damaged"]
    bytes: int | None
    folder: Path | None
    problem: str = ""
    manifest: Manifest | None = None


def data_folder() -> Path:
    """Where downloads go: ``$MAISI_DATA``, else the user's data folder of this operating system. May not exist yet."""
    override = os.environ.get("MAISI_DATA")
    if override:
        return Path(override).expanduser().resolve()
    from platformdirs import user_data_dir

    return Path(user_data_dir("MAISI", appauthor=False))


def installed_folder(name: str) -> Path:
    """Where a downloaded or imported bundle of this name lies, or would lie."""
    return data_folder() / "bundles" / name


def downloadable() -> dict[str, Manifest]:
    """Manifests of the bundles that can be downloaded, by name."""
    manifests = {}
    for path in sorted((resources_folder() / "bundles" / "catalogue").glob("*.json")):
        manifest = parse_manifest(json.loads(path.read_text(encoding="utf-8")), str(path))
        manifests[manifest.name] = manifest
    return manifests


def list_bundles() -> list[BundleState]:
    """All bundles: embedded first, then the catalogue, then what else is installed. A damaged one is listed as such."""
    listed = {folder.name: _state(folder, "embedded") for folder in _bundles_in(resources_folder() / "bundles")}
    installed = {folder.name: folder for folder in _bundles_in(data_folder() / "bundles")}
    for name, manifest in downloadable().items():
        if name in installed:
            listed[name] = _state(installed[name], "installed")
        else:
            listed[name] = BundleState(
                name, manifest.title, manifest.licence, "to download", _size(manifest), None, manifest=manifest
            )
    for name, folder in installed.items():
        listed.setdefault(name, _state(folder, "installed"))
    return list(listed.values())


def find_bundle(name_or_folder: str | Path) -> Path:
    """The folder of a bundle that is on this computer.

    Args:
        name_or_folder: A name in the catalogue or of an installed bundle; or a folder (a ``Path``, or text that names
            one). A name wins over a folder of the same name in the working directory.

    Raises:
        BundleError: Unknown, with the nearest names; or known but not downloaded yet.
    """
    if isinstance(name_or_folder, Path):
        return name_or_folder
    states = {state.name: state for state in list_bundles()}
    state = states.get(name_or_folder)
    if state is not None and state.folder is not None:
        return state.folder
    if Path(name_or_folder).is_dir():
        return Path(name_or_folder)
    if state is not None:
        raise BundleError(
            f"Bundle '{state.name}' is not on this computer yet. Run 'maisi bundles download {state.name}', or "
            "'maisi bundles import FOLDER' without internet."
        )
    raise BundleError(
        f"There is no bundle '{name_or_folder}', and no such folder.{did_you_mean(name_or_folder, states)} "
        f"Bundles: {', '.join(states)}."
    )


def _bundles_in(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in sorted(folder.iterdir()) if (path / MANIFEST_NAME).is_file())


def _state(folder: Path, state: Literal["embedded", "installed"]) -> BundleState:
    try:
        manifest = read_manifest(folder)
    except BundleError as error:
        return BundleState(folder.name, folder.name, Licence(name="unknown"), "damaged", None, folder, str(error))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return BundleState(folder.name, manifest.title, manifest.licence, state, size, folder, manifest=manifest)


def _size(manifest: Manifest) -> int | None:
    sizes = [entry.bytes for entry in manifest.networks.values()]
    return sum(size for size in sizes if size is not None) if None not in sizes else None
