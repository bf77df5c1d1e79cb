"""Which images a training reads, with their segmentations: a datalist in the published JSON format, or a plain folder.

The published format is ``{"training": [{"image", "label", "dim", "spacing", "modality", "fold", "top_region_index",
"bottom_region_index"}]}`` with paths relative to a base folder; only ``image`` is required. A ``validation`` list
beside it is ours.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from MAISILib.errors import FileFormatError, MaisiError
from MAISILib.files.pairs import core_name, find_pairs, folder_splits

if TYPE_CHECKING:
    from MAISILib.volumes import Grid

#: The datalist that stands beside stored latents.
LATENTS_NAME = "latents.json"

#: Image and label may be apart by this part of a voxel: headers keep float32, and some programs round.
_SAME_PLACE = 0.1

#: Hears the name of an item that is left out, and why.
OnSkip = Callable[[str], None]
_Count = Annotated[int, Field(gt=0)]
_Length = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Part = Annotated[float, Field(ge=0, le=1)]
OneHot = tuple[float, float, float, float]


@dataclass(frozen=True)
class DataItem:
    """One image with what is known about it.

    Args:
        name: Unique in its datalist, and fit for a file name.
        image: An image, or a stored latent.
        label: Its segmentation.
        modality: Name or class code; ``None`` where the list does not say.
        dim: Voxels ``(X, Y, Z)`` of the image.
        spacing: Voxel size in mm.
        fold: For cross-validation.
        top_region_index: One-hot over head, chest, abdomen, lower: the region where the image ends above.
        bottom_region_index: The region where it ends below.
    """

    name: str
    image: Path
    label: Path | None = None
    modality: str | int | None = None
    dim: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    fold: int | None = None
    top_region_index: OneHot | None = None
    bottom_region_index: OneHot | None = None


@dataclass(frozen=True)
class Datalist:
    """Items to learn from, items held out, and why others were left out."""

    training: tuple[DataItem, ...]
    validation: tuple[DataItem, ...]
    skipped: tuple[str, ...] = ()


class _Entry(BaseModel):
    """One entry of the published format; other fields that people add are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    image: Annotated[str, Field(min_length=1)]
    label: Annotated[str, Field(min_length=1)] | None = None
    modality: str | int | None = Field(None, validation_alias=AliasChoices("modality", "class"))
    dim: tuple[_Count, _Count, _Count] | None = None
    spacing: tuple[_Length, _Length, _Length] | None = None
    fold: int | None = None
    top_region_index: tuple[_Part, _Part, _Part, _Part] | None = None
    bottom_region_index: tuple[_Part, _Part, _Part, _Part] | None = None


def read_datalist(
    source: Path | str | Sequence[Path | str],
    *,
    base: Path | str | Sequence[Path | str] | None = None,
    fold: int | None = 0,
    skip_bad: bool = False,
    on_skip: OnSkip = lambda message: None,
) -> Datalist:
    """Reads which images there are, and opens the header of each.

    Args:
        source: A JSON in the published format; or a folder with pairs ``X_ct``/``X_seg``, ``X``/``X_seg`` (``_label``,
            ``_mask``, ``.seg.nrrd``), with ``imagesTr``/``labelsTr``, with ``train``/``validation`` folders, or with
            stored latents. Several are put one behind the other.
        base: What paths in a JSON are relative to; one for all or one for each. Default is the JSON's folder.
        fold: Items of this fold are held out; ``None`` holds out none but those of a ``validation`` list.
        skip_bad: Leave out what cannot be used and go on.
        on_skip: Called with the reason for each item left out.

    Raises:
        FileFormatError: A list that is no list, or items that cannot be used (missing or unreadable files, image and
            label of different size or place, fields that do not fit): all of them are named. With ``skip_bad``: no
            item is left.
    """
    sources = [Path(source)] if isinstance(source, (str, Path)) else [Path(one) for one in source]
    found: list[tuple[DataItem, bool]] = []
    problems: list[str] = []
    for path, folder in zip(sources, _bases(base, len(sources)), strict=True):
        items, bad = _in_folder(path) if path.is_dir() else _in_json(path, folder, fold)
        found += items
        problems += bad
    total = len(found) + len(problems)
    good = []
    for item, held_out in found:
        try:
            check_headers(item)
            good.append((item, held_out))
        except MaisiError as error:
            problems.append(f"{item.name}: {error}")
    where = ", ".join(map(str, sources))
    report_problems(problems, f"{total} entries", where, skip=skip_bad and bool(good), on_skip=on_skip)
    _check_apart(good, where)
    names = _own_names([item for item, _ in good])
    named = [(replace(item, name=name), out) for (item, out), name in zip(good, names, strict=True)]
    training, validation = (tuple(item for item, out in named if out is held) for held in (False, True))
    return Datalist(training, validation, tuple(problems))


