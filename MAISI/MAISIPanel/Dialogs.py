"""The few questions that the panel asks in windows of their own, as one object that tests can replace."""

from __future__ import annotations

from html import escape
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _


class Dialogs:
    """Asks for files, folders and consent.

    Args:
        parent: Widget above which the windows open.
    """

    def __init__(self, parent: Any) -> None:
        self._parent = parent

    def folder(self, title: str) -> str:
        """A folder that exists, or an empty string."""
        return str(qt.QFileDialog.getExistingDirectory(self._parent, title) or "")

    def file(self, title: str, filters: str) -> str:
        """A file that exists, or an empty string. ``filters`` as Qt writes them: ``"Images (*.nii *.nrrd)"``."""
        chosen = qt.QFileDialog.getOpenFileName(self._parent, title, "", filters)
        return str((chosen[0] if isinstance(chosen, tuple) else chosen) or "")

    def confirm(self, text: str) -> bool:
        """Whether the user says OK."""
        return bool(slicer.util.confirmOkCancelDisplay(text, parent=self._parent))

    def acceptsLicence(self, title: str, licence: dict[str, Any]) -> bool:
        """Shows where the terms of a model's weights are, and returns whether the user accepts them."""
        dialog = licenceDialog(self._parent, title, licence)
        accepted = bool(dialog.exec_())
        dialog.deleteLater()
        return accepted

    def openFolder(self, folder: str) -> None:
        """Shows a folder in the file manager."""
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(folder))


def licenceDialog(parent: Any, title: str, licence: dict[str, Any]) -> Any:
    """The consent dialog: a link to the terms, a check box, and an OK button that waits for it."""
    dialog = qt.QDialog(parent)
    dialog.windowTitle = _("Licence of the model")
    layout = qt.QVBoxLayout(dialog)
    url, name = licence.get("url") or "", licence.get("name") or ""
    link = f'<a href="{escape(url)}">{escape(name)}</a>' if url else escape(name)
    text = qt.QLabel()
    text.objectName = "licenceLabel"
    text.wordWrap = True
    text.openExternalLinks = True
    text.text = _(
        "The weights of <b>{0}</b> come under the {1}. They are no part of this extension; they are downloaded from "
        "their publisher to your computer. Read the terms before you accept them."
    ).format(escape(title), link)
    consent = qt.QCheckBox(_("I have read the licence and accept it"))
    consent.objectName = "licenceCheckBox"
    buttons = qt.QDialogButtonBox()
    buttons.setStandardButtons(qt.QDialogButtonBox.Ok | qt.QDialogButtonBox.Cancel)
    accept = buttons.button(qt.QDialogButtonBox.Ok)
    accept.text = _("Accept and download")
    accept.enabled = False
    consent.connect("toggled(bool)", accept.setEnabled)
    buttons.connect("accepted()", dialog.accept)
    buttons.connect("rejected()", dialog.reject)
    for widget in (text, consent, buttons):
        layout.addWidget(widget)
    dialog.minimumWidth = 400
    return dialog
