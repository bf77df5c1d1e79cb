"""The settings of the *Generate* section: as a request, as JSON, and in the scene."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")

from MAISILib.generation.request import GenerateRequest
from MAISILib.scene import load, new_scene, save
from MAISILib.scene.mrml import slicer


def parameters(**changes: Any) -> Any:
    from MAISIPanel.Parameters import GenerateParameters

    return GenerateParameters(**changes)


def test_what_is_left_to_the_bundle_is_not_in_the_request() -> None:
    request = parameters().toRequest()
    assert request == {"mask": "library", "guidance_scale": 0.0, "seed": 0, "count": 1}
    assert GenerateRequest(**request) == GenerateRequest()


def test_every_setting_reaches_the_engine() -> None:
    full = parameters(
        maskSource="generated",
        anatomies=["liver"],
        controllableSizes={"liver": 0.5, "colon": -1},
        regions=["abdomen"],
        modality="ct",
        size=(256, 256, 128),
        spacing=(1.5, 1.5, 2.0),
        steps=12,
        solver="euler",
        guidance=2.5,
        seed=2**62,
        count=3,
    )
    request = GenerateRequest(**full.toRequest())
    assert request.mask == "generated"
    assert request.anatomy == ["liver"]
    assert request.controllable_anatomy_size == {"liver": 0.5, "colon": -1}
    assert (request.body_region, request.modality, request.solver) == (["abdomen"], "ct", "euler")
    assert (request.output_size, request.spacing) == ((256, 256, 128), (1.5, 1.5, 2.0))
    assert (request.steps, request.guidance_scale, request.seed, request.count) == (12, 2.5, 2**62, 3)


@pytest.mark.parametrize("source", ["library", "generated", "file", "none"])
def test_settings_of_another_source_do_not_contradict_the_chosen_one(source: str, tmp_path: Path) -> None:
    """The panel remembers anatomies and sizes while the user looks at other sources."""
    chosen = parameters(
        maskSource=source, anatomies=["liver"], controllableSizes={"liver": 0.5}, segmentationNodeID="vtkMRML…1"
    )
    assert chosen.isValid() == (True, "")
    written = {"mask_file": str(tmp_path / "mask.nrrd")} if source == "file" else {}
    request = GenerateRequest(**chosen.toRequest(), **written)
    assert request.mask == source


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bundle": ""}, "Choose a model"),
        ({"maskSource": "file"}, "Choose the segmentation"),
        ({"maskSource": "other"}, "library, generated, file, none"),
        ({"count": 0}, "not 0"),
        ({"seed": -1}, "not -1"),
        ({"seed": 2**63}, "seed"),
        ({"guidance": 21.0}, "not 21"),
        ({"guidance": float("nan")}, "guidance"),
        ({"steps": 0}, "step"),
        ({"size": (96, 0, 96)}, "(96, 0, 96)"),
        ({"spacing": (1.0, float("nan"), 1.0)}, "mm"),
        ({"spacing": (1.0, 1.0, -2.0)}, "mm"),
        ({"controllableSizes": {"liver": 1.5}}, "liver"),
    ],
)
def test_what_makes_no_request_is_told(changes: dict[str, Any], words: str) -> None:
    isValid, reason = parameters(**changes).isValid()
    assert not isValid
    assert words in reason


def test_json_brings_everything_back() -> None:
    from MAISIPanel.Parameters import GenerateParameters

    full = parameters(
        bundle="Kopf ä",
        anatomies=["mandible"],
        controllableSizes={"liver": 0.25},
        size=(96, 80, 96),
        spacing=(4.0, 4.0, 2.5),
        steps=30,
        seed=2**62 + 1,
        device="cuda",
    )
    assert GenerateParameters.fromJson(full.toJson()) == full


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"size": "large", "seed": [], "anatomies": 3, "new": 1}'])
def test_json_of_another_version_gives_what_it_can(text: str) -> None:
    from MAISIPanel.Parameters import GenerateParameters

    assert GenerateParameters.fromJson(text) == GenerateParameters()


def test_one_wrong_value_does_not_cost_the_others() -> None:
    from MAISIPanel.Parameters import GenerateParameters

    stored = {**json.loads(parameters(seed=5, steps=9).toJson()), "spacing": [1, 2], "device": None, "count": True}
    assert GenerateParameters.fromJson(json.dumps(stored)) == parameters(seed=5, steps=9)


def test_a_saved_scene_brings_parameters_and_nodes_back(tmp_path: Path) -> None:
    from MAISIPanel.Parameters import ParameterNode

    scene = new_scene()
    volume = slicer.vtkMRMLScalarVolumeNode()
    segmentation = slicer.vtkMRMLSegmentationNode()
    for node, name in ((volume, "CT ä"), (segmentation, "drawn")):
        node.SetName(name)
        scene.AddNode(node)
    stored = parameters(
        seed=7, maskSource="file", segmentationNodeID=segmentation.GetID(), referenceVolumeID=volume.GetID()
    )
    ParameterNode(scene).set(stored)
    save(scene, tmp_path / "scene.mrb")

    other = new_scene()
    other.AddNode(slicer.vtkMRMLSegmentationNode())  # takes the id that the segmentation had
    load(tmp_path / "scene.mrb", other)
    read = ParameterNode(other).get()
    assert read.seed == 7
    assert other.GetNodeByID(read.segmentationNodeID).GetName() == "drawn"
    assert other.GetNodeByID(read.referenceVolumeID).GetName() == "CT ä"


def test_a_closed_scene_has_the_defaults_and_takes_new_ones() -> None:
    from MAISIPanel.Parameters import ParameterNode

    scene = new_scene()
    kept = ParameterNode(scene)
    kept.set(parameters(seed=7))
    scene.Clear(0)
    kept.set(parameters(seed=8))
    assert kept.get().seed == 8
    assert scene.GetNumberOfNodesByClass("vtkMRMLScriptedModuleNode") == 1


def test_a_deleted_node_is_no_longer_referred_to() -> None:
    from MAISIPanel.Parameters import ParameterNode

    scene = new_scene()
    node = scene.AddNode(slicer.vtkMRMLSegmentationNode())
    kept = ParameterNode(scene)
    kept.set(parameters(maskSource="file", segmentationNodeID=node.GetID()))
    scene.RemoveNode(node)
    assert kept.get().segmentationNodeID == ""
    assert not kept.get().isValid()[0]
