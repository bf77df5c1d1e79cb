"""Pictures of a training: images from networks in memory, and what has changed from one to the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from MAISILib.bundles.bundle import Bundle
from MAISILib.errors import Cancelled
from MAISILib.generation.progress import CancelToken
from MAISILib.training.rendering import Renderer, difference_of, write_comparison
from MAISILib.volumes import LabelMap, Volume
from Testing.tiny_bundle import BODY, LIVER, LUNG_TUMOR, make_tiny_bundle, tiny_patient

MR: dict[str, Any] = {"intensity": {"kind": "mr"}, "modality": {"mri_t1": 9}}


@pytest.fixture
def patient() -> LabelMap:
    return tiny_patient(tumor=True)


def render(folder: Path, mask: LabelMap, kind: Any = "rflow", **changes: Any) -> Volume:
    bundle = Bundle(make_tiny_bundle(folder, kind, **changes))
    return Renderer(bundle, bundle.load("diffusion")).image(bundle.load("controlnet"), mask, steps=2, seed=5)


def test_the_same_noise_gives_the_same_image_and_air_outside(tmp_path: Path, patient: LabelMap) -> None:
    first, second = render(tmp_path / "a", patient), render(tmp_path / "b", patient)
    assert np.array_equal(first.array, second.array)
    assert (first.array[patient.array == 0] == -1000).all()
    assert first.units == "HU"
    assert first.grid.same_as(patient.grid)


@pytest.mark.parametrize(("kind", "changes"), [("ddpm", {}), ("rflow", MR)], ids=["ddpm with regions", "mr"])
def test_every_kind_of_bundle_can_be_shown(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    for mask in (
        tiny_patient(),
        tiny_patient(tumor=True).with_array((tiny_patient().array > 0).astype(np.uint8) * BODY),
    ):
        image = render(tmp_path / "tiny", mask, kind, **changes)
        assert np.isfinite(image.array).all()
        assert image.units == ("HU" if kind == "ddpm" else "arbitrary")


def test_a_cancel_stops_between_steps(tmp_path: Path, patient: LabelMap) -> None:
    bundle, token = Bundle(make_tiny_bundle(tmp_path / "tiny")), CancelToken()
    renderer = Renderer(bundle, bundle.load("diffusion"))
    token.cancel()
    with pytest.raises(Cancelled):
        renderer.image(bundle.load("controlnet"), patient, steps=1000, seed=5, check=token.check)


def test_a_planted_change_is_found_inside_and_outside(patient: LabelMap) -> None:
    before = Volume(np.zeros(patient.array.shape), patient.affine)
    lesion, body = patient.array == LUNG_TUMOR, patient.array > 0
    after = np.where(lesion, 200.0, np.where(body, -7.0, 500.0))  # what is outside the body does not count
    figures = difference_of(before, before, patient, (LUNG_TUMOR,))
    assert figures == {"before_inside": 0, "after_inside": 0, "inside_change": 0, "outside_change": 0}
    figures = difference_of(before, Volume(after, patient.affine), patient, (LUNG_TUMOR,))
    assert figures == {"before_inside": 0, "after_inside": 200, "inside_change": 200, "outside_change": 7}


def test_the_rim_of_the_focus_counts_neither_inside_nor_outside(patient: LabelMap) -> None:
    from scipy import ndimage

    lesion = patient.array == LUNG_TUMOR
    rim = ndimage.binary_dilation(lesion, iterations=2) & ~lesion
    before, after = np.zeros(patient.array.shape), np.where(rim, 900.0, 0.0)
    figures = difference_of(Volume(before, patient.affine), Volume(after, patient.affine), patient, (LUNG_TUMOR,))
    assert figures["inside_change"] == figures["outside_change"] == 0


def test_a_focus_that_fills_the_body_has_no_outside(patient: LabelMap) -> None:
    mask = patient.with_array((patient.array > 0).astype(np.uint8) * LIVER)
    image = Volume(np.ones(mask.array.shape), mask.affine)
    assert difference_of(image, image, mask, (LIVER,)).keys() == {"before_inside", "after_inside", "inside_change"}


@pytest.mark.parametrize("units", ["HU", "arbitrary"])
def test_the_comparison_shows_both_in_one_window_through_the_focus(units: str, tmp_path: Path) -> None:
    mask = tiny_patient(shape=(16, 16, 40))
    array = mask.array.copy()
    array[2:4, 2:4, 36:38] = LUNG_TUMOR  # far from the organs' middle
    mask = mask.with_array(array)
    ramp = np.broadcast_to(np.linspace(-100, 100, 16)[:, None, None], array.shape)
    dark, bright = (Volume(np.where(array == LUNG_TUMOR, value, ramp), mask.affine, units) for value in (-90.0, 90.0))
    write_comparison(tmp_path / "new" / "c.png", {"before": dark, "after": bright}, mask, (LUNG_TUMOR,))
    with Image.open(tmp_path / "new" / "c.png") as picture:
        pixels = np.asarray(picture)
    first, second = (half[60:].astype(int) for half in np.split(pixels, 2))  # without the titles
    assert ((second - first) > 50).any(axis=2).sum() > 1000  # in the focus alone the two differ
    assert second.mean() > first.mean()
