"""The module MAISI of 3D Slicer: declares it, and hangs its panel into the application.

Nothing heavy is imported here: Slicer reads this file at its start. The panel is in ``MAISIPanel``, the engine in
``MAISILib``.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

if importlib.util.find_spec("MAISILib") is None:  # loaded from a checkout, not from an installed extension
    sys.path.append(str(Path(__file__).resolve().parents[1]))


class MAISI(ScriptedLoadableModule):
    """Describes the module to Slicer."""

    def __init__(self, parent: Any) -> None:
        super().__init__(parent)
        parent.title = "MAISI"
        parent.categories = [translate("qSlicerAbstractCoreModule", "Image Synthesis")]
        parent.dependencies = ["Segmentations", "Volumes"]
        parent.contributors = ["MAISI for Slicer contributors"]
        parent.helpText = (
            _(
                "Generates synthetic CT and MR volumes with their segmentations, also for a segmentation of your own, "
                "and fine-tunes the models on your data. Generated images show no patients; not for clinical use."
            )
            + self.getDefaultModuleDocumentationLink()
        )
        parent.acknowledgementText = _(
            "Built on MONAI and on the MAISI networks (Guo et al., WACV 2025). The embedded model was trained on "
            "OpenKBP (Babier et al., Medical Physics 2021)."
        )
        slicer.app.connect("startupCompleted()", _registerSampleData)


def _registerSampleData() -> None:
    """Offers an example in Slicer's module *Sample Data*."""
    from MAISIPanel.SampleImages import registerSampleData

    registerSampleData()


class MAISIWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Makes the panel when the module is first opened and tells it what happens to the scene."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: Any = None
        self.panel: Any = None

    def setup(self) -> None:
        """Builds the panel."""
        ScriptedLoadableModuleWidget.setup(self)
        from MAISIPanel.Logic import MAISILogic
        from MAISIPanel.PanelWidget import PanelWidget

        self.logic = MAISILogic.shared()
        self.panel = PanelWidget(self.parent, self.logic)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self._onSceneClosed)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self._onSceneImported)
        for event in (slicer.mrmlScene.NodeAddedEvent, slicer.mrmlScene.NodeRemovedEvent):
            self.addObserver(slicer.mrmlScene, event, self._onNodesChanged)

    def enter(self) -> None:
        """The user opens the module."""
        self.panel.enter()

    def cleanup(self) -> None:
        """The panel is taken down. The engine belongs to the logic, which ends it when Slicer quits."""
        self.removeObservers()
        if self.panel is not None:
            self.panel.cleanup()
            self.panel = None

    def onReload(self) -> None:
        """A developer reloads the module: the panel's files are read again too, and the engine is started anew."""
        self.logic.shutdown()
        for name in [name for name in sys.modules if name.partition(".")[0] == "MAISIPanel"]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)
        slicer.modules.MAISIWidget.enter()

    def _onSceneClosed(self, _caller: Any, _event: Any) -> None:
        self.panel.onSceneClosed()

    def _onSceneImported(self, _caller: Any, _event: Any) -> None:
        self.panel.onSceneImported()

    def _onNodesChanged(self, _caller: Any, _event: Any) -> None:
        self.panel.onNodesChanged()


class MAISITest(ScriptedLoadableModuleTest):
    """What a real Slicer can test by itself: ``Slicer --testing --python-code "slicer.util.selectModule('MAISI')" …``.

    The panel, the scene and the files are always tested; generating an image only where the engine is installed.
    """

    def setUp(self) -> None:
        """Starts from an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        """Runs all tests, as Slicer's *Reload and Test* does."""
        for test in (self.test_panelOpens, self.test_parametersAreKeptInTheScene, self.test_generate):
            self.setUp()
            test()

    def test_panelOpens(self) -> None:
        """The module opens, and nothing heavy comes with it."""
        before = set(sys.modules)
        slicer.util.selectModule("MAISI")
        panel = slicer.util.getModuleWidget("MAISI").panel
        assert panel.widget.minimumSizeHint.width() <= 500
        assert "Slicer" in panel.setup.report()
        assert not {"torch", "monai"} & (set(sys.modules) - before)

    def test_parametersAreKeptInTheScene(self) -> None:
        """Parameters come back from the scene's node, references to nodes included."""
        from MAISIPanel.Parameters import GenerateParameters, ParameterNode

        segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        node = ParameterNode(slicer.mrmlScene)
        node.set(GenerateParameters(seed=12, maskSource="file", segmentationNodeID=segmentation.GetID()))
        assert (node.get().seed, node.get().segmentationNodeID) == (12, segmentation.GetID())

    def test_generate(self) -> None:
        """The embedded model makes a volume and a segmentation with names and terminology."""
        from MAISIPanel.Installer import Installer
        from MAISIPanel.Logic import MAISILogic

        if Installer().missing():
            self.delayDisplay(_("The engine is not installed; generating is not tested."))
            return
        volume, segmentation = MAISILogic.shared().generate(
            bundle="head-neck-mini", output_size=(64, 64, 32), spacing=(6.0, 6.0, 5.0), steps=2, seed=1
        )
        assert tuple(volume.GetImageData().GetDimensions()) == (64, 64, 32)
        segments = segmentation.GetSegmentation()
        assert "mandible" in {segments.GetNthSegment(i).GetName() for i in range(segments.GetNumberOfSegments())}
        self.delayDisplay(_("Test passed"))


def __getattr__(name: str) -> Any:
    """``MAISI.MAISILogic`` for scripts, without its imports at Slicer's start."""
    if name == "MAISILogic":
        from MAISIPanel.Logic import MAISILogic

        return MAISILogic
    raise AttributeError(f"module 'MAISI' has no attribute {name!r}")
