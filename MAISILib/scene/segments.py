"""Reads a segmentation node, however it was drawn, as one label map.

A segmentation keeps its voxels in layers: images in which every segment has a value of its own, which Slicer renumbers
at will. Segments of one layer do not overlap; those of different layers may. What a segment means therefore never
comes from the voxel values but from its tag, terminology or name.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from MAISILib.anatomy.labels import LabelTable
from MAISILib.errors import MaskError
from MAISILib.files.segmentations import LABEL_TAG, TERMINOLOGY_TAG, label_of_segment, unknown_segments
from MAISILib.resampling import index_mapping, nearest
from MAISILib.scene.geometry import affine_of, array_of, grid_of, matrix_of, transform_between
from MAISILib.scene.mrml import slicer, vtk
from MAISILib.volumes import Grid, LabelMap, check_affine

#: A segmentation whose voxels lie this near (in voxels) to those of the reference is copied, not resampled.
_ALIGNED = 0.01


@dataclass
class _Layer:
    """One image of a segmentation: which of its values are which of our ranks."""

    image: Any
    rank_of_value: dict[int, int] = field(default_factory=dict)


def read_mask(segmentation_node: Any, table: LabelTable, reference: Any = None) -> LabelMap:
    """The label map that a segmentation node shows.

    A segment's label is the one in its tag ``MAISI.Label``, else the one label with its terminology, else the label
    with its name. Where segments overlap, the later one wins, and a note says so; the body, which means "inside the
    patient, no organ", gives way to any other segment.

    Args:
        segmentation_node: A vtkMRMLSegmentationNode.
        table: The labels to read it as.
        reference: Grid of the result: a volume node, a `Grid` in world coordinates, or None for the segmentation's own
            reference geometry. Voxels are copied where the grids agree, else sampled by nearest neighbour.

    Raises:
        MaskError: There are no segments, some have no label in ``table``, or a non-linear transform is in the way.
    """
    name = segmentation_node.GetName() or "segmentation"
    segmentation = _with_binary_labelmaps(segmentation_node, reference)
    labels, notes = _labels_of_segments(segmentation, table, name)
    order = sorted(labels, key=lambda segment_id: labels[segment_id] != LabelTable.BODY)  # stable: body first
    target = _target_grid(segmentation_node, segmentation, reference)
    to_target = np.eye(4)
    if reference is not None:
        to_target = transform_between(segmentation_node, None if isinstance(reference, Grid) else reference)

    ranks = np.zeros(target.shape, np.uint16, order="F")  # as VTK's images lie in memory
    label_of_rank = np.array([0, *(labels[segment_id] for segment_id in order)], np.uint8)
    names = ["background", *(segmentation.GetSegment(segment_id).GetName() for segment_id in order)]
    for layer in _layers(segmentation, order):
        placed = _place(layer, to_target, target, notes)
        overlap = (placed > 0) & (ranks > 0)
        if overlap.any():
            notes += _overlap_notes(placed[overlap], ranks[overlap], label_of_rank, names)
        np.maximum(ranks, placed, out=ranks)
    return LabelMap(
        _looked_up(label_of_rank, ranks), target.affine, table, f"segmentation '{name}'", tuple(dict.fromkeys(notes))
    )


def _with_binary_labelmaps(node: Any, reference: Any) -> Any:
    """The node's segmentation, or a converted copy of one that was made from surfaces or fractions."""
    segmentation = node.GetSegmentation()
    if segmentation is None or segmentation.GetNumberOfSegments() == 0:
        raise MaskError(f"The segmentation '{node.GetName()}' has no segments. Draw or import some first.")
    converter = slicer.vtkSegmentationConverter
    representation = converter.GetSegmentationBinaryLabelmapRepresentationName()
    if segmentation.ContainsRepresentation(representation):
        return segmentation
    copy = slicer.vtkSegmentation()
    copy.DeepCopy(segmentation)
    if reference is not None and not isinstance(reference, Grid):
        grid, image = grid_of(reference), slicer.vtkOrientedImageData()
        image.SetDimensions(*grid.shape)
        image.SetImageToWorldMatrix(matrix_of(grid.affine))
        geometry = converter.SerializeImageGeometry(image)
        copy.SetConversionParameter(converter.GetReferenceImageGeometryParameterName(), geometry)
    if not copy.CreateRepresentation(representation):
        raise MaskError(
            f"The segmentation '{node.GetName()}' cannot be turned into voxels. Create its binary label map "
            "representation in the Segmentations module first."
        )
    return copy


