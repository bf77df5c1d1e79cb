"""A user's cases for fine-tuning: ``cases.json`` pairs images with segmentations.

    {"cases": [{"image": "ct.nii.gz", "segmentation": "lesions.seg.nrrd", "body_segmentation": "organs.nii.gz"}],
     "names": {"1": "lesion"}}

A plain list of cases does as well, and one case alone. Paths are relative to the file. ``names`` says what the numbers
of label maps mean and ``body_names`` those of ``body_segmentation``, for all cases or within one; Slicer segmentations
bring their names. ``name`` is what the case is called in messages.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from MAISILib.errors import FileFormatError, MaisiError, MaskError, did_you_mean
from MAISILib.files.images import read_image, read_segments
from MAISILib.files.pairs import core_name
from MAISILib.resampling import canonical_grid, index_mapping
from MAISILib.training.datalist import OnSkip, report_problems
from MAISILib.volumes import Grid

if TYPE_CHECKING:
    from MAISILib.files.segmentations import Segment, Segmentation

#: At least this part of the labelled voxels must lie in the image.
_LEAST_INSIDE = 0.5
#: Labelled voxels that are looked at to find out how many lie in the image.
_LOOKS = 100_000

_Text = Annotated[str, Field(min_length=1)]
_Names = dict[Annotated[int, Field(ge=1, le=255)], _Text]


@dataclass(frozen=True)
class Case:
    """One image with its segmentation, both readable and in the same place.

    Args:
        name: Unique among the cases, and fit for a file name.
        image: CT or MR.
        segmentation: What the user has labelled.
        body_segmentation: A segmentation of the other organs, for underneath.
        segments: Segments of ``segmentation`` that have voxels.
        body_segments: Those of ``body_segmentation``.
        names: Names of the numbers in ``segmentation``.
        body_names: Names of the numbers in ``body_segmentation``.
        notes: What a user should know about the files.
    """

    name: str
    image: Path
    segmentation: Path
    body_segmentation: Path | None = None
    segments: tuple[Segment, ...] = ()
    body_segments: tuple[Segment, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)
    body_names: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    image: _Text
    segmentation: _Text
    body_segmentation: _Text | None = None
    name: Annotated[str, Field(pattern=r'^[^/\\:*?"<>|\x00-\x1f]+$')] | None = None
    names: _Names = {}
    body_names: _Names = {}


def read_cases(path: Path | str, *, skip_bad: bool = False, on_skip: OnSkip = lambda message: None) -> list[Case]:
    """Reads ``cases.json``, and every file that it names, to the last voxel.

    A segmentation may lie on other voxels than its image (finer, cropped, turned): it is resampled later. Refused is
    what cannot belong together: a segmentation as large as the image but elsewhere (its position was lost), one that
    starts at the image's first voxel with the same voxels but ends elsewhere (slices are missing), and one of which
    less than half lies in the image.

    Args:
        path: The file.
        skip_bad: Leave out cases that cannot be used, and go on.
        on_skip: Called with name and reason of each case left out.

    Raises:
        FileFormatError: The file is not as described above, or there are cases that cannot be used (missing or damaged
            files, NaN in the image, labels that are no whole numbers from 0 to 255, empty segmentations, image and
            segmentation in different places): all are named. With ``skip_bad``: no case is left.
    """
    path = Path(path)
    entries = _read_entries(path)
    _check_apart(entries, path)
    names = _names_of(entries, path)
    cases: list[Case] = []
    problems: list[str] = []
    for entry, name in zip(entries, names, strict=True):
        try:
            cases.append(_open_case(entry, name, path.parent))
        except MaisiError as error:
            problems.append(f"{name}: {error}")
    report_problems(problems, f"{len(entries)} cases", str(path), skip=skip_bad and bool(cases), on_skip=on_skip)
    return cases


def read_segmentation(case: Case) -> Segmentation:
    """The voxels of what the user has labelled."""
    return read_segments(case.segmentation, case.names)


def read_body_segmentation(case: Case) -> Segmentation | None:
    """The voxels of the segmentation for underneath, where the case has one."""
    return None if case.body_segmentation is None else read_segments(case.body_segmentation, case.body_names)


# ------------------------------------------------------------------ the file


def _read_entries(path: Path) -> list[_Entry]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileFormatError(f"{path} does not exist. Check the name and the folder.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} cannot be read as a list of cases ({error}). Give a JSON file.") from None
    shared: dict[str, Any] = {}
    if isinstance(content, dict) and "cases" in content:
        shared = {key: value for key, value in content.items() if key != "cases"}
        content = content["cases"]
        if unknown := sorted(shared.keys() - {"names", "body_names"}):
            hint = did_you_mean(unknown[0], ("names", "body_names", *_Entry.model_fields))
            raise FileFormatError(f"{path}: {unknown[0]!r} is not known beside 'cases'.{hint}")
    elif isinstance(content, dict):
        content = [content]
    if not isinstance(content, list) or not content:
        raise FileFormatError(
            f'{path}: a list of cases is [{{"image": "ct.nii.gz", "segmentation": "labels.nii.gz"}}]; this is none.'
        )
    entries, problems = [], []
    for number, raw in enumerate(content, 1):
        try:
            entry = raw
            for key, value in shared.items():
                if isinstance(raw, dict) and isinstance(value, dict) and isinstance(raw.get(key, {}), dict):
                    entry = {**entry, key: {**value, **raw.get(key, {})}}
                elif isinstance(raw, dict):
                    entry = {**entry, key: value}  # not an object: the check says so
            entries.append(_Entry.model_validate(entry))
        except ValidationError as error:
            problems.append(f"case {number}: {'; '.join(_in_words(error))}")
    if problems:
        raise FileFormatError(f"{path}: {'. '.join(problems)}. Correct the file.")
    return entries


def _in_words(error: ValidationError) -> list[str]:
    words = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"] if part != "[key]")
        if problem["type"] == "missing":
            words.append(f"field '{name}' is missing")
        elif problem["type"] == "extra_forbidden":
            words.append(f"field '{name}' is not known{did_you_mean(name, _Entry.model_fields).rstrip('?')}")
        elif name:
            words.append(f"field '{name}' is {str(problem['input'])[:60]!r}: {problem['msg'].lower()}")
        else:
            words.append(f"{str(problem['input'])[:60]!r} is no object with the fields 'image' and 'segmentation'")
    return words


def _check_apart(entries: list[_Entry], path: Path) -> None:
    pairs = Counter(((path.parent / e.image).resolve(), (path.parent / e.segmentation).resolve()) for e in entries)
    for (image, _), count in pairs.items():
        if count > 1:
            raise FileFormatError(f"{path}: {image.name} stands in {count} cases with the same segmentation. Keep one.")


def _names_of(entries: list[_Entry], path: Path) -> list[str]:
    """A name for each case: its own, else the image's; where two are alike, with the folder, and then with a number."""
    given = Counter(entry.name.casefold() for entry in entries if entry.name)
    if twice := [name for name, count in given.items() if count > 1]:
        raise FileFormatError(f"{path}: {given[twice[0]]} cases have the name {twice[0]!r}. Give each its own.")
    images = [path.parent / entry.image for entry in entries]
    names = [entry.name or core_name(image) for entry, image in zip(entries, images, strict=True)]
    for longer in (lambda name, k: f"{images[k].resolve().parent.name}-{name}", lambda name, k: f"{name}-{k + 1}"):
        counts = Counter(name.casefold() for name in names)
        names = [
            name if entry.name or counts[name.casefold()] == 1 else longer(name, k)
            for k, (entry, name) in enumerate(zip(entries, names, strict=True))
        ]
    return names


