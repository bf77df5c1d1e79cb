"""From a user's cases to training pairs: image and mask on a grid that the bundle's networks take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from MAISILib.anatomy.envelope import TISSUE_HU, add_body, has_body
from MAISILib.anatomy.grids import Box, content_box
from MAISILib.anatomy.labels import LabelTable
from MAISILib.anatomy.masks import regions_of
from MAISILib.errors import MaisiError, MaskError
from MAISILib.files.images import read_image
from MAISILib.generation.mask_grid import Size, Spacing, grid_for_mask, largest_size, own_spacing
from MAISILib.generation.settings import recommendation
from MAISILib.resampling import nearest, resample_volume, to_canonical
from MAISILib.training.cases import Case, read_body_segmentation, read_segmentation
from MAISILib.training.datalist import OnSkip, report_problems
from MAISILib.training.label_mapping import LabelMapping
from MAISILib.training.new_labels import NewLabel, extended_table
from MAISILib.volumes import Grid, LabelMap, Volume

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle
    from MAISILib.bundles.manifest import Recommendation
    from MAISILib.files.segmentations import Segmentation

#: A CT has air around the patient; without a voxel below this the image is not in HU, or cut inside the patient (HU).
_AIR_HU = -500.0


@dataclass(frozen=True)
class PreparedCase:
    """One training pair, on one grid of a size that is legal for the bundle.

    Args:
        name: The case's name.
        image: ``(X, Y, Z)``: CT in HU as int16, air outside the body; MR as float32 in its own units.
        mask: Labels of the extended table.
        notes: What was done, one sentence each.
    """

    name: str
    image: Volume
    mask: LabelMap
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preparation:
    """What is to be done to each case.

    Args:
        bundle: The parent bundle, whose grid rules hold.
        table: Its labels and the new ones.
        mapping: Which segment is which label.
        focus: Labels that the fine-tuning is about.
        spacing: Voxel size in mm along R, A, S; the bundle's choice for a user's mask where not given.
        size: Voxels of every case; by default each case has the smallest legal size that covers the patient.
    """

    bundle: Bundle
    table: LabelTable
    mapping: LabelMapping
    focus: tuple[int, ...] = ()
    spacing: Spacing | None = None
    size: Size | None = None


def plan_preparation(
    bundle: Bundle,
    mapping: LabelMapping,
    new_labels: Iterable[NewLabel] = (),
    *,
    focus: Sequence[str | int] = (),
    spacing: Spacing | None = None,
    size: Size | None = None,
) -> Preparation:
    """Checks what cases will be prepared for, without reading any.

    Args:
        bundle: The parent bundle.
        mapping: Which segment is which label.
        new_labels: Labels to add to the bundle's.
        focus: Names or values of the labels that the fine-tuning is about; by default the new ones.
        spacing: Voxel size in mm along R, A, S.
        size: Voxels of every case, so that they can stand in one batch; for example the bundle's recommended size.

    Raises:
        MaskError: The mapping leaves segments open, or does not lead to a focus label.
        RequestError: A new label cannot be added, there is no such focus label, or size or spacing is not legal.
    """
    new_labels = tuple(new_labels)
    table = extended_table(bundle.labels, new_labels)
    mapping.check(table)
    values = tuple(table.find(name).value for name in focus) or tuple(label.value for label in new_labels)
    reached = {decision.label for decision in (*mapping.segments, *mapping.body_segments)}
    if absent := [table.describe(value) for value in values if value not in reached]:
        raise MaskError(
            f"No segment of the cases is {', '.join(absent)}, which the fine-tuning is about. Name a segment like the "
            "label, or map one to it (--map 'SEGMENT=LABEL')."
        )
    if spacing is not None:
        bundle.manifest.limits.check_spacing(spacing)
    if size is not None:
        bundle.manifest.limits.check_size(size, bundle.size_divisor)
    return Preparation(bundle, table, mapping, values, spacing, size)


def prepared_one_by_one(
    preparation: Preparation,
    cases: Sequence[Case],
    *,
    skip_bad: bool = False,
    on_skip: OnSkip = lambda message: None,
    on_progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> Iterator[PreparedCase]:
    """Gives the training pair of each case as soon as it is made, so that one at a time is in memory.

    Args:
        preparation: What to do, from :func:`plan_preparation`.
        cases: As `read_cases` gave them.
        skip_bad: Leave out cases that cannot be used, also those without a focus label, and go on.
        on_skip: Called with name and reason of each case left out.
        on_progress: Called before each case with the number done, the number of all, and its name. May raise
            ``Cancelled``.

    Raises:
        FileFormatError: Cases that cannot be used: all are named, after the last pair. With ``skip_bad``: no case is
            left.
    """
    problems: list[str] = []
    for number, case in enumerate(cases):
        on_progress(number, len(cases), case.name)
        try:
            pair = prepare_case(preparation, case)
        except MaisiError as error:
            problems.append(f"{case.name}: {error}")
            continue
        yield pair
    where = f"Fine-tuning of {preparation.bundle.name!r}"
    skip = skip_bad and len(problems) < len(cases)
    report_problems(problems, f"{len(cases)} cases", where, skip=skip, on_skip=on_skip)


def prepare_case(preparation: Preparation, case: Case) -> PreparedCase:
    """Makes a training pair of one case.

    From the bottom up, later wins: body (from the image, where the label table has one), the body segmentation, what
    the user has labelled. Image (linearly) and labels (by nearest neighbour) are sampled on the grid that
    :func:`grid_for_mask` would give a user's mask. Where the patient is larger than the bundle's largest size (or the
    size asked for), the grid shows the part with the focus labels. Outside of the body CT is set to air, as in the
    images that the bundle makes.

    Raises:
        MaskError: A focus label is missing, or too small for the bundle's voxels.
        FileFormatError: A file cannot be read any more.
        RequestError: The field of view is too small for the bundle.
    """
    intensity, table = preparation.bundle.manifest.intensity, preparation.table
    image = read_image(case.image, "HU" if intensity.kind == "ct" else "arbitrary")
    image = Volume(*to_canonical(image.array, image.affine), image.units)
    labels = _Labels.of(preparation, case)
    _check_focus(preparation, labels.arrays(), "")
    notes = [*case.notes, *_doubts(image)]
    spacing = preparation.spacing or _usual_spacing(preparation.bundle, image.grid)

    overview = _overview_grid(image.grid, spacing)
    patient = LabelMap(labels.on(overview), overview.affine, table, f"segmentation of {case.name}")
    if not patient.labels:
        raise MaskError("No labelled voxel is left after mapping its segments to labels.")
    patient = _with_body(patient, image)
    notes += patient.notes
    grid = _training_grid(preparation, patient, spacing, notes)

    array = labels.on(grid)
    if LabelTable.BODY in table:
        array[(array == 0) & (nearest(patient.array, overview, grid) != 0)] = LabelTable.BODY
    array[nearest(np.ones(image.array.shape, np.uint8), image.grid, grid) == 0] = 0  # nothing to learn from there
    mask = LabelMap(array, grid.affine, table, patient.source)
    step = " × ".join(f"{s:.4g}" for s in grid.spacing)
    _check_focus(preparation, [array], f" with voxels of {step} mm")
    notes.append(f"Sampled on {' × '.join(map(str, grid.shape))} voxels of {step} mm.")
    return PreparedCase(case.name, _sampled(image, mask, intensity.low), mask, tuple(notes))


@dataclass(frozen=True)
class _Labels:
    """What is labelled in a case, each segmentation on its own voxels."""

    users: tuple[np.ndarray, Grid]
    organs: tuple[np.ndarray, Grid] | None

    @classmethod
    def of(cls, preparation: Preparation, case: Case) -> _Labels:
        def painted(segmentation: Segmentation, body: bool) -> tuple[np.ndarray, Grid]:
            found = [
                (segment, preparation.mapping.label_of(segment, body=body))
                for segment, count in segmentation.voxels().items()
                if count
            ]
            labelled = ((segment, label) for segment, label in found if label is not None)
            return segmentation.painted(labelled), segmentation.grid

        organs = read_body_segmentation(case)
        return cls(painted(read_segmentation(case), False), None if organs is None else painted(organs, True))

    def arrays(self) -> list[np.ndarray]:
        return [self.users[0]] if self.organs is None else [self.users[0], self.organs[0]]

    def on(self, grid: Grid) -> np.ndarray:
        """The user's labels over the other organs; a body that the user has drawn lies under both."""
        users = nearest(*self.users, grid)
        if self.organs is None:
            return users
        organs = nearest(*self.organs, grid)
        own = (users != 0) & (users != LabelTable.BODY)
        return np.where(own | (organs == 0), users, organs)