def _labels_of_segments(segmentation: Any, table: LabelTable, where: str) -> tuple[dict[str, int], list[str]]:
    """Label value of each segment that has one, in segment order, and notes."""
    labels: dict[str, int] = {}
    notes: list[str] = []
    unknown: list[str] = []
    for segment_id in segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(segment_id)
        name = segment.GetName() or segment_id
        label = label_of_segment(name, tag_of(segment, LABEL_TAG), terminology_of(segment), table)
        if label is not None:
            if label in labels.values():
                notes.append(f"Several segments are '{table[label].name}'; they were joined.")
            elif name.casefold() != table[label].name.casefold():
                notes.append(f"Segment '{name}' was read as label {label}, '{table[label].name}'.")
            labels[segment_id] = label
        elif _is_empty(segmentation, segment_id):
            notes.append(f"Segment '{name}' is empty and was left out.")
        else:
            unknown.append(name)
    if unknown:
        raise unknown_segments(unknown, table, f"Segmentation '{where}'")
    return labels, notes


def terminology_of(segment: Any) -> str:
    """The terminology entry of a vtkSegment, as Slicer writes it; empty where it has none."""
    if hasattr(segment, "GetTerminology"):  # since Slicer 5.10
        return segment.GetTerminology() or ""
    return tag_of(segment, TERMINOLOGY_TAG)


def tag_of(segment: Any, name: str) -> str:
    """A tag of a vtkSegment, such as `LABEL_TAG`; empty where it has none of that name."""
    value = vtk.reference("")
    return str(value) if segment.GetTag(name, value) else ""


def _image_of(segmentation: Any, segment_id: str) -> Any:
    representation = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    image = segmentation.GetSegment(segment_id).GetRepresentation(representation)
    if image is None or image.GetPointData().GetScalars() is None or min(image.GetDimensions()) < 1:
        return None
    return image


def _is_empty(segmentation: Any, segment_id: str) -> bool:
    image = _image_of(segmentation, segment_id)
    return image is None or not (array_of(image) == segmentation.GetSegment(segment_id).GetLabelValue()).any()


def _layers(segmentation: Any, order: list[str]) -> list[_Layer]:
    """The images of a segmentation with the ranks (1 = first of ``order``) of the segments in them."""
    layers: dict[str, _Layer] = {}
    for rank, segment_id in enumerate(order, start=1):
        image = _image_of(segmentation, segment_id)
        if image is not None:
            layer = layers.setdefault(image.GetAddressAsString("vtkObject"), _Layer(image))
            layer.rank_of_value[segmentation.GetSegment(segment_id).GetLabelValue()] = rank
    return list(layers.values())


def _place(layer: _Layer, to_target: np.ndarray, target: Grid, notes: list[str]) -> np.ndarray:
    """Ranks of a layer's segments on the target grid, uint16; 0 where there is none."""
    values = array_of(layer.image)
    rank_of_value = np.zeros(max(int(values.max()), *layer.rank_of_value) + 1, np.uint16)
    for value, rank in layer.rank_of_value.items():
        rank_of_value[value] = rank
    ranks = _looked_up(rank_of_value, np.maximum(values, 0) if values.dtype.kind != "u" else values)

    source = _grid_of_image(layer.image, to_target)
    matrix, offset = index_mapping(source, target)
    turn, shift = np.rint(matrix), np.rint(offset)
    corners = np.array(list(itertools.product(*((0, n) for n in target.shape))))
    off_grid = np.abs(corners @ (matrix - turn).T + offset - shift).max() > _ALIGNED
    if off_grid or abs(np.linalg.det(turn)) != 1:
        notes.append("The segmentation lies on other voxels than the reference; it was sampled by nearest neighbour.")
    if off_grid or (turn != np.eye(3)).any():  # axes in another order or direction: nearest neighbour is exact
        placed = nearest(ranks, source, target)
        notes += _loss_notes(ranks, source, placed, target)
        return placed
    shift = shift.astype(int)
    placed = np.zeros(target.shape, np.uint16, order="F")
    first = np.maximum(-shift, 0)
    last = np.minimum(np.asarray(source.shape) - shift, target.shape)
    if (last > first).all():
        here = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        there = tuple(slice(a + s, b + s) for a, b, s in zip(first, last, shift, strict=True))
        placed[here] = ranks[there]
    notes += _loss_notes(ranks, source, placed, target)
    return placed


