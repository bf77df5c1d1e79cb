"""Slicer's classes, from the application or from slicer-core; the one place where both packages are imported.

They are built at run time and have no type information, so they are typed as ``Any`` here.
"""

from __future__ import annotations

from typing import Any

from MAISILib.errors import MaisiError

try:
    import slicer as _slicer
    import vtk as _vtk
    from vtkmodules.util import numpy_support as _numpy_support
except ImportError as error:
    raise MaisiError(
        f"Slicer scenes need slicer-core, which is not installed ({error}). Install it: pip install slicer-maisi[scene]"
    ) from error

slicer: Any = _slicer
vtk: Any = _vtk
numpy_support: Any = _numpy_support
