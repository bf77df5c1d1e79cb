"""What the tests of the scene share. They run with slicer-core 5.11 and 5.13, and without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from MAISILib.anatomy.labels import Label, LabelTable, default_table
from MAISILib.volumes import LabelMap, Volume


@pytest.fixture
def scene() -> Any:
    pytest.importorskip("slicer", reason="slicer-core is not installed")
    from MAISILib.scene import new_scene

    return new_scene()


@pytest.fixture(scope="session")
def table() -> LabelTable:
    """The public labels, and every other value from 1 to 255 under a name of its own."""
    known = list(default_table())
    values = {label.value for label in known}
    others = [
        Label(value, f"structure {value}", "others", (value, 255 - value, (7 * value) % 256))
        for value in range(1, 256)
        if value not in values
    ]
    return LabelTable("all", [dataclasses.replace(label, host=None) for label in known] + others)


@pytest.fixture(scope="session")
def oblique() -> np.ndarray:
    """An affine with axes turned about all three directions, 1.5 × 2 × 3 mm, and left-handed."""
    return affine_of_angles((0.3, -0.2, 0.7), (-1.5, 2.0, 3.0), (11.0, -42.5, 903.25))


def affine_of_angles(
    angles: tuple[float, float, float], spacing: tuple[float, float, float], origin: tuple[float, float, float]
) -> np.ndarray:
    affine = np.eye(4)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(4)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        affine = affine @ turn
    affine = affine @ np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


@pytest.fixture
def make_mask(table: LabelTable) -> Callable[..., LabelMap]:
    """Makes a random label map of blocks."""

    def make(
        affine: np.ndarray, labels: list[int], shape: tuple[int, int, int] = (20, 24, 18), seed: int = 0
    ) -> LabelMap:
        rng = np.random.default_rng(seed)
        coarse = rng.choice([0, *labels], size=[-(-n // 3) for n in shape]).astype(np.uint8)
        array = coarse.repeat(3, 0).repeat(3, 1).repeat(3, 2)[tuple(slice(n) for n in shape)]
        array = np.ascontiguousarray(array)
        array.flat[: len(labels)] = labels  # every label is there
        return LabelMap(array, affine, table, "test")

    return make


@pytest.fixture
def make_image() -> Callable[..., Volume]:
    """Makes a random CT."""

    def make(affine: np.ndarray, shape: tuple[int, int, int] = (20, 24, 18)) -> Volume:
        return Volume(np.random.default_rng(1).integers(-1024, 3071, shape).astype(np.int16), affine)

    return make