def report_problems(problems: Sequence[str], total: str, where: str, *, skip: bool, on_skip: OnSkip) -> None:
    """Tells all that is wrong with items: to ``on_skip`` where they are left out, else as one error.

    Args:
        problems: Name and reason of each item that cannot be used.
        total: How many items of what kind there are, for example ``7 cases``.
        where: Their list, for the message.
        skip: Whether to go on without them.
        on_skip: Called with each problem.

    Raises:
        FileFormatError: There are problems, and ``skip`` is off.
    """
    if problems and not skip:
        listed = "\n".join(f"  {problem}" for problem in problems)
        advice = "" if total.startswith(f"{len(problems)} ") else "\nCorrect them, or go on without them (--skip-bad)."
        raise FileFormatError(f"{where}: {len(problems)} of {total} cannot be used:\n{listed}{advice}")
    for problem in problems:
        on_skip(problem)


def check_headers(item: DataItem) -> None:
    """Opens the headers of an item's files and compares them, without reading voxels.

    Raises:
        FileFormatError: A file is missing or unreadable, or image and label differ in size or place.
    """
    from MAISILib.files.images import read_grid
    from MAISILib.training.latent_files import check_latent, is_latent

    label = None if item.label is None else read_grid(item.label)
    if is_latent(item.image):
        check_latent(item.image, label)
        return
    image = read_grid(item.image)
    if label is not None:
        check_same_place(image, label, item)


def check_same_place(image: Grid, label: Grid, item: DataItem) -> None:
    """Makes sure that image and label have the same voxels, in whatever order their files keep them.

    Raises:
        FileFormatError: They differ in size or place.
    """
    from MAISILib.resampling import canonical_grid

    tolerance = _SAME_PLACE * min(image.spacing)
    if image.same_as(label, tolerance) or canonical_grid(image).same_as(canonical_grid(label), tolerance):
        return
    if sorted(image.shape) != sorted(label.shape):
        raise FileFormatError(
            f"{item.image} has {_times(image.shape)} voxels and its label {item.label} has {_times(label.shape)}. "
            "Resample the label to the image."
        )
    raise FileFormatError(
        f"{item.image} and its label {item.label} lie in different places: their centres are at "
        f"({_listed(image.center)}) and ({_listed(label.center)}) mm, their voxels measure {_times(image.spacing)} "
        f"and {_times(label.spacing)} mm. Resample the label to the image."
    )


def write_datalist(path: Path, training: Sequence[DataItem], validation: Sequence[DataItem]) -> Path:
    """Writes items in the published format, with paths relative to the file's folder where they lie in it.

    Raises:
        OutputError: The file cannot be written.
    """
    from MAISILib.files.atomic import write_text

    lists = {"training": training, "validation": validation}
    content = {key: [_as_entry(item, path.parent) for item in items] for key, items in lists.items() if items}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def _as_entry(item: DataItem, folder: Path) -> dict[str, Any]:
    fields = asdict(item)
    del fields["name"]
    for key in ("image", "label"):
        if fields[key] is not None:
            inside = fields[key].is_relative_to(folder)
            fields[key] = (fields[key].relative_to(folder) if inside else fields[key].resolve()).as_posix()
    return {key: value for key, value in fields.items() if value is not None}


