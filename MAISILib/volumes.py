"""Value types that walk through the engine: arrays that travel with their geometry.

Coordinates are RAS+ millimetres everywhere: an ``affine`` is the 4×4 matrix that takes a voxel index ``(i, j, k, 1)``
to the centre of that voxel in RAS+ mm, as in NIfTI.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from MAISILib.errors import FileFormatError, MaskError

if TYPE_CHECKING:
    from MAISILib.anatomy.labels import LabelTable

#: Directions whose cosines differ by less than this are parallel; scanners write angles with about this error.
_ORTHOGONAL_TOLERANCE = 1e-3
#: No gantry tilts by more than about 30°; a header whose axes meet at less than this (degrees) is damaged.
_LEAST_ANGLE = 45.0
_COUNTED_AT_ONCE = 2**20


@dataclass(frozen=True)
class Grid:
    """A voxel grid in space: how many voxels there are, and where.

    Args:
        shape: Number of voxels ``(X, Y, Z)``.
        affine: ``(4, 4)`` float64, voxel index to RAS+ mm.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @staticmethod
    def axis_aligned(
        shape: tuple[int, int, int],
        spacing: tuple[float, float, float],
        center: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> Grid:
        """A grid whose axes run along R, A and S and whose centre lies at ``center`` (RAS+ mm)."""
        affine = np.diag([*spacing, 1.0]).astype(float)
        affine[:3, 3] = np.asarray(center) - (np.asarray(shape) - 1) / 2 * np.asarray(spacing)
        return Grid(tuple(int(n) for n in shape), affine)  # type: ignore[arg-type]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the three voxel axes."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return float(x), float(y), float(z)

    @property
    def field_of_view(self) -> tuple[float, float, float]:
        """Extent in mm along the three voxel axes, from outer face to outer face."""
        x, y, z = (n * s for n, s in zip(self.shape, self.spacing, strict=True))
        return float(x), float(y), float(z)

    @property
    def center(self) -> np.ndarray:
        """Middle of the grid in RAS+ mm, shape ``(3,)``."""
        return (self.affine @ np.append((np.asarray(self.shape) - 1) / 2, 1.0))[:3]

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return int(np.prod(self.shape))

    def same_as(self, other: Grid, tolerance: float = 1e-3) -> bool:
        """Whether both grids have the same voxels, up to ``tolerance`` mm at any corner."""
        if self.shape != other.shape:
            return False
        corners = np.array(
            [[i, j, k, 1] for i in (0, self.shape[0]) for j in (0, self.shape[1]) for k in (0, self.shape[2])]
        )
        return bool(np.abs((self.affine - other.affine) @ corners.T).max() <= tolerance)


def least_angle(affine: np.ndarray) -> float:
    """The smallest angle in degrees at which two voxel axes meet; 90 where all are at right angles."""
    return float(np.degrees(np.arccos(min(_largest_cosine(affine), 1.0))))


def is_sheared(affine: np.ndarray) -> bool:
    """Whether voxel axes meet at other than right angles, by more than the noise of headers."""
    return _largest_cosine(affine) > _ORTHOGONAL_TOLERANCE


def _largest_cosine(affine: np.ndarray) -> float:
    directions = affine[:3, :3] / np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return float(np.abs(directions.T @ directions - np.eye(3)).max())


def check_affine(affine: np.ndarray, where: str, *, may_lean: bool = False) -> np.ndarray:
    """Returns ``affine`` as ``(4, 4)`` float64, or says why it is no rigid frame with a voxel size.

    Args:
        affine: The matrix.
        where: For messages.
        may_lean: Allow axes that meet at 45° to 90°, for whoever straightens them.

    Raises:
        FileFormatError: The matrix is not 4×4, not finite, singular, or sheared (axes not at right angles).
    """
    matrix = np.asarray(affine, dtype=float)
    if matrix.shape != (4, 4):
        raise FileFormatError(f"{where}: the affine has shape {matrix.shape}; a 4×4 matrix is needed.")
    if not np.isfinite(matrix).all():
        raise FileFormatError(
            f"{where}: the affine holds NaN or infinity. Export the image again with a valid geometry."
        )
    directions, lengths = matrix[:3, :3], np.sqrt((matrix[:3, :3] ** 2).sum(axis=0))
    if (lengths < 1e-6).any() or abs(np.linalg.det(directions / np.maximum(lengths, 1e-12))) < 1e-3:
        raise FileFormatError(f"{where}: the affine is singular: its axes do not span space. Export the image again.")
    if is_sheared(matrix) and not (may_lean and least_angle(matrix) >= _LEAST_ANGLE):
        raise FileFormatError(
            f"{where}: the affine is sheared (axes meet at {least_angle(matrix):.1f}°, not 90°). Resample it to an "
            "orthogonal grid first, for example with Slicer's Resample Scalar Volume module."
        )
    return matrix


@dataclass(frozen=True)
class Volume:
    """A scalar image.

    Args:
        array: ``(X, Y, Z)``, any real type.
        affine: ``(4, 4)`` voxel index to RAS+ mm.
        units: ``"HU"`` for CT, ``"arbitrary"`` for MR.
    """

    array: np.ndarray
    affine: np.ndarray
    units: str = "HU"

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise FileFormatError(f"A volume has three axes (X, Y, Z); got an array of shape {self.array.shape}.")
        object.__setattr__(self, "affine", check_affine(self.affine, "volume"))

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        return Grid(self.array.shape, self.affine)  # type: ignore[arg-type]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm."""
        return self.grid.spacing


@dataclass(frozen=True)
class LabelMap:
    """A segmentation: one integer per voxel, read through a label table.

    Args:
        array: ``(X, Y, Z)``, uint8; 0 is background.
        affine: ``(4, 4)`` voxel index to RAS+ mm.
        table: What the integers mean.
        source: Where the map came from, in words, for provenance.
    """

    array: np.ndarray
    affine: np.ndarray
    table: LabelTable
    source: str = ""
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise MaskError(f"A label map has three axes (X, Y, Z); got an array of shape {self.array.shape}.")
        if self.array.dtype != np.uint8:
            raise MaskError(f"A label map holds uint8 labels 0–255; got {self.array.dtype}.")
        object.__setattr__(self, "affine", check_affine(self.affine, self.source or "label map"))

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        return Grid(self.array.shape, self.affine)  # type: ignore[arg-type]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm."""
        return self.grid.spacing

    @property
    def counts(self) -> np.ndarray:
        """Voxels of each label from 0 to 255, ``(256,)``; counted anew at each call."""
        voxels = self.array.ravel(order="K")  # in the order of memory: no copy
        counts = np.zeros(256, np.int64)
        for start in range(0, voxels.size, _COUNTED_AT_ONCE):  # bincount makes a copy of 8 bytes a voxel
            counts += np.bincount(voxels[start : start + _COUNTED_AT_ONCE], minlength=256)
        return counts

    @property
    def labels(self) -> list[int]:
        """The label values present, ascending, without background; as slow as `counts`."""
        return [int(v) for v in np.flatnonzero(self.counts) if v]

    def with_array(self, array: np.ndarray, **changes: Any) -> LabelMap:
        """The same map with other voxels (and ``affine``, ``source``, ``notes`` where given)."""
        return replace(self, array=array, **changes)
