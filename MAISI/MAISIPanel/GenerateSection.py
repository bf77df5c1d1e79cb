"""The *Generate* section: what the image shall be, what it costs, and the run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from slicer.i18n import tr as _

from MAISIPanel.AnatomyPicker import AnatomyPicker
from MAISIPanel.CostLine import CostLine
from MAISIPanel.GenerationJob import Callbacks
from MAISIPanel.GridControls import GridControls
from MAISIPanel.MaskChanges import MaskChanges
from MAISIPanel.Parameters import GenerateParameters
from MAISIPanel.RegionBoxes import RegionBoxes
from MAISIPanel.RunControls import RunControls
from MAISIPanel.SizeSliders import SizeSliders

#: Largest seed that the dice throws: short enough to be read out.
_LARGEST_RANDOM_SEED = 999_999


class GenerateSection:
    """Shows the parameters that the scene keeps, for what the chosen bundle can do, and runs them.

    Args:
        logic: Plans and generates; ``parameterNode`` keeps the parameters.
        ui: Widgets of ``MAISIGenerate.ui`` by name.
        notify: Shows a line to the user.
        onSample: Called with the volume and the segmentation node of each image as it comes.
        onBundleWanted: Called with the name of the bundle that parameters from a scene ask for.
    """

    def __init__(
        self,
        logic: Any,
        ui: Any,
        notify: Callable[[str], None],
        onSample: Callable[[Any, Any], None],
        onBundleWanted: Callable[[str], None],
    ) -> None:
        self._logic, self._ui, self._notify = logic, ui, notify
        self._onSample, self._onBundleWanted = onSample, onBundleWanted
        self._description: Mapping[str, Any] | None = None
        self._bundle = self._described = ""
        self._restored: GenerateParameters | None = None
        self._isShowing = False
        self._proposedReference = ""  # id of the volume that a segmentation was drawn on, where the user left it
        self._notes: list[str] = []
        self.anatomies = AnatomyPicker(ui, self._onChanged)
        self.sizes = SizeSliders(ui, self._onChanged)
        self.changes = MaskChanges(ui, self._onChanged)
        self.regions = RegionBoxes(ui, self._onScope)
        self.grid = GridControls(ui, self._onChanged)
        self.cost = CostLine(logic, ui.costLabel)
        self.run = RunControls(ui, self._onGenerate, logic.cancel)
        for text, device in (
            (_("Best available"), "auto"),
            (_("Graphics card (CUDA)"), "cuda"),
            (_("Apple GPU (MPS)"), "mps"),
            (_("Processor"), "cpu"),
        ):
            ui.deviceComboBox.addItem(text, device)
        for label in (
            ui.maskSourceLabel,
            ui.varyLabel,
            ui.segmentationLabel,
            ui.seedLabel,
        ):  # forms of their own, aligned
            label.minimumWidth = ui.referenceLabel.sizeHint.width()
        ui.settingsFrame.visible = False
        self._connect()
        self._showSource()
        self._say()

    def _connect(self) -> None:
        ui = self._ui
        ui.maskSourceComboBox.connect("currentIndexChanged(int)", lambda _index: self._onSource())
        for combo in (ui.solverComboBox, ui.deviceComboBox):
            combo.connect("currentIndexChanged(int)", lambda _index: self._onChanged())
        ui.modalityComboBox.connect("currentIndexChanged(int)", lambda _index: self._onScope())
        ui.segmentationSelector.connect("currentNodeChanged(vtkMRMLNode*)", lambda _node: self._onSegmentation())
        ui.referenceSelector.connect("currentNodeChanged(vtkMRMLNode*)", lambda _node: self._onChanged())
        for box in (ui.stepsSpinBox, ui.countSpinBox):
            box.connect("valueChanged(int)", lambda _value: self._onChanged())
        ui.guidanceSpinBox.connect("valueChanged(double)", lambda _value: self._onChanged())
        ui.seedEdit.connect("textEdited(QString)", self._onSeed)
        ui.diceButton.connect("clicked()", self._onDice)

    # ------------------------------------------------------------------ what the panel tells

    def setBundle(self, name: str) -> None:
        """Another bundle was chosen; empty where none can be used."""
        self._bundle, self._description = name, None
        if not name:
            self._ui.settingsFrame.visible = False
        self._say()
        if name:
            self._logic.client.send(
                "describe",
                {"bundle": name},
                onResult=lambda data: self._onDescribed(data, name),
                onFailed=self._onUndescribed,
            )

    def restore(self) -> None:
        """Shows the parameters that the scene keeps, and asks for their bundle."""
        parameters = self._logic.parameterNode.get()
        self._restored = parameters
        if self._description is not None and parameters.bundle == self._bundle:
            self._showDescribed()
        else:
            self._onBundleWanted(parameters.bundle)

    def refresh(self) -> None:
        """The panel is looked at again: memory may have become free or scarce since."""
        self._say()

    def onSceneClosed(self) -> None:
        """The nodes are gone, the settings stay."""
        if self._description is not None:
            self._onChanged()

    def onSceneImported(self) -> None:
        """A scene with parameters brings them; with one that has none, the settings stay."""
        if self._logic.parameterNode.node.GetParameterCount():  # closing a scene empties the node, and leaves it
            self.restore()
        else:
            self._keep()

    def cleanup(self) -> None:
        """The panel goes away: asks nothing any more, and what its widgets do from now on is no wish of the user."""
        self.cost.stop()
        self._isShowing = True

    def parameters(self) -> GenerateParameters:
        """What the widgets say."""
        ui, source = self._ui, self._source
        segmentation, reference = ui.segmentationSelector.currentNode(), ui.referenceSelector.currentNode()
        isFile = source == "file"
        return GenerateParameters(
            bundle=self._bundle,
            maskSource=source,
            anatomies=self.anatomies.chosen if source in ("library", "generated") else [],
            controllableSizes=self.sizes.sizes if source == "generated" else {},
            **self.changes.fields,
            regions=self.regions.chosen,
            modality=str(ui.modalityComboBox.currentData or ""),
            # The image of a segmentation has the segmentation's, or the reference volume's, extent.
            size=None if isFile else self.grid.size,
            spacing=None if isFile else self.grid.spacing,
            steps=int(ui.stepsSpinBox.value),
            solver=str(ui.solverComboBox.currentData or ""),
            guidance=float(ui.guidanceSpinBox.value),
            seed=int(ui.seedEdit.text or 0),
            count=int(ui.countSpinBox.value),
            device=str(ui.deviceComboBox.currentData or "auto"),
            segmentationNodeID=segmentation.GetID() if segmentation is not None else "",
            referenceVolumeID=reference.GetID() if reference is not None else "",
        )

    # ------------------------------------------------------------------ runs

    def start(self, begin: Callable[[], Any]) -> None:
        """Begins a run; `follow` then shows how it goes. One after another: where one runs, the user is told."""
        if self.run.isRunning:
            self._notify(_("An image is being made already. Wait for it, or cancel it first."))
        else:
            begin()

    def follow(self, job: Any) -> None:
        """Shows how a run goes, and lets the user cancel it; also one that the console or the effect has begun."""
        self.run.start(job.count)
        self._notes = list(job.notes)
        job.follow(
            Callbacks(
                onDone=lambda _nodes: self._ended(),
                onProgress=self.run.show,
                onSample=self._onSample,
                onNote=self._onNote,
                onFailed=self._onFailed,
                onCancelled=self._ended,
            )
        )

    def _onGenerate(self) -> None:
        parameters = self.parameters()
        isValid, reason = parameters.isValid()
        if not isValid:
            self._notify(reason)
            return
        self._logic.parameterNode.set(parameters)
        self._notify("")
        self.start(lambda: self._logic.generateFromParameters(parameters))

    def _onNote(self, note: str) -> None:
        self._notes.append(note)
        self._notify("\n".join(self._notes))

    def _onFailed(self, message: str, kind: str) -> None:
        self._ended()
        self._notify("\n".join([message, *self._notes]))

    def _ended(self) -> None:
        self.run.end()
        self._say()

    # ------------------------------------------------------------------ what the bundle can do

    def _onDescribed(self, description: dict[str, Any], bundle: str) -> None:
        if bundle != self._bundle:
            return  # the answer to an earlier choice
        isFirst = self._described != self._bundle
        if not isFirst and self._restored is None:
            self._restored = self.parameters()  # described once more: what the user has set stays
        self._description, self._described = description, self._bundle
        self._ui.settingsFrame.visible = True
        with self._showing():
            self._offer(description)
            if isFirst:
                self.grid.chooseRecommended((), self._modality())
        self._showDescribed()
        if description.get("problems"):
            self._notify("\n".join(description["problems"]))

    def _onUndescribed(self, message: str, _kind: str) -> None:
        self._notify(message)
        self.cost.say(_("The engine cannot use this model."), isProblem=True)

    def _offer(self, description: Mapping[str, Any]) -> None:
        ui = self._ui
        words = {
            "library": _("From the model's library"),
            "generated": _("Newly generated, with sizes"),
            "file": _("A segmentation of the scene"),
            "none": _("None: image only"),
        }
        sources = [(words[source], source) for source in description["mask_sources"]]
        _fill(ui.maskSourceComboBox, sources)
        _fill(ui.modalityComboBox, [(name, name) for name in description["modalities"]])
        _fill(ui.solverComboBox, [(name, name) for name in description["solvers"]])
        self.sizes.offer(description["controllable"])
        self.changes.offer(description)
        self.regions.offer(description["regions"])
        ui.stepsSpinBox.maximum = int(description["most_steps"])
        ui.stepsSpinBox.value = int(description["steps"])
        ui.modalityLabel.visible = ui.modalityComboBox.visible = len(description["modalities"]) > 1
        ui.guidanceLabel.visible = ui.guidanceSpinBox.visible = bool(description["guidance"])
        if not description["guidance"]:
            ui.guidanceSpinBox.value = 0.0
        self.grid.offer(description)

    def _showDescribed(self) -> None:
        """Shows parameters that wait for their bundle; then what the widgets say is what the scene keeps."""
        parameters, self._restored = self._restored, None
        if parameters is not None and parameters.bundle == self._bundle:
            with self._showing():
                self._show(parameters)
        self.grid.setRegions(self.regions.chosen)
        self._showSource()
        self._keep()

    def _show(self, parameters: GenerateParameters) -> None:
        ui, description = self._ui, self._description or {}
        for combo, data in (
            (ui.maskSourceComboBox, parameters.maskSource),
            (ui.modalityComboBox, parameters.modality),
            (ui.solverComboBox, parameters.solver),
            (ui.deviceComboBox, parameters.device),
        ):
            combo.currentIndex = max(0, combo.findData(data))
        self._showSource()
        self.anatomies.choose(parameters.anatomies)
        self.sizes.choose(parameters.controllableSizes)
        self.changes.choose(parameters)
        self.regions.choose(parameters.regions)
        self.grid.chooseRecommended(parameters.regions, self._modality())
        self.grid.choose(parameters.size or self.grid.size, parameters.spacing or self.grid.spacing)
        ui.stepsSpinBox.value = parameters.steps or int(description.get("steps") or 30)
        ui.guidanceSpinBox.value = parameters.guidance
        ui.seedEdit.text = str(parameters.seed)
        ui.countSpinBox.value = parameters.count
        ui.segmentationSelector.setCurrentNodeID(parameters.segmentationNodeID)
        ui.referenceSelector.setCurrentNodeID(parameters.referenceVolumeID)

    @property
    def _source(self) -> str:
        return str(self._ui.maskSourceComboBox.currentData or "library")

    def _modality(self) -> str:
        return str(self._ui.modalityComboBox.currentData or "")

    # ------------------------------------------------------------------ what the user changes

    def _onSource(self) -> None:
        self._showSource()
        self._onChanged()

    def _onSegmentation(self) -> None:
        """A segmentation that was drawn on a volume gets its image on that volume's grid, if no other was chosen."""
        ui, node = self._ui, self._ui.segmentationSelector.currentNode()
        reference = ui.referenceSelector.currentNode()
        isProposed = reference is None or reference.GetID() == self._proposedReference
        if node is not None and isProposed and not self._isShowing:
            drawnOn = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
            if drawnOn is not None and not drawnOn.IsA("vtkMRMLScalarVolumeNode"):
                drawnOn = None
            self._proposedReference = drawnOn.GetID() if drawnOn is not None else ""
            ui.referenceSelector.setCurrentNode(drawnOn)
        self._onChanged()

    def _onScope(self) -> None:
        """Another region or modality has other recommendations, which are taken where one was chosen before."""
        if self._isShowing:
            return
        self.grid.setRegions(self.regions.chosen)
        if self.grid.isRecommended:
            self.grid.chooseRecommended(self.regions.chosen, self._modality())
        self._onChanged()

    def _onSeed(self, text: str) -> None:
        digits = "".join(character for character in text if character in "0123456789")[:19]
        if digits != text:
            self._ui.seedEdit.text = digits
        self._onChanged()

    def _onDice(self) -> None:
        self._ui.seedEdit.text = str(random.randint(0, _LARGEST_RANDOM_SEED))
        self._onChanged()

    def _onChanged(self) -> None:
        """The user has changed something: the scene keeps it, and the cost is asked for."""
        if self._isShowing or self._logic.scene.IsBatchProcessing():  # nodes come or go with a scene: no wish either
            return
        self._keep()

    def _keep(self) -> None:
        if self._description is not None:
            self._logic.parameterNode.set(self.parameters())
        self._say()

    def _showSource(self) -> None:
        """Shows only what belongs to the chosen source of the mask."""
        ui, source, description = self._ui, self._source, self._description or {}
        names = (description.get("anatomies_of") or {}).get(source, ())
        self.anatomies.offer(description.get("labels") or (), names)
        ui.anatomyFrame.visible = bool(names)
        ui.sizesFrame.visible = source == "generated"
        ui.changesFrame.visible = source == "library"
        ui.segmentationFrame.visible = source == "file"
        labels = (ui.presetLabel, ui.sizeLabel, ui.spacingLabel, ui.fieldOfViewTitle)
        for widget in (*labels, ui.presetComboBox, ui.sizeFrame, ui.spacingFrame, ui.fieldOfViewLabel):
            widget.visible = source != "file"

    def _say(self) -> None:
        """What keeps the run from starting, or what it will cost."""
        if self._isShowing:
            return
        if not self._bundle:
            reason = _("Choose a model that is on this computer.")
        elif self._description is None:
            reason = _("Asking the engine what this model can do…")
        else:
            reason = self.parameters().isValid()[1]
        self.run.allow(reason)
        if reason:
            self.cost.say(reason)
        else:
            self.cost.askFor(self.parameters())

    @contextmanager
    def _showing(self) -> Iterator[None]:
        """Widgets that are set here are no wishes of the user."""
        self._isShowing = True
        try:
            yield
        finally:
            self._isShowing = False


def _fill(combo: Any, items: list[tuple[str, str]]) -> None:
    """New items; the chosen one stays where it is among them."""
    before = combo.currentData
    combo.blockSignals(True)
    combo.clear()
    for text, data in items:
        combo.addItem(text, data)
    combo.currentIndex = max(0, combo.findData(before)) if items else -1
    combo.blockSignals(False)
