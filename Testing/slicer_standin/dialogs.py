"""What the user would have been told and asked: recorded instead of shown, with answers that a test gives beforehand.

Stands in for: the message boxes of ``slicer.util``, file choosers, modal dialogs, opening a web page or a folder. A
modal dialog that no test has an answer for fails at once instead of waiting for somebody to press a button.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from PySide6 import QtGui, QtWidgets

BUTTON: Any = QtWidgets.QMessageBox.StandardButton
YES_OR_NO = ((BUTTON.Yes, BUTTON.No), (BUTTON.Ok, BUTTON.Cancel), (BUTTON.Retry, BUTTON.Close))


@dataclasses.dataclass
class Message:
    """A message; its kind is ``info``, ``warning``, ``error``, ``question`` or ``popup``."""

    kind: str
    text: str
    title: str = ""
    details: str = ""


class Dialogs:
    """Records messages and questions.

    Questions are answered by the next of ``answers``, else by ``agrees``; file choosers by the next of ``paths``; modal
    dialogs by ``answer_dialog(dialog) -> result``. ``opened`` are the addresses that would have been shown.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets what was said, and agrees to everything."""
        self.messages: list[Message] = []
        self.opened: list[str] = []
        self.agrees = True
        self.answers: list[bool] = []
        self.paths: list[str] = []
        self.answer_dialog: Callable[[Any], int] | None = None

    def texts(self, kind: str) -> list[str]:
        """The texts of all messages of a kind."""
        return [message.text for message in self.messages if message.kind == kind]

    def install(self, util: Any) -> None:
        """Takes the place of everything that would wait for a person, in ``slicer.util`` and in Qt."""
        util._messageDisplay = self._display
        util.messageBox = self._message_box
        util.delayDisplay = lambda text, *_, **__: self.messages.append(Message("info", text))
        chooser: Any = QtWidgets.QFileDialog
        for name in ("getOpenFileName", "getSaveFileName", "getExistingDirectory"):
            setattr(chooser, name, self._choose_path)
        chooser.getOpenFileNames = self._choose_paths
        for cls in (QtWidgets.QDialog, QtWidgets.QMessageBox):
            modal: Any = cls
            modal.exec = modal.exec_ = lambda dialog: self._run_modal(dialog)
        desktop: Any = QtGui.QDesktopServices
        desktop.openUrl = self._open_url

    def _decide(self) -> bool:
        return self.answers.pop(0) if self.answers else self.agrees

    def _choose_path(self, *arguments: Any, **options: Any) -> str:
        """The next of ``paths``, without a filter beside it, as in PythonQt; nothing where the user cancels."""
        return self.paths.pop(0) if self.paths else ""

    def _choose_paths(self, *arguments: Any, **options: Any) -> tuple[str, ...]:
        paths, self.paths = tuple(self.paths), []
        return paths

    def _open_url(self, url: Any) -> bool:
        self.opened.append(url.toString())
        return True

    def _run_modal(self, dialog: Any) -> Any:
        if self.answer_dialog is not None:
            return self.answer_dialog(dialog)
        if not dialog.inherits("QMessageBox"):
            raise AssertionError(f"{type(dialog).__name__} '{dialog.windowTitle}' would wait: no test answers it.")
        self.messages.append(Message("popup", dialog.text, dialog.windowTitle, dialog.detailedText))
        return self._press(dialog.standardButtons)

    def _press(self, offered: Any) -> Any:
        pairs = [pair for pair in YES_OR_NO if pair[0] in offered]
        yes, no = pairs[0] if pairs else (BUTTON.Ok, BUTTON.Cancel)
        return yes if self._decide() else no

    def _display(
        self, level: int, text: str, testingReturnValue: Any, mainWindowNeeded: bool = False, **options: Any
    ) -> Any:
        """In place of ``slicer.util._messageDisplay``, which is behind infoDisplay, errorDisplay and others."""
        asks = testingReturnValue is not None
        kind = "question" if asks else logging.getLevelName(level).lower()
        details = options.get("detailedText") or options.get("informativeText") or ""
        self.messages.append(Message(kind, text, options.get("windowTitle") or "", details))
        return self._press(options.get("standardButtons", BUTTON.Ok)) if asks else BUTTON.Ok

    def _message_box(self, text: str, parent: Any = None, **options: Any) -> Any:
        self.messages.append(Message("popup", text, options.get("windowTitle", ""), options.get("detailedText", "")))
        return self._press(options.get("standardButtons", BUTTON.Ok))


DIALOGS = Dialogs()
