"""The Segment Editor effect *MAISI*, as the Segment Editor calls it.

What it does stands in ``MAISIPanel.EffectOptions``: Slicer loads this file as a module with the name of its folder, and
that name is then no package from which anything beside this file could be imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import qt
from SegmentEditorEffects import AbstractScriptedSegmentEditorEffect
from slicer.i18n import tr as _

if TYPE_CHECKING:
    from MAISIPanel.EffectOptions import Edited, EffectOptions


class SegmentEditorEffect(AbstractScriptedSegmentEditorEffect):
    """One of many clones that the Segment Editor makes and destroys: it keeps nothing but its widgets."""

    def __init__(self, scriptedEffect: Any) -> None:
        scriptedEffect.name = "MAISI"  # also names its parameters: not translated
        scriptedEffect.title = _("MAISI")
        scriptedEffect.perSegment = False
        scriptedEffect.showEffectCursorInSliceView = False
        scriptedEffect.showEffectCursorInThreeDView = False
        super().__init__(scriptedEffect)
        self.options: EffectOptions | None = None

    def clone(self) -> Any:
        """Another effect of this kind, for another Segment Editor widget."""
        import qSlicerSegmentationsEditorEffectsPythonQt as effects

        effect = effects.qSlicerSegmentEditorScriptedEffect(None)
        effect.setPythonSource(Path(__file__).as_posix())
        return effect

    def icon(self) -> Any:
        """For the effect's button."""
        return qt.QIcon(str(Path(__file__).with_suffix(".png")))

    def helpText(self) -> str:
        """For the effect's help."""
        return _(
            "<html>Works on the segmentation and the source volume that are being edited.<p>"
            "<b>Generate</b>: a synthetic image in which the anatomy lies as it is segmented.<br>"
            "<b>Fine-tune</b>: teaches the model the selected segment, as it looks in the source volume. Training goes "
            "on in the background, also without Slicer.<p>Models and further settings: module <b>MAISI</b>.</html>"
        )

    def setupOptionsFrame(self) -> None:
        """Makes the widgets. What they need is imported here: this file is read when Slicer starts."""
        from MAISIPanel.EffectOptions import EffectOptions

        self.options = EffectOptions(sharedLogic, self._edited, self.scriptedEffect.setParameter)
        self.scriptedEffect.addOptionsWidget(self.options.widget)

    def setMRMLDefaults(self) -> None:
        """What a new Segment Editor starts with."""
        self.scriptedEffect.setParameterDefault("Host", "body")
        self.scriptedEffect.setParameterDefault("Duration", "quick")

    def updateGUIFromMRML(self) -> None:
        """Another segment, segmentation or volume was chosen, or a parameter has changed."""
        if self.options is not None:
            self.options.show(self.scriptedEffect.parameter("Host"), self.scriptedEffect.parameter("Duration"))

    def updateMRMLFromGUI(self) -> None:
        """The widgets store each choice when it is made."""

    def activate(self) -> None:
        """The effect's button was pressed."""
        if self.options is not None:
            self.options.activate()
            self.updateGUIFromMRML()

    def deactivate(self) -> None:
        """Another effect was chosen; what runs goes on."""
        if self.options is not None:
            self.options.deactivate()

    def cleanup(self) -> None:
        """The clone is about to be destroyed."""
        if self.options is not None:
            self.options.close()
            self.options = None

    def _edited(self) -> Edited:
        from MAISIPanel.EffectOptions import Edited

        node = self.scriptedEffect.parameterSetNode()
        if node is None:
            return Edited()
        return Edited(node.GetSegmentationNode(), node.GetSourceVolumeNode(), node.GetSelectedSegmentID() or "")


def sharedLogic() -> Any:
    """The logic of the module *MAISI*, with its engine, results and trainings."""
    from MAISIPanel.Logic import MAISILogic

    return MAISILogic.shared()
