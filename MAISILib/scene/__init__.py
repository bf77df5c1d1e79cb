"""The engine's results in 3D Slicer's scene (MRML): volumes, segmentations and scene files.

The only room that imports ``slicer`` and ``vtk``. Works inside the Slicer application and, with slicer-core from PyPI,
outside it.
"""

from __future__ import annotations

from MAISILib.scene.geometry import grid_of, read_volume
from MAISILib.scene.nodes import show, show_mask
from MAISILib.scene.scenes import load, new_scene, save
from MAISILib.scene.segments import read_mask

__all__ = ["grid_of", "load", "new_scene", "read_mask", "read_volume", "save", "show", "show_mask"]
