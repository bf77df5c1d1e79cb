"""The panel: puts the sections together and carries news between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MAISIPanel.Dialogs import Dialogs
from MAISIPanel.FineTuneSection import FineTuneSection
from MAISIPanel.GenerateSection import GenerateSection
from MAISIPanel.Installer import Installer
from MAISIPanel.LoadSection import LoadSection
from MAISIPanel.MessageLine import MessageLine
from MAISIPanel.ModelSection import ModelSection
from MAISIPanel.ResultsSection import ResultsSection
from MAISIPanel.SetupSection import SetupSection

UI_FOLDER = Path(__file__).resolve().parents[1] / "Resources" / "UI"
#: Milliseconds without another node before the table of results is filled again.
_PAUSE_MS = 200


class PanelWidget:
    """All of the module's panel.

    Args:
        parent: Widget with a layout that the panel goes into.
        logic: A `MAISILogic`.
        installer: Knows what is missing in this Python.
        dialogs: Asks for files and consent.
    """

    def __init__(self, parent: Any, logic: Any, installer: Installer | None = None, dialogs: Any = None) -> None:
        self.logic = logic
        self.widget, self.ui = _load("MAISI.ui")
        parent.layout().addWidget(self.widget)
        dialogs = dialogs or Dialogs(self.widget)
        self.message = MessageLine(self.ui)
        notify = self.message.show
        ui = {name: self._slot(f"MAISI{name}.ui", layout) for name, layout in self._slots().items()}
        self.model = ModelSection(logic, ui["Model"], notify, dialogs, self._onBundle)
        self.generate = GenerateSection(logic, ui["Generate"], notify, self._onSample, self.model.choose)
        self.results = ResultsSection(logic, ui["Results"], notify, dialogs, self.generate.start)
        self.load = LoadSection(logic, ui["Load"], notify, dialogs, self._onSample)
        self.fineTune = FineTuneSection(logic, ui["FineTune"], notify, dialogs, self._onBundleMade)
        self.setup = SetupSection(
            logic, ui["Setup"], notify, dialogs, installer or Installer(), self.refreshEngine, self._isBusy
        )
        self.widget.setMRMLScene(slicer.mrmlScene)
        logic.client.onCrash = self._onCrash
        logic.onBegun = self.generate.follow
        if logic.isGenerating:  # begun by the console or the effect before the module was opened
            self.generate.follow(logic.job)
        self._isFresh = True
        self._nodesTimer = qt.QTimer()
        self._nodesTimer.setSingleShot(True)
        self._nodesTimer.setInterval(_PAUSE_MS)
        self._nodesTimer.connect("timeout()", self.results.refresh)

    def enter(self) -> None:
        """The user looks at the panel: the engine is asked what there is, unless it has told already."""
        if self._isFresh:
            self._isFresh = False
            self.generate.restore()
        if self.model.chosen is None:
            self.refreshEngine()
        else:
            self.generate.refresh()
        self.results.refresh()
        self.fineTune.refresh()

    def cleanup(self) -> None:
        """The panel is taken down."""
        self.logic.client.onCrash = self.logic.onBegun = None
        self._nodesTimer.stop()
        self.generate.cleanup()
        self.fineTune.cleanup()

    def refreshEngine(self) -> None:
        """Asks the engine again for all that the sections show; where it cannot start, Setup says why."""
        self.setup.refresh()
        if self.setup.canStartEngine:
            self.model.refresh()
        else:
            self.ui.setupButton.collapsed = False
            self.message.show(_("The engine is not installed yet. Section Setup says what is missing and installs it."))

    def onSceneClosed(self) -> None:
        """The scene is empty; models, file names and the computer do not depend on it."""
        for section in (self.generate, self.results, self.fineTune):
            section.onSceneClosed()

    def onSceneImported(self) -> None:
        """A scene was opened, or nodes were added from one: its parameters and results are shown."""
        self.generate.onSceneImported()
        self.results.refresh()

    def onNodesChanged(self) -> None:
        """Nodes came or went, perhaps results: the table follows a moment later, when all of them are there."""
        self._nodesTimer.start()

    def _slots(self) -> dict[str, Any]:
        """Where each section goes."""
        return {
            "Model": self.ui.modelLayout,
            "Generate": self.ui.generateSectionLayout,
            "Results": self.ui.resultsLayout,
            "Load": self.ui.loadLayout,
            "FineTune": self.ui.fineTuneLayout,
            "Setup": self.ui.setupLayout,
        }

    def _slot(self, name: str, layout: Any) -> Any:
        """Loads a section's widgets into its place; they follow the scene."""
        widget, ui = _load(name)
        layout.addWidget(widget)
        self.widget.connect("mrmlSceneChanged(vtkMRMLScene*)", widget, "setMRMLScene(vtkMRMLScene*)")
        return ui

    def _onBundle(self, name: str) -> None:
        self.generate.setBundle(name)
        self.fineTune.setBundle(name)

    def _onBundleMade(self, _name: str) -> None:
        self.model.refresh()

    def _isBusy(self) -> bool:
        return self.logic.isGenerating or self.model.isBusy

    def _onSample(self, volumeNode: Any, _segmentationNode: Any) -> None:
        self.ui.resultsButton.collapsed = False
        self.results.added(volumeNode)

    def _onCrash(self, message: str) -> None:
        self.message.show(message, _("Start engine again"), self.refreshEngine)


def _load(name: str) -> tuple[Any, Any]:
    widget = slicer.util.loadUI(str(UI_FOLDER / name))
    return widget, slicer.util.childWidgetVariables(widget)
