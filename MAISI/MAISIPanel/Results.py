"""The images that were made or loaded, as the scene keeps them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from MAISILib.errors import FileFormatError, MaskError
from MAISILib.files.atomic import atomic_folder, write_text
from MAISILib.files.checks import file_sha256
from MAISILib.generation.mask_story import mask_story
from MAISILib.quality.case_check import hu_of, read_verdict
from MAISILib.quality.counting import counted
from MAISILib.scene import grid_of, read_mask
from MAISILib.scene.charts import show_hu_chart
from MAISILib.scene.geometry import array_of
from MAISILib.scene.nodes import (
    DIGEST_ATTRIBUTE,
    MASK_REFERENCE,
    PROVENANCE_ATTRIBUTE,
    mask_digest,
    table_of_segmentation,
)
from MAISILib.scene.results import remove_result
from MAISILib.scene.storage import write_volume_file
from MAISILib.volumes import Grid

#: On the volume node of each result. Nodes keep everything, so that a saved scene brings the results back.
_RESULT = "MAISI.Result"
_NOTES = "MAISI.Notes"
#: The slice views of Slicer's layout *Side by side*.
_SIDES = ("Red", "Yellow")


class ResultEntry:
    """One result, by its volume node.

    Args:
        volumeNode: A vtkMRMLScalarVolumeNode that MAISI has put into the scene.
    """

    def __init__(self, volumeNode: Any) -> None:
        self.volumeNode = volumeNode

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResultEntry) and other.volumeNode is self.volumeNode

    def __hash__(self) -> int:
        return hash(self.volumeNode.GetID())

    @property
    def segmentationNode(self) -> Any:
        """Its segmentation node; None where it has none, or it was deleted."""
        return self.volumeNode.GetNodeReference(MASK_REFERENCE)

    @property
    def name(self) -> str:
        """The volume's name."""
        return self.volumeNode.GetName()

    @property
    def grid(self) -> Grid:
        """Where its voxels lie, in RAS+ mm before any parent transform."""
        return grid_of(self.volumeNode)

    @property
    def provenance(self) -> dict[str, Any]:
        """How it was made; empty for loaded images without it."""
        try:
            provenance = json.loads(self.volumeNode.GetAttribute(PROVENANCE_ATTRIBUTE) or "{}")
        except ValueError:
            return {}
        return provenance if isinstance(provenance, dict) else {}

    @property
    def seed(self) -> int | None:
        """The seed of the request that made it."""
        seed = _at(self.provenance, "request", "seed")
        return seed if isinstance(seed, int) else None

    @property
    def bundle(self) -> str:
        """Name of the bundle that made it; empty where unknown."""
        return str(_at(self.provenance, "bundle", "name") or "")

    @property
    def verdict(self) -> str:
        """What the check of image and mask came to: passed, unusual, failed or not checked."""
        return read_verdict(self.provenance.get("quality"))[0]

    @property
    def qualityStory(self) -> list[str]:
        """The verdict, and why: what was found wrong with image and mask, the worst first."""
        verdict, findings = read_verdict(self.provenance.get("quality"))
        if findings:
            return [f"{verdict}: {findings[0]}", *findings[1:]]
        organs = self.checkedOrgans
        return [f"{verdict} ({counted(organs, 'organ')} with known HU)" if organs else verdict]

    @property
    def checkedOrgans(self) -> int:
        """How many organs were compared with the HU that they have in patients."""
        return len(hu_of(self.provenance.get("quality")))

    @property
    def maskStory(self) -> list[str]:
        """What became of the wishes for its mask: sizes of organs beside what was asked for, a new lesion."""
        try:
            return mask_story(self.provenance.get("mask_source"))
        except (AttributeError, KeyError, TypeError, ValueError):  # a provenance from elsewhere
            return []

    @property
    def seconds(self) -> float | None:
        """How long it took to make."""
        seconds = self.provenance.get("seconds")
        return float(sum(seconds.values())) if isinstance(seconds, dict) else None

    @property
    def notes(self) -> list[str]:
        """What the user should know of it, such as what was changed in the segmentation."""
        return json.loads(self.volumeNode.GetAttribute(_NOTES) or "[]")

    def keep(self, notes: list[str]) -> None:
        """Marks the volume as a result, with what the user should know of it."""
        self.volumeNode.SetAttribute(_RESULT, "1")
        self.volumeNode.SetAttribute(_NOTES, json.dumps(notes, ensure_ascii=False))

    def writeReplay(self, folder: Path) -> Path:
        """Writes the provenance that the engine makes it again from.

        A segmentation of the user was only lent to the engine; it is written again from the result's own segmentation.

        Args:
            folder: Where to.

        Returns:
            The file.

        Raises:
            FileFormatError: It was not made by MAISI.
            MaskError: Its segmentation was deleted or edited.
            OutputError: The files cannot be written.
        """
        provenance = self.provenance
        if not self.bundle:
            raise FileFormatError(
                f"'{self.name}' was loaded without its provenance; only generated images can be replayed."
            )
        if _at(provenance, "mask_source", "kind") == "file":
            if any(_at(provenance, "mask_source", change) for change in ("variation", "insertion")):
                raise MaskError(
                    f"The mask of '{self.name}' was changed while generating, and the scene has only what it became. "
                    "Replay its folder instead: maisi generate --replay provenance.json."
                )
            source = self._writeMask(folder / "replay-mask.nrrd")
            request = {**provenance["request"], "mask_ct": None}
            provenance = {**provenance, "mask_source": source, "request": request}
        path = folder / "provenance.json"
        write_text(path, json.dumps(provenance, ensure_ascii=False))
        return path

    def _writeMask(self, path: Path) -> dict[str, Any]:
        if self.segmentationNode is None:
            raise MaskError(f"The segmentation of '{self.name}' was deleted; it is needed to replay the image.")
        mask, _ = self._mask()
        if mask_digest(mask) != self.volumeNode.GetAttribute(DIGEST_ATTRIBUTE):
            raise MaskError(
                f"The segmentation '{self.segmentationNode.GetName()}' was edited since '{self.name}' was made for it. "
                "Generate an image for it instead of replaying."
            )
        write_volume_file(mask.array, mask.affine, path, is_compressed=False)
        return {"kind": "file", "path": str(path), "sha256": file_sha256(path), "notes": []}

    def _mask(self) -> tuple[Any, Any]:
        """Its label map on its own grid, and the label table."""
        table = table_of_segmentation(self.segmentationNode, self.provenance)
        return read_mask(self.segmentationNode, table, self.volumeNode), table

    def save(self, folder: Path) -> list[Path]:
        """Writes it as a result folder, which `MAISILogic.loadResult` reads: image, mask, label table, provenance.

        Args:
            folder: To make; an earlier result there is replaced, other files are not.

        Returns:
            The files.

        Raises:
            OutputError: The folder cannot be written.
            MaskError: A segment that was added has no label.
        """
        with atomic_folder(folder, replaces="image.nii.gz") as staging:
            affine = self.grid.affine
            write_volume_file(array_of(self.volumeNode.GetImageData()), affine, staging / "image.nii.gz")
            if self.segmentationNode is not None:
                mask, table = self._mask()
                write_volume_file(mask.array, affine, staging / "mask.nii.gz")
                table.write(staging / "labels.csv")
            if self.provenance:
                text = json.dumps(self.provenance, indent=2, ensure_ascii=False) + "\n"
                write_text(staging / "provenance.json", text)
        return sorted(folder.iterdir())


