"""How a sample was made: written beside it, and read back to make it again."""

from __future__ import annotations

import json
import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MAISILib.errors import BundleError, FileFormatError, RequestError
from MAISILib.files.checks import file_sha256
from MAISILib.generation.request import GenerateRequest

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle

FORMAT = "maisi-provenance"
FORMAT_VERSION = 1
#: Provenance of versions up to 0.3 names the class of a solver.
_FORMER_SOLVER_NAMES = {"EulerSolver": "euler", "AncestralSolver": "ancestral", "DdimSolver": "ddim"}
STATEMENT = "Synthetic image made by a generative model. Not a patient; not for diagnosis."


def software_versions() -> dict[str, str]:
    """Versions of what takes part in the arithmetic."""
    import torch

    import MAISILib

    found = {"MAISILib": MAISILib.__version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in ("monai", "numpy", "scipy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def describe_run(bundle: Bundle, request: GenerateRequest, device: str, precision: str) -> dict[str, Any]:
    """The part of the provenance that all samples of a run share."""
    import torch

    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "synthetic": True,
        "statement": STATEMENT,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "software": software_versions(),
        "bundle": {
            "name": bundle.name,
            "version": bundle.manifest.version,
            "folder": str(bundle.folder),
            "licence": bundle.manifest.licence.name,
            "citation": bundle.manifest.citation,
            "weights_sha256": bundle.weights_sha256(),
        },
        "device": {"name": device, "precision": precision, "threads": torch.get_num_threads()},
        "request": request.model_dump(mode="json"),
    }


def read_replay(path: str | Path) -> tuple[str, GenerateRequest, dict[str, Any]]:
    """Reads a provenance file for replaying its sample.

    Returns:
        Bundle name or folder, a request for exactly this sample, and the whole provenance.

    Raises:
        FileFormatError: Missing, not JSON, not a provenance file, or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist. Give the provenance.json of a sample.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error}.") from None
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise FileFormatError(f"{path} is not a provenance file of MAISI for Slicer.")
    if not isinstance(data.get("format_version"), int) or data["format_version"] > FORMAT_VERSION:
        raise FileFormatError(f"{path} was written by a newer version of MAISI for Slicer. Update to replay it.")
    try:
        wanted = {
            **data["request"],
            "count": 1,
            "first_index": data["sample"]["index"],
            **_recorded_files(data),
            **_recorded_sampling(data),
        }
        bundle = _bundle_to_open(str(data["bundle"]["name"]), str(data["bundle"]["folder"]))
        dict(data["bundle"]["weights_sha256"])
        return bundle, GenerateRequest(**wanted), data
    except (KeyError, TypeError, ValueError, RequestError) as error:
        raise FileFormatError(f"{path} lacks what a replay needs: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return f"{error.args[0]!r} is missing." if isinstance(error, KeyError) else str(error)


def _recorded_files(data: dict[str, Any]) -> dict[str, str]:
    """The user's files as absolute paths, so that a replay finds them from any working folder."""
    source = data["mask_source"] or {}
    if source.get("kind") != "file":
        return {}
    files = {"mask_file": source["path"]}
    return files | {"mask_ct": source["ct"]["path"]} if "ct" in source else files


def _recorded_sampling(data: dict[str, Any]) -> dict[str, Any]:
    """Solvers and steps as they were, whatever has become the default since."""
    settings = data["settings"]
    recorded = {name: settings.get(name) for name in ("solver", "steps", "mask_solver", "mask_steps")}
    recorded["solver"] = _FORMER_SOLVER_NAMES.get(settings["solver"], settings["solver"])
    return {**{name: value for name, value in recorded.items() if value is not None}, "preset": "standard"}


def _bundle_to_open(name: str, folder: str) -> str:
    from MAISILib.bundles.catalogue import find_bundle

    try:
        find_bundle(name)
    except BundleError:
        return folder
    return name


def check_replay(bundle: Bundle, provenance: dict[str, Any]) -> None:
    """Refuses a replay that could not give the same image.

    Raises:
        BundleError: The weights are not those that made the sample.
        FileFormatError: The mask file, or the CT that came with it, has changed or is gone.
    """
    recorded, present = provenance["bundle"]["weights_sha256"], bundle.weights_sha256()
    differing = [name for name, digest in recorded.items() if present.get(name) != digest]
    if differing:
        raise BundleError(
            f"Bundle {bundle.name!r} has other weights now than those that made this sample ({', '.join(differing)}); "
            "the replay would differ. Install the version that is named in the provenance."
        )
    source = provenance.get("mask_source") or {}
    files = {"mask": source} if source.get("kind") == "file" else {}
    if "ct" in source:
        files["CT"] = source["ct"]
    if source.get("kind") == "library" and bundle.manifest.masks is not None:
        library = bundle.path(bundle.manifest.masks.index).parent
        files["library mask"] = {**source, "path": library / source.get("entry", "")}
    if "sizes_table" in source:
        files["table of organ sizes"] = source["sizes_table"]
    for what, recorded_file in files.items():
        path = Path(recorded_file["path"])
        if not path.is_file():
            raise FileFormatError(f"The {what} {path} of this sample is gone; it is needed for the replay.")
        if file_sha256(path) != recorded_file.get("sha256"):
            raise FileFormatError(f"The {what} {path} has changed since this sample was made; the replay would differ.")
