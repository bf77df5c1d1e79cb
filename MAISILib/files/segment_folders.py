"""A folder with one file for each structure, as segmentation programs write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from MAISILib.errors import FileFormatError, MaskError
from MAISILib.files import nifti, nrrd
from MAISILib.files.segmentations import Segment, Segmentation
from MAISILib.volumes import Grid

_SUFFIXES = (*nifti.SUFFIXES, *nrrd.SUFFIXES)


def read_segment_folder(folder: Path | str) -> Segmentation:
    """Reads a folder of structures: each file is one, named as the file, and every voxel that is not 0 belongs to it.

    Args:
        folder: Holds NIfTI or NRRD files on one grid; files of other kinds are passed over.

    Returns:
        Structures that do not overlap share a layer. Empty structures are left out, with a note.

    Raises:
        FileFormatError: No structures there, a file cannot be read, or two files have different grids.
        MaskError: A file is no structure: it holds several numbers, or fractions.
    """
    folder = Path(folder)
    try:
        paths = sorted(path for path in folder.iterdir() if path.name.lower().endswith(_SUFFIXES))
    except OSError as error:
        raise FileFormatError(f"{folder} cannot be read as a folder: {error.strerror or error}.") from None
    layers: list[np.ndarray] = []
    segments: list[Segment] = []
    empty: list[str] = []
    first: tuple[Path, Grid] | None = None
    for path in paths:
        is_nifti = path.name.lower().endswith(nifti.SUFFIXES)
        array, affine = nifti.read_array(path) if is_nifti else nrrd.read_array(path)[:2]
        grid = Grid(array.shape, affine)  # type: ignore[arg-type]
        if first is None:
            first = path, grid
        elif not grid.same_as(first[1], tolerance=0.01):
            raise FileFormatError(
                f"{path} lies on another grid than {first[0].name} ({_times(grid)} against {_times(first[1])}, or "
                "another place). Export all structures on one grid."
            )
        name = _name(path)
        box = _box(array)
        if box is None:
            empty.append(name)
            continue
        content = array[box]
        inside = content != 0
        values = content[inside]
        if not (values == values[0]).all():
            raise MaskError(
                f"{path} is no single structure: it holds several values. Give a label map as a file of its own; "
                "make a structure of probabilities with a threshold first."
            )
        segments.append(_placed(inside, box, name, grid, layers))
    if first is None:
        raise FileFormatError(f"{folder} holds no structures ({', '.join(_SUFFIXES)}).")
    notes = (f"Empty structures were left out: {', '.join(empty)}.",) if empty else ()
    stack = np.stack(layers, axis=-1) if layers else np.zeros((*first[1].shape, 1), np.uint16)
    return Segmentation(stack, first[1].affine, tuple(segments), notes)


def _box(array: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Around all voxels that are not 0; ``None`` where there are none."""
    across = (array != 0).any(axis=2)
    if not across.any():
        return None
    x, y = (_span(across.any(axis=1)), _span(across.any(axis=0)))
    return x, y, _span((array[x, y] != 0).any(axis=(0, 1)))


def _span(filled: np.ndarray) -> slice:
    found = np.flatnonzero(filled)
    return slice(int(found[0]), int(found[-1]) + 1)


def _placed(
    inside: np.ndarray, box: tuple[slice, slice, slice], name: str, grid: Grid, layers: list[np.ndarray]
) -> Segment:
    """Writes a structure into the first layer where it overlaps nothing."""
    index = next((i for i, layer in enumerate(layers) if not layer[box][inside].any()), len(layers))
    if index == len(layers):
        layers.append(np.zeros(grid.shape, np.uint16))
    value = int(layers[index].max()) + 1
    layers[index][box][inside] = value
    return Segment(name, value, index)


def _name(path: Path) -> str:
    name = path.name
    suffix = next(s for s in (".seg.nrrd", *sorted(_SUFFIXES, key=len, reverse=True)) if name.lower().endswith(s))
    return name[: -len(suffix)]


def _times(grid: Grid) -> str:
    return f"{' × '.join(map(str, grid.shape))} voxels of {' × '.join(f'{s:.4g}' for s in grid.spacing)} mm"
