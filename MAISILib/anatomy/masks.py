"""Looks at label maps: are they usable, what do they hold, and how a model is told about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from MAISILib.anatomy.body_regions import region_of_label, regions_by_shape
from MAISILib.anatomy.labels import LabelTable
from MAISILib.errors import MaskError, RequestError, did_you_mean
from MAISILib.volumes import LabelMap

#: Body regions from top to bottom; the position is the index of the one-hot vector of models with region input.
REGIONS = ("head", "chest", "abdomen", "lower")
#: Labels that tell that a region is in the picture (published conditioning of the region-aware model).
REGION_LABELS = {"head": (22, 120), "chest": (28, 29, 30, 31, 32), "abdomen": (1, 2, 3, 4, 5, 14), "lower": (93, 94)}
_SYNONYMS = {"thorax": "chest", "pelvis": "lower", "legs": "lower"}


class BodyRegions(NamedTuple):
    """The top-most and the bottom-most body region of a mask, each one of ``REGIONS``."""

    top: str
    bottom: str

    def between(self) -> list[str]:
        """All regions from top to bottom; empty where the mask is upside down."""
        return list(REGIONS[REGIONS.index(self.top) : REGIONS.index(self.bottom) + 1])


def region_name(word: str) -> str:
    """One of ``REGIONS`` for a word that a user may write (``"thorax"`` is the chest, ``"pelvis"`` the lower region).

    Raises:
        RequestError: The word is no body region.
    """
    name = _SYNONYMS.get(word.strip().lower(), word.strip().lower())
    if name not in REGIONS:
        known = (*REGIONS, *_SYNONYMS)
        hint = did_you_mean(word, known) or f" Use one of: {', '.join(known)}."
        raise RequestError(f"{word!r} is no body region.{hint}")
    return name


def check_mask(mask: LabelMap, table: LabelTable) -> None:
    """Says no to masks that cannot condition a model of this label table.

    Raises:
        MaskError: The mask is empty, holds labels that are not in the table, or holds only place holders.
    """
    where = f"The mask {mask.source!r}" if mask.source else "The mask"
    counts = mask.counts
    present = [int(value) for value in np.flatnonzero(counts) if value]
    if not present:
        raise MaskError(f"{where} is empty: all {mask.array.size} voxels are 0. Segment at least one structure.")
    unknown = [value for value in present if value not in table]
    if unknown:
        known = [table.describe(value) for value in present if value in table]
        raise MaskError(
            f"{where} holds labels that {table.name!r} does not know: "
            f"{', '.join(f'{value} ({counts[value]} voxels)' for value in unknown)}. "
            f"Known ones in it: {', '.join(known) or 'none'}. "
            "Rename or remove the unknown ones, or convert the mask to the label table first."
        )
    if all(table[value].is_unused for value in present):
        raise MaskError(
            f"{where} holds only place holders that no model has learned: "
            f"{', '.join(table.describe(value) for value in present)}. Use labels of real structures."
        )


def regions_of(mask: LabelMap) -> BodyRegions | None:
    """The body regions in which the mask begins and ends, seen along the patient's S axis.

    A region reaches as far as its labels do (``REGION_LABELS``; place holders among them count as in the published
    models). Where two regions reach equally far, the upper one is the top and the lower one the bottom. A mask without
    these labels is judged by its other structures, and one that is nothing but a body by its outline, see
    :func:`MAISILib.anatomy.body_regions.regions_by_shape`.

    Returns:
        ``None`` where nothing tells the region.
    """
    others: dict[str, list[int]] = {region: [] for region in REGIONS}
    for label in mask.table:
        if (region := region_of_label(label)) is not None:
            others[region].append(label.value)
    found = _reaching_farthest(mask, REGION_LABELS) or _reaching_farthest(mask, others)
    if found is None and LabelTable.BODY in mask.labels:
        shape = regions_by_shape(mask)
        found = None if shape is None else BodyRegions(*shape)
    return found


def _reaching_farthest(mask: LabelMap, labels: Mapping[str, Sequence[int]]) -> BodyRegions | None:
    """The regions whose labels reach highest and lowest."""
    heights: dict[str, tuple[float, float]] = {}  # from top to bottom
    for region in REGIONS:
        # Turned: files come in Fortran order, in which isin takes many times as long.
        extent = _height(np.isin(mask.array.T, labels[region]).T, mask.affine[2])
        if extent is not None:
            heights[region] = extent
    if not heights:
        return None
    # Voxel centers within half a voxel of each other along S count as equally high.
    tolerance = 0.5 * float(np.abs(mask.affine[2, :3]).max())
    lowest = min(low for low, _ in heights.values())
    highest = max(high for _, high in heights.values())
    top = next(region for region, (_, high) in heights.items() if high >= highest - tolerance)
    bottom = next(region for region, (low, _) in reversed(heights.items()) if low <= lowest + tolerance)
    return BodyRegions(top, bottom)


def _height(inside: np.ndarray, row: np.ndarray) -> tuple[float, float] | None:
    """Lowest and highest S coordinate (mm) of the voxels in ``inside``; ``row`` is the third row of the affine."""
    columns = np.argwhere(inside.any(axis=2))
    if not len(columns):
        return None
    runs = inside[columns[:, 0], columns[:, 1]]  # along the third axis, S is linear: the ends of a run are its extremes
    first, last = runs.argmax(axis=1), runs.shape[1] - 1 - runs[:, ::-1].argmax(axis=1)
    across = columns @ row[:2] + row[3]
    ends = np.concatenate([across + row[2] * first, across + row[2] * last])
    return float(ends.min()), float(ends.max())


def remove_tumors(mask: LabelMap, labels: Iterable[int] | None = None) -> LabelMap:
    """The same patient without lesions: each becomes the tissue that hosts it in the mask's label table.

    Guidance compares the wish (with the tumor) to this one.

    Args:
        mask: The mask.
        labels: Which lesions to take away; all labels with a host by default. Labels without a host stay. Where the
            host is taken away, too, its own host takes the place.
    """
    hosts = mask.table.hosts()
    hosts = hosts if labels is None else {lesion: hosts[lesion] for lesion in labels if lesion in hosts}
    lookup = np.arange(256, dtype=np.uint8)
    for lesion, host in hosts.items():
        while host in hosts:
            host = hosts[host]
        lookup[lesion] = host
    removed = [mask.table[value].name for value in mask.labels if value in hosts]
    note = (f"Replaced by the host tissue: {', '.join(removed)}.",) if removed else ()
    return mask.with_array(lookup[mask.array], notes=(*mask.notes, *note))


def tissues_around(lesion: int, table: LabelTable) -> list[int]:
    """The labels that may host a lesion: its host, that one's host and so on, and structures of the same region.

    The table names one host, the tissue that takes the lesion's place; a lung tumor may lie in any lobe. A label
    without a host has none of them.
    """
    tissues, host = [], table[lesion].host
    value = host
    while value is not None:
        tissues.append(value)
        value = table[value].host
    tissues += [label.value for label in table if host is not None and label.host == host and label.value != lesion]
    region = table[lesion].region
    if host is not None and region is not None:
        for label in table:
            codes = [code for code in (label.type, label.region) if code is not None]
            words = {word for code in codes for word in code.meaning.casefold().split()}
            if any(code.value == region.value for code in codes) or region.meaning.casefold() in words:
                tissues.append(label.value)
    return sorted({*tissues} - {lesion})


def label_bits(array: np.ndarray) -> np.ndarray:
    """The label map as the ControlNet reads it: its eight bits, at full resolution.

    Args:
        array: ``(X, Y, Z)``, uint8.

    Returns:
        ``(8, X, Y, Z)``, uint8, 0 or 1; channel k is bit k of the label (bit 0 is worth 1, bit 7 is worth 128).

    Raises:
        MaskError: The labels are not uint8.
    """
    if array.dtype != np.uint8:
        raise MaskError(f"Labels are split into bits as uint8; got {array.dtype}.")
    bits = np.empty((8, *array.shape), dtype=np.uint8)
    for k in range(8):
        np.bitwise_and(array >> np.uint8(k), np.uint8(1), out=bits[k])
    return bits
