"""Results and other images with their label maps: from files into the scene, in steps.

A large volume takes seconds to get there. Every function here that ends in ``_steps`` is a generator: it stops after
each step, with words for what comes next, so that the caller can let the application work in between; `run` walks
through at once. Files are read by Slicer's own storage nodes, and temporary ones are removed when the generator ends,
also by its ``close()``.
"""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Callable, Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from MAISILib.anatomy.labels import LabelTable
from MAISILib.errors import FileFormatError
from MAISILib.files.atomic import output_error
from MAISILib.files.checks import read_json_object
from MAISILib.files.labels import as_labels
from MAISILib.scene.geometry import array_of, grid_of
from MAISILib.scene.label_tables import table_of_result
from MAISILib.scene.mrml import slicer
from MAISILib.scene.nodes import (
    CHART_REFERENCE,
    MASK_REFERENCE,
    belongs_to,
    folder_of,
    means_labels_of,
    put_into,
    show,
    show_mask,
)
from MAISILib.scene.storage import read_volume_file, unpacked
from MAISILib.volumes import Grid, LabelMap, Volume

IMAGE_NAME, MASK_NAME, PROVENANCE_NAME = "image.nii.gz", "mask.nii.gz", "provenance.json"
_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
#: What the name of a label map has more than the name of its image.
_MASK_ENDING = re.compile(r"[-_. ](mask|seg|segmentation|label|labels|labelmap)$", re.IGNORECASE)
#: An image with values below this is a CT in HU: MR has none, and the air around a patient has −1000 HU.
_LOWEST_MR = -200


class Shown(NamedTuple):
    """What came into the scene: the volume node, the segmentation node (None without a mask), and notes."""

    volume: Any
    segmentation: Any
    notes: tuple[str, ...]


Steps = Generator[str, None, Shown]


class _Look(NamedTuple):
    """How nodes are named and described."""

    name: str
    modality: str | None
    provenance: Mapping[str, Any] | None


def run(steps: Steps) -> Shown:
    """Takes all steps at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def result_steps(scene: Any, folder: Path, *, title: str = "", suffix: str = "", grid: Grid | None = None) -> Steps:
    """Puts a result folder (``image.nii.gz``, ``mask.nii.gz``, ``provenance.json``) into a scene.

    Args:
        scene: A vtkMRMLScene.
        folder: The folder.
        title: First words of the nodes' names, before the seed; the bundle's name where not given.
        suffix: Last words of the names.
        grid: Where the voxels lie, if that is known better than a NIfTI header tells, which has 32 bits only: ignored
            where it differs by more than rounding.

    Raises:
        FileFormatError: The folder holds no result, or a file is damaged.
        MaskError: The mask holds no labels.
    """
    provenance = _read_provenance(folder)
    table = table_of_result(folder, provenance)
    settings = provenance.get("settings")
    modality = str(settings.get("modality") or "CT") if isinstance(settings, Mapping) else None
    mask = folder / MASK_NAME
    look = _Look(_name_of(provenance, folder, title) + suffix, modality, provenance or None)
    return (yield from _steps(scene, folder / IMAGE_NAME, mask if mask.is_file() else None, table, look, grid))


def pair_steps(scene: Any, image: Path, mask: Path | None, *, table: LabelTable | None = None) -> Steps:
    """Puts an image and its label map into a scene. The nodes are not marked as synthetic.

    Args:
        scene: A vtkMRMLScene.
        image: Any volume file that Slicer reads.
        mask: A label map, or a segmentation (``.seg.nrrd``), on any grid; None for an image alone.
        table: What the labels mean; the labels of the public models where not given.

    Raises:
        FileFormatError: A file is missing or cannot be read.
        MaskError: The label map holds other values than labels.
    """
    table = table or table_of_result(image.parent, {})
    return (yield from _steps(scene, image, mask, table, _Look(_stem(image), None, None), None))


def find_results(path: Path) -> list[Callable[..., Steps]]:
    """What a user may mean by a path, each as a function ``(scene, table=…)`` that gives the steps.

    Args:
        path: A result folder or a file in it, an image, or a folder with results or with images and label maps
            (``case.nii.gz`` with ``case_mask.nii.gz``, ``-seg``, ``_label`` …).

    Raises:
        FileFormatError: There is nothing of that kind.
    """
    if not path.exists():
        raise FileFormatError(f"{path} does not exist. Check the name and the folder.")
    folder = path if path.is_dir() else path.parent
    is_result_file = path.name in (IMAGE_NAME, MASK_NAME, PROVENANCE_NAME) and (folder / IMAGE_NAME).is_file()
    if path.is_dir() or is_result_file:
        results = sorted(each.parent for each in (*folder.glob(IMAGE_NAME), *folder.glob(f"*/{IMAGE_NAME}")))
        if is_result_file or folder in results:
            results = [folder]
        found: list[Callable[..., Steps]] = [partial(_result_at, folder=each) for each in results]
        found = found or [partial(_pair_at, image=image, mask=mask) for image, mask in _pairs_in(folder)]
    else:
        found = [partial(_pair_at, image=path, mask=None)] if path.is_file() else []
    if not found:
        raise FileFormatError(
            f"{path} holds no results. Choose the folder of a sample ({IMAGE_NAME}, {PROVENANCE_NAME}), a folder with "
            "such folders, or one with images and label maps of the same name (case.nii.gz, case_mask.nii.gz)."
        )
    return found


def remove_result(scene: Any, volume: Any) -> None:
    """Removes an image with its segmentation, table and chart from a scene, and their folder if it is empty then."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    folder = folder_of(scene, volume)
    owned = [
        volume.GetNthNodeReference(role, number)
        for role in (MASK_REFERENCE, CHART_REFERENCE)
        for number in range(volume.GetNumberOfNodeReferences(role))
    ]
    for node in (*owned, volume):
        if node is not None and node.GetScene() is not None:
            _remove_node(scene, node)
    if folder and folder != hierarchy.GetSceneItemID() and not hierarchy.GetNumberOfItemChildren(folder):
        hierarchy.RemoveItem(folder)


