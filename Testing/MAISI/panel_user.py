"""Somebody who works with the panel: finds widgets by name, presses, types, and reads what is shown."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from Testing.MAISI.scripted_client import ScriptedClient, Sent


def preview() -> str:
    """A small grey picture as the engine sends it."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((80, 64)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@contextmanager
def opened_panel(
    scene: Any, loadedModule: Any, waitUntil: Any, tmp_path: Path, monkeypatch: Any, client: Any = None
) -> Iterator[PanelUser]:
    """Opens the module in the stand-in.

    Args:
        scene, loadedModule, waitUntil, tmp_path, monkeypatch: The fixtures of these names.
        client: An engine that the test plays; ``"engine"`` for the real one.
    """
    from MAISIPanel.Logic import MAISILogic

    monkeypatch.setenv("MAISI_DATA", str(tmp_path / "data"))
    played: Any = None if client == "engine" else client or ScriptedClient()
    logic = MAISILogic(scene, played)
    monkeypatch.setattr(MAISILogic, "_shared", logic)
    yield PanelUser(loadedModule("MAISI.py"), logic.client, waitUntil)
    logic.shutdown()


class PanelUser:
    """The open module with an engine that the test plays.

    Args:
        widget: The module's ``MAISIWidget``.
        client: The scripted engine.
        waitUntil: Lets the event loop run until something is so.
    """

    def __init__(self, widget: Any, client: Any, waitUntil: Any) -> None:
        self.widget, self.panel, self.client, self.waitUntil = widget, widget.panel, client, waitUntil

    def find(self, name: str) -> Any:
        """The widget of this name."""
        import qt

        found = self.panel.widget.findChild(qt.QWidget, name)
        assert found is not None, name
        return found

    def press(self, name: str) -> None:
        """Clicks a button, which has to be there and enabled."""
        button = self.find(name)
        assert self.sees(name), f"{name} is hidden"
        assert button.enabled, f"{name} is disabled"
        button.click()

    def type(self, name: str, text: str) -> None:
        """Types into a field or a spin box and presses Enter."""
        import qt
        from PySide6.QtTest import QTest

        field = self.find(name)
        field.setFocus()
        field.selectAll()
        QTest.keyClicks(field, text)
        QTest.keyClick(field, qt.Qt.Key_Return)

    def choose(self, name: str, data: str) -> None:
        """Takes an entry of a list by its data."""
        combo = self.find(name)
        index = combo.findData(data)
        assert index >= 0, f"{name} does not offer {data}"
        combo.currentIndex = index
        combo.activated.emit(index)

    def offered(self, name: str) -> list[Any]:
        """The data of a list's entries."""
        combo = self.find(name)
        return [combo.itemData(index) for index in range(combo.count)]

    def sees(self, name: str) -> bool:
        """Whether a widget is shown, in an open section or a closed one."""
        return self.find(name).isVisibleTo(self.panel.widget)

    def reads(self, name: str) -> str:
        """The text of a label, button or field; of the cost line once its question was asked."""
        return str(self.find(name).text)

    @property
    def message(self) -> str:
        """What the message line says; empty where it is hidden."""
        return self.reads("messageLabel") if self.sees("messageFrame") else ""

    def anatomies(self) -> dict[str, Any]:
        """The anatomies that the tree shows now, by name."""
        tree = self.find("anatomyTree")
        groups = [tree.topLevelItem(index) for index in range(tree.topLevelItemCount)]
        rows = [group.child(index) for group in groups if not group.isHidden() for index in range(group.childCount())]
        return {row.text(0): row for row in rows if not row.isHidden()}

    def check(self, name: str) -> None:
        """Checks an anatomy of the tree."""
        import qt

        self.anatomies()[name].setCheckState(0, qt.Qt.Checked)

    def generate(self) -> Sent:
        """Presses Generate, and gives what the engine was asked."""
        self.press("generateButton")
        return self.client.last("generate")

    def finish(self, sent: Sent, seed: int = 0, passed: bool = True) -> None:
        """The engine makes one image, which comes into the scene."""
        before = self.rows()
        folder = write_result(Path(sent.fields["out"]) / "sample-0000", seed, passed)
        sent.sample(folder=str(folder), seed=seed, index=0, passed=passed, quality="3 organs", attempts=1, seconds={})
        self.waitUntil(lambda: len(self.rows()) == len(before) + 1)
        sent.result({"samples": [], "seconds": 1.0})
        self.waitUntil(lambda: self.reads("generateButton") == "Generate")

    def rows(self) -> list[list[str]]:
        """The table of results."""
        table = self.find("resultsTable")
        return [[table.item(row, column).text() for column in range(4)] for row in range(table.rowCount)]

    def select(self, *rows: int) -> None:
        """Selects rows of the table of results."""
        import qt

        table = self.find("resultsTable")
        table.clearSelection()
        for row in rows:
            index = table.model().index(row, 0)
            command = qt.QItemSelectionModel.SelectionFlag
            table.selectionModel().select(index, command.Select | command.Rows)


def write_result(folder: Path, seed: int = 0, passed: bool = True) -> Path:
    """A result folder as the engine writes it, small: a body with a mandible."""
    from MAISILib.anatomy.labels import LabelTable, default_table
    from MAISILib.files.nifti import write_labels, write_volume
    from MAISILib.resources import resource
    from MAISILib.volumes import LabelMap, Volume

    table = LabelTable.read(resource("bundles/head-neck-mini/labels.csv"), default_table())
    affine = np.diag([4.0, 4.0, 3.0, 1.0])
    labels = np.zeros((20, 18, 12), np.uint8)
    labels[3:17, 3:15] = LabelTable.BODY
    labels[7:12, 9:12, 4:8] = table.find("mandible").value
    voxels = np.where(labels == 0, -1000, np.where(labels == LabelTable.BODY, 40, 900)).astype(np.int16) + seed % 7
    folder.mkdir(parents=True)
    write_volume(Volume(voxels, affine, "HU"), folder / "image.nii.gz")
    write_labels(LabelMap(labels, affine, table, "test"), folder / "mask.nii.gz")
    organ = {"organ": "mandible", "labels": [137], "voxels": 60, "median_hu": 900.0, "low": 300.0, "high": 1000.0}
    findings = [] if passed else ["mandible is too bright: median 900 HU, expected 300 to 800"]
    provenance = {
        "format": "maisi-provenance",
        "format_version": 1,
        "bundle": {"name": "head-neck-mini"},
        "request": {"seed": seed, "mask": "library"},
        "sample": {"index": 0, "seed": seed},
        "settings": {"modality": "ct"},
        "mask_source": {"kind": "library", "entry": "masks/pt-1.nii.gz"},
        "quality": {
            "verdict": "passed" if passed else "failed",
            "findings": findings,
            "hu": {"passed": passed, "organs": [{**organ, "passed": passed}]},
        },
        "seconds": {"diffusion": 3.0, "decode": 1.5},
    }
    (folder / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    return folder