def _bases(base: Path | str | Sequence[Path | str] | None, count: int) -> list[Path | None]:
    if base is None or isinstance(base, (str, Path)):
        return [None if base is None else Path(base)] * count
    if len(base) != count:
        raise FileFormatError(f"{count} datalists and {len(base)} base folders. Give one for each, or one for all.")
    return [Path(one) for one in base]


def _in_folder(folder: Path) -> tuple[list[tuple[DataItem, bool]], list[str]]:
    if (folder / LATENTS_NAME).is_file():
        return _in_json(folder / LATENTS_NAME, None, None)
    found: list[tuple[DataItem, bool]] = []
    problems: list[str] = []
    for part, held_out in folder_splits(folder):
        pairs, bad = find_pairs(part)
        found += [(DataItem(p.name, p.image, p.label, p.modality), held_out) for p in pairs]
        problems += bad
    return found, problems


def _in_json(path: Path, base: Path | None, fold: int | None) -> tuple[list[tuple[DataItem, bool]], list[str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileFormatError(f"{path} does not exist. Give a datalist (JSON) or a folder of images.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} cannot be read as a datalist ({error}). Give a JSON file or a folder.") from None
    lists = {key: content.get(key) for key in ("training", "validation")} if isinstance(content, dict) else {}
    if not any(lists.values()) or not all(value is None or isinstance(value, list) for value in lists.values()):
        raise FileFormatError(f'{path}: a datalist is {{"training": [{{"image": "a.nii.gz"}}]}}; no such list is here.')
    folder = path.parent if base is None else base
    found: list[tuple[DataItem, bool]] = []
    problems: list[str] = []
    for key, entries in lists.items():
        for number, raw in enumerate(entries or []):
            try:
                entry = _Entry.model_validate({"image": raw} if isinstance(raw, str) else raw)
            except ValidationError as error:
                problems.append(f"{key}[{number}]{_image_of(raw)}: {'; '.join(_in_words(error))}.")
                continue
            item = _item(entry, folder)
            found.append((item, key == "validation" or (fold is not None and entry.fold == fold)))
    return found, problems


def _item(entry: _Entry, folder: Path) -> DataItem:
    from MAISILib.training.latent_files import stored_beside

    image = folder / entry.image
    if not image.exists():  # published lists name the images; their latents may be all that is there
        image = stored_beside(image) or image
    fields = entry.model_dump(exclude={"image", "label"})
    label = None if entry.label is None else folder / entry.label
    return DataItem(core_name(image), image, label, **fields)


def _image_of(raw: Any) -> str:
    name = raw.get("image") if isinstance(raw, dict) else None
    return f" ({name})" if isinstance(name, str) and name else ""


def _in_words(error: ValidationError) -> list[str]:
    words = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "missing":
            words.append(f"field '{field}' is missing")
        elif field:
            words.append(f"field '{field}' is {repr(problem['input'])[:60]}: {problem['msg']}")
        else:
            words.append(f"is {repr(problem['input'])[:60]}: an object with the field 'image' is needed")
    return words


def _check_apart(items: Iterable[tuple[DataItem, bool]], where: str) -> None:
    """No image is learned from and held out at once: validation would tell nothing."""
    sides: dict[Path, bool] = {}
    for item, held_out in items:
        if sides.setdefault(item.image.resolve(), held_out) is not held_out:
            raise FileFormatError(f"{where}: {item.image} is in training and in validation. Take it out of one.")


def _own_names(items: Sequence[DataItem]) -> list[str]:
    """A name for each item: where two files are called alike, with the folder, and then with a number."""
    names = [item.name for item in items]
    for longer in (lambda item, k: f"{item.image.parent.name}-{item.name}", lambda item, k: f"{item.name}-{k}"):
        counts = Counter(name.casefold() for name in names)
        names = [
            longer(item, k) if counts[name.casefold()] > 1 else name
            for k, (item, name) in enumerate(zip(items, names, strict=True), 1)
        ]
    return names


def _times(values: Sequence[float]) -> str:
    return "×".join(f"{value:.4g}" for value in values)


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
