"""The *Setup* section: what was found on this computer, one next step for each problem, and installing the engine.

Works also where the engine cannot even start: then the checks are those that Slicer itself can make.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from html import escape
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MAISIPanel.EngineProcess import engineCommand, externalPython, setExternalPython
from MAISIPanel.Installer import Installer, InstallError
from MAISIPanel.Wording import PROBLEM_COLOR

_MARKS = {"ok": ("✓", "#3c9a4b"), "warning": ("!", "#c98a14"), "problem": ("✗", PROBLEM_COLOR)}

Check = dict[str, str]


class SetupSection:
    """Preflight, report, installation and the engine's interpreter.

    Args:
        logic: Its ``client`` talks with the engine.
        ui: Widgets of ``MAISISetup.ui`` by name.
        notify: Shows a line to the user.
        dialogs: Asks for files.
        installer: Knows what is missing in this Python.
        onEngineChanged: Called when another or a newly installed engine is to be asked from now on.
        isBusy: Whether something runs that a change of the engine would end.
    """

    def __init__(
        self,
        logic: Any,
        ui: Any,
        notify: Callable[[str], None],
        dialogs: Any,
        installer: Installer,
        onEngineChanged: Callable[[], None],
        isBusy: Callable[[], bool],
    ) -> None:
        self._logic, self._ui, self._notify, self._dialogs = logic, ui, notify, dialogs
        self._installer, self._onEngineChanged, self._isBusy = installer, onEngineChanged, isBusy
        self._engineChecks: list[Check] = []
        self._asked = 0
        ui.pythonEdit.text = externalPython() or ""
        ui.checkButton.connect("clicked()", onEngineChanged)
        ui.installButton.connect("clicked()", self._onInstall)
        ui.reportButton.connect("clicked()", self._onReport)
        ui.pythonButton.connect("clicked()", self._onBrowse)
        ui.pythonEdit.connect("editingFinished()", self._onPython)

    @property
    def canStartEngine(self) -> bool:
        """Whether it is worth to start the engine: its packages are there, or it runs in a Python of the user's."""
        return bool(externalPython()) or not self._installer.missing()

    def refresh(self) -> None:
        """Makes Slicer's own checks, and asks the engine for its own where it can start."""
        self._asked += 1
        number = self._asked
        self._engineChecks = []
        self._show()
        if not self.canStartEngine:
            return

        def answered(data: dict[str, Any]) -> None:
            if number == self._asked:
                self._engineChecks = list(data["checks"])
                self._show()

        def failed(message: str, kind: str) -> None:
            if number == self._asked:
                advice = _("Copy the report and look at its last lines; then press Check again.")
                self._engineChecks = [_check(_("Engine"), "problem", message, advice)]
                self._show()

        self._logic.client.send("preflight", {}, onResult=answered, onFailed=failed)

    def report(self) -> str:
        """The checks and the end of the engine's log as plain text."""
        command = engineCommand(externalPython())
        engine = " ".join([command.program, *command.arguments])
        lines = [f"MAISI for Slicer on {platform.platform()}", _("Engine: {0}").format(engine), ""]
        for check in self._checks():
            lines.append(f"[{check['state']}] {check['name']}: {check['found']}")
            if check["advice"]:
                lines.append(f"    {check['advice']}")
        log = self._logic.client.lastLines
        return "\n".join([*lines, "", "Last lines of the engine:", *(log or ["(none)"])]) + "\n"

    def _checks(self) -> list[Check]:
        return [*self._slicerChecks(), *self._engineChecks]

    def _slicerChecks(self) -> list[Check]:
        checks = [_check("Slicer", "ok", _slicerVersion())]
        external = externalPython()
        if external:
            there = os.path.isfile(external)
            advice = "" if there else _("Choose the program file of a Python, or clear the field below.")
            checks.append(_check(_("Python of the engine"), "ok" if there else "problem", external, advice))
            return checks
        missing = self._installer.missing()
        if missing:  # else the engine says what it runs in
            checks.append(_check("Python", "ok", ".".join(map(str, sys.version_info[:3]))))
        if missing and self._installer.obstacle():
            checks.append(_check(_("Packages"), "problem", _("cannot be installed here"), self._installer.obstacle()))
        elif missing:
            found = _("missing: {0}").format(", ".join(map(str, missing)))
            checks.append(_check(_("Packages"), "problem", found, _("Press Install packages.")))
        return checks

    def _show(self) -> None:
        ui = self._ui
        rows = "".join(_row(check) for check in self._checks())
        if not self._engineChecks and self.canStartEngine:
            rows += f"<tr><td></td><td>{escape(_('Asking the engine…'))}</td></tr>"
        ui.checksLabel.text = f'<table cellspacing="0" cellpadding="2">{rows}</table>'
        ui.installButton.enabled = (
            not externalPython() and bool(self._installer.missing()) and not self._installer.obstacle()
        )

    def _onInstall(self) -> None:
        if self._mustWait():
            return
        self._ui.installButton.enabled = False
        self._notify(_("Installing. Slicer does not answer until it is done; the Python console shows how it goes."))
        slicer.app.processEvents()
        try:
            self._installer.install()
        except InstallError as error:
            self._notify(str(error))
            self.refresh()
            return
        self._notify(_("The engine is installed."))
        self._restart()

    def _onReport(self) -> None:
        qt.QApplication.clipboard().setText(self.report())
        self._notify(_("The report is in the clipboard."))

    def _onBrowse(self) -> None:
        chosen = self._dialogs.file(_("Python of the engine"), _("Programs (*)"))
        if chosen:
            self._ui.pythonEdit.text = chosen
            self._onPython()

    def _onPython(self) -> None:
        path = self._ui.pythonEdit.text.strip()
        if path == (externalPython() or ""):
            return
        if self._mustWait():
            self._ui.pythonEdit.text = externalPython() or ""
            return
        setExternalPython(path)
        self._restart()

    def _mustWait(self) -> bool:
        if self._isBusy():
            self._notify(_("The engine is at work. Wait for it, or cancel the run, before you change the engine."))
        return self._isBusy()

    def _restart(self) -> None:
        self._logic.client.shutdown()
        self._onEngineChanged()


def _check(name: str, state: str, found: str, advice: str = "") -> Check:
    return {"name": name, "state": state, "found": found, "advice": advice}


def _row(check: Check) -> str:
    mark, color = _MARKS.get(check["state"], _MARKS["problem"])
    found = escape(check["found"]).replace("\n", "<br>")
    advice = f'<br><span style="color:{color}">{escape(check["advice"])}</span>' if check.get("advice") else ""
    name = escape(check["name"][:1].upper() + check["name"][1:])
    return f'<tr><td style="color:{color}"><b>{mark}</b></td><td><b>{name}</b>: {found}{advice}</td></tr>'


def _slicerVersion() -> str:
    version = getattr(slicer.app, "applicationVersion", None)
    return str(version or f"{slicer.app.majorVersion}.{slicer.app.minorVersion}")
