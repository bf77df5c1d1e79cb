"""A folder with one file for each structure, as segmentation programs write them."""

from __future__ import annotations

from pathlib import Path

from MAISILib.errors import FileFormatError, MaskError
from MAISILib.files import nifti, nrrd
from MAISILib.files.segment_layers import SegmentLayers, box_around
from MAISILib.files.segmentations import Segment, Segmentation
from MAISILib.files.straightening import straightened
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
    layers: SegmentLayers | None = None
    segments: list[Segment] = []
    empty: list[str] = []
    first: tuple[Path, Grid] | None = None
    for path in paths:
        is_nifti = path.name.lower().endswith(nifti.SUFFIXES)
        read = nifti.read_array if is_nifti else nrrd.read_array
        array, affine = read(path, may_lean=True)[:2]
        grid = Grid(array.shape, affine)  # type: ignore[arg-type]
        if first is None or layers is None:
            first, layers = (path, grid), SegmentLayers(grid.shape, folder)
        elif not grid.same_as(first[1], tolerance=0.01):
            raise FileFormatError(
                f"{path} lies on another grid than {first[0].name} ({_times(grid)} against {_times(first[1])}, or "
                "another place). Export all structures on one grid."
            )
        name = _name(path)
        box = box_around(array)
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
        segments.append(Segment(name, *layers.add(inside, box)))
    if first is None or layers is None:
        raise FileFormatError(f"{folder} holds no structures ({', '.join(_SUFFIXES)}).")
    array, affine, notes = straightened(layers.stacked(), first[1].affine, folder)
    left_out = (f"Empty structures were left out: {', '.join(empty)}.",) if empty else ()
    return Segmentation(array, affine, tuple(segments), (*notes, *left_out))


def _name(path: Path) -> str:
    name = path.name
    suffix = next(s for s in (".seg.nrrd", *sorted(_SUFFIXES, key=len, reverse=True)) if name.lower().endswith(s))
    return name[: -len(suffix)]


def _times(grid: Grid) -> str:
    return f"{' × '.join(map(str, grid.shape))} voxels of {' × '.join(f'{s:.4g}' for s in grid.spacing)} mm"
