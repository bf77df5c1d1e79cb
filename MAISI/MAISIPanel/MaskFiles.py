"""The mask files that the engine gets for a segmentation of the scene."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from MAISILib.errors import BundleError, MaskError
from MAISILib.files.atomic import output_error
from MAISILib.scene.label_tables import table_of_bundle
from MAISILib.scene.users_masks import write_users_mask


def temporaryFolder() -> Path:
    """An empty folder where Slicer keeps its temporary files.

    Raises:
        OutputError: It cannot be made.
    """
    place = getattr(getattr(sys.modules.get("slicer"), "app", None), "temporaryPath", None)
    parent = Path(str(place)) if place and Path(str(place)).is_dir() else Path(tempfile.gettempdir())
    try:
        return Path(tempfile.mkdtemp(prefix="maisi-", dir=parent))
    except OSError as error:
        raise output_error(parent / "maisi", error) from error


def isThere(node: Any) -> bool:
    """Whether a node is given and still in its scene."""
    return node is not None and node.GetScene() is not None


def labelTable(bundle: str, listed: dict[str, Any]) -> Any:
    """The label table of a bundle.

    Args:
        bundle: Name in the catalogue, or a folder.
        listed: The engine's answer to ``bundles``.

    Raises:
        BundleError: It is not on this computer.
    """
    folders = [each.get("folder") for each in listed.get("bundles", []) if each.get("name") == bundle]
    folder = folders[0] if folders else bundle if Path(bundle).is_dir() else None
    if not folder:
        raise BundleError(f"The model '{bundle}' is not installed. Choose another one, or download it first.")
    return table_of_bundle(Path(folder))


def writeMask(segmentation: Any, reference: Any, table: Any, folder: Path) -> tuple[dict[str, str], Any]:
    """Writes a segmentation for the engine.

    Args:
        segmentation: vtkMRMLSegmentationNode.
        reference: Volume node on whose grid the image shall be; None, or deleted, for the segmentation's own geometry.
        table: Label table of the bundle.
        folder: Where to.

    Returns:
        The fields of a request that say where the mask is, and what ``write_users_mask`` returned.

    Raises:
        MaskError: The segmentation was deleted, or cannot be used.
        OutputError: The files cannot be written.
    """
    if not isThere(segmentation):
        raise MaskError("The segmentation was deleted before the engine had it. Choose another one.")
    written = write_users_mask(segmentation, table, folder, reference if isThere(reference) else None)
    fields = {"mask": "file", "mask_file": str(written.mask)}
    return (fields if written.ct is None else {**fields, "mask_ct": str(written.ct)}), written


class PlannedMask:
    """Keeps the mask files of the segmentation that was planned for last.

    A plan is asked for at each change of a parameter, and the segmentation is seldom what has changed.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._folder: Path | None = None
        self._fields: dict[str, str] = {}

    def fields(self, segmentation: Any, reference: Any, table: Any) -> dict[str, str]:
        """As `writeMask`, which is called again only where something has changed."""
        key = (table.name, len(table), *map(_state, (segmentation, reference)))
        if key != self._key or not Path(self._fields["mask_file"]).is_file():
            self.remove()
            self._folder = temporaryFolder()
            self._fields, _ = writeMask(segmentation, reference, table, self._folder)
            self._key = key
        return self._fields

    def remove(self) -> None:
        """Removes the files."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._key, self._folder = (), None


def _state(node: Any) -> tuple[Any, ...]:
    """What is another one when a node's voxels, the names of its segments or its place have changed."""
    if not isThere(node):
        return ()
    transform = node.GetParentTransformNode()
    state = [node.GetID(), node.GetTransformNodeID(), transform.GetMTime() if transform is not None else 0]
    if node.IsA("vtkMRMLSegmentationNode"):
        segmentation = node.GetSegmentation()
        for segmentID in segmentation.GetSegmentIDs():
            segment = segmentation.GetSegment(segmentID)
            source = segment.GetRepresentation(segmentation.GetSourceRepresentationName())
            state += [segmentID, segment.GetMTime(), source.GetMTime() if source is not None else 0]
    else:
        state += [node.GetMTime(), node.GetImageData().GetMTime() if node.GetImageData() is not None else 0]
    return tuple(state)
