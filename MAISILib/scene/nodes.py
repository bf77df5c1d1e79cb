"""Puts images and masks into a scene as nodes that a Slicer user knows how to use."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from MAISILib.anatomy.labels import Label, LabelTable
from MAISILib.files.segmentations import LABEL_TAG, TERMINOLOGY_TAG
from MAISILib.scene.geometry import fill_image, matrix_of
from MAISILib.scene.label_tables import table_as_text, table_of_result, table_of_text
from MAISILib.scene.mrml import slicer, vtk
from MAISILib.volumes import LabelMap, Volume

SYNTHETIC_ATTRIBUTE = "MAISI.Synthetic"
PROVENANCE_ATTRIBUTE = "MAISI.Provenance"
#: Fingerprint of the mask that an image was made with; see `mask_digest`.
DIGEST_ATTRIBUTE = "MAISI.MaskDigest"
#: Roles of the references from an image to what belongs to it: its segmentation; its HU table, chart and series.
MASK_REFERENCE = "MAISI.Mask"
CHART_REFERENCE = "MAISI.Chart"
#: Role of the reference from a segmentation to the colour table whose attribute holds the label table that it was shown
#: with, so that a scene can be read where the bundle is not.
_TABLE_REFERENCE = _TABLE_ATTRIBUTE = "MAISI.LabelTable"
_DESCRIPTION = "Synthetic image made by MAISI for Slicer. Not a patient."

#: Window and level in HU that show soft tissue, as Slicer's CT-abdomen preset does.
CT_WINDOW_LEVEL = (350.0, 40.0)

#: Codes of DICOM PS3.16 CID 7180 and UCUM for what the voxels of a CT are, as Slicer's DICOM reader sets them.
_ATTENUATION = ("112031", "DCM", "Attenuation Coefficient")
_HOUNSFIELD = ("[hnsf'U]", "UCUM", "Hounsfield unit")


def show(
    scene: Any,
    image: Volume,
    mask: LabelMap | None,
    name: str,
    *,
    modality: str = "CT",
    description: str = _DESCRIPTION,
    window_level: tuple[float, float] | None = None,
    provenance: Mapping[str, Any] | None = None,
    is_synthetic: bool = True,
) -> tuple[Any, Any]:
    """Adds a sample to a scene: a volume and its segmentation, in a subject hierarchy folder.

    Args:
        scene: A vtkMRMLScene: ``slicer.mrmlScene``, or one from `new_scene`.
        image: The image, on any grid (oblique ones too).
        mask: Its label map, on the same or another grid; None for an image alone.
        name: Of the folder and of the nodes.
        modality: ``"CT"`` gets a fixed window and Hounsfield units, anything else an automatic window.
        description: Of both nodes.
        window_level: Window width and centre, in the image's units, instead of the modality's own.
        provenance: Kept with the volume as JSON text.
        is_synthetic: Mark the nodes as synthetic; not for images that may be of patients.

    Returns:
        The vtkMRMLScalarVolumeNode and the vtkMRMLSegmentationNode (None without a mask).
    """
    is_ct = modality.upper().startswith("CT")
    volume_node = slicer.vtkMRMLScalarVolumeNode()
    volume_node.SetName(name)
    volume_node.SetIJKToRASMatrix(matrix_of(image.affine))
    data = vtk.vtkImageData()
    fill_image(data, image.array)
    volume_node.SetAndObserveImageData(data)
    _describe(volume_node, description, modality, is_synthetic)
    if provenance is not None:
        volume_node.SetAttribute(PROVENANCE_ATTRIBUTE, json.dumps(provenance, ensure_ascii=False, default=str))
    if is_ct:
        volume_node.SetVoxelValueQuantity(_coded_entry(*_ATTENUATION))
        volume_node.SetVoxelValueUnits(_coded_entry(*_HOUNSFIELD))
    scene.AddNode(volume_node)
    _set_display(volume_node, window_level or (CT_WINDOW_LEVEL if is_ct else None))

    folder = _add_folder(scene, name)
    put_into(scene, folder, volume_node)
    if mask is None:
        return volume_node, None
    mask_name = f"{name} mask"
    segmentation_node = show_mask(
        scene,
        mask,
        mask_name,
        reference=volume_node,
        description=description,
        folder=folder,
        is_synthetic=is_synthetic,
    )
    belongs_to(volume_node, segmentation_node, mask)
    return volume_node, segmentation_node


def belongs_to(volume_node: Any, segmentation_node: Any, mask: LabelMap) -> None:
    """Lets an image know its segmentation, and the mask that this shows now."""
    volume_node.SetNodeReferenceID(MASK_REFERENCE, segmentation_node.GetID())
    volume_node.SetAttribute(DIGEST_ATTRIBUTE, mask_digest(mask))


def mask_digest(mask: LabelMap) -> str:
    """A fingerprint of a mask's voxels, by which an edited segmentation is told from the one that was shown.

    Their order does not matter: Slicer numbers the voxels of a left-handed grid anew when it opens a saved scene.
    """
    directions = mask.affine[:3, :3] / np.asarray(mask.spacing)
    axes = max(itertools.permutations(range(3)), key=lambda axes: np.abs(directions[range(3), axes]).sum())
    turned = tuple(slice(None, None, -1 if directions[row, axis] < 0 else 1) for row, axis in enumerate(axes))
    voxels = np.asfortranarray(mask.array.transpose(axes)[turned]).ravel(order="F")  # along R, A and S
    return hashlib.blake2b(voxels.data, digest_size=16).hexdigest()


def show_mask(
    scene: Any,
    mask: LabelMap,
    name: str,
    *,
    reference: Any = None,
    description: str = _DESCRIPTION,
    folder: int | None = None,
    is_synthetic: bool = True,
) -> Any:
    """Adds a label map to a scene as a segmentation, one segment for each label present.

    Segments have the names, colours and terminology of the mask's label table and keep its values, also through
    export to a label map: the table goes with the node as its colour table.

    Args:
        scene: A vtkMRMLScene.
        mask: The label map.
        name: Of the node.
        reference: Volume node whose geometry becomes the segmentation's reference; None for the mask's own.
        description: Of the node.
        folder: Subject hierarchy item to put it into; None for the top level.
        is_synthetic: Mark the node as synthetic; not for what may be of a patient.

    Returns:
        The vtkMRMLSegmentationNode.
    """
    node = slicer.vtkMRMLSegmentationNode()
    node.SetName(name)
    _describe(node, description, "SEG", is_synthetic)
    scene.AddNode(node)
    node.CreateDefaultDisplayNodes()
    converter = slicer.vtkSegmentationConverter
    representation = converter.GetSegmentationBinaryLabelmapRepresentationName()
    segmentation = node.GetSegmentation()
    segmentation.SetSourceRepresentationName(representation)

    image = slicer.vtkOrientedImageData()
    fill_image(image, mask.array)
    image.SetImageToWorldMatrix(matrix_of(mask.affine))
    if reference is not None:
        node.SetReferenceImageGeometryParameterFromVolumeNode(reference)
    else:
        geometry = converter.SerializeImageGeometry(image)
        segmentation.SetConversionParameter(converter.GetReferenceImageGeometryParameterName(), geometry)

    # One image shared by all segments: Slicer's own layout for segments that do not overlap. Body comes first, so that
    # the organs lie above it where order matters.
    display = node.GetDisplayNode()
    for value in sorted(mask.labels, key=lambda value: value != LabelTable.BODY):
        segment_id = f"MAISI_{value}"
        segment = _segment(value, mask.table)
        segment.AddRepresentation(representation, image)
        segmentation.AddSegment(segment, segment_id)
        if value == LabelTable.BODY:  # as an outline: filled, it would tint the whole patient
            display.SetSegmentOpacity2DFill(segment_id, 0.0)
            display.SetSegmentOpacity3D(segment_id, 0.2)
    node.SetLabelmapConversionColorTableNodeID(_color_table(scene, mask.table).GetID())
    means_labels_of(node, mask.table)
    put_into(scene, folder, node)
    return node


def means_labels_of(segmentation_node: Any, table: LabelTable) -> None:
    """Notes, in the scene, of which label table the segments of a node are."""
    color_table = _color_table(segmentation_node.GetScene(), table)
    segmentation_node.SetNodeReferenceID(_TABLE_REFERENCE, color_table.GetID())


def table_of_segmentation(segmentation_node: Any, provenance: Mapping[str, Any]) -> LabelTable:
    """The label table of which a segmentation's segments are: the one noted in the scene, else that of the result.

    Args:
        segmentation_node: A vtkMRMLSegmentationNode.
        provenance: Of its image; may be empty. See `table_of_result`.
    """
    color_table = segmentation_node.GetNodeReference(_TABLE_REFERENCE)
    noted = color_table.GetAttribute(_TABLE_ATTRIBUTE) if color_table is not None else None
    return table_of_text(noted or "") or table_of_result(None, provenance)


def _segment(value: int, table: LabelTable) -> Any:
    label = _label(value, table)
    segment = slicer.vtkSegment()
    segment.SetName(label.name)
    segment.SetColor(*(channel / 255 for channel in label.color))
    segment.SetLabelValue(value)
    segment.SetTag(LABEL_TAG, str(value))
    terminology = label.terminology()
    if terminology and hasattr(segment, "SetTerminology"):  # since Slicer 5.10
        segment.SetTerminology(terminology)
    elif terminology:
        segment.SetTag(TERMINOLOGY_TAG, terminology)
    return segment


def _label(value: int, table: LabelTable) -> Label:
    """The label in the table, or a grey one where the table does not know the value."""
    if value in table:
        return table[value]
    return Label(value, f"label {value}", "", (160, 160, 160), None, None, None, None, None, None)


def _color_table(scene: Any, table: LabelTable) -> Any:
    """The scene's colour table for a label table, made when first needed."""
    text = table_as_text(table)
    nodes = scene.GetNodesByClass("vtkMRMLColorTableNode")
    nodes.UnRegister(None)
    for number in range(nodes.GetNumberOfItems()):
        node = nodes.GetItemAsObject(number)
        if node.GetAttribute(_TABLE_ATTRIBUTE) == text:
            return node
    node = slicer.vtkMRMLColorTableNode()
    node.SetTypeToUser()
    node.SetName(f"MAISI {table.name}")
    node.SetAttribute("Category", "Segmentations")
    node.SetAttribute(_TABLE_ATTRIBUTE, text)
    node.SetNumberOfColors(max((label.value for label in table), default=0) + 1)
    node.SetColor(0, "background", 0.0, 0.0, 0.0, 0.0)
    for label in table:
        red, green, blue = (channel / 255 for channel in label.color)
        node.SetColor(label.value, label.name, red, green, blue, 1.0)
    scene.AddNode(node)
    return node


