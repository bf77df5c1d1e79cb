"""The *Model* section: which bundle makes the images; getting, importing and removing bundles."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

from slicer.i18n import tr as _

from MAISIPanel.Wording import PROBLEM_COLOR, bytesText, durationText

Notify = Callable[[str], None]


class ModelSection:
    """Lists the engine's bundles and tells who asks which one is chosen.

    Args:
        logic: Its ``client`` talks with the engine.
        ui: Widgets of ``MAISIModel.ui`` by name.
        notify: Shows a line to the user.
        dialogs: Asks for folders and consent.
        onChosen: Called with the name of a bundle that can be used at once, or with an empty string.
    """

    def __init__(self, logic: Any, ui: Any, notify: Notify, dialogs: Any, onChosen: Callable[[str], None]) -> None:
        self._logic, self._ui, self._notify, self._dialogs, self._onChosen = logic, ui, notify, dialogs, onChosen
        self._bundles: dict[str, dict[str, Any]] = {}
        self._wanted = ""
        self._told: str | None = None
        self._running = False
        self._command = ""  # id of the download or import
        ui.bundleComboBox.connect("currentIndexChanged(int)", lambda _index: self._onPicked())
        ui.downloadButton.connect("clicked()", self._onDownload)
        ui.importButton.connect("clicked()", self._onImport)
        ui.openFolderButton.connect("clicked()", self._onOpenFolder)
        ui.removeButton.connect("clicked()", self._onRemove)
        self._showDownload(False)
        self._showBundle()

    @property
    def isBusy(self) -> bool:
        """Whether a download or an import runs."""
        return self._running

    @property
    def chosen(self) -> dict[str, Any] | None:
        """The bundle in the list, as the engine describes it; ``None`` where there is none."""
        return self._bundles.get(str(self._ui.bundleComboBox.currentData or ""))

    def refresh(self) -> None:
        """Asks the engine which bundles there are."""
        self._logic.client.send("bundles", {}, onResult=self._onBundles, onFailed=self._onFailed)

    def choose(self, name: str) -> None:
        """Selects a bundle, now or as soon as the engine has listed it."""
        self._wanted = name
        index = self._ui.bundleComboBox.findData(name)
        if index >= 0:
            self._ui.bundleComboBox.currentIndex = index
        elif self._bundles:
            self.refresh()  # it may have come since

    def _onBundles(self, data: dict[str, Any]) -> None:
        combo, before = self._ui.bundleComboBox, str(self._ui.bundleComboBox.currentData or "")
        self._bundles = {bundle["name"]: bundle for bundle in data["bundles"]}
        combo.blockSignals(True)
        combo.clear()
        for bundle in self._bundles.values():
            words = "{0}" if _state(bundle) != "downloadable" else _("{0} – not downloaded")
            combo.addItem(words.format(_title(bundle)), bundle["name"])
        usable = [name for name, bundle in self._bundles.items() if _isUsable(bundle)]
        for name in (self._wanted, before, *usable):
            if name in self._bundles:
                combo.currentIndex = combo.findData(name)
                break
        combo.blockSignals(False)
        lost = next((name for name in (before, self._wanted) if name and name not in self._bundles), "")
        if lost:
            self._notify(_("The model '{0}' is not on this computer; another one is selected.").format(lost))
        self._told = None
        self._onPicked()

    def _onPicked(self) -> None:
        self._showBundle()
        bundle = self.chosen
        name = bundle["name"] if bundle and _isUsable(bundle) else ""
        if bundle:
            self._wanted = bundle["name"]
        if name != self._told:
            self._told = name
            self._onChosen(name)

    def _showBundle(self) -> None:
        ui, bundle = self._ui, self.chosen
        ui.bundleComboBox.enabled = bool(self._bundles)
        ui.bundleLabel.text = _described(bundle) if bundle else _("The engine has not listed its models yet.")
        state = _state(bundle)
        ui.downloadButton.enabled = self._running or state == "downloadable"
        ui.importButton.enabled = bool(self._bundles) and not self._running
        ui.openFolderButton.enabled = bool(bundle and bundle.get("folder"))
        ui.removeButton.enabled = bool(bundle and bundle.get("folder")) and state != "embedded" and not self._running

    def _onDownload(self) -> None:
        if self._running:
            self._logic.client.cancel(self._command)
            return
        bundle = self.chosen
        if not bundle:
            return
        accept = self._consents(bundle)
        if accept is None:
            return
        self._run(
            "download",
            {"bundle": bundle["name"], "accept_licence": accept},
            lambda _data: self._arrived(bundle["name"]),
        )

    def _onImport(self) -> None:
        folder = self._dialogs.folder(_("Folder of a model"))
        if folder:
            self._import(folder, False)

    def _import(self, folder: str, accept: bool) -> None:
        def failed(message: str, kind: str) -> None:
            # Only the engine can tell whose weights a folder holds: it asks for consent by refusing.
            self._ended()
            if kind == "LicenceError" and not accept:
                if self._dialogs.acceptsLicence(_("this folder"), self._licenceIn(message)):
                    self._import(folder, True)
                return
            self._onFailed(message, kind)

        self._run(
            "import",
            {"folder": folder, "accept_licence": accept},
            lambda data: self._arrived(data["name"], data.get("notes")),
            failed,
        )

    def _licenceIn(self, message: str) -> dict[str, Any]:
        """The licence of a known bundle that the engine's message names."""
        licences = [bundle.get("licence") or {} for bundle in self._bundles.values()]
        return next((each for each in licences if each.get("name") and each["name"] in message), {"name": message})

    def _onOpenFolder(self) -> None:
        if self.chosen and self.chosen.get("folder"):
            self._dialogs.openFolder(str(self.chosen["folder"]))

    def _onRemove(self) -> None:
        bundle = self.chosen
        if not bundle:
            return
        question = _("Delete the files of '{0}' ({1}) from this computer?")
        if self._dialogs.confirm(question.format(_title(bundle), bytesText(bundle.get("bytes")) or _("size unknown"))):
            self._wanted = ""
            self._logic.client.send(
                "remove", {"bundle": bundle["name"]}, onResult=lambda _data: self.refresh(), onFailed=self._onFailed
            )

    def _consents(self, bundle: dict[str, Any]) -> bool | None:
        """Whether the licence is accepted now; ``None`` where the user does not accept it."""
        licence = bundle.get("licence") or {}
        if not licence.get("must_accept") or licence.get("accepted"):
            return False
        return True if self._dialogs.acceptsLicence(_title(bundle), licence) else None

    def _run(
        self,
        command: str,
        fields: dict[str, Any],
        onResult: Callable[[dict[str, Any]], None],
        onFailed: Callable[[str, str], None] | None = None,
    ) -> None:
        def failed(message: str, kind: str) -> None:
            self._ended()
            self._onFailed(message, kind)

        self._running = True
        self._showDownload(True)
        self._ui.downloadLabel.text = _("Starting…")
        self._ui.downloadProgressBar.maximum = 0
        self._command = self._logic.client.send(
            command,
            fields,
            onProgress=self._onProgress,
            onResult=onResult,
            onFailed=onFailed or failed,
            onCancelled=self._ended,
        )
        self._showBundle()

    def _onProgress(self, event: dict[str, Any]) -> None:
        done, total = event.get("done") or 0, event.get("total") or 0
        bar = self._ui.downloadProgressBar
        bar.maximum = 1000 if total > 1 else 0  # one step says nothing about how far it is
        bar.value = round(1000 * done / total) if total > 1 else 0
        left = event.get("remaining_seconds")
        words = [event.get("message") or ""]
        if left is not None:
            words.append(_("{0} left").format(durationText(left)))
        self._ui.downloadLabel.text = " · ".join(word for word in words if word)

    def _arrived(self, name: str, notes: list[str] | None = None) -> None:
        self._ended()
        self._wanted = name
        if notes:
            self._notify("\n".join(notes))
        self.refresh()

    def _ended(self) -> None:
        self._running = False
        self._showDownload(False)
        self._showBundle()

    def _onFailed(self, message: str, kind: str) -> None:
        self._notify(message)

    def _showDownload(self, running: bool) -> None:
        self._ui.downloadProgressBar.visible = running
        self._ui.downloadLabel.visible = running
        self._ui.downloadButton.text = _("Cancel") if running else _("Download")


