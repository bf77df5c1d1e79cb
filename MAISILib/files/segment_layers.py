"""Structures that may overlap, gathered into as few label images as they need."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from MAISILib.errors import FileFormatError
from MAISILib.files.checks import check_size

#: More structures than any program lets overlap at one place; each further layer costs a whole image.
MAX_LAYERS = 16
_BYTES = np.dtype(np.uint16).itemsize

Box = tuple[slice, slice, slice]


class SegmentLayers:
    """Label images in which structures are numbered; those that overlap lie in different images.

    Args:
        shape: Voxels ``(X, Y, Z)``.
        path: For messages.

    Raises:
        FileFormatError: An image of this size does not fit into the memory.
    """

    def __init__(self, shape: tuple[int, int, int], path: Path) -> None:
        check_size(shape, _BYTES, path, stored=shape[0] * shape[1] * shape[2] * _BYTES, compressed=False)
        self._shape, self._path = shape, path
        self._layers: list[np.ndarray] = []
        self._largest: list[int] = []

    def add(self, inside: np.ndarray, box: Box) -> tuple[int, int]:
        """Writes a structure into the first image where it overlaps nothing.

        Args:
            inside: Its voxels in ``box``, bool.
            box: Where they lie.

        Returns:
            The structure's number, and the image.

        Raises:
            FileFormatError: Too many structures overlap, or the memory does not suffice.
        """
        index = next((i for i, layer in enumerate(self._layers) if not layer[box][inside].any()), len(self._layers))
        if index == MAX_LAYERS:
            raise FileFormatError(
                f"{self._path}: more than {MAX_LAYERS} structures overlap at one place. Export fewer of them at once."
            )
        if index == len(self._layers):
            voxels = self._shape[0] * self._shape[1] * self._shape[2]
            check_size(self._shape, _BYTES, self._path, stored=voxels * _BYTES, compressed=False)
            self._layers.append(np.zeros(self._shape, np.uint16))
            self._largest.append(0)
        self._largest[index] += 1
        self._layers[index][box][inside] = self._largest[index]
        return self._largest[index], index

    def stacked(self) -> np.ndarray:
        """All images, ``(X, Y, Z, L)`` uint16; one empty image where there are no structures."""
        if len(self._layers) < 2:
            return (self._layers[0] if self._layers else np.zeros(self._shape, np.uint16))[..., None]
        return np.stack(self._layers, axis=-1)


def box_around(array: np.ndarray) -> Box | None:
    """The smallest box around all voxels ``(X, Y, Z)`` that are not 0; ``None`` where there are none."""
    across = (array != 0).any(axis=2)
    if not across.any():
        return None
    x, y = _span(across.any(axis=1)), _span(across.any(axis=0))
    return x, y, _span((array[x, y] != 0).any(axis=(0, 1)))


def _span(filled: np.ndarray) -> slice:
    found = np.flatnonzero(filled)
    return slice(int(found[0]), int(found[-1]) + 1)
