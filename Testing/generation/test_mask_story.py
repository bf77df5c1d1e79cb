"""What a user reads about the mask of a sample."""

from __future__ import annotations

from typing import Any

import pytest

from MAISILib.generation.mask_story import mask_story


def size(**changes: Any) -> dict[str, Any]:
    usual = {"asked": 0.8, "volume_mm3": 1_234_000.0, "percentile": 0.75, "is_whole": True, "is_as_asked": True}
    return {**usual, **changes}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "liver: 1234.0 ml, larger than 75% of the patients (asked for: 80%)"),
        (
            {"percentile": 0.1, "is_as_asked": False},
            "liver: 1234.0 ml, larger than 10% of the patients (asked for: 80%): NOT AS ASKED",
        ),
        ({"asked": -1.0, "volume_mm3": 0.0, "percentile": -1.0}, "liver: absent (asked for: absent)"),
        (
            {"percentile": None, "is_whole": False, "is_as_asked": None},
            "liver: 1234.0 ml of it in the picture, so its size is not known (asked for: 80%)",
        ),
        ({"percentile": None, "is_as_asked": None}, "liver: 1234.0 ml (asked for: 80%)"),
    ],
)
def test_sizes_are_told_beside_what_was_asked_for(changes: dict[str, Any], line: str) -> None:
    assert mask_story({"kind": "generated", "sizes": {"liver": size(**changes), "spleen": size(asked=None)}}) == [line]


def test_changes_are_told() -> None:
    insertion = {"lesion": "hepatic tumor", "diameter_mm": 11.9, "host": "liver", "asked_mm": 12.0}
    assert mask_story({"kind": "library", "variation": {"seed": 5}, "insertion": insertion}) == [
        "another patient, variation 5",
        "hepatic tumor of 11.9 mm in liver (asked for: 12 mm)",
    ]


def test_what_a_users_mask_lost_is_told_and_what_was_done_to_it() -> None:
    lost = [
        {"name": "hyoid", "label": 12, "voxels": 9, "kept": 0},
        {"name": "esophagus", "label": 11, "voxels": 40, "kept": 12},
    ]
    notes = ["Body (label 200) added from the CT above -300 HU: 20 mL."]
    assert mask_story({"kind": "file", "lost": lost, "notes": notes}) == [
        "hyoid: the model's voxels keep 0 of its 9 voxels, so the image does not show it",
        "esophagus: the model's voxels keep 12 of its 40 voxels",
        *notes,
    ]


def test_a_mask_as_it_was_has_no_story() -> None:
    assert mask_story(None) == mask_story({"kind": "library", "notes": []}) == []
