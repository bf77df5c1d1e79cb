"""The example in Slicer's module Sample Data: it is registered as Slicer wants it, and holds what it should."""

from __future__ import annotations

import sys
import types
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MAISILib.anatomy.labels import LabelTable, default_table
from MAISILib.bundles.weights import sha256_of
from MAISILib.files.images import read_image, read_segments
from MAISILib.files.segmentations import find_label
from MAISILib.resources import resources_folder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the module registers."""
    registered: list[dict[str, Any]] = []
    module = types.ModuleType("SampleData")
    logic = types.SimpleNamespace(registerCustomSampleDataSource=lambda **fields: registered.append(fields))
    vars(module)["SampleDataLogic"] = logic
    monkeypatch.setitem(sys.modules, "SampleData", module)
    from MAISIPanel.SampleImages import registerSampleData

    registerSampleData()
    return registered[0]


def test_slicer_finds_the_files_without_a_network(source: dict[str, Any], tmp_path: Path) -> None:
    assert source["category"] == "MAISI"
    lists = ("uris", "fileNames", "nodeNames", "loadFileType", "checksums")
    assert {len(source[name]) for name in lists} == {2}
    for uri, name, checksum in zip(source["uris"], source["fileNames"], source["checksums"], strict=True):
        urllib.request.urlretrieve(uri, tmp_path / name)  # as Sample Data does
        assert f"SHA256:{sha256_of(tmp_path / name)}" == checksum
    assert Path(source["thumbnailFileName"]).is_file()


def test_a_place_with_spaces_and_umlauts_will_do(
    source: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from MAISIPanel import SampleImages

    folder = tmp_path / "Prüfung 1#2"
    folder.mkdir()
    (folder / "MAISIHeadNeck.nrrd").write_bytes(b"x")
    monkeypatch.setattr(SampleImages, "SAMPLE_FOLDER", folder)
    uris: list[str] = []
    monkeypatch.setattr(
        sys.modules["SampleData"].SampleDataLogic,
        "registerCustomSampleDataSource",
        lambda **fields: uris.extend(fields["uris"]),
    )
    SampleImages.registerSampleData()
    with urllib.request.urlopen(uris[0]) as file:
        assert file.read() == b"x"


def test_the_segments_are_labels_of_the_model_on_the_images_grid(source: dict[str, Any]) -> None:
    from MAISIPanel.SampleImages import SAMPLE_FOLDER

    image = read_image(SAMPLE_FOLDER / "MAISIHeadNeck.nrrd")
    segmentation = read_segments(SAMPLE_FOLDER / "MAISIHeadNeck.seg.nrrd")
    assert segmentation.grid.shape == image.grid.shape
    table = LabelTable.read(resources_folder() / "bundles" / "head-neck-mini" / "labels.csv", base=default_table())
    voxels = segmentation.voxels()
    for segment in segmentation.segments:
        found = find_label(segment, table)
        assert found is not None
        assert table[found[0]].name == segment.name
        assert voxels[segment] > 0
    bone = next(segment for segment in segmentation.segments if segment.name == "bone")
    dark, light = np.percentile(image.array, (1, 99))
    assert (dark, light > 200) == (pytest.approx(-1000, abs=60), True)
    assert bone.terminology.split("~")[2].startswith("SCT^272673000")


def test_slicers_start_registers_them_once(loadedModule: Any, source: dict[str, Any], monkeypatch: Any) -> None:
    registered: list[str] = []
    monkeypatch.setattr(
        sys.modules["SampleData"].SampleDataLogic,
        "registerCustomSampleDataSource",
        lambda **fields: registered.append(fields["sampleName"]),
    )
    loadedModule("MAISI.py", enter=False)
    assert registered == ["MAISIHeadNeck"]
