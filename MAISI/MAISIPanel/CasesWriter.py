"""Pairs of volume and segmentation nodes → a folder with ``cases.json``, as the engine's fine-tuning reads it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MAISILib.errors import MaskError, OutputError, RequestError
from MAISILib.files.atomic import atomic_folder
from MAISILib.files.segmentations import LABEL_TAG
from MAISILib.scene.geometry import affine_of, array_of, grid_of, matrix_of, transform_between
from MAISILib.scene.mrml import slicer, vtk
from MAISILib.scene.segments import tag_of, terminology_of

CASES_NAME = "cases.json"
#: Voxels that are counted at a time: numpy takes eight bytes for each.
_BLOCK = 4 * 2**20
#: What the engine does not take in the name of a case, and what no file system likes at its ends.
_NOT_IN_NAMES = re.compile(r'[/\\:*?"<>|\x00-\x1f]+')


@dataclass(frozen=True)
class CasePair:
    """One case of a fine-tuning.

    Args:
        volumeNode: vtkMRMLScalarVolumeNode, CT or MR.
        segmentationNode: vtkMRMLSegmentationNode, on any grid; what is labelled in the volume.
    """

    volumeNode: Any
    segmentationNode: Any


def writeCases(
    pairs: Sequence[CasePair], folder: Path, onCase: Callable[[int, int], object] = lambda number, count: None
) -> Path:
    """Writes the pairs' images (``.nrrd``) and segmentations (``.seg.nrrd``) with their list, all of them or nothing.

    Transforms of the nodes are taken into account: an image stays on its voxels, and the segmentation comes to lie
    where the scene shows it.

    Args:
        pairs: At least one.
        folder: To make; one that an earlier call has made is replaced.
        onCase: Called before each case with its number, from 1, and how many there are. A large one takes seconds.

    Returns:
        The list, ``folder/cases.json``.

    Raises:
        RequestError: No pairs, or the same pair twice.
        MaisiError: A node has no voxels, has colours in place of grey values, or lies under a non-linear transform.
        OutputError: The folder cannot be written.
    """
    if not pairs:
        raise RequestError("There are no cases. Add a volume with its segmentation.")
    ids = [(pair.volumeNode.GetID(), pair.segmentationNode.GetID()) for pair in pairs]
    if len(set(ids)) < len(ids):
        raise RequestError("A volume stands twice in the list with the same segmentation. Remove one of them.")
    cases = []
    with atomic_folder(folder, CASES_NAME) as staging:
        for number, (pair, name) in enumerate(zip(pairs, caseNames(pairs), strict=True), start=1):
            onCase(number, len(pairs))
            image, segmentation = f"case-{number}.nrrd", f"case-{number}.seg.nrrd"
            _write(_asVolume(pair.volumeNode), slicer.vtkMRMLNRRDStorageNode(), staging / image, folder)
            _write(_asVoxels(pair), slicer.vtkMRMLSegmentationStorageNode(), staging / segmentation, folder)
            cases.append({"name": name, "image": image, "segmentation": segmentation})
        text = json.dumps({"cases": cases}, indent=2, ensure_ascii=False) + "\n"
        (staging / CASES_NAME).write_text(text, encoding="utf-8", newline="\n")
    return folder / CASES_NAME


def caseNames(pairs: Sequence[CasePair]) -> list[str]:
    """A name for each pair that is unique, whatever the case of its letters: the volume's, with a number if needed."""
    names: list[str] = []
    taken: set[str] = set()
    for pair in pairs:
        wanted = " ".join(_NOT_IN_NAMES.sub(" ", pair.volumeNode.GetName() or "").split())[:80].strip(" .") or "case"
        name, number = wanted, 1
        while name.casefold() in taken:
            number += 1
            name = f"{wanted} {number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def segmentsOf(pairs: Sequence[CasePair]) -> list[dict[str, str]]:
    """The segments of all pairs that have voxels, each name once: ``{"name", "terminology", "tag"}``.

    ``tag`` is the label value that MAISI's own segments carry; empty for others.
    """
    segments: dict[str, dict[str, str]] = {}
    present: dict[str, set[int]] = {}
    for pair in pairs:
        segmentation = pair.segmentationNode.GetSegmentation()
        for segmentId in segmentation.GetSegmentIDs():
            segment = segmentation.GetSegment(segmentId)
            name = segment.GetName() or segmentId
            if name not in segments and not _isEmpty(segment, present):
                tag = tag_of(segment, LABEL_TAG)
                segments[name] = {"name": name, "terminology": terminology_of(segment), "tag": tag}
    return list(segments.values())


