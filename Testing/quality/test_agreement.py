from __future__ import annotations

import math

import numpy as np
import pytest

from MAISILib.errors import RequestError
from MAISILib.quality.agreement import ThresholdStructure, largest_hu_outside, median_hu, threshold_dice

BODY, BONE, GAS, MANDIBLE = 200, 138, 139, 137
BONES = ThresholdStructure(labels=(BONE,), within=(BONE, BODY, GAS), above=180.0)
GASES = ThresholdStructure(labels=(GAS,), within=(BONE, BODY, GAS), below=-300.0)


def phantom() -> tuple[np.ndarray, np.ndarray]:
    """A body with two bones, an airway and a contoured mandible, each of its own HU, in air."""
    labels = np.zeros((20, 20, 10), np.uint8)
    labels[2:18, 2:18] = BODY
    labels[4:8, 4:8], labels[12:16, 4:8] = BONE, BONE
    labels[8:12, 12:16], labels[4:7, 10:16] = GAS, MANDIBLE
    image = np.select([labels == v for v in (BODY, BONE, GAS, MANDIBLE)], [20.0, 500.0, -900.0, 700.0], -1000.0)
    return image, labels


def test_image_that_follows_its_mask_agrees() -> None:
    image, labels = phantom()
    assert threshold_dice(image, labels, BONES) == 1.0
    assert threshold_dice(image, labels, GASES) == 1.0
    groups = {"bone": (BONE, MANDIBLE), "tissue": (BODY,), "gas": (GAS,), "larynx": (136,)}
    medians = median_hu(image, labels, groups)
    assert (medians["bone"], medians["tissue"], medians["gas"]) == (500.0, 20.0, -900.0)
    assert math.isnan(medians["larynx"])
    assert largest_hu_outside(image, labels) == -1000.0


def test_shifted_mask_is_found_and_more_the_further_it_is() -> None:
    image, labels = phantom()
    for structure in (BONES, GASES):
        values = [threshold_dice(np.roll(image, shift, axis=0), labels, structure) for shift in range(4)]
        assert values == sorted(values, reverse=True)
        assert values[1] < 0.9
        assert values[3] < 0.5
    assert largest_hu_outside(np.roll(image, 4, axis=0), labels) > 0


def test_known_overlap() -> None:
    """Bones of 4 voxels' width moved by one: three quarters of each overlap."""
    image, labels = phantom()
    image[labels == MANDIBLE] = 20.0
    moved = np.roll(image, 1, axis=1)
    assert threshold_dice(moved, labels, BONES) == pytest.approx(0.75)


def test_contoured_organs_are_neither_missed_nor_found() -> None:
    """The mandible is bone by its HU; the mask says so with a label of its own."""
    image, labels = phantom()
    image[labels == MANDIBLE] = 20.0
    assert threshold_dice(image, labels, BONES) == 1.0


def test_blank_image_has_no_bone() -> None:
    image, labels = phantom()
    assert threshold_dice(np.full_like(image, 20.0), labels, BONES) == 0.0


def test_nothing_to_find_is_no_verdict() -> None:
    image, labels = phantom()
    body = np.where(labels > 0, BODY, 0).astype(np.uint8)
    assert math.isnan(threshold_dice(np.full_like(image, 20.0), body, BONES))
    assert math.isnan(largest_hu_outside(image, np.full_like(labels, BODY)))


def test_window_between_two_thresholds() -> None:
    image, labels = phantom()
    between = ThresholdStructure(labels=(BODY,), within=(BODY, BONE), above=-100.0, below=180.0)
    assert threshold_dice(image, labels, between) == 1.0


def test_impossible_questions_are_refused() -> None:
    image, labels = phantom()
    with pytest.raises(RequestError, match="above, below or both"):
        ThresholdStructure(labels=(BONE,), within=(BONE,))
    with pytest.raises(RequestError, match=r"\(138,\) must be among"):
        ThresholdStructure(labels=(BONE,), within=(BODY,), above=180.0)
    for measure in (
        lambda: threshold_dice(image[1:], labels, BONES),
        lambda: median_hu(image[1:], labels, {}),
        lambda: largest_hu_outside(image[1:], labels),
    ):
        with pytest.raises(RequestError, match=r"\(19, 20, 10\).*\(20, 20, 10\).*Resample"):
            measure()
