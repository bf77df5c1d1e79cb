"""The line at the top of the panel that tells what went wrong or was changed, in place of message boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class MessageLine:
    """One message, with a button for what can be done about it and one to dismiss it.

    Args:
        ui: Widgets of ``MAISI.ui`` by name.
    """

    def __init__(self, ui: Any) -> None:
        self._ui = ui
        self._action: Callable[[], None] | None = None
        ui.messageFrame.styleSheet = "QFrame#messageFrame { border: 1px solid #c98a14; border-radius: 3px }"
        ui.messageCloseButton.connect("clicked()", lambda: self.show(""))
        ui.messageActionButton.connect("clicked()", self._onAction)
        self.show("")

    @property
    def text(self) -> str:
        """What is shown; empty where nothing is."""
        return str(self._ui.messageLabel.text)

    def show(self, text: str, action: str = "", onAction: Callable[[], None] | None = None) -> None:
        """Shows a message in place of the last one.

        Args:
            text: For people; empty hides the line.
            action: Text of the button.
            onAction: What the button does, after which the message goes.
        """
        self._action = onAction
        self._ui.messageLabel.text = text
        self._ui.messageActionButton.text = action
        self._ui.messageActionButton.visible = bool(action)
        self._ui.messageFrame.visible = bool(text)

    def _onAction(self) -> None:
        action = self._action
        self.show("")
        if action is not None:
            action()
