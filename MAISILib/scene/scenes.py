"""Scenes for use outside the Slicer application, and scene files (``.mrb``) anywhere."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from MAISILib.errors import FileFormatError, OutputError
from MAISILib.files.atomic import atomic_path
from MAISILib.files.checks import check_is_file, unreadable
from MAISILib.scene.mrml import slicer


def new_scene() -> Any:
    """An empty vtkMRMLScene with what volumes and segmentations need outside the Slicer application.

    That is the grey colour map, a subject hierarchy, and the rules by which segmentations turn surfaces into voxels.
    Inside the application, use ``slicer.mrmlScene`` instead.
    """
    scene = slicer.vtkMRMLScene()
    closed_surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    if not slicer.vtkSegmentation().CanAcceptRepresentation(closed_surface):
        slicer.vtkSlicerSegmentationsModuleLogic().SetMRMLScene(scene)  # registers the rules, for this process
    if scene.GetNodeByID("vtkMRMLColorTableNodeGrey") is None:
        # Slicer's colour logic makes this node, and removes it when it is deleted; a singleton of our own just stays.
        grey = slicer.vtkMRMLColorTableNode()
        grey.SetTypeToGrey()
        grey.SetName("Grey")
        grey.SetSingletonTag("Grey")
        grey.SaveWithSceneOff()
        scene.AddNode(grey)
    slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    return scene


def save(scene: Any, path: Path | str) -> None:
    """Writes the whole scene as a Slicer scene bundle, as a whole or not at all.

    Args:
        scene: A vtkMRMLScene.
        path: ``.mrb``.

    Raises:
        OutputError: The name has another suffix, or the file cannot be written.
    """
    path = Path(path).absolute()  # Slicer refuses relative ones
    if path.suffix.lower() != ".mrb":
        raise OutputError(f"Cannot write {path}: the name of a scene file must end in .mrb.")
    with atomic_path(path) as temporary:
        messages = slicer.vtkMRMLMessageCollection()
        written = scene.WriteToMRB(str(temporary), None, messages)
        if not written or not temporary.is_file():
            free = shutil.disk_usage(path.parent).free
            raise OutputError(
                f"Cannot write {path}: Slicer could not save the scene ({_first_line(messages)}). "
                f"{free / 2**30:.1f} GiB are free there; twice the size of the images is needed."
            )


def load(path: Path | str, scene: Any = None) -> Any:
    """Adds the content of a scene bundle to a scene.

    Args:
        path: ``.mrb``.
        scene: A vtkMRMLScene; a new one where not given.

    Returns:
        The scene.

    Raises:
        FileFormatError: The file is missing, no scene bundle, or damaged.
    """
    path = Path(path)
    _check_bundle(path)
    scene = new_scene() if scene is None else scene
    messages = slicer.vtkMRMLMessageCollection()
    with _file_reading(scene):
        read = scene.ReadFromMRB(str(path), False, messages)
    if not read:
        reason = _first_line(messages)
        raise FileFormatError(f"{path} cannot be read as a Slicer scene ({reason}). Open it in Slicer to see why.")
    return scene


@contextmanager
def _file_reading(scene: Any) -> Iterator[None]:
    """Lets a scene read files where the application has not set it up for that."""
    if scene.GetDataIOManager() is not None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="maisi-") as cache:
        remote, data = slicer.vtkMRMLRemoteIOLogic(), slicer.vtkDataIOManagerLogic()
        remote.SetMRMLScene(scene)
        remote.GetCacheManager().SetRemoteCacheDirectory(cache)
        data.SetMRMLScene(scene)
        data.SetAndObserveDataIOManager(remote.GetDataIOManager())
        remote.AddDataIOToScene()
        try:
            yield
        finally:
            remote.RemoveDataIOFromScene()
            data.SetMRMLScene(None)
            remote.SetMRMLScene(None)


def _check_bundle(path: Path) -> None:
    """Refuses what is no zip archive with a scene in it, or would unpack to somewhere else or beyond the free disk."""
    check_is_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise unreadable(path, error) from error
    names = [PurePosixPath(entry.filename.replace("\\", "/")) for entry in entries]
    if damaged is not None:
        raise FileFormatError(f"{path} is damaged: '{damaged}' inside it cannot be unpacked. Copy or save it again.")
    if not any(name.suffix == ".mrml" for name in names):
        raise FileFormatError(f"{path} is an archive but holds no Slicer scene (.mrml).")
    if any(name.is_absolute() or ".." in name.parts or ":" in name.parts[0] for name in names if name.parts):
        raise FileFormatError(f"{path} holds files that would unpack outside its folder. Slicer did not save it.")
    needed, free = sum(entry.file_size for entry in entries), shutil.disk_usage(tempfile.gettempdir()).free
    if needed > free:
        raise FileFormatError(
            f"{path} unpacks to {needed / 2**30:.1f} GiB, but only {free / 2**30:.1f} GiB are free. Free some space."
        )


def _first_line(messages: Any) -> str:
    lines = [line for line in messages.GetAllMessagesAsString().splitlines() if line.strip()]
    return lines[0].strip()[:200] if lines else "no reason given"