def _doubts(image: Volume) -> list[str]:
    if image.units == "HU" and image.array.min() > _AIR_HU:
        return [f"The CT has no air: its lowest value is {image.array.min():g}. Is it in HU?"]
    return []


def _sampled(image: Volume, mask: LabelMap, air: float) -> Volume:
    """The image on the grid of the mask."""
    if image.units != "HU":
        return resample_volume(image, mask.grid, fill=float(image.array.min()))
    sampled = resample_volume(image, mask.grid, fill=air)
    array = np.rint(sampled.array).clip(-32768, 32767).astype(np.int16)
    if LabelTable.BODY in mask.table:
        array[mask.array == 0] = round(air)
    return replace(sampled, array=array)


def _with_body(mask: LabelMap, image: Volume) -> LabelMap:
    """The mask with the body, where its table has one."""
    if LabelTable.BODY not in mask.table or (image.units != "HU" and has_body(mask)):
        return mask
    if image.units == "HU":
        return add_body(mask, image)
    # MR has no units: a tenth of the way from its 2nd to its 98th percentile parts head from background (Smith, Fast
    # robust automated brain extraction, Human Brain Mapping 17, 2002, section "Estimation of basic image parameters").
    low, high = np.percentile(image.array, (2, 98))
    tissue = np.where(image.array > low + 0.1 * (high - low), TISSUE_HU + 300, TISSUE_HU - 300)
    found = add_body(mask, Volume(tissue.astype(np.float32), image.affine))
    return found.with_array(found.array, notes=(*mask.notes, "Body (label 200) added from where the image is bright."))


