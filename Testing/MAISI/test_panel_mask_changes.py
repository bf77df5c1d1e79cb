"""The *Generate* section's changes of library masks: another patient, a new lesion; and what a result tells of them."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

from MAISILib.errors import MaskError
from Testing.MAISI.panel_user import PanelUser
from Testing.MAISI.scripted_client import WHOLE_BODY

TUMOR = {"value": 26, "name": "hepatic tumor", "group": "tumors", "color": [1, 2, 3], "terminology": "", "host": 1}


@pytest.fixture
def atWholeBody(user: PanelUser) -> PanelUser:
    """With a bundle that has a lesion, and its library's masks as the source."""
    described = copy.deepcopy(WHOLE_BODY)
    described["labels"].append({**TUMOR, "synonyms": []})
    user.client.answers["describe"] = described
    user.choose("bundleComboBox", "whole-body")
    return user


def test_a_library_mask_is_taken_as_it_is_unless_the_user_says_otherwise(atWholeBody: PanelUser) -> None:
    request = atWholeBody.generate().fields["request"]
    assert "vary" not in request
    assert "insert_lesion" not in request
    assert not atWholeBody.find("lesionDiameterSpinBox").enabled


def test_another_patient_and_a_lesion_are_asked_for(atWholeBody: PanelUser) -> None:
    user = atWholeBody
    user.find("varyCheckBox").click()
    assert user.offered("lesionComboBox") == ["", "hepatic tumor"]
    user.choose("lesionComboBox", "hepatic tumor")
    user.type("lesionDiameterSpinBox", "12.5")
    request = user.generate().fields["request"]
    assert request["vary"] == 0
    assert request["insert_lesion"] == {"lesion": "hepatic tumor", "diameter": 12.5, "host": None}


def test_the_host_of_a_lesion_can_be_chosen_and_the_scene_keeps_it(atWholeBody: PanelUser) -> None:
    user = atWholeBody
    user.choose("lesionComboBox", "hepatic tumor")
    assert user.offered("lesionHostComboBox") == ["", "mandible", "larynx"]
    user.choose("lesionHostComboBox", "larynx")
    kept = user.panel.logic.parameterNode.get()
    assert (kept.lesion, kept.lesionHost, kept.lesionDiameter, kept.vary) == ("hepatic tumor", "larynx", 20.0, False)
    user.choose("lesionComboBox", "")
    assert "insert_lesion" not in user.generate().fields["request"]
    kept.vary = True
    user.panel.logic.parameterNode.set(kept)
    user.panel.generate.restore()
    assert user.find("varyCheckBox").checked
    assert user.find("lesionComboBox").currentData == "hepatic tumor"


def test_changes_are_offered_for_masks_of_the_library_only(atWholeBody: PanelUser) -> None:
    user = atWholeBody
    user.find("varyCheckBox").click()
    assert user.sees("varyCheckBox")
    user.choose("maskSourceComboBox", "generated")
    assert not user.sees("varyCheckBox")
    assert "vary" not in user.generate().fields["request"]


def test_a_bundle_without_lesions_offers_none(user: PanelUser) -> None:
    assert user.sees("varyCheckBox")
    assert not user.sees("lesionComboBox")


def shown(scene: Any, provenance: dict[str, Any]) -> Any:
    """A result in the scene with this provenance."""
    import slicer
    from MAISIPanel.Results import ResultEntry

    entry = ResultEntry(slicer.util.addVolumeFromArray(np.zeros((4, 5, 6), np.int16), name="Made"))
    entry.volumeNode.SetAttribute("MAISI.Provenance", json.dumps(provenance))
    entry.keep([])
    return entry


def test_a_result_tells_the_sizes_that_were_asked_for(user: PanelUser, scene: Any) -> None:
    size = {"asked": 0.8, "volume_mm3": 9e5, "percentile": 0.3, "is_whole": True, "is_as_asked": False}
    entry = shown(scene, {"bundle": {"name": "b"}, "mask_source": {"kind": "generated", "sizes": {"liver": size}}})
    user.panel.results.added(entry.volumeNode)
    line = "liver: 900.0 ml, larger than 30% of the patients (asked for: 80%): NOT AS ASKED"
    assert line in user.reads("resultLabel")
    assert shown(scene, {"mask_source": {"sizes": {"liver": 3}}}).maskStory == []


def test_a_result_tells_what_the_models_grid_lost_of_the_segmentation(user: PanelUser, scene: Any) -> None:
    lost = [{"name": "hyoid", "label": 12, "voxels": 9, "kept": 0}]
    source = {"kind": "file", "lost": lost, "notes": ["Body (label 200) added from a smooth hull."]}
    user.panel.results.added(shown(scene, {"bundle": {"name": "b"}, "mask_source": source}).volumeNode)
    lines = user.reads("resultLabel").splitlines()
    assert "hyoid: the model's voxels keep 0 of its 9 voxels, so the image does not show it" in lines
    assert "Body (label 200) added from a smooth hull." in lines
    assert shown(scene, {"mask_source": {"kind": "file", "lost": [3], "notes": 5}}).maskStory == []


def test_a_replay_does_not_change_a_changed_segmentation_again(user: PanelUser, scene: Any, tmp_path: Any) -> None:
    entry = shown(scene, {"bundle": {"name": "b"}, "mask_source": {"kind": "file", "variation": {"seed": 3}}})
    with pytest.raises(MaskError, match="maisi generate --replay"):
        entry.writeReplay(tmp_path)
