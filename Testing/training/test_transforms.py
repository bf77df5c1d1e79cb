"""Random patches: where they are cut, how they vary, and what a mirror does to left and right."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from MAISILib.anatomy.labels import Label, LabelTable, default_table
from MAISILib.errors import MaskError
from MAISILib.training.images import ImageSettings, PreparedImage
from MAISILib.training.mirroring import mirrored_labels, mirrored_pairs
from MAISILib.training.transforms import Transforms

PATCH = (8, 8, 8)


def prepared(array: np.ndarray, label: np.ndarray | None = None, *, ct: bool = True) -> PreparedImage:
    window = (-1000.0, 1000.0) if ct else (0.0, 100.0)
    return PreparedImage(array, label, np.diag([1.0, 2.0, 3.0, 1.0]), window, ct)


def transforms(*, training: bool = True, table: LabelTable | None = None, **settings: Any) -> Transforms:
    fields = {"random_aug": False, "patch_size": PATCH, **settings}
    return Transforms(ImageSettings.model_validate(fields), table or default_table(), training=training)


def numbered(shape: tuple[int, int, int] = (20, 16, 12)) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape) % 2000 - 1000


def test_patches_come_from_everywhere() -> None:
    cut, image = transforms(), prepared(numbered())
    corners = set()
    for seed in range(300):
        patch, label, spacing = cut(image, random.Random(seed))
        assert patch.shape == (1, *PATCH)
        assert label is None
        assert spacing == pytest.approx((1, 2, 3))
        corners.add(float(patch[0, 0, 0, 0]))
    assert len(corners) > 150  # of 13 × 9 × 5 places


def test_a_patch_around_the_body_holds_a_label() -> None:
    label = np.zeros((40, 40, 40), np.uint8)
    label[37, 3, 20] = 1
    image = prepared(np.zeros((40, 40, 40), np.int16), label)
    always = transforms(crop={"around": "body"})
    for seed in range(30):
        found = always(image, random.Random(seed))[1]
        assert found is not None
        assert int(found.sum()) == 1
    hits = 0
    sometimes = transforms(crop={"around": "body", "probability": 0.5})
    for seed in range(100):
        found = sometimes(image, random.Random(seed))[1]
        assert found is not None
        hits += int(found.sum())
    assert 30 < hits < 70


def test_an_image_smaller_than_the_patch_is_filled_with_air_around_it() -> None:
    label = np.ones((4, 8, 20), np.uint8)
    for around in ("anything", "body"):
        patch, found, _ = transforms(crop={"around": around})(
            prepared(np.full((4, 8, 20), 1000, np.int16), label), random.Random(0)
        )
        assert found is not None
        assert patch[0, :, 0, 0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
        assert found[0, :, 0, 0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def test_without_a_label_the_body_is_not_looked_for() -> None:
    patch, _, _ = transforms(crop={"around": "body"})(prepared(numbered()), random.Random(0))
    assert patch.shape == (1, *PATCH)


@pytest.mark.parametrize("spacing_type", ["original", "rand_zoom"])
def test_variations_keep_shape_range_and_labels(spacing_type: str) -> None:
    generator = np.random.default_rng(0)
    label = np.zeros((20, 20, 20), np.uint8)
    label[5:15, 5:15, 5:15] = 134
    image = prepared(generator.integers(-1000, 1000, (20, 20, 20)).astype(np.int16), label)
    vary = transforms(random_aug=True, spacing_type=spacing_type)
    spacings, seen = set(), set()
    for seed in range(40):
        patch, found, spacing = vary(image, random.Random(seed))
        assert found is not None
        assert patch.shape == found.shape == (1, *PATCH)
        assert patch.dtype == torch.float32
        assert set(found.unique().tolist()) <= {0, 134}
        assert 0 <= float(patch.min()) <= float(patch.max()) <= 1 + 1e-5
        spacings.add(tuple(round(s, 3) for s in spacing))
        seen.add(float(patch.sum()))
    assert len(seen) == 40
    assert len(spacings) > 5  # zoomed patches have other voxels
    smallest, largest = min(s[2] for s in spacings), max(s[2] for s in spacings)
    assert (smallest < 2.4 and largest > 4.2) == (spacing_type == "rand_zoom")


def test_a_zoomed_patch_shows_more_of_the_patient_at_a_larger_spacing() -> None:
    array = np.full((40, 40, 40), -1000, np.int16)
    array[10:30] = 1000
    zoom = transforms(spacing_type="rand_zoom", patch_size=(20, 20, 20))
    for seed in range(40):
        patch, _, spacing = zoom(prepared(array), random.Random(seed))
        shown = float((patch[0, :, 10, 10] > 0.5).sum()) * spacing[0]
        assert shown <= 21  # the slab is 20 mm thick, whatever the zoom


def test_only_mr_varies_in_intensity() -> None:
    values = np.random.default_rng(1).integers(1, 100, (8, 8, 8)).astype(np.int16)
    changed = {True: 0, False: 0}
    for ct in changed:
        image = prepared(values, ct=ct)
        low, high = image.window
        plain = np.sort(((values - low) / (high - low)).ravel())
        for seed in range(30):
            patch, _, spacing = transforms(random_aug=True)(image, random.Random(seed))
            if len({round(s, 4) for s in spacing} - {1.0, 2.0, 3.0}) == 0:  # neither turned nor zoomed
                same = np.allclose(np.sort(patch.numpy().ravel()), plain, atol=1e-4)
                changed[ct] += not same
    assert changed[True] == 0
    assert changed[False] > 5


def test_left_and_right_of_the_public_table_are_paired() -> None:
    pairs = mirrored_pairs(default_table())
    table = default_table()
    assert (table.find("right kidney").value, table.find("left kidney").value) in pairs
    assert (table.find("right rib 7").value, table.find("left rib 7").value) in pairs
    flat = [value for pair in pairs for value in pair]
    assert len(flat) == len(set(flat))
    assert table.find("right lung middle lobe").value not in flat  # there is none on the left
    assert table.find("liver").value not in flat


def test_pairs_follow_the_names_of_any_table() -> None:
    own = LabelTable("own", [Label(9, "Left_eye", "head", (0, 0, 0)), Label(7, "right eye", "head", (0, 0, 0))])
    assert mirrored_pairs(own) == ((7, 9),)


def test_a_mirrored_patient_has_left_and_right_exchanged() -> None:
    label = np.zeros(PATCH, np.uint8)
    label[1], label[6, :4] = 5, 14  # right kidney at low x, left kidney at high x
    array = np.where(label == 5, 400, np.where(label == 14, 800, 0)).astype(np.int16)
    mirror = transforms(mirror=0.5)
    outcomes = set()
    for seed in range(20):
        patch, found, _ = mirror(prepared(array, label), random.Random(seed))
        assert found is not None
        values = (patch[0] * 2000 - 1000).round()
        mirrored = bool(values[6, 0, 0] == 400)
        outcomes.add(mirrored)
        assert bool(found[0, 1, 0, 0] == 5)
        assert bool(found[0, 6, 0, 0] == 14)
        assert torch.equal(found[0], torch.from_numpy(mirrored_labels(label, default_table()) if mirrored else label))
    assert outcomes == {True, False}


def test_labels_of_unknown_side_cannot_be_mirrored() -> None:
    with pytest.raises(MaskError, match="Labels 199 are not in the table 'MAISI'"):
        mirrored_labels(np.full(PATCH, 199, np.uint8), default_table())


def test_held_out_images_do_not_depend_on_chance() -> None:
    show = transforms(training=False, random_aug=True, mirror=1.0)
    first, second = (show(prepared(numbered()), random.Random(seed))[0] for seed in (1, 2))
    assert torch.equal(first, second)
    assert first.shape == (1, 20, 16, 12)