class ResultList:
    """All results of a scene, oldest first.

    Args:
        scene: A vtkMRMLScene.
    """

    def __init__(self, scene: Any) -> None:
        self.scene = scene

    @property
    def entries(self) -> list[ResultEntry]:
        """The results whose volume is in the scene."""
        nodes = self.scene.GetNodesByClass("vtkMRMLScalarVolumeNode")
        nodes.UnRegister(None)
        each = (nodes.GetItemAsObject(number) for number in range(nodes.GetNumberOfItems()))
        return [ResultEntry(node) for node in each if node.GetAttribute(_RESULT)]

    def show(self, entry: ResultEntry) -> None:
        """Shows a result in the slice views, and hides the segmentations of the others."""
        for other in self.entries:
            if other.segmentationNode is not None and other.segmentationNode.GetDisplayNode() is not None:
                other.segmentationNode.GetDisplayNode().SetVisibility(other == entry)
        for composite in self._composites():
            composite.SetBackgroundVolumeID(entry.volumeNode.GetID())
            composite.SetForegroundVolumeID(None)
        _fitSlices()

    def compare(self, first: Any, second: Any) -> str:
        """Shows two results side by side, linked, and says how far their voxels differ.

        Args:
            first: A `ResultEntry`, or its volume node.
            second: Another one.

        Returns:
            One line for people.
        """
        import slicer

        one, other = (each if isinstance(each, ResultEntry) else ResultEntry(each) for each in (first, second))
        layout = self.scene.GetFirstNodeByClass("vtkMRMLLayoutNode")
        if layout is not None:
            layout.SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutSideBySideView)
        sides = {composite.GetLayoutName(): composite for composite in self._composites()}
        for name, entry in zip(_SIDES, (one, other), strict=True):
            composite = sides.get(name)
            if composite is None:  # a scene without views
                continue
            composite.SetLinkedControl(True)
            composite.SetBackgroundVolumeID(entry.volumeNode.GetID())
            composite.SetForegroundVolumeID(None)
        for entry in (one, other):
            if entry.segmentationNode is not None and entry.segmentationNode.GetDisplayNode() is not None:
                entry.segmentationNode.GetDisplayNode().SetVisibility(True)
        _fitSlices()
        self._turnAlike(*_SIDES)
        return _difference(one, other)

    def save(self, entry: ResultEntry, folder: str | Path) -> list[Path]:
        """Writes a result as a folder; see `ResultEntry.save`."""
        return entry.save(Path(folder))

    def chart(self, entry: ResultEntry) -> Any:
        """Shows the per-organ HU chart of a result; it is made, with its table, when first asked for.

        Returns:
            The vtkMRMLPlotChartNode.

        Raises:
            MaskError: It has no segmentation to measure.
        """
        chart = self.makeChart(entry)
        plots = getattr(getattr(sys.modules.get("slicer"), "modules", None), "plots", None)
        if plots is not None:  # else there is no application to show it
            plots.logic().ShowChartInLayout(chart)
        return chart

    def makeChart(self, entry: ResultEntry) -> Any:
        """`chart` without showing it."""
        return show_hu_chart(self.scene, entry.volumeNode, entry.segmentationNode).chart

    def delete(self, entry: ResultEntry) -> None:
        """Removes a result from the scene, with its segmentation, table, chart and folder."""
        remove_result(self.scene, entry.volumeNode)

    def _turnAlike(self, left: str, right: str) -> None:
        """Both views show the same plane: fitting turns each to its own, and the second one's is sagittal."""
        nodes = [self.scene.GetNodeByID(f"vtkMRMLSliceNode{name}") for name in (left, right)]
        if None not in nodes:
            nodes[1].GetSliceToRAS().DeepCopy(nodes[0].GetSliceToRAS())
            nodes[1].UpdateMatrices()
            nodes[1].SetFieldOfView(*nodes[0].GetFieldOfView())

    def _composites(self) -> list[Any]:
        nodes = self.scene.GetNodesByClass("vtkMRMLSliceCompositeNode")
        nodes.UnRegister(None)
        return [nodes.GetItemAsObject(number) for number in range(nodes.GetNumberOfItems())]


def _fitSlices() -> None:
    """Zooms the slice views to their images; only the application can."""
    import slicer

    application: Any = getattr(slicer, "app", None)
    if hasattr(application, "applicationLogic"):
        application.applicationLogic().FitSliceToAll()


def _difference(one: ResultEntry, other: ResultEntry) -> str:
    if not one.grid.same_as(other.grid):
        return "The images have different grids."
    arrays = [array_of(each.volumeNode.GetImageData()) for each in (one, other)]
    differing = int(np.count_nonzero(arrays[0] != arrays[1]))
    if not differing:
        return "The images have identical voxels."
    gap = np.abs(np.subtract(arrays[0], arrays[1], dtype=np.float32))
    share = 100 * differing / arrays[0].size
    return f"{share:.3g} % of the voxels differ, by {gap.mean():.3g} on average and {gap.max():.3g} at most."


def _at(tree: Any, *keys: str) -> Any:
    """What lies deep in a provenance, which may come from elsewhere; None where it does not have that."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree
