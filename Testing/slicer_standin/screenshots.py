"""Makes the pictures of the panel in docs/images: the module as it is, with the real engine and the embedded model.

    make screenshots

Stands in for screenshots of Slicer: the widgets are Qt's, in one style on every system; Slicer's own have other looks.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("model", "generateSection", "results", "load", "fineTune", "setup")
WIDTH = 460


class Photographer:
    """Opens the module, works with it, and takes pictures of what is then to be seen.

    Args:
        folder: Where the pictures go.
    """

    def __init__(self, folder: Path) -> None:
        from Testing.slicer_standin import install, loadModule

        self.folder, self.app = folder, install()
        self.module: Any = loadModule(ROOT / "MAISI" / "MAISI.py")
        self.panel, self.logic = self.module.panel, self.module.logic
        self.wait(lambda: self.find("anatomyTree").topLevelItemCount and not self.logic.client.isBusy, 300)

    def close(self) -> None:
        from MAISILib.jobs import detached
        from Testing.slicer_standin import unloadModule

        for training in self.logic.trainingJobs.running():
            detached.end(training.job)
        self.logic.shutdown()
        unloadModule("MAISI")
        end = time.monotonic() + 2
        while time.monotonic() < end:  # the engine's process ends in the event loop
            self.app.processEvents()

    def wait(self, condition: Callable[[], Any], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                lines = "\n".join(self.logic.client.lastLines)
                raise TimeoutError(f"The panel did not get there within {seconds} s. The engine said:\n{lines}")
            self.app.processEvents()
            time.sleep(0.01)

    def find(self, name: str) -> Any:
        import qt

        return self.panel.widget.findChild(qt.QWidget, name)

    def open(self, *sections: str) -> None:
        """Opens these sections and closes the others."""
        for section in SECTIONS:
            self.find(f"{section}Button").collapsed = section not in sections

    def take(self, name: str, widget: Any = None, part: str = "") -> None:
        """Saves a picture of a window, the panel's if none is named, as high as what is in it; or of a part of it."""
        from PIL import Image

        widget = widget or self.module.parent
        widget.setFixedWidth(WIDTH)
        widget.show()
        for _ in range(12):  # a change of height goes up one layout at a time
            self.app.processEvents()
            widget.layout().activate()
            widget.resize(WIDTH, max(widget.layout().heightForWidth(WIDTH), widget.minimumSizeHint.height()))
        path = self.folder / f"slicer-{name}.png"
        (self.find(part) if part else widget).grab().save(str(path))
        image = Image.open(path).convert("RGB")
        image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path.name}: {image.width} × {image.height}, {path.stat().st_size / 1000:.0f} kB")

    def generate(self, steps: int) -> None:
        """Two images, the first watched while it comes; ``steps`` 0 takes as many as the model recommends."""
        self.open("model", "generateSection")
        self.wait(lambda: "GB" in self.find("costLabel").text, 300)
        self.take("generate")
        self.find("seedEdit").text = "7"
        if steps:
            self.find("stepsSpinBox").value = steps
        self.find("countSpinBox").value = 2
        self.find("generateButton").click()
        self.open("generateSection")
        preview = self.find("previewLabel")
        self.wait(lambda: not preview.pixmap.isNull() or not self.logic.isGenerating, 600)
        self.take("running")
        self.wait(lambda: not self.logic.isGenerating, 900)
        self.open("results")
        self.find("resultsTable").selectRow(0)
        self.take("results")

    def fine_tune(self) -> None:
        """The example of docs/slicer-tutorial.md: dense bone, which the model knows only as bone, for some steps."""
        import slicer as _slicer

        slicer: Any = _slicer
        volume = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")[0]
        node = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")[0]
        segmentation = node.GetSegmentation()
        bone = segmentation.GetSegmentIdBySegmentName("bone")
        voxels = slicer.util.arrayFromSegmentBinaryLabelmap(node, bone, volume)
        dense = voxels * (slicer.util.arrayFromVolume(volume) >= 500)
        added = segmentation.AddEmptySegment("", "dense bone")
        slicer.util.updateSegmentBinaryLabelmapFromArray(dense, node, added, volume)
        self.open("fineTune")
        self.panel.fineTune.addPair(volume, node)
        self.wait(lambda: self.find("mappingTable").rowCount and not self.logic.client.isBusy, 300)
        self.find("newLabelEdit").text = "dense bone"
        self.find("newLabelEdit").editingFinished.emit()
        self.choose("hostComboBox", "bone")
        self.wait(lambda: self.find("focusComboBox").findData("dense bone") >= 0, 300)
        self.choose("focusComboBox", "dense bone")
        self.choose("durationComboBox", "quick")
        self.wait(lambda: self.find("startButton").enabled, 300)
        self.take("fine-tune")
        self.find("startButton").click()
        self.wait(
            lambda: not self.find("pictureLabel").pixmap.isNull() and "loss" in self.find("stateLabel").text, 3600
        )  # after 25 of the 40 steps
        self.take("training", part="jobsGroup")
        self.find("stopButton").click()
        self.wait(lambda: not self.logic.trainingJobs.running(), 60)

    def choose(self, name: str, data: str) -> None:
        box = self.find(name)
        box.setCurrentIndex(box.findData(data))
        box.activated.emit(box.currentIndex)

    def others(self) -> None:
        import qt

        self.open("setup")
        places = {sys.executable: "python", os.environ["MAISI_DATA"]: "the data folder"}
        for label in self.panel.widget.findChildren(qt.QLabel):  # where these lie on this machine tells readers nothing
            for place, words in places.items():
                label.text = label.text.replace(place, words)
        self.take("setup")
        self.open("load")
        self.take("load")

    def effect(self) -> None:
        """The options of the Segment Editor effect, on what the results are."""
        import slicer as _slicer

        from Testing.slicer_standin import loadModule

        slicer: Any = _slicer
        loadModule(ROOT / "MAISI" / "SegmentEditorMAISI" / "SegmentEditorMAISI.py")
        editor = slicer.qMRMLSegmentEditorWidget()
        editor.setMRMLSegmentEditorNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode"))
        segmentation = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")[0]
        editor.setSegmentationNode(segmentation)
        editor.setSourceVolumeNode(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")[0])
        editor.mrmlSegmentEditorNode().SetSelectedSegmentID(segmentation.GetSegmentation().GetNthSegmentID(0))
        editor.setActiveEffectByName("MAISI")
        self.wait(lambda: not self.logic.client.isBusy, 300)
        self.take("effect", editor)
        editor.discard()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder for the pictures")
    parser.add_argument("--steps", type=int, default=0, help="sampling steps of the images, for a quick look")
    arguments = parser.parse_args()
    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT))
    if hasattr(os, "nice"):
        os.nice(10)
    with tempfile.TemporaryDirectory(prefix="maisi-") as data:
        os.environ["MAISI_DATA"] = data  # the user's own models and trainings are none of the pictures' business
        photographer = Photographer(folder)
        try:
            photographer.generate(arguments.steps)
            photographer.others()
            photographer.effect()
            photographer.fine_tune()
        finally:
            photographer.close()
    # Qt and VTK take down each other's objects in an order of chance when the interpreter ends.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
