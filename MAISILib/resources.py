"""Finds the files that come with the engine: label table, presets, embedded bundles, sample requests."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from MAISILib.errors import FileFormatError


@cache
def resources_folder() -> Path:
    """The folder ``Resources``: inside the package in a wheel and in a Slicer extension, beside it in a checkout.

    Raises:
        FileFormatError: Neither place has the folder: the installation is incomplete.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "Resources", package.parent / "Resources"):
        if folder.is_dir():
            return folder
    raise FileFormatError(
        f"The folder 'Resources' is neither in {package} nor beside it. Files are missing: install it again."
    )


def resource(*parts: str) -> Path:
    """The path of a file or folder in ``Resources``, as ``resource("bundles", "head-neck-mini")``.

    Raises:
        FileFormatError: There is no such file: the installation is incomplete.
    """
    path = resources_folder().joinpath(*parts)
    if not path.exists():
        raise FileFormatError(f"{path} is missing. Install MAISI for Slicer again: its files are incomplete.")
    return path