def _state(bundle: dict[str, Any] | None) -> str:
    return bundle.get("state", "") if bundle else ""


def _isUsable(bundle: dict[str, Any]) -> bool:
    return _state(bundle) in ("embedded", "installed") and not bundle.get("problem")


def _title(bundle: dict[str, Any]) -> str:
    return bundle.get("title") or bundle["name"]


def _described(bundle: dict[str, Any]) -> str:
    """State, size, version and licence in one line of HTML."""
    words = {
        "embedded": _("Comes with this extension"),
        "installed": _("Installed"),
        "downloadable": _("Not on this computer yet"),
    }
    state = _("Damaged") if bundle.get("problem") else words.get(_state(bundle), _state(bundle))
    parts = [state, bytesText(bundle.get("bytes"))]
    if bundle.get("version"):
        parts.append(_("version {0}").format(bundle["version"]))
    licence = bundle.get("licence") or {}
    line = " · ".join(escape(part) for part in parts if part)
    if licence.get("name"):
        name, url = escape(licence["name"]), escape(licence.get("url") or "")
        line += "<br>" + _("Licence: {0}").format(f'<a href="{url}">{name}</a>' if url else name)
        if licence.get("must_accept"):
            line += " " + (_("(accepted)") if licence.get("accepted") else _("(asks for your consent)"))
    if bundle.get("problem"):
        line += f'<br><span style="color:{PROBLEM_COLOR}">{escape(bundle["problem"])}</span>'
    return line
