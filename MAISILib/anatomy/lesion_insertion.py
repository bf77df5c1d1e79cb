"""Puts a lesion of a chosen size and shape into an organ of a mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from MAISILib.anatomy.labels import LabelTable
from MAISILib.anatomy.masks import tissues_around
from MAISILib.errors import MaskError, RequestError, did_you_mean
from MAISILib.volumes import LabelMap

Shape = Literal["round", "ellipsoid", "lobulated", "spiculated"]
SHAPES: tuple[str, ...] = get_args(Shape)
#: Places that are tried; then the deepest one of the host is.
TRIES = 100
#: A place where so much of the lesion lies inside of the host is taken at once.
_FITS = 0.98
#: Where not even so much of it does, the lesion is larger than the host.
_LEAST_INSIDE = 0.6


@dataclass(frozen=True)
class Insertion:
    """A lesion that was put into a mask.

    Args:
        lesion: Its name.
        host: The name of what most of it lies in.
        diameter_mm: Of a sphere of its volume.
        asked_mm: What was asked for; not the same where a voxel is large beside the lesion.
        voxels: How many it has.
        center_mm: Its center of gravity in RAS+ mm.
        shape: One of :data:`SHAPES`.
        seed: Of its shape and place.
    """

    lesion: str
    host: str
    diameter_mm: float
    asked_mm: float
    voxels: int
    center_mm: tuple[float, float, float]
    shape: str
    seed: int

    def __str__(self) -> str:
        r, a, s = self.center_mm
        return (
            f"{self.lesion} of {self.diameter_mm:.1f} mm (asked for: {self.asked_mm:g} mm; {self.voxels} voxels) in "
            f"{self.host} at R {r:.0f}, A {a:.0f}, S {s:.0f} mm"
        )


class WithLesion(NamedTuple):
    """A mask and the lesion that was put into it."""

    mask: LabelMap
    insertion: Insertion


def lesion_and_hosts(
    table: LabelTable, lesion: str | int, host: str | int | None = None, shape: str = "lobulated"
) -> tuple[int, list[int]]:
    """The labels of a lesion and of what it may lie in, for what :func:`insert_lesion` was asked for.

    Returns:
        Where no host is given, the one of the table comes first, then the other tissues that may host the lesion.

    Raises:
        RequestError: The lesion, the host or the shape is unknown, or the label is no lesion.
    """
    label = table.find(lesion)
    if label.host is None:
        lesions = ", ".join(table[value].name for value in table.hosts()) or "none"
        raise RequestError(f"{label.name!r} is no lesion: it has no host in {table.name!r}. Lesions there: {lesions}.")
    if shape not in SHAPES:
        raise RequestError(f"{shape!r} is no shape of a lesion.{did_you_mean(shape, SHAPES)} Use {', '.join(SHAPES)}.")
    if host is None:
        others = [value for value in tissues_around(label.value, table) if value not in (label.host, LabelTable.BODY)]
        return label.value, [label.host, *others]
    home = table.find(host).value
    if home == label.value:
        raise RequestError(f"A {label.name} cannot lie in itself. Name another host.")
    return label.value, [home]


def insert_lesion(
    mask: LabelMap,
    lesion: str | int,
    diameter_mm: float,
    *,
    host: str | int | None = None,
    shape: str = "lobulated",
    center_mm: Sequence[float] | None = None,
    seed: int = 0,
) -> WithLesion:
    """Puts a lesion into a mask. It takes voxels of its host only, and as many as its volume needs.

    Args:
        mask: In any orientation.
        lesion: Name or value of a label that has a host.
        diameter_mm: Of a sphere of the volume that the lesion shall have.
        host: Name or value of what it shall lie in; by default its host in the label table and the tissues of the same
            region (all lobes of the lungs, for a lung tumor).
        shape: ``round``, ``ellipsoid``, ``lobulated`` (with bulges) or ``spiculated`` (with spikes).
        center_mm: RAS+ mm where it shall lie; a place that fits, by the seed, where it is not given.
        seed: Of shape and place.

    Raises:
        RequestError: The lesion, the host or the shape is unknown, the label is no lesion, or the size makes no sense.
        MaskError: The host is not in the mask or not at the place, or the lesion is larger than it.
    """
    value, homes = lesion_and_hosts(mask.table, lesion, host, shape)
    name = mask.table[value].name
    if not 0 < diameter_mm < 1000:
        raise RequestError(f"The diameter of a lesion is more than 0 mm and less than 1000, not {diameter_mm:g}.")
    counts = mask.counts
    present = [home for home in homes if counts[home]]
    if not present:
        raise MaskError(_hosts_are_absent(mask, value, homes))
    within = " and ".join(mask.table[home].name for home in present)
    voxel_mm3 = float(np.prod(mask.spacing))
    count = max(1, round(math.pi / 6 * diameter_mm**3 / voxel_mm3))
    available = int(counts[present].sum())
    if count > available:
        raise MaskError(
            f"A {name} of {diameter_mm:g} mm is larger than {within}, whose volume is that of a sphere of "
            f"{_diameter(available * voxel_mm3):.1f} mm in this mask. Ask for a smaller one."
        )
    free = np.isin(mask.array, present)
    rng = np.random.default_rng(seed)
    level = _LevelField(shape, rng, diameter_mm, np.asarray(mask.spacing), count)
    center = _given_place(mask, center_mm, present) if center_mm is not None else _place(free, level, rng)
    inside = level.part_inside(free, center)
    if inside < _LEAST_INSIDE:
        where = "at this place" if center_mm is not None else "at its widest place"
        raise MaskError(
            f"A {name} of {diameter_mm:g} mm is larger than {within} {where}: {inside:.0%} of it would lie inside. Ask "
            "for a smaller one, or for another host."
        )
    places = level.grown(free, center)
    if len(places) < count:
        raise MaskError(
            f"{within} has no room for a {name} of {diameter_mm:g} mm in one piece there. Ask for a smaller one, or "
            "for another host."
        )
    taken = np.bincount(mask.array[tuple(places.T)], minlength=256)
    swallowed = [mask.table[home].name for home in present if taken[home] == counts[home]]
    if swallowed:
        raise MaskError(f"Nothing would be left of {' and '.join(swallowed)}. Ask for a smaller {name}.")
    array = mask.array.copy()
    array[tuple(places.T)] = value
    home = int(taken.argmax())
    r, a, s = (mask.affine @ np.append(places.mean(axis=0), 1.0))[:3]
    insertion = Insertion(
        name,
        mask.table[home].name,
        round(_diameter(count * voxel_mm3), 2),
        float(diameter_mm),
        count,
        (round(float(r), 1), round(float(a), 1), round(float(s), 1)),
        shape,
        seed,
    )
    notes = [f"Inserted: {insertion}."]
    usual = tissues_around(value, mask.table)
    if home not in usual and LabelTable.BODY not in usual:
        known = ", ".join(mask.table[label].name for label in usual)
        notes.append(f"A {name} usually lies in {known}; a model may not know it elsewhere.")
    return WithLesion(mask.with_array(array, notes=(*mask.notes, *notes)), insertion)


def _hosts_are_absent(mask: LabelMap, lesion: int, homes: Sequence[int]) -> str:
    table, present = mask.table, set(mask.labels)
    others = [table[v].name for v in tissues_around(lesion, table) if v in present]
    advice = f"It may also lie in {', '.join(others)}: name one as the host." if others else "Name another host."
    absent = " or ".join(table[home].name for home in homes)
    return f"The mask has no {absent}, in which the {table[lesion].name} was to lie. {advice}"


def _given_place(mask: LabelMap, center_mm: Sequence[float], homes: Sequence[int]) -> np.ndarray:
    center = np.rint(np.linalg.solve(mask.affine, [*center_mm, 1.0])[:3]).astype(int)
    place = f"R {center_mm[0]:g}, A {center_mm[1]:g}, S {center_mm[2]:g} mm"
    wanted = " or ".join(mask.table[home].name for home in homes)
    if (center < 0).any() or (center >= mask.array.shape).any():
        raise MaskError(f"{place} lies outside of the mask. Give a place within {wanted}.")
    there = int(mask.array[tuple(center)])
    if there not in homes:
        name = mask.table.describe(there) if there else "background"
        raise MaskError(f"At {place} there is {name}, not {wanted}. Give a place within it.")
    return center


def _place(free: np.ndarray, level: _LevelField, rng: np.random.Generator) -> np.ndarray:
    """A voxel of the host around which the lesion fits; the best of those that were tried."""
    from scipy import ndimage

    places = np.argwhere(free)
    best, best_part = places[0], -1.0
    for index in rng.integers(len(places), size=TRIES):
        part = level.part_inside(free, places[index])
        if part > best_part:
            best, best_part = places[index], part
        if part >= _FITS:
            return best
    box = tuple(slice(low, high + 1) for low, high in zip(places.min(axis=0), places.max(axis=0), strict=True))
    depth: np.ndarray = ndimage.distance_transform_edt(np.pad(free[box], 1), sampling=level.spacing)  # type: ignore[assignment]
    deepest = np.array(np.unravel_index(depth.argmax(), depth.shape)) - 1 + places.min(axis=0)
    return deepest if level.part_inside(free, deepest) > best_part else best


def _diameter(volume_mm3: float) -> float:
    """Of a sphere, in mm."""
    return (6 * volume_mm3 / math.pi) ** (1 / 3)


class _LevelField:
    """How far outwards each voxel around a lesion's center lies: the lesion is where that is smallest.

    Args:
        shape: One of :data:`SHAPES`.
        rng: Of its form.
        diameter_mm: Of a sphere of its volume.
        spacing: ``(3,)`` mm.
        count: Its voxels.
    """

    def __init__(
        self, shape: str, rng: np.random.Generator, diameter_mm: float, spacing: np.ndarray, count: int
    ) -> None:
        self.spacing, self._count = spacing, count
        reach = np.ceil(1.25 * diameter_mm / spacing).astype(int) + 1
        axes = [np.arange(-r, r + 1) for r in reach]
        self._offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        places = self._offsets * spacing
        if shape != "round":
            turned = np.linalg.qr(rng.normal(size=(3, 3)))[0]
            places = places @ turned / rng.uniform(0.75, 1.3, 3)
        distance = np.sqrt((places**2).sum(axis=1))
        if shape in ("lobulated", "spiculated"):
            number, sharp, height = (9, 5.0, 0.45) if shape == "lobulated" else (16, 40.0, 0.9)
            directions = rng.normal(size=(number, 3))
            directions /= np.sqrt((directions**2).sum(axis=1, keepdims=True))
            cosines = places @ directions.T / np.maximum(distance, 1e-9)[:, None]
            heights = rng.uniform(0 if shape == "spiculated" else -height, height, number)
            distance = distance / np.maximum(1 + np.exp(sharp * (cosines - 1)) @ heights, 0.3)
        order = np.argsort(distance, kind="stable")
        self._offsets = self._offsets[order]

    def part_inside(self, free: np.ndarray, center: np.ndarray) -> float:
        """Which part of the lesion would lie in the host."""
        places = self._offsets[: self._count] + center
        places = places[((places >= 0) & (places < free.shape)).all(axis=1)]
        return float(np.count_nonzero(free[tuple(places.T)])) / self._count

    def grown(self, free: np.ndarray, center: np.ndarray) -> np.ndarray:
        """The voxels ``(N, 3)`` of the lesion around a center: it gives way where the host ends, and stays one piece.

        Fewer than it needs where the host has no more of them around there.
        """
        import cc3d

        places = self._offsets + center
        places = places[((places >= 0) & (places < free.shape)).all(axis=1)]
        places = places[free[tuple(places.T)]]
        low = places.min(axis=0)
        best = places[:0]
        for more in (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0):
            some = places[: round(self._count * more)]
            box = np.zeros(places.max(axis=0) - low + 1, np.uint8)
            box[tuple((some - low).T)] = 1
            pieces = cc3d.connected_components(box, connectivity=26)
            numbers = pieces[tuple((some - low).T)]
            best = some[numbers == numbers[0]]  # the piece around the center, in order from it
            if len(best) >= self._count or len(some) == len(places):
                break
        return best[: self._count]
