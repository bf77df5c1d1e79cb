"""What a worker can be asked for: one function a command. Arguments are the command's fields, the value is its data.

Whatever may be missing on a computer is imported in the functions, so that a worker starts without it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from MAISILib.errors import MaisiError, RequestError, did_you_mean
from MAISILib.jobs import generating
from MAISILib.jobs.preflight import preflight as preflight_checks

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle
    from MAISILib.jobs.protocol import Job, Message

Command = Callable[..., dict[str, Any]]
#: Commands that take long: done one after the other, while the others are answered.
HEAVY = frozenset({"generate", "download", "import"})


def make_commands() -> dict[str, Command]:
    """All commands by name; those that share loaded networks share them within this dictionary."""
    warm = generating.WarmBundles()
    return {
        "generate": partial(generating.generate, warm),
        "plan": generating.plan,
        "bundles": bundles,
        "describe": describe,
        "download": download,
        "import": import_bundle,
        "remove": partial(remove, warm),
        "preflight": preflight,
        "map_segments": map_segments,
        "finetune_estimate": finetune_estimate,
    }


def fields_of(command: Command, message: Message) -> dict[str, Any]:
    """The fields of a message as the arguments of its command.

    Raises:
        RequestError: A field is missing, unknown or of the wrong kind.
    """
    parameters = list(inspect.signature(command, eval_str=False).parameters.values())[1:]  # without the job
    known = [parameter.name for parameter in parameters]
    for name in message.fields:
        if name not in known:
            hint = did_you_mean(name, known) or (f" There are: {', '.join(known)}." if known else "")
            raise RequestError(f"Command {message.command!r} has no field {name!r}.{hint}")
    arguments = {}
    for parameter in parameters:
        if parameter.name not in message.fields:
            if parameter.default is parameter.empty:
                raise RequestError(f"Command {message.command!r} needs the field {parameter.name!r}.")
            continue
        arguments[parameter.name] = _converted(message, parameter)
    return arguments


def bundles(job: Job) -> dict[str, Any]:
    """The bundles on this computer, and those that can be downloaded."""
    from MAISILib.bundles.catalogue import list_bundles
    from MAISILib.bundles.licences import is_accepted
    from MAISILib.resources import resources_folder

    rows = []
    for state in list_bundles():
        kind = {"to download": "downloadable"}.get(state.state, state.state)
        if state.state == "damaged":  # it is there all the same, and can be removed
            assert state.folder is not None
            kind = "embedded" if state.folder.is_relative_to(resources_folder()) else "installed"
        rows.append(
            {
                "name": state.name,
                "title": state.title,
                "version": state.manifest.version if state.manifest else "",
                "state": kind,
                "bytes": state.bytes,
                "folder": str(state.folder) if state.folder else None,
                "licence": {**state.licence.model_dump(), "accepted": is_accepted(state.licence)},
                "problem": state.problem,
            }
        )
    return {"bundles": rows}


def describe(job: Job, bundle: str) -> dict[str, Any]:
    """What a bundle can be asked for."""
    from MAISILib.anatomy.masks import REGIONS
    from MAISILib.anatomy.synonyms import synonyms_of
    from MAISILib.bundles.bundle import open_bundle
    from MAISILib.diffusion.solver_names import SOLVER_NAMES

    opened = open_bundle(bundle)
    manifest = opened.manifest
    anatomies, problems = _anatomies(opened)
    regions = {region for entry in manifest.recommended for region in entry.regions}
    regions |= manifest.limits.min_field_of_view_xy.keys()
    return {
        "name": opened.name,
        "title": manifest.title,
        "version": manifest.version,
        "folder": str(opened.folder),
        "labels": [
            {
                "value": label.value,
                "name": label.name,
                "group": label.group,
                "color": list(label.color),
                "terminology": label.terminology(),
                "host": label.host,
                "synonyms": synonyms_of(label.name),
            }
            for label in opened.labels
            if not label.is_unused
        ],
        "anatomies": sorted({name for names in anatomies.values() for name in names}),
        "anatomies_of": anatomies,
        "controllable": list(manifest.controllable),
        "modalities": list(manifest.modality),
        "regions": [name for name in REGIONS if manifest.body_region_input or name in regions],
        "needs_regions": manifest.body_region_input,
        "recommended": [entry.model_dump(mode="json") for entry in manifest.recommended],
        "limits": manifest.limits.model_dump(mode="json"),
        "divisor": opened.size_divisor,
        "steps": manifest.schedule.steps,
        "most_steps": manifest.schedule.train_timesteps,
        "solvers": list(SOLVER_NAMES[manifest.schedule.kind]),
        "guidance": manifest.unconditional_modality is not None,
        "mask_sources": _mask_sources(opened, anatomies),
        "intensity": manifest.intensity.kind,
        "made_by": manifest.made_by,
        "problems": problems,
    }


def download(job: Job, bundle: str, accept_licence: bool = False) -> dict[str, Any]:
    """Downloads a bundle of the catalogue; goes on where an earlier download stopped."""
    from MAISILib.bundles.download import download as download_bundle

    def on_progress(done: int, total: int) -> None:
        job.progress("download", done, total, f"{done / 1e6:.0f} of {total / 1e6:.0f} MB")

    cancel: Any = SimpleNamespace(is_set=lambda: job.cancel.cancelled)
    folder = download_bundle(bundle, accept_licence=accept_licence, on_progress=on_progress, cancel=cancel)
    return {"folder": str(folder)}


def import_bundle(job: Job, folder: Path, name: str | None = None, accept_licence: bool = False) -> dict[str, Any]:
    """Installs a bundle from a folder; the folder stays as it is."""
    from MAISILib.bundles.importing import import_folder, import_notes

    job.progress("import", 0, 1, "checking and copying the weights")
    opened = import_folder(folder, name=name, accept_licence=accept_licence, check=job.cancel.check)
    return {"name": opened.name, "folder": str(opened.folder), "notes": import_notes(opened)}


def remove(warm: generating.WarmBundles, job: Job, bundle: str) -> dict[str, Any]:
    """Deletes a bundle that was downloaded, imported or made here."""
    from MAISILib.bundles.download import remove as remove_bundle

    warm.release()
    remove_bundle(bundle)
    return {}


def preflight(job: Job) -> dict[str, Any]:
    """Whether this computer has what the engine needs."""
    return {"checks": [check.to_dict() for check in preflight_checks()]}


def map_segments(
    job: Job,
    bundle: str,
    segments: list[Any],
    new_labels: list[Any] = [],  # noqa: B006 – never changed
    edits: dict[str, Any] = {},  # noqa: B006
) -> dict[str, Any]:
    """Which label each segment of a scene becomes."""
    from MAISILib.bundles.bundle import open_bundle
    from MAISILib.jobs.segment_mapping import mapped

    return mapped(open_bundle(bundle).labels, segments, new_labels, edits)


def finetune_estimate(job: Job, bundle: str, cases: int, duration: str = "normal") -> dict[str, Any]:
    """How long a fine-tuning will take."""
    from MAISILib.bundles.bundle import open_bundle
    from MAISILib.training.durations import steps_of

    opened, steps = open_bundle(bundle), steps_of(duration)
    if cases < 1:
        raise RequestError(f"A fine-tuning needs cases; {cases} were given.")
    with generating.planning:
        from MAISILib.training.finetune_cost import estimate_seconds

        return {"seconds": round(estimate_seconds(opened, cases, steps)), "steps": steps}


def _converted(message: Message, parameter: inspect.Parameter) -> Any:
    """A field as its command wants it; the annotation says what that is, ``| None`` that it may be null."""
    value, (wanted, *more) = message.fields[parameter.name], str(parameter.annotation).split(" | ")
    kinds = {"str": str, "Path": str, "bool": bool, "int": int, "list[Any]": list, "dict[str, Any]": dict}
    if value is None and more == ["None"]:
        return None
    is_no_path = wanted == "Path" and (value == "" or "\0" in str(value))  # an empty one would be the working folder
    if not isinstance(value, kinds[wanted]) or (wanted == "int" and isinstance(value, bool)) or is_no_path:
        words = {"str": "text", "Path": "a path", "bool": "true or false", "int": "a whole number"}
        word = words.get(wanted, "a list" if wanted == "list[Any]" else "an object")
        raise RequestError(f"Command {message.command!r}: the field {parameter.name!r} is {word}, not {value!r}.")
    return Path(str(value)) if wanted == "Path" else value


def _anatomies(opened: Bundle) -> tuple[dict[str, list[str]], list[str]]:
    """Anatomies that masks of each source can be asked for, and what keeps a source from being used."""
    from MAISILib.anatomy.library import MaskLibrary
    from MAISILib.generation.mask_wish import class_labels, generator_of

    manifest, table = opened.manifest, opened.labels
    found: dict[str, list[str]] = {}
    problems: list[str] = []

    def names(values: set[int]) -> list[str]:
        return [label.name for label in table if label.value in values and not label.is_unused]

    if "controlnet" not in manifest.networks:
        return found, problems
    try:
        if manifest.masks is not None:
            library = MaskLibrary.open(opened.path(manifest.masks.index), manifest.masks.format, table)
            found["library"] = names({value for entry in library.entries for value in entry.labels})
    except MaisiError as error:
        problems.append(str(error))
    try:
        if manifest.mask_generator is not None and {"mask_autoencoder", "mask_diffusion"} <= manifest.networks.keys():
            found["generated"] = names({int(value) for value in class_labels(opened, generator_of(opened))})
    except MaisiError as error:
        problems.append(str(error))
    return found, problems


def _mask_sources(opened: Bundle, anatomies: dict[str, list[str]]) -> list[str]:
    sources = list(anatomies)
    return [*sources, "file", "none"] if "controlnet" in opened.manifest.networks else ["none"]