# ------------------------------------------------------------------ one case


def _open_case(entry: _Entry, name: str, folder: Path) -> Case:
    case = Case(
        name,
        folder / entry.image,
        folder / entry.segmentation,
        None if entry.body_segmentation is None else folder / entry.body_segmentation,
        names=entry.names,
        body_names=entry.body_names,
    )
    image = read_image(case.image).grid  # with its voxels: NaN is found here
    segmentation = read_segmentation(case)
    notes = [*segmentation.notes, *check_place(image, segmentation, case.image, case.segmentation)]
    case = replace(case, segments=_with_voxels(segmentation))
    body = read_body_segmentation(case)
    if body is not None and case.body_segmentation is not None:
        notes += [*body.notes, *check_place(image, body, case.image, case.body_segmentation)]
        case = replace(case, body_segments=_with_voxels(body))
    return replace(case, notes=tuple(notes))


def _with_voxels(segmentation: Segmentation) -> tuple[Segment, ...]:
    return tuple(segment for segment, count in segmentation.voxels().items() if count)


def check_place(image: Grid, segmentation: Segmentation, image_path: Path, path: Path) -> list[str]:
    """Makes sure that a segmentation belongs to its image, by the rules of :func:`read_cases`.

    Args:
        image: Where the image lies.
        segmentation: The segmentation.
        image_path: For messages.
        path: For messages.

    Returns:
        Notes: whether the segmentation lies on other voxels, and how much of it is outside the image.

    Raises:
        MaskError: It is empty.
        FileFormatError: It lies elsewhere, or slices are missing.
    """
    grid = segmentation.grid
    if not any(segmentation.voxels().values()):
        raise MaskError(f"{path} is empty: it has no labelled voxel. Segment at least one structure.")
    half = min(image.spacing) / 2
    if canonical_grid(image).same_as(canonical_grid(grid), half):
        return []
    both = (
        f"image {image_path.name}: {_describe(image)}; segmentation {path.name}: {_describe(grid)}. "
        "Save the segmentation with the geometry of its image"
    )
    if sorted(image.shape) == sorted(grid.shape):
        raise FileFormatError(f"Image and segmentation have the same size, but lie in different places ({both}).")
    starts_alike = Grid(image.shape, grid.affine).same_as(image, half)
    if starts_alike and not path.name.lower().endswith(".seg.nrrd"):  # Slicer cuts off what is empty
        raise FileFormatError(f"Image and segmentation are of different size, with the same first voxel ({both}).")
    inside = _part_inside(image, segmentation)
    if inside < _LEAST_INSIDE:
        raise FileFormatError(f"Only {inside:.0%} of the segmentation lies in the image ({both}).")
    notes = [f"{path.name} lies on other voxels than {image_path.name}; it is resampled by nearest neighbour."]
    if inside < 1:
        notes.append(f"{1 - inside:.1%} of {path.name} lies outside of {image_path.name} and is left out.")
    return notes


def _part_inside(image: Grid, segmentation: Segmentation) -> float:
    """The part of the labelled voxels whose centres lie in the image."""
    labelled = np.flatnonzero((segmentation.layers > 0).any(axis=3))
    some = labelled[:: max(1, len(labelled) // _LOOKS)]
    matrix, offset = index_mapping(image, segmentation.grid)
    index = np.stack(np.unravel_index(some, segmentation.layers.shape[:3]), axis=1) @ matrix.T + offset
    return float(((index > -0.5) & (index < np.asarray(image.shape) - 0.5)).all(axis=1).mean())


def _describe(grid: Grid) -> str:
    def listed(values: Any, between: str) -> str:
        return between.join(f"{value:.4g}" for value in values)

    return f"{listed(grid.shape, '×')} voxels of {listed(grid.spacing, '×')} mm around ({listed(grid.center, ', ')}) mm"
