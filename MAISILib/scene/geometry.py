"""Arrays and grids of the engine ↔ image data and matrices of VTK.

Both sides use RAS+ mm, so an affine is Slicer's IJK-to-RAS matrix. VTK stores the first voxel axis fastest.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from MAISILib.errors import MaisiError, MaskError
from MAISILib.scene.mrml import numpy_support, slicer, vtk
from MAISILib.volumes import Grid, Volume

#: Types that VTK or NRRD lack → the next wider one.
_WIDENED = {np.dtype(np.bool_): np.uint8, np.dtype(np.float16): np.float32}


def grid_of(volume_node: Any) -> Grid:
    """The voxel grid of a volume node, in the node's own coordinates (before any parent transform).

    Raises:
        MaisiError: The node holds no image.
    """
    image = volume_node.GetImageData()
    if image is None or 0 in image.GetDimensions():
        raise MaisiError(f"The volume '{volume_node.GetName()}' is empty. Load or generate an image first.")
    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    return Grid(image.GetDimensions(), affine_of(matrix))


def read_volume(volume_node: Any, units: str = "HU") -> Volume:
    """A copy of a scalar volume node's image.

    Raises:
        MaisiError: The node holds no image, or a colour image.
        FileFormatError: Its geometry is singular or sheared.
    """
    grid = grid_of(volume_node)
    image = volume_node.GetImageData()
    if image.GetNumberOfScalarComponents() != 1:
        raise MaisiError(f"The volume '{volume_node.GetName()}' is a colour image; a grey-value image is needed.")
    return Volume(array_of(image).copy(order="C"), grid.affine, units)


def affine_of(matrix: Any) -> np.ndarray:
    """A vtkMatrix4x4 as ``(4, 4)`` float64."""
    return np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])


def matrix_of(affine: np.ndarray) -> Any:
    """``(4, 4)`` as a vtkMatrix4x4."""
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(np.asarray(affine, dtype=float).ravel().tolist())
    return matrix


def array_of(image: Any) -> np.ndarray:
    """A view of the voxels ``(X, Y, Z)`` of a vtkImageData with one component."""
    return numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions(), order="F")


def fill_image(image: Any, array: np.ndarray) -> None:
    """Gives a vtkImageData a copy of the voxels ``(X, Y, Z)``."""
    array = array.astype(_WIDENED.get(array.dtype, array.dtype.newbyteorder("=")), copy=False)
    scalars = numpy_support.numpy_to_vtk(array.ravel(order="F"), deep=True)
    scalars.SetName("ImageScalars")
    image.SetDimensions(*array.shape)
    image.GetPointData().SetScalars(scalars)


def transform_between(source_node: Any, target_node: Any) -> np.ndarray:
    """The matrix ``(4, 4)`` from one node's coordinates to another's (world coordinates where the target is None).

    Raises:
        MaskError: There is a non-linear transform in between.
    """
    matrix = vtk.vtkMatrix4x4()
    target = target_node.GetParentTransformNode() if target_node is not None else None
    source = source_node.GetParentTransformNode()
    if source is not target and not slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(source, target, matrix):
        raise MaskError(
            f"'{source_node.GetName()}' is under a non-linear transform. Harden it first (Transforms module)."
        )
    return affine_of(matrix)
