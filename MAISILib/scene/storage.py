"""Volume files in and out by Slicer's storage nodes, for a Python that has no other library for that."""

from __future__ import annotations

import gzip
import shutil
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from MAISILib.errors import FileFormatError, OutputError
from MAISILib.files.atomic import atomic_path, output_error
from MAISILib.files.checks import check_is_file, unreadable
from MAISILib.scene.geometry import fill_image, matrix_of
from MAISILib.scene.mrml import slicer, vtk

#: Read and unpacked at a time: about a tenth of a second.
_BLOCK = 16 * 2**20


def read_volume_file(path: Path, named: Path | None = None) -> Any:
    """Reads an image or a label map of any format that Slicer knows.

    Args:
        path: The file.
        named: What errors call it, where it is a temporary copy of another.

    Returns:
        A vtkMRMLScalarVolumeNode that is in no scene, in the file's voxel order.

    Raises:
        FileFormatError: The file is missing, cannot be read, or is no grey-value image with three axes.
    """
    check_is_file(path)
    node, storage = slicer.vtkMRMLScalarVolumeNode(), slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    storage.SetSingleFile(1)
    storage.SetForceRightHandedIJKCoordinateSystem(0)  # else voxels of a left-handed grid come in another order
    if not storage.ReadData(node) or node.GetImageData() is None or 0 in node.GetImageData().GetDimensions():
        raise FileFormatError(f"{named or path} cannot be read as a grey-value image. Load it in Slicer to see why.")
    if min(node.GetImageData().GetDimensions()) < 2:
        raise FileFormatError(f"{named or path} is a single slice; a 3D image is needed.")
    return node


def write_volume_file(array: np.ndarray, affine: np.ndarray, path: Path, *, is_compressed: bool = True) -> None:
    """Writes voxels as a file, as a whole or not at all.

    Args:
        array: ``(X, Y, Z)``, any real type.
        affine: ``(4, 4)`` voxel index to RAS+ mm. ``.nrrd`` keeps it as it is; ``.nii`` rounds it to 32 bits.
        path: ``.nrrd``, ``.nii``, ``.nii.gz``.
        is_compressed: For ``.nrrd``.

    Raises:
        OutputError: The file cannot be written.
    """
    node = slicer.vtkMRMLScalarVolumeNode()
    image = vtk.vtkImageData()
    fill_image(image, array)
    node.SetAndObserveImageData(image)
    node.SetIJKToRASMatrix(matrix_of(affine))
    is_nrrd = path.suffix.lower() == ".nrrd"
    storage = slicer.vtkMRMLNRRDStorageNode() if is_nrrd else slicer.vtkMRMLVolumeArchetypeStorageNode()
    with atomic_path(path) as temporary:
        storage.SetFileName(str(temporary))
        storage.SetUseCompression(int(is_compressed))
        if not storage.WriteData(node) or not temporary.is_file():
            free = shutil.disk_usage(path.parent).free
            raise OutputError(
                f"Cannot write {path}: {free / 2**30:.1f} GiB are free there. Free some, or choose another folder."
            )


def unpacked(path: Path, folder: Path) -> Generator[None, None, Path]:
    """Unpacks a ``.gz`` file into a folder in short steps; gives back the path itself where it is not packed.

    Raises:
        FileFormatError: The file is missing or damaged.
        OutputError: The disk is full.
    """
    check_is_file(path)
    if path.suffix.lower() != ".gz":
        return path
    target = folder / path.with_suffix("").name
    try:
        output = target.open("wb")
    except OSError as error:
        raise output_error(target, error) from error
    with output, gzip.open(path) as packed:
        while block := _read(packed, path):
            try:
                output.write(block)
            except OSError as error:
                raise output_error(target, error) from error
            yield
    return target


def _read(packed: Any, path: Path) -> bytes:
    try:
        return packed.read(_BLOCK)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error