def _check_focus(preparation: Preparation, arrays: Iterable[np.ndarray], where: str) -> None:
    if preparation.focus and not any(np.isin(array, preparation.focus).any() for array in arrays):
        names = " or ".join(preparation.table.describe(value) for value in preparation.focus)
        what = "It is too small for the model" if where else "Label it in this case, or leave the case out"
        raise MaskError(f"There is no {names} in it{where}, which the fine-tuning is about. {what}.")


# ------------------------------------------------------------------ the grid


def _usual_spacing(bundle: Bundle, grid: Grid) -> Spacing:
    """The voxel size at which the bundle would generate for a user's mask on this grid."""
    keep = bundle.manifest.mask_spacing == "keep"
    return own_spacing(bundle, grid) if keep else _recommended(bundle).spacing


def _recommended(bundle: Bundle) -> Recommendation:
    return recommendation(bundle.manifest, (), next(iter(bundle.manifest.modality)))


def _overview_grid(grid: Grid, spacing: Spacing) -> Grid:
    """The image's grid; with larger voxels where they are less than half as long as the training's.

    The body's outline is looked for on it, which would take minutes on the voxels of a clinical CT.
    """
    own = np.asarray(grid.spacing)
    factor = np.maximum(np.floor(np.asarray(spacing) / own / 2 + 1e-6), 1.0)
    affine = grid.affine.copy()
    affine[:3, :3] *= factor
    affine[:3, 3] = (grid.affine @ np.append((factor - 1) / 2, 1.0))[:3]
    x, y, z = (math.ceil(n / f) for n, f in zip(grid.shape, factor, strict=True))
    return Grid((x, y, z), affine)


def _training_grid(preparation: Preparation, patient: LabelMap, spacing: Spacing, notes: list[str]) -> Grid:
    content = content_box(patient)
    shown = _shown_part(content, patient, preparation, spacing)
    if shown != content:
        extent = [(b - a + 1) * s for a, b, s in zip(shown.first, shown.last, patient.spacing, strict=True)]
        notes.append(
            f"The patient is larger than the model's field of view: {' × '.join(f'{mm:.0f}' for mm in extent)} mm "
            f"{'around the focus label ' if preparation.focus else ''}are used."
        )
    return grid_for_mask(
        preparation.bundle,
        patient.grid,
        shown,
        recommended=_recommended(preparation.bundle).size,
        spacing=spacing,
        size=preparation.size,
        regions=set(regions_of(patient) or ()),
    )


def _shown_part(content: Box, mask: LabelMap, preparation: Preparation, spacing: Spacing) -> Box:
    """The part of the content that fits into the largest grid: around the focus label, else the middle."""
    largest: Any = preparation.size or largest_size(preparation.bundle)
    room = [n * s / own + 1e-6 for n, s, own in zip(largest, spacing, mask.spacing, strict=True)]
    lengths = [b - a + 1 for a, b in zip(content.first, content.last, strict=True)]
    if all(length <= most for length, most in zip(lengths, room, strict=True)):
        return content
    focus = _focus_box(mask, preparation.focus, room) if preparation.focus else content
    first, last = [], []
    for axis in range(3):
        low, high = content.first[axis], content.last[axis]
        length = int(min(lengths[axis], room[axis]))
        middle = low + (lengths[axis] - length) // 2
        inner, outer = focus.first[axis], focus.last[axis]
        around = (length - (outer - inner + 1)) // 4  # a lesion is learned with what lies around it
        if around >= 0:  # as near to the patient's middle as shows all of this
            start = min(max(middle, outer + around - length + 1), inner - around)
        else:
            start = (inner + outer + 1 - length) // 2
        start = min(max(start, low), high - length + 1)
        first.append(start)
        last.append(start + length - 1)
    return Box(tuple(first), tuple(last))  # type: ignore[arg-type]


def _focus_box(mask: LabelMap, focus: tuple[int, ...], room: Sequence[float]) -> Box:
    """The box around the focus labels; around their largest part where all of them do not fit into ``room`` voxels."""
    from scipy import ndimage

    inside = np.isin(mask.array, focus)
    if not inside.any():  # thinner than the overview's voxels
        return content_box(mask)
    box = content_box(mask.with_array(inside.astype(np.uint8)))
    if all(b - a + 1 <= most for a, b, most in zip(box.first, box.last, room, strict=True)):
        return box
    parts, _ = ndimage.label(inside)  # type: ignore[misc]
    largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
    return content_box(mask.with_array((parts == largest).astype(np.uint8)))
