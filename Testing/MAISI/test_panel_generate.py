"""The *Generate* section: what the image shall be, and what it will cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from Testing.MAISI.panel_user import PanelUser


def test_an_illegal_size_becomes_the_nearest_legal_one(user: PanelUser) -> None:
    user.type("sizeXSpinBox", "100")
    assert user.find("sizeXSpinBox").value == 104
    assert "100 voxels are not possible" in user.reads("fieldOfViewLabel")
    assert "624 × 336 × 256 mm" in user.reads("fieldOfViewLabel")
    assert user.find("presetComboBox").currentText == "Custom"


def test_sizes_of_x_and_y_stay_equal_where_the_bundle_wants_it(user: PanelUser) -> None:
    user.choose("bundleComboBox", "whole-body")
    user.type("sizeYSpinBox", "500")
    assert (user.find("sizeXSpinBox").value, user.find("sizeYSpinBox").value) == (512, 512)
    user.type("spacingXSpinBox", "0.9")
    assert user.find("spacingYSpinBox").value == pytest.approx(0.9)


def test_a_spacing_beyond_the_limits_cannot_be_typed(user: PanelUser) -> None:
    user.type("spacingZSpinBox", "9")
    assert user.find("spacingZSpinBox").value <= 5.0


def test_a_field_of_view_that_is_too_small_is_said_at_once(user: PanelUser) -> None:
    user.type("sizeYSpinBox", "48")
    user.type("spacingYSpinBox", "3.5")
    assert "200 mm" in user.reads("fieldOfViewLabel")
    assert "color" in user.find("fieldOfViewLabel").styleSheet


def test_a_preset_sets_size_and_spacing(user: PanelUser) -> None:
    combo = user.find("presetComboBox")
    combo.currentIndex = 1
    combo.activated.emit(1)
    assert [user.find(f"size{axis}SpinBox").value for axis in "XYZ"] == [96, 80, 96]
    assert user.find("spacingZSpinBox").value == pytest.approx(2.5)


def test_anatomies_are_found_by_a_part_of_their_name_or_a_synonym(user: PanelUser) -> None:
    user.type("anatomySearchEdit", "parot")
    assert set(user.anatomies()) == {"right parotid gland", "left parotid gland"}
    user.type("anatomySearchEdit", "jaw")
    assert set(user.anatomies()) == {"mandible"}
    user.check("mandible")
    user.find("anatomySearchEdit").clear()
    user.check("larynx")
    assert user.reads("anatomyChosenLabel") == "In the image: mandible, larynx"
    assert user.generate().fields["request"]["anatomy"] == ["mandible", "larynx"]


def test_organ_sizes_are_asked_for_by_generated_masks(user: PanelUser) -> None:
    user.choose("bundleComboBox", "whole-body")
    user.choose("maskSourceComboBox", "generated")
    for name, kind in (("liver", "size"), ("colon", "absent")):
        user.choose(f"{name} choice", kind)
    user.find("liver size").value = 80.0
    request = user.generate().fields["request"]
    assert request["controllable_anatomy_size"] == {"liver": 0.8, "colon": -1.0}
    assert request["mask"] == "generated"


def test_a_region_takes_its_recommendation(user: PanelUser) -> None:
    user.choose("bundleComboBox", "whole-body")
    regions = user.find("regionFrame").layout()
    boxes = {regions.itemAt(i).widget().text: regions.itemAt(i).widget() for i in range(regions.count())}
    boxes["chest"].click()
    assert [user.find(f"size{axis}SpinBox").value for axis in "XYZ"] == [512, 512, 128]
    assert user.generate().fields["request"]["body_region"] == ["chest"]


def test_a_segmentation_of_the_scene_has_to_be_chosen(user: PanelUser, scene: Any) -> None:
    user.choose("maskSourceComboBox", "file")
    assert not user.sees("sizeFrame")
    assert not user.find("generateButton").enabled
    assert "segmentation" in user.reads("costLabel")
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Mine")
    user.find("segmentationSelector").setCurrentNode(node)
    assert user.find("generateButton").enabled


def test_the_volume_that_a_segmentation_was_drawn_on_is_proposed(user: PanelUser, scene: Any) -> None:
    import slicer

    user.choose("maskSourceComboBox", "file")
    volume = slicer.util.addVolumeFromArray(np.zeros((4, 5, 6)), name="Planning CT")
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Organs")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    user.find("segmentationSelector").setCurrentNode(node)
    assert user.find("referenceSelector").currentNode() is volume
    assert user.panel.logic.parameterNode.get().referenceVolumeID == volume.GetID()
    scene.RemoveNode(node)
    assert not user.find("generateButton").enabled


def test_the_proposed_volume_follows_the_segmentation_until_the_user_chooses_one(user: PanelUser, scene: Any) -> None:
    import slicer

    user.choose("maskSourceComboBox", "file")
    volumes, drawn = [], []
    for name in ("Anna", "Bert", "Cleo"):
        volumes.append(slicer.util.addVolumeFromArray(np.zeros((4, 5, 6)), name=name))
        drawn.append(scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name))
        drawn[-1].SetReferenceImageGeometryParameterFromVolumeNode(volumes[-1])
    reference, segmentation = user.find("referenceSelector"), user.find("segmentationSelector")
    for number in (0, 1):
        segmentation.setCurrentNode(drawn[number])
        assert reference.currentNode() is volumes[number]
    reference.setCurrentNode(volumes[0])
    segmentation.setCurrentNode(drawn[2])
    assert reference.currentNode() is volumes[0]


def test_the_cost_is_asked_once_when_the_user_pauses(user: PanelUser) -> None:
    user.waitUntil(lambda: "1.2 GB" in user.reads("costLabel"))
    before = len(user.client.all("plan"))
    for text in ("88", "96", "112"):
        user.type("sizeXSpinBox", text)
    user.waitUntil(lambda: len(user.client.all("plan")) > before)
    assert len(user.client.all("plan")) == before + 1
    assert user.client.last("plan").fields["request"]["output_size"][0] == 112


def test_the_cost_turns_red_before_a_run_that_cannot_work(user: PanelUser) -> None:
    user.client.answers["plan"] = {"text": "About 9 h and 61 GB; 9.8 GB are free.", "fits": False}
    user.type("countSpinBox", "2")
    user.waitUntil(lambda: "61 GB" in user.reads("costLabel"))
    assert "color" in user.find("costLabel").styleSheet


def test_the_answer_to_an_earlier_question_about_the_cost_is_not_shown(user: PanelUser) -> None:
    del user.client.answers["plan"]
    user.waitUntil(lambda: user.client.all("plan"))
    first = user.client.last("plan")
    user.type("countSpinBox", "2")
    user.waitUntil(lambda: user.client.last("plan") is not first)
    user.client.last("plan").result({"text": "two images", "fits": True})
    first.result({"text": "one image", "fits": True})
    assert user.reads("costLabel") == "two images"


def test_the_dice_and_the_seed(user: PanelUser) -> None:
    user.type("seedEdit", "12ab3")
    assert user.reads("seedEdit") == "123"
    user.press("diceButton")
    assert user.reads("seedEdit").isdecimal()
    assert user.generate().fields["request"]["seed"] == int(user.reads("seedEdit"))
