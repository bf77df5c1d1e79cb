"""A folder with one file for each structure, as segmentation programs write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from MAISILib.errors import FileFormatError, MaskError
from MAISILib.files import nifti, nrrd
from MAISILib.files.segmentations import Segment, Segmentation
from MAISILib.volumes import Grid


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
        paths = sorted(
            path for path in folder.iterdir() if path.name.lower().endswith((*nifti.SUFFIXES, *nrrd.SUFFIXES))
        )
    except OSError as error:
        raise FileFormatError(f"{folder} cannot be read as a folder: {error.strerror or error}.") from None
    layers: list[np.ndarray] = []
    segments: list[Segment] = []
    empty: list[str] = []
    first: tuple[Path, Grid] | None = None
    for path in paths:
        array, affine = (
            nifti.read_array(path) if path.name.lower().endswith(nifti.SUFFIXES) else nrrd.read_array(path)[:2]
        )
        grid = Grid(array.shape, affine)  # type: ignore[arg-type]
        if first is None:
            first = path, grid
        elif not grid.same_as(first[1], tolerance=0.01):
            raise FileFormatError(
                f"{path} lies on another grid than {first[0].name} ({_times(grid)} against {_times(first[1])}, or "
                "another place). Export all structures on one grid."
            )
        name = _name(path)
        inside = array != 0
        values = {float(array.min()), float(array.max())} - {0.0}
        if len(values) > 1 or (values and not (array[inside] == values.copy().pop()).all()):
            raise MaskError(
                f"{path} is no single structure: it holds several values. Give a label map as a file of its own; "
                "make a structure of probabilities with a threshold first."
            )
        if not values:
            empty.append(name)
            continue
        segments.append(_placed(inside, name, layers))
    if first is None:
        raise FileFormatError(f"{folder} holds no structures ({', '.join((*nifti.SUFFIXES, *nrrd.SUFFIXES))}).")
    notes = (f"Empty structures were left out: {', '.join(empty)}.",) if empty else ()
    stack = np.stack(layers, axis=-1) if layers else np.zeros((*first[1].shape, 1), np.uint16)
    return Segmentation(stack, first[1].affine, tuple(segments), notes)


def _placed(inside: np.ndarray, name: str, layers: list[np.ndarray]) -> Segment:
    """Writes a structure into the first layer where it overlaps nothing."""
    spans = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    box = tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    own = inside[box]
    index = next((i for i, layer in enumerate(layers) if not layer[box][own].any()), len(layers))
    if index == len(layers):
        layers.append(np.zeros(inside.shape, np.uint16))
    value = int(layers[index].max()) + 1
    layers[index][box][own] = value
    return Segment(name, value, index)


def _name(path: Path) -> str:
    name = path.name
    for suffix in (".seg.nrrd", ".nii.gz", *nifti.SUFFIXES, *nrrd.SUFFIXES):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _times(grid: Grid) -> str:
    return f"{' × '.join(map(str, grid.shape))} voxels of {' × '.join(f'{s:.4g}' for s in grid.spacing)} mm"
