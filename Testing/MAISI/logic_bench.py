"""A logic with a scripted engine and an empty scene, for tests of what the user gets and is told."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MAISILib.scene import new_scene, show_mask
from MAISILib.scene.geometry import fill_image, matrix_of
from MAISILib.scene.label_tables import table_of_bundle
from MAISILib.scene.mrml import slicer, vtk
from MAISILib.volumes import LabelMap
from Testing.imports import ROOT
from Testing.MAISI.scripted_process import EventLoop, ScriptedEngine, makeSample


class Bench:
    """A logic with a scripted engine, a scene, and what was told."""

    def __init__(self, folder: Path) -> None:
        from MAISIPanel.EngineProcess import EngineCommand
        from MAISIPanel.Logic import MAISILogic
        from MAISIPanel.WorkerClient import WorkerClient

        self.bundleFolder = folder / "Modelle ä" / "head-neck-mini"
        shutil.copytree(
            ROOT / "Resources" / "bundles" / "head-neck-mini",
            self.bundleFolder,
            ignore=shutil.ignore_patterns("*.safetensors", "masks"),
        )
        self.table = table_of_bundle(self.bundleFolder)
        self.scene, self.loop, self.engine = new_scene(), EventLoop(), ScriptedEngine(self.bundleFolder)
        command = EngineCommand("python", [], {})
        client = WorkerClient(self.engine.makeProcess, command, self.loop.later)
        self.logic = MAISILogic(self.scene, client, self.loop.later, self.loop.step)
        self.told: list[tuple[Any, ...]] = []

    @property
    def callbacks(self) -> dict[str, Any]:
        def tell(name: str) -> Any:
            return lambda *what: self.told.append((name, *what))

        return {name: tell(name) for name in ("onDone", "onSample", "onNote", "onFailed", "onCancelled")}

    @property
    def ends(self) -> list[tuple[Any, ...]]:
        return [told for told in self.told if told[0] in ("onDone", "onFailed", "onCancelled")]

    def generate(self, **fields: Any) -> Any:
        return self.logic.generateAsync(seed=7, **fields, **self.callbacks)

    def volume(self, affine: np.ndarray, shape: tuple[int, int, int] = (20, 24, 18), fill: int = -1000) -> Any:
        node, image = slicer.vtkMRMLScalarVolumeNode(), vtk.vtkImageData()
        fill_image(image, np.full(shape, fill, np.int16))
        node.SetAndObserveImageData(image)
        node.SetIJKToRASMatrix(matrix_of(affine))
        node.SetName("Kopf-CT")
        return self.scene.AddNode(node)

    def segmentation(self, affine: np.ndarray, body: bool = True) -> Any:
        sample = makeSample(self.bundleFolder, affine=affine)
        assert sample.mask is not None
        array = sample.mask.array if body else np.where(sample.mask.array == 200, 0, sample.mask.array)
        return show_mask(self.scene, LabelMap(array, affine, self.table), "Segmentierung")


@contextmanager
def opened_bench(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench whose temporary files lie in a folder of their own, which must be empty at the end, whatever happened."""
    temporary = folder / "Temporäre Dateien"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(slicer, "app", None, raising=False)
    bench = Bench(folder)
    yield bench
    bench.logic.shutdown()
    assert list(temporary.iterdir()) == []