def _isEmpty(segment: Any, present: dict[str, set[int]]) -> bool:
    """Whether a segment has been added but not drawn; one that was made from a surface counts as drawn.

    Args:
        segment: A vtkSegment.
        present: Values in the images that were looked at so far: many segments may share one image.
    """
    binary = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    image = segment.GetRepresentation(binary)
    if image is None:
        surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
        return segment.GetRepresentation(surface) is None
    if min(image.GetDimensions()) < 1 or image.GetPointData().GetScalars() is None:
        return True
    address = image.GetAddressAsString("vtkObject")
    if address not in present:
        voxels = array_of(image).ravel(order="F")
        blocks = (voxels[start : start + _BLOCK] for start in range(0, len(voxels), _BLOCK))
        counts = (np.bincount(np.maximum(block, 0).astype(np.intp)) for block in blocks)
        present[address] = {int(value) for count in counts for value in np.flatnonzero(count)}
    return segment.GetLabelValue() not in present[address]


def _asVolume(node: Any) -> Any:
    """The volume node, checked."""
    grid_of(node)  # says so where there is no image
    if node.GetImageData().GetNumberOfScalarComponents() != 1:
        raise RequestError(f"The volume '{node.GetName()}' is a colour image; choose one with grey values.")
    return node


def _asVoxels(pair: CasePair) -> Any:
    """A copy of the segmentation node with voxels, in the coordinates of the pair's volume."""
    node = pair.segmentationNode
    if node.GetSegmentation().GetNumberOfSegments() == 0:
        raise MaskError(f"The segmentation '{node.GetName()}' has no segments. Draw or import some first.")
    toVolume = transform_between(node, pair.volumeNode)
    copy = slicer.vtkMRMLSegmentationNode()
    copy.SetName(node.GetName())
    segmentation = copy.GetSegmentation()
    segmentation.DeepCopy(node.GetSegmentation())
    binary = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    if not segmentation.ContainsRepresentation(binary):
        if np.allclose(toVolume, np.eye(4)):
            copy.SetReferenceImageGeometryParameterFromVolumeNode(pair.volumeNode)
        if not segmentation.CreateRepresentation(binary):
            raise MaskError(
                f"The segmentation '{node.GetName()}' cannot be turned into voxels. Create its binary label map "
                "representation in the Segmentations module first."
            )
    segmentation.SetSourceRepresentationName(binary)
    moved = set()
    for segmentId in segmentation.GetSegmentIDs():
        image = segmentation.GetSegment(segmentId).GetRepresentation(binary)
        address = None if image is None else image.GetAddressAsString("vtkObject")
        if image is not None and address not in moved:  # segments that do not overlap share one
            moved.add(address)
            matrix = vtk.vtkMatrix4x4()
            image.GetImageToWorldMatrix(matrix)
            image.SetImageToWorldMatrix(matrix_of(toVolume @ affine_of(matrix)))
    return copy


def _write(node: Any, storage: Any, path: Path, target: Path) -> None:
    storage.SetFileName(str(path))
    storage.SetUseCompression(1)
    if not storage.WriteData(node) or not path.is_file():
        free = shutil.disk_usage(path.parent).free
        raise OutputError(
            f"Cannot write '{node.GetName()}' into {target}: {free / 2**30:.1f} GiB are free there. "
            "Free some space, or set another data folder (MAISI_DATA)."
        )