def _remove_node(scene: Any, node: Any) -> None:
    """Removes a node with its display and storage nodes, which would stay behind."""
    parts: list[Any] = []
    if node.IsA("vtkMRMLDisplayableNode"):
        parts += [node.GetNthDisplayNode(number) for number in range(node.GetNumberOfDisplayNodes())]
    if node.IsA("vtkMRMLStorableNode"):
        parts.append(node.GetStorageNode())
    for each in (node, *parts):
        if each is not None and each.GetScene() is not None:
            scene.RemoveNode(each)


def _result_at(scene: Any, folder: Path, **_: Any) -> Steps:
    return result_steps(scene, folder)


def _pair_at(scene: Any, image: Path, mask: Path | None, table: LabelTable | None = None) -> Steps:
    return pair_steps(scene, image, mask, table=table)


def _steps(scene: Any, image: Path, mask: Path | None, table: LabelTable, look: _Look, grid: Grid | None) -> Steps:
    is_segmentation = mask is not None and mask.name.lower().endswith(".seg.nrrd")
    with _temporary_folder() as temporary:
        volume = yield from _read_steps(image, Path(temporary), "image")
        labels = None
        if mask is not None and not is_segmentation:
            labels = yield from _read_steps(mask, Path(temporary), "segmentation")
    array, own = array_of(volume.GetImageData()), grid_of(volume)
    grid = grid if grid is not None and grid.same_as(own) else own
    label_map = None if mask is None or labels is None else _label_map(labels, mask, table, grid)
    modality = look.modality or ("CT" if array.min() < _LOWEST_MR else "MR")
    units = "HU" if modality.upper().startswith("CT") else "arbitrary"
    yield "showing the image"
    look = look._replace(name=scene.GenerateUniqueName(look.name))
    node, _ = show(
        scene,
        Volume(array, grid.affine, units),
        None,
        look.name,
        modality=modality,
        provenance=look.provenance,
        is_synthetic=look.provenance is not None,
    )
    if mask is None:
        return Shown(node, None, ())
    try:
        yield "showing the segmentation"
        if node.GetScene() is None:  # it was deleted in between
            return Shown(node, None, ())
        if label_map is None:
            return Shown(node, _read_segmentation(scene, mask, f"{look.name} mask", node, table), ())
        segmentation = show_mask(
            scene,
            label_map,
            f"{look.name} mask",
            reference=node,
            folder=folder_of(scene, node),
            is_synthetic=look.provenance is not None,
        )
        node.SetNodeReferenceID(MASK_REFERENCE, segmentation.GetID())
        yield "showing the segmentation"
        belongs_to(node, segmentation, label_map)
        is_empty = segmentation.GetSegmentation().GetNumberOfSegments() == 0
        empty = (f"{label_map.source} is empty: no voxel has a label.",) if is_empty else ()
        return Shown(node, segmentation, (*label_map.notes, *empty))
    except BaseException:  # also where the caller goes no further: half a result is none
        if node.GetScene() is not None:
            remove_result(scene, node)
        raise


