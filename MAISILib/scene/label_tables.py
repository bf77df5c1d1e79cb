"""The label table of a bundle or of a result, read without what only the engine's own Python has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from MAISILib.anatomy.labels import Code, Label, LabelTable, default_table
from MAISILib.errors import BundleError, FileFormatError
from MAISILib.resources import resources_folder

_MANIFEST = "bundle.json"
#: A saved result carries its table, so that it can be read where its bundle is not.
TABLE_NAME = "labels.csv"


def table_of_bundle(folder: Path) -> LabelTable:
    """The labels that a bundle knows.

    Args:
        folder: The bundle's folder.

    Raises:
        BundleError: The folder holds no bundle.
        FileFormatError: Its table cannot be read.
    """
    name = read_manifest(folder).get("labels")
    return default_table() if name is None else LabelTable.read(folder / str(name), base=default_table())


def read_manifest(folder: Path) -> dict[str, Any]:
    """A bundle's manifest as it stands in the file, unchecked.

    Raises:
        BundleError: The folder holds no bundle.
    """
    try:
        return dict(json.loads((folder / _MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, TypeError) as error:
        raise BundleError(f"{folder} is no model bundle: {_MANIFEST} is missing or damaged. Import it anew.") from error


def table_of_result(folder: Path | None, provenance: Mapping[str, Any]) -> LabelTable:
    """The labels of a result: its own table, else its bundle's, else the one of an embedded bundle of that name.

    Args:
        folder: Where the result lies, if it does.
        provenance: How it was made; may be empty.

    Returns:
        The table; that of the public models where none of these is there.
    """
    if folder is not None and (folder / TABLE_NAME).is_file():
        return LabelTable.read(folder / TABLE_NAME, base=default_table())
    for place in bundle_folders(provenance):
        with suppress(BundleError, FileFormatError):
            return table_of_bundle(place)
    return default_table()


def bundle_folders(provenance: Mapping[str, Any]) -> list[Path]:
    """Where the bundle that made a result may be, the likeliest place first; nothing need be there."""
    bundle = provenance.get("bundle")
    bundle = bundle if isinstance(bundle, Mapping) else {}
    places = [Path(str(bundle["folder"]))] if bundle.get("folder") else []
    return places + ([resources_folder() / "bundles" / str(bundle["name"])] if bundle.get("name") else [])


def table_as_text(table: LabelTable) -> str:
    """A table as JSON, for a scene to carry."""
    return json.dumps({"name": table.name, "labels": [asdict(label) for label in table]}, ensure_ascii=False)


def table_of_text(text: str) -> LabelTable | None:
    """What `table_as_text` has written; None where it is something else."""

    def cell(value: Any) -> Any:
        return Code(**value) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value

    try:
        stored = json.loads(text)
        rows = [{name: cell(value) for name, value in row.items()} for row in stored["labels"]]
        return LabelTable(str(stored["name"]), [Label(**row) for row in rows])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
