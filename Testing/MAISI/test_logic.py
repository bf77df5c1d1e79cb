"""The module's logic with an engine that the test plays: what comes into the scene."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")

from MAISILib.errors import BundleError, MaisiError, MaskError, RequestError
from MAISILib.files.images import read_mask as read_mask_file
from MAISILib.generation.provenance import read_replay
from MAISILib.resampling import resample_labels
from MAISILib.scene import grid_of, load, read_mask, read_volume, save
from MAISILib.scene.mrml import slicer
from Testing.MAISI.logic_bench import Bench, opened_bench
from Testing.MAISI.scripted_process import makeSample

OBLIQUE = np.array([[-1.9, 0.35, 0.2, 80.0], [0.6, 1.95, 0.1, -30.5], [-0.15, 0.2, 3.0, 900.25], [0, 0, 0, 1]])
OBLIQUE[:3, :3] = np.linalg.qr(OBLIQUE[:3, :3])[0] * [2.0, 2.1, 3.3]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with opened_bench(tmp_path, monkeypatch) as bench:
        yield bench


def test_a_generated_sample_is_in_the_scene_with_all_that_belongs_to_it(bench: Bench) -> None:
    job = bench.generate(anatomy=["mandible"])
    asked = bench.engine.last("generate")
    assert (asked["bundle"], asked["request"]) == ("head-neck-mini", {"anatomy": ["mandible"], "seed": 7})
    bench.engine.sample()
    bench.loop.run()
    assert job.isRunning
    bench.engine.finish()
    assert not job.isRunning
    ((volume, segmentation),) = bench.ends[0][1]

    sample = makeSample(bench.bundleFolder)
    np.testing.assert_array_equal(read_volume(volume).array, sample.image.array)
    assert volume.GetName() == "head-neck-mini seed 7"
    mandible = bench.table.find("mandible")
    segment = segmentation.GetSegmentation().GetSegment(f"MAISI_{mandible.value}")
    assert (segment.GetName(), segment.GetTerminology()) == ("mandible", mandible.terminology())
    np.testing.assert_allclose(segment.GetColor(), np.array(mandible.color) / 255)
    assert segment.GetLabelValue() == mandible.value

    (entry,) = bench.logic.results.entries
    assert (entry.seed, entry.bundle, entry.verdict, entry.seconds) == (7, "head-neck-mini", "failed", 5.75)
    assert entry.qualityStory == ["failed: soft tissue is too bright"]
    assert bench.scene.GetNumberOfNodesByClass("vtkMRMLTableNode") == 1
    assert bench.scene.GetNumberOfNodesByClass("vtkMRMLPlotChartNode") == 1


def test_the_console_gets_nodes_or_an_error_that_can_be_read(bench: Bench) -> None:
    def answer() -> None:
        bench.engine.sample()
        bench.engine.finish()

    bench.loop.later(0, answer)
    volume, segmentation = bench.logic.generate(seed=7)
    assert (volume.GetClassName(), segmentation.GetClassName()) == (
        "vtkMRMLScalarVolumeNode",
        "vtkMRMLSegmentationNode",
    )

    def refuse() -> None:
        asked = bench.engine.last("generate")["id"]
        bench.engine.process.say(event="failed", id=asked, error="No anatomy 'libber'.", kind="RequestError")

    bench.loop.later(0, refuse)
    with pytest.raises(RequestError, match="libber"):
        bench.logic.generate(anatomy=["libber"])


def test_asking_the_engine_waits_for_its_answer(bench: Bench) -> None:
    bench.loop.later(0, bench.engine.listBundles)
    assert bench.logic.ask("bundles")["bundles"][0]["name"] == "head-neck-mini"


def test_several_samples_come_one_by_one(bench: Bench) -> None:
    job = bench.generate(count=3)
    for index in range(3):
        bench.engine.sample(index)
    bench.engine.finish()
    assert job.isRunning
    bench.loop.run()
    assert [told[0] for told in bench.told] == ["onSample", "onSample", "onSample", "onDone"]
    assert [volume.GetName() for volume, _ in job.nodes] == [
        "head-neck-mini seed 7",
        "head-neck-mini seed 7 #2",
        "head-neck-mini seed 7 #3",
    ]


@pytest.mark.parametrize("affine", [OBLIQUE, np.diag([-1.0, -1.0, 2.5, 1.0]), np.diag([1.1, 0.9, -2.5, 1.0])])
def test_the_image_of_a_segmentation_comes_back_on_the_volume_that_it_was_drawn_on(
    bench: Bench, affine: np.ndarray
) -> None:
    reference, segmentation = bench.volume(affine), bench.segmentation(affine)
    bench.generate(segmentationNode=segmentation, referenceVolumeNode=reference)
    bench.engine.listBundles()
    request = bench.engine.last("generate")["request"]
    sent = read_mask_file(request["mask_file"], bench.table)
    assert sent.grid.same_as(grid_of(reference), tolerance=1e-9)
    source = {"kind": "file", "path": request["mask_file"], "sha256": "", "notes": []}
    bench.engine.sample(affine=sent.affine, labels=sent.array, source=source)
    bench.engine.finish()
    bench.loop.run()
    ((volume, mask),) = bench.ends[0][1]
    np.testing.assert_allclose(grid_of(volume).affine, grid_of(reference).affine, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(read_mask(mask, bench.table, reference).array, sent.array)
    assert volume.GetName() == "Segmentierung seed 7"


def test_the_image_moves_with_the_volume_that_it_was_drawn_on(bench: Bench) -> None:
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    reference, segmentation = bench.volume(affine), bench.segmentation(affine)
    transform = bench.scene.AddNode(slicer.vtkMRMLLinearTransformNode())
    for node in (reference, segmentation):
        node.SetAndObserveTransformNodeID(transform.GetID())
    bench.generate(segmentationNode=segmentation, referenceVolumeNode=reference)
    bench.engine.listBundles()
    bench.engine.sample()
    bench.engine.finish()
    bench.loop.run()
    for node in bench.ends[0][1][0]:
        assert node.GetParentTransformNode() is transform


def test_what_was_changed_in_a_segmentation_is_told_and_kept(bench: Bench) -> None:
    segmentation = bench.segmentation(np.diag([-2.0, 2.0, 3.0, 1.0]), body=False)
    bench.generate(segmentationNode=segmentation)
    bench.engine.listBundles()
    bench.engine.sample()
    bench.engine.finish()
    bench.loop.run()
    notes = [told[1] for told in bench.told if told[0] == "onNote"]
    assert any("no body segment" in note for note in notes)
    assert bench.logic.results.entries[0].notes == notes


def test_a_replay_asks_for_the_same_again_and_compares_equal(bench: Bench) -> None:
    bench.generate()
    bench.engine.sample()
    bench.engine.finish()
    bench.loop.run()
    (first,) = bench.logic.results.entries
    bench.logic.replayAsync(first.volumeNode, **bench.callbacks)
    asked = bench.engine.last("generate")
    assert "bundle" not in asked
    assert json.loads(Path(asked["replay"]).read_text(encoding="utf-8")) == first.provenance
    bench.engine.sample()
    bench.engine.finish()
    bench.loop.run()
    again = bench.logic.results.entries[1]
    assert again.name == "head-neck-mini seed 7 (replay)"
    assert bench.logic.results.compare(first, again) == "The images have identical voxels."


def test_a_replay_for_a_segmentation_brings_the_mask_along(bench: Bench) -> None:
    """The engine had it as a temporary file, which is long gone."""
    bench.generate(segmentationNode=bench.segmentation(OBLIQUE))
    bench.engine.listBundles()
    path = Path(bench.engine.last("generate")["request"]["mask_file"])
    sent = read_mask_file(path, bench.table)
    source = {"kind": "file", "path": str(path), "sha256": "0", "notes": [], "ct": {"path": "/gone", "sha256": "0"}}
    bench.engine.sample(affine=sent.affine, labels=sent.array, source=source)
    bench.engine.finish()
    bench.loop.run()
    assert not path.exists()
    (entry,) = bench.logic.results.entries
    bench.logic.replayAsync(entry.volumeNode, **bench.callbacks)
    _, request, provenance = read_replay(bench.engine.last("generate")["replay"])
    assert request.mask_ct is None
    again = read_mask_file(str(request.mask_file), bench.table)
    np.testing.assert_array_equal(again.array, sent.array)
    np.testing.assert_allclose(again.affine, sent.affine, rtol=0, atol=1e-9)
    assert len(provenance["mask_source"]["sha256"]) == 64
    bench.engine.process.end(1)

    entry.segmentationNode.GetSegmentation().RemoveSegment("MAISI_137")
    with pytest.raises(MaskError, match="was edited"):
        bench.logic.replay(entry.volumeNode)
    bench.scene.RemoveNode(entry.segmentationNode)
    with pytest.raises(MaskError, match="was deleted"):
        bench.logic.replay(entry.volumeNode)


def test_parameters_of_the_panel_are_carried_out(bench: Bench) -> None:
    from MAISIPanel.Parameters import GenerateParameters

    parameters = GenerateParameters(seed=5, size=(96, 80, 96), device="cpu")
    bench.logic.generateFromParameters(parameters, **bench.callbacks)
    asked = bench.engine.last("generate")
    assert asked["device"] == "cpu"
    assert asked["request"]["output_size"] == [96, 80, 96]


def test_the_cost_of_an_image_for_a_segmentation_is_asked_with_its_mask(bench: Bench) -> None:
    """The segmentation is written once, as long as it does not change."""
    from MAISIPanel.Parameters import GenerateParameters

    segmentation = bench.segmentation(np.eye(4))
    parameters = GenerateParameters(maskSource="file", segmentationNodeID=segmentation.GetID())
    asked = []
    for change in ("nothing", "steps", "segmentation"):
        if change == "steps":
            parameters.steps = 5
        elif change == "segmentation":
            segmentation.GetSegmentation().RemoveSegment("MAISI_200")
        bench.logic.plan(parameters, bench.callbacks["onDone"], bench.callbacks["onFailed"])
        bench.engine.listBundles()
        plan = bench.engine.last("plan")
        asked.append(Path(plan["request"]["mask_file"]).stat().st_mtime_ns)
        bench.engine.process.say(event="result", id=plan["id"], data={"text": change, "fits": True})
    assert asked[0] == asked[1] != asked[2]
    assert [told[1]["text"] for told in bench.ends] == ["nothing", "steps", "segmentation"]
    segment = segmentation.GetSegmentation().GetSegment("MAISI_137")
    segment.RemoveTag("MAISI.Label")
    segment.SetTerminology("")
    segment.SetName("Segment_1")
    bench.logic.plan(parameters, bench.callbacks["onDone"], bench.callbacks["onFailed"])
    bench.engine.listBundles()
    assert bench.ends[-1][::2] == ("onFailed", "MaskError")
    assert "Segment_1" in bench.ends[-1][1]


def test_parameters_with_a_segmentation_that_is_gone_are_refused(bench: Bench) -> None:
    from MAISIPanel.Parameters import GenerateParameters

    bench.logic.generateFromParameters(
        GenerateParameters(maskSource="file", segmentationNodeID="vtkMRMLSegmentationNode9"), **bench.callbacks
    )
    assert "no longer in the scene" in bench.ends[0][1]
    assert bench.engine.processes == []


def test_a_saved_scene_brings_results_back(bench: Bench, tmp_path: Path) -> None:
    from MAISIPanel.Logic import MAISILogic

    bench.generate()
    bench.engine.sample()
    bench.engine.finish()
    bench.loop.run()
    save(bench.scene, tmp_path / "Szene ä.mrb")
    scene = load(tmp_path / "Szene ä.mrb")
    logic = MAISILogic(scene, bench.logic.client, bench.loop.later, bench.loop.step)
    (entry,) = logic.results.entries
    (before,) = bench.logic.results.entries
    assert (entry.name, entry.seed, entry.verdict) == (before.name, before.seed, before.verdict)
    np.testing.assert_array_equal(read_volume(entry.volumeNode).array, read_volume(before.volumeNode).array)
    np.testing.assert_array_equal(
        read_mask(entry.segmentationNode, bench.table, entry.volumeNode).array,
        read_mask(before.segmentationNode, bench.table, before.volumeNode).array,
    )
    logic.results.chart(entry)
    assert scene.GetNumberOfNodesByClass("vtkMRMLPlotChartNode") == 1  # the one that was saved
    logic.results.delete(entry)
    assert logic.results.entries == []
    for kind in ("Segmentation", "Table", "PlotChart", "PlotSeries", "VolumeDisplay"):
        assert scene.GetNumberOfNodesByClass(f"vtkMRML{kind}Node") == 0, kind


def test_a_result_on_a_left_handed_grid_can_be_replayed_from_a_saved_scene(bench: Bench, tmp_path: Path) -> None:
    """Slicer numbers its voxels anew."""
    from MAISIPanel.Results import ResultEntry

    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    bench.generate(segmentationNode=bench.segmentation(affine))
    bench.engine.listBundles()
    source = {"kind": "file", "path": "/gone", "sha256": "0", "notes": []}
    bench.engine.sample(affine=affine, source=source)
    bench.engine.finish()
    bench.loop.run()
    save(bench.scene, tmp_path / "scene.mrb")
    scene = load(tmp_path / "scene.mrb")
    volume = scene.GetNodeByID(bench.ends[0][1][0][0].GetID())
    path = ResultEntry(volume).writeReplay(tmp_path)
    again = read_mask_file(json.loads(path.read_text(encoding="utf-8"))["mask_source"]["path"], bench.table)
    sample = makeSample(bench.bundleFolder, affine=affine)
    assert sample.mask is not None
    np.testing.assert_array_equal(resample_labels(again, sample.mask.grid).array, sample.mask.array)


def test_earlier_results_load_without_the_engine(bench: Bench, tmp_path: Path) -> None:
    for index in range(2):
        makeSample(bench.bundleFolder, index).save(tmp_path / "Ergebnisse" / f"sample-{index:04d}")
    nodes = bench.logic.loadResult(tmp_path / "Ergebnisse")
    assert [volume.GetName() for volume, _ in nodes] == ["head-neck-mini seed 7", "head-neck-mini seed 7 #2"]
    assert bench.engine.processes == []
    with pytest.raises(MaisiError, match="holds no results"):
        bench.logic.loadResult(tmp_path)


def test_a_pair_is_read_with_the_labels_of_the_chosen_bundle(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "Paar ä"
    makeSample(bench.bundleFolder).save(folder)
    volume, segmentation = bench.logic.loadPair(folder / "image.nii.gz", folder / "mask.nii.gz")
    names = {segmentation.GetSegmentation().GetNthSegment(number).GetName() for number in range(2)}
    assert names == {"mandible", "body"}
    assert volume.GetAttribute("MAISI.Synthetic") is None  # it may be a patient
    with pytest.raises(MaisiError, match="only generated images"):
        bench.logic.replay(volume)


def test_errors_keep_their_kind(bench: Bench) -> None:
    from MAISIPanel.GenerationJob import errorOf

    assert isinstance(errorOf("x", "BundleError"), BundleError)
    assert type(errorOf("x", "Crash")) is MaisiError
    assert type(errorOf("x", "did_you_mean")) is MaisiError
