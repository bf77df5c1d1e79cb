"""Hidden module that gives the Segment Editor its effect *MAISI* when Slicer has started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModule


class SegmentEditorMAISI(ScriptedLoadableModule):
    """Registers the effect; there is nothing to see of the module itself."""

    def __init__(self, parent: Any) -> None:
        super().__init__(parent)
        parent.title = _("MAISI effect of the Segment Editor")
        parent.categories = ["Segmentation"]
        parent.dependencies = ["Segmentations", "MAISI"]
        parent.contributors = ["MAISI for Slicer contributors"]
        parent.hidden = True
        parent.helpText = _("Generates images for the segmentation that is being edited, and fine-tunes models on it.")
        slicer.app.connect("startupCompleted()", self.registerEffect)

    def registerEffect(self) -> None:
        """Makes the Segment Editor know the effect."""
        import qSlicerSegmentationsEditorEffectsPythonQt as effects

        effect = effects.qSlicerSegmentEditorScriptedEffect(None)
        effect.setPythonSource(
            Path(__file__).with_name("SegmentEditorMAISILib").joinpath("SegmentEditorEffect.py").as_posix()
        )
        effect.self().register()
