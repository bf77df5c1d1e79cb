"""How volumes are made alike before features are taken: voxel size, number of voxels, and which slices count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from MAISILib.errors import RequestError
from MAISILib.resampling import resample_volume, to_canonical
from MAISILib.volumes import Grid, Volume

#: Stands around a CT that is filled up.
_AIR_HU = -1000.0


@dataclass(frozen=True)
class SliceGeometry:
    """What is done to each volume, in this order: turn to RAS+, resample, fill up, cut out the middle.

    Args:
        spacing: Voxel size in mm to resample to; ``None`` keeps it.
        shape: Voxels to bring every volume to; ``None`` keeps it.
        padding: Fill up shorter axes with air.
        center_cropping: Cut the middle out of longer axes.
        center_slices_ratio: The part of all slices of a plane, in the middle, that features are taken of.

    Raises:
        RequestError: A number that is not above zero, or a ratio above 1.
    """

    spacing: tuple[float, float, float] | None = None
    shape: tuple[int, int, int] | None = None
    padding: bool = True
    center_cropping: bool = True
    center_slices_ratio: float = 1.0

    def __post_init__(self) -> None:
        for what, values in (("spacing", self.spacing), ("shape", self.shape)):
            if values is not None and not all(value > 0 for value in values):
                raise RequestError(f"The {what} {values} must be above zero along each axis.")
        if not 0 < self.center_slices_ratio <= 1:
            raise RequestError(f"A part of {self.center_slices_ratio} of the slices is none. Give 0 < ratio ≤ 1.")

    def __str__(self) -> str:
        ratio = self.center_slices_ratio
        words = ["all slices" if ratio == 1 else f"the middle {100 * ratio:g} % of slices"]
        if self.spacing is not None:
            words.append(f"resampled to {'×'.join(f'{s:g}' for s in self.spacing)} mm")
        if self.shape is not None:
            done = [word for word, is_so in (("padded", self.padding), ("cropped", self.center_cropping)) if is_so]
            words.append(f"{' and '.join(done) or 'not brought'} to {'×'.join(map(str, self.shape))}")
        return ", ".join(words)

    def apply(self, image: Volume, divisor: int = 1) -> np.ndarray:
        """The volume as features are taken of it.

        Args:
            image: In HU, on any grid.
            divisor: Axes are filled up to a multiple of it with air.

        Returns:
            ``(X, Y, Z)`` float32 along R, A and S.
        """
        array, affine = to_canonical(image.array, image.affine)
        if self.spacing is not None:
            array = resample_to(Volume(array, affine), regrid(Grid(array.shape, affine), self.spacing)).array  # type: ignore[arg-type]
        array = np.asarray(array, np.float32)
        for axis, length in enumerate(array.shape):
            wanted = self.shape[axis] if self.shape is not None else length
            if length > wanted and self.center_cropping:
                start = (length - wanted) // 2
                array = np.take(array, range(start, start + wanted), axis)
            filled = max(wanted if self.padding else 0, array.shape[axis])
            array = _filled(array, axis, -(-filled // divisor) * divisor)
        return array

    def middle(self, slices: int) -> slice:
        """Which of so many slices of a plane count (the published rule; at least one).

        Args:
            slices: Number of slices.
        """
        first = int((1 - self.center_slices_ratio) / 2 * slices)
        return slice(first, max(first + 1, int((1 + self.center_slices_ratio) / 2 * slices)))


def regrid(grid: Grid, spacing: tuple[float, float, float]) -> Grid:
    """The grid of the same place and directions with another voxel size."""
    shape = tuple(max(1, round(extent / wanted)) for extent, wanted in zip(grid.field_of_view, spacing, strict=True))
    turned = grid.affine[:3, :3] / np.asarray(grid.spacing) * np.asarray(spacing)
    affine = np.eye(4)
    affine[:3, :3] = turned
    affine[:3, 3] = grid.center - turned @ ((np.asarray(shape) - 1) / 2)
    return Grid(shape, affine)  # type: ignore[arg-type]


def resample_to(image: Volume, grid: Grid) -> Volume:
    """A CT on a grid of :func:`regrid`, whose finer voxels begin outside the centres of the coarse ones."""
    around = np.eye(4)
    around[:3, 3] = -1  # the image's edge goes on there
    return resample_volume(Volume(np.pad(image.array, 1, mode="edge"), image.affine @ around), grid, fill=_AIR_HU)


def fill_up(array: np.ndarray, divisor: int, value: float = _AIR_HU) -> np.ndarray:
    """``(X, Y, Z)`` with each axis filled up at its end to a multiple of ``divisor``."""
    return np.pad(array, [(0, -n % divisor) for n in array.shape], constant_values=value)


def _filled(array: np.ndarray, axis: int, length: int) -> np.ndarray:
    missing = length - array.shape[axis]
    if missing <= 0:
        return array
    widths = [(0, 0)] * 3
    widths[axis] = (missing // 2, missing - missing // 2)
    return np.pad(array, widths, constant_values=_AIR_HU)
