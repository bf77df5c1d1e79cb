"""The *Load* section: results made earlier, or any image with its label map, as the same kind of nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

_FILTERS = "NIfTI, NRRD, MetaImage (*.nii *.nii.gz *.nrrd *.nhdr *.seg.nrrd *.mha *.mhd)"


class LoadSection:
    """Two ways in: a folder, and a pair of files.

    Args:
        logic: ``loadAsync(path, labelmap)`` reads files into the scene, in short steps.
        ui: Widgets of ``MAISILoad.ui`` by name.
        notify: Shows a line to the user.
        dialogs: Asks for files and folders.
        onSample: Called with the volume and the segmentation node of each image as it comes.
    """

    def __init__(
        self,
        logic: Any,
        ui: Any,
        notify: Callable[[str], None],
        dialogs: Any,
        onSample: Callable[[Any, Any], None],
    ) -> None:
        self._logic, self._ui, self._notify, self._dialogs, self._onSample = logic, ui, notify, dialogs, onSample
        self._isLoading = False
        self._notes: list[str] = []
        ui.loadResultButton.connect("clicked()", self._onLoadResult)
        ui.loadPairButton.connect("clicked()", self._onLoadPair)
        for edit, button, title in (
            (ui.imageFileEdit, ui.imageFileButton, _("Image")),
            (ui.maskFileEdit, ui.maskFileButton, _("Label map")),
        ):
            edit.connect("textChanged(QString)", lambda _text: self.refresh())
            button.connect("clicked()", lambda edit=edit, title=title: self._onBrowse(edit, title))
        self.refresh()

    def refresh(self) -> None:
        """Lets a pair be loaded as soon as an image is named, one after another."""
        self._ui.loadResultButton.enabled = not self._isLoading
        self._ui.loadPairButton.enabled = _path(self._ui.imageFileEdit.text) is not None and not self._isLoading

    def _onBrowse(self, edit: Any, title: str) -> None:
        chosen = self._dialogs.file(title, _FILTERS)
        if chosen:
            edit.text = chosen

    def _onLoadResult(self) -> None:
        folder = self._dialogs.folder(_("Folder of results or pairs"))
        if folder:
            self._load(Path(folder), None)

    def _onLoadPair(self) -> None:
        image, mask = _path(self._ui.imageFileEdit.text), _path(self._ui.maskFileEdit.text)
        if image is not None:
            self._load(image, mask)

    def _load(self, path: Path, labelmap: Path | None) -> None:
        self._isLoading, self._notes = True, []
        self.refresh()
        self._notify(_("Loading {0}…").format(path.name))
        self._logic.loadAsync(
            path,
            labelmap,
            onDone=lambda _nodes: self._ended(""),
            onSample=self._onSample,
            onNote=self._notes.append,
            onFailed=lambda message, _kind: self._ended(message),
            onCancelled=lambda: self._ended(""),
        )

    def _ended(self, message: str) -> None:
        self._isLoading = False
        self.refresh()
        self._notify("\n".join([*([message] if message else []), *self._notes]))


def _path(text: str) -> Path | None:
    """What the user has typed, or pasted: file managers copy paths in quotes."""
    text = text.strip().strip("\"'")
    return Path(text).expanduser() if text else None