def _label_map(volume: Any, path: Path, table: LabelTable, image_grid: Grid) -> LabelMap:
    values, notes = as_labels(
        array_of(volume.GetImageData()), path, f"Renumber them with the labels of table '{table.name}'."
    )
    own = grid_of(volume)
    if _are_apart(own, image_grid):
        notes = (*notes, f"{path.name} lies elsewhere than the image. Check that the two belong together.")
    affine = image_grid.affine if own.same_as(image_grid) else own.affine
    return LabelMap(values, affine, table, path.name, notes)


def _are_apart(one: Grid, other: Grid) -> bool:
    """Whether the boxes around two grids, along R, A and S, have nothing in common."""
    boxes = []
    for grid in (one, other):
        ends = ((-0.5, count - 0.5) for count in grid.shape)
        corners = np.array([[*corner, 1.0] for corner in itertools.product(*ends)]) @ grid.affine.T
        boxes.append((corners[:, :3].min(axis=0), corners[:, :3].max(axis=0)))
    (low, high), (other_low, other_high) = boxes
    return bool(((high <= other_low) | (other_high <= low)).any())


def _read_steps(path: Path, temporary: Path, what: str) -> Generator[str, None, Any]:
    unpacking = unpacked(path, temporary)
    while True:
        yield f"reading the {what}"
        try:
            next(unpacking)
        except StopIteration as end:
            return read_volume_file(end.value, named=path)


def _temporary_folder() -> Any:
    try:
        return tempfile.TemporaryDirectory(prefix="maisi-", ignore_cleanup_errors=True)
    except OSError as error:
        raise output_error(Path(tempfile.gettempdir()), error) from error


def _read_segmentation(scene: Any, path: Path, name: str, reference: Any, table: LabelTable) -> Any:
    node, storage = slicer.vtkMRMLSegmentationNode(), slicer.vtkMRMLSegmentationStorageNode()
    node.SetName(name)
    storage.SetFileName(str(path))
    if not storage.ReadData(node) or node.GetSegmentation().GetNumberOfSegments() == 0:
        raise FileFormatError(f"{path} cannot be read as a segmentation. Load it in Slicer to see why.")
    scene.AddNode(node)
    node.CreateDefaultDisplayNodes()
    means_labels_of(node, table)
    put_into(scene, folder_of(scene, reference), node)
    if reference.GetScene() is not None:
        reference.SetNodeReferenceID(MASK_REFERENCE, node.GetID())
    return node


def _read_provenance(folder: Path) -> dict[str, Any]:
    path = folder / PROVENANCE_NAME
    if not path.is_file():
        return {}
    return read_json_object(path, "Remove it to load the image without it.")


def _name_of(provenance: Mapping[str, Any], folder: Path, title: str) -> str:
    try:
        name = f"{title or provenance['bundle']['name']} seed {provenance['request']['seed']}"
        index = int(provenance["sample"]["index"])
    except (KeyError, TypeError, ValueError):
        return title or folder.name
    return f"{name} #{index + 1}" if index else name


def _stem(path: Path) -> str:
    suffix = next((each for each in sorted(_SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(each)), "")
    return path.name[: len(path.name) - len(suffix)] if suffix else path.stem


def _pairs_in(folder: Path) -> list[tuple[Path, Path | None]]:
    """Images of a folder, each with the label map that is named after it."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name.lower().endswith(_SUFFIXES))
    masks: dict[str, Path] = {}
    images: dict[str, Path] = {}
    for path in files:
        stem = _stem(path)
        plain = _MASK_ENDING.sub("", stem)
        if plain != stem:
            masks.setdefault(plain, path)
        else:
            images.setdefault(stem, path)
    return [(image, masks.get(stem)) for stem, image in images.items()]