def _set_display(volume_node: Any, window_level: tuple[float, float] | None) -> None:
    volume_node.CreateDefaultDisplayNodes()
    display = volume_node.GetDisplayNode()
    display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
    if window_level is None:
        display.AutoWindowLevelOn()
    else:
        display.AutoWindowLevelOff()
        display.SetWindowLevel(*window_level)


def _describe(node: Any, description: str, modality: str, is_synthetic: bool) -> None:
    if is_synthetic:
        node.SetAttribute(SYNTHETIC_ATTRIBUTE, "1")
    if is_synthetic or description != _DESCRIPTION:
        node.SetDescription(description)
    node.SetAttribute("DICOM.Modality", modality.upper())


def _coded_entry(value: str, scheme: str, meaning: str) -> Any:
    entry = slicer.vtkCodedEntry()
    entry.SetValueSchemeMeaning(value, scheme, meaning)
    return entry


def _add_folder(scene: Any, name: str) -> int:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    return hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), name)


def folder_of(scene: Any, node: Any) -> int | None:
    """The subject hierarchy folder of a node; None where the node is not in the scene."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.GetItemByDataNode(node) if node.GetScene() is not None else 0
    return hierarchy.GetItemParent(item) if item else None


def put_into(scene: Any, folder: int | None, node: Any) -> None:
    """Moves a node into a folder; in the application the node may have an item already. None is the top level."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    parent = hierarchy.GetSceneItemID() if folder is None else folder
    item = hierarchy.GetItemByDataNode(node)
    if item:
        hierarchy.SetItemParent(item, parent)
    else:
        hierarchy.CreateItem(parent, node)
