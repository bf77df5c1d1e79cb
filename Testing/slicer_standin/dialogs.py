"""What the user would have been told and asked, recorded instead of shown, with answers that a test gives beforehand.

Stands in for: the message boxes of ``slicer.util``, file choosers, modal dialogs, opening a web page or a folder. A modal dialog that
no test has an answer for fails at once instead of waiting for somebody to press a button.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from PySide6 import QtGui, QtWidgets


@dataclasses.dataclass
class Message:
    """A message: its kind (``info``, ``warning``, ``error``, ``question``, ``popup``), its text, and what went with it."""

    kind: str
    text: str
    title: str = ""
    details: str = ""


class Dialogs:
    """Records messages and questions. Questions are answered by ``agrees``, unless there are ``answers`` for the next ones."""

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

    def decide(self) -> bool:
        return self.answers.pop(0) if self.answers else self.agrees

    def choose_path(self, *arguments: Any, **options: Any) -> str:
        """Answers a file chooser with the next of ``paths``; "" is a chooser that was cancelled."""
        return self.paths.pop(0) if self.paths else ""

    def choose_paths(self, *arguments: Any, **options: Any) -> tuple[str, ...]:
        paths, self.paths = tuple(self.paths), []
        return paths

    def run_modal(self, dialog: Any) -> int:
        """Answers a modal dialog by ``answer_dialog``; a message box also without one."""
        if self.answer_dialog is not None:
            return self.answer_dialog(dialog)
        if isinstance(dialog, QtWidgets.QMessageBox):
            self.messages.append(Message("popup", dialog.text, dialog.windowTitle, dialog.detailedText))  # type: ignore
            buttons = QtWidgets.QMessageBox.StandardButton
            agree = self.decide()
            wanted = (buttons.Ok, buttons.Yes) if agree else (buttons.Cancel, buttons.No, buttons.Close)
            return next((b for b in wanted if dialog.button(b) is not None), buttons.Ok if agree else buttons.Cancel)  # type: ignore
        raise AssertionError(f"{type(dialog).__name__} '{dialog.windowTitle}' would wait for the user, and no test answers it.")

    def open_url(self, url: Any) -> bool:
        self.opened.append(url.toString())
        return True

    def display(
        self, level: int, text: str, testingReturnValue: Any, mainWindowNeeded: bool = False, **options: Any
    ) -> Any:
        """In place of ``slicer.util._messageDisplay``, behind infoDisplay, errorDisplay, confirmOkCancelDisplay and the like."""
        buttons = options.get("standardButtons")
        button = QtWidgets.QMessageBox.StandardButton
        asks = testingReturnValue is not None
        kind = "question" if asks else logging.getLevelName(level).lower()
        details = options.get("detailedText") or options.get("informativeText") or ""
        self.messages.append(Message(kind, text, options.get("windowTitle") or "", details))
        if not asks:
            return button.Ok
        agree = self.decide()
        yes, no = ((button.Yes, button.No), (button.Ok, button.Cancel), (button.Retry, button.Close)), buttons
        pair = next(((a, b) for a, b in yes if no is None or a in no), (button.Ok, button.Cancel))
        return pair[0] if agree else pair[1]

    def message_box(self, text: str, parent: Any = None, **options: Any) -> Any:
        """In place of ``slicer.util.messageBox``."""
        self.messages.append(Message("popup", text, options.get("windowTitle", ""), options.get("detailedText", "")))
        return QtWidgets.QMessageBox.StandardButton.Ok

    def install(self, util: Any) -> None:
        """Takes the place of everything that would wait for a person, in ``slicer.util`` and in Qt."""
        util._messageDisplay = self.display
        util.messageBox = self.message_box
        util.delayDisplay = lambda text, *_, **__: self.messages.append(Message("info", text))
        chooser: Any = QtWidgets.QFileDialog
        for name in ("getOpenFileName", "getSaveFileName", "getExistingDirectory"):
            setattr(chooser, name, self.choose_path)
        chooser.getOpenFileNames = self.choose_paths
        for cls in (QtWidgets.QDialog, QtWidgets.QMessageBox):
            any_class: Any = cls
            any_class.exec = any_class.exec_ = lambda dialog: self.run_modal(dialog)
        desktop: Any = QtGui.QDesktopServices
        desktop.openUrl = self.open_url


DIALOGS = Dialogs()