def _looked_up(table: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """``table[indices]`` without a copy of the indices at 8 bytes a voxel, for an array in VTK's order."""
    found = np.empty(indices.shape, table.dtype, order="F")
    for k in range(indices.shape[2]):
        found[..., k] = table[indices[..., k]]
    return found


def _loss_notes(ranks: np.ndarray, source: Grid, placed: np.ndarray, target: Grid) -> list[str]:
    """Says how much of a layer lies outside the target grid, if any does."""
    spans = [np.flatnonzero(ranks.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    if not len(spans[0]):
        return []
    corners = np.array([[*corner, 1.0] for corner in itertools.product(*((s[0], s[-1]) for s in spans))])
    inside = np.linalg.solve(target.affine, source.affine @ corners.T)[:3].T
    if ((inside > -0.5 - _ALIGNED) & (inside < np.asarray(target.shape) - 0.5 + _ALIGNED)).all():
        return []
    before, after = (
        np.count_nonzero(array) * abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1000
        for array, grid in ((ranks, source), (placed, target))
    )
    if before - after < 0.001 * before:  # a corner of the box is outside, but nothing that was drawn
        return []
    lost = before - after
    return [
        f"{lost:.3g} mL ({100 * lost / before:.0f} %) of the segmentation lie outside the reference and were left out."
    ]


def _grid_of_image(image: Any, to_target: np.ndarray) -> Grid:
    """The voxel grid of a vtkOrientedImageData, whose voxel indices begin at its extent's start."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    start = np.eye(4)
    start[:3, 3] = image.GetExtent()[::2]
    return Grid(image.GetDimensions(), to_target @ affine_of(matrix) @ start)


def _target_grid(node: Any, segmentation: Any, reference: Any) -> Grid:
    if isinstance(reference, Grid):
        return reference
    if reference is not None:
        grid = grid_of(reference)
    else:
        converter = slicer.vtkSegmentationConverter
        image = slicer.vtkOrientedImageData()
        geometry = segmentation.GetConversionParameter(converter.GetReferenceImageGeometryParameterName())
        if not geometry or not converter.DeserializeImageGeometry(geometry, image, False):
            ids = vtk.vtkStringArray()
            for segment_id in segmentation.GetSegmentIDs():
                ids.InsertNextValue(segment_id)
            union = slicer.vtkSegmentation.EXTENT_UNION_OF_SEGMENTS
            geometry = segmentation.DetermineCommonLabelmapGeometry(union, ids)
            if not geometry or not converter.DeserializeImageGeometry(geometry, image, False):
                raise MaskError(f"The segmentation '{node.GetName()}' has no geometry. Choose a source volume first.")
        grid = _grid_of_image(image, np.eye(4))
    check_affine(grid.affine, f"reference geometry of '{node.GetName()}'")
    return grid


def _overlap_notes(placed: np.ndarray, ranks: np.ndarray, label_of_rank: np.ndarray, names: list[str]) -> list[str]:
    """One note for each pair of segments with different labels that share voxels, the body left out."""
    later, earlier = np.maximum(placed, ranks), np.minimum(placed, ranks)
    pairs, counts = np.unique(np.stack([earlier, later]), axis=1, return_counts=True)
    notes = []
    for (low, high), count in zip(pairs.T, counts, strict=True):
        if label_of_rank[low] not in (LabelTable.BODY, label_of_rank[high]):
            notes.append(
                f"{count:,} voxels are in '{names[low]}' and in '{names[high]}'; the later, '{names[high]}', wins."
            )
    return notes
