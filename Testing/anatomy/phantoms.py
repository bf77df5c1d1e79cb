"""Small patients for the tests of this room."""

from __future__ import annotations

import numpy as np

from MAISILib.anatomy.labels import default_table
from MAISILib.volumes import Grid, LabelMap


def label_map(array: np.ndarray, affine: np.ndarray | None = None, source: str = "") -> LabelMap:
    """A mask with the public labels, 1 mm voxels unless said otherwise."""
    return LabelMap(np.asarray(array, np.uint8), np.eye(4) if affine is None else affine, default_table(), source)


def torso(
    shape: tuple[int, int, int] = (24, 20, 16), spacing: tuple[float, float, float] = (4.0, 4.0, 5.0)
) -> LabelMap:
    """Femora below, liver and spleen in the middle, lungs above, brain on top; a box each."""
    array = np.zeros(shape, np.uint8)
    x, _, z = shape
    array[4:8, 8:12, 0 : z // 4] = 93
    array[x - 8 : x - 4, 8:12, 0 : z // 4] = 94
    array[x // 2 : x - 4, 6:14, z // 4 : z // 2] = 1
    array[5:9, 6:12, z // 4 : z // 2] = 3
    array[4 : x // 2 - 1, 5:15, z // 2 : 3 * z // 4] = 28
    array[x // 2 + 1 : x - 4, 5:15, z // 2 : 3 * z // 4] = 30
    array[x // 2 - 4 : x // 2 + 4, 6:14, 3 * z // 4 + 1 : z] = 22
    return label_map(array, Grid.axis_aligned(shape, spacing).affine)


def many_organs() -> LabelMap:
    """Spine, ribs and organs of the public labels, a small box each, where they lie in patients."""
    array = np.zeros((40, 20, 60), np.uint8)

    def put(name: str, x: int, y: int, z: int) -> None:
        array[x : x + 3, y : y + 3, z : z + 2] = default_table().find(name).value

    spine = [f"C{n}" for n in range(1, 8)] + [f"T{n}" for n in range(1, 13)] + [f"L{n}" for n in range(1, 6)]
    for level, name in enumerate(spine):
        put(f"vertebrae {name}", 19, 2, 56 - 2 * level)
    for rib in range(1, 10):
        put(f"left rib {rib}", 1, 8, 44 - 2 * rib)
        put(f"right rib {rib}", 36, 8, 44 - 2 * rib)
    for side, x in (("left", 8), ("right", 28)):
        put(f"{side} lung upper lobe", x, 12, 40)
        put(f"{side} lung lower lobe", x, 12, 32)
        put(f"{side} kidney", x, 4, 14)
        put(f"{side} hip", x, 8, 5)
        put(f"{side} femur", x, 12, 1)
        put(f"{side} gluteus maximus", x, 1, 5)
    organs = {"brain": (19, 8, 58), "thyroid gland": (19, 12, 46), "heart": (17, 12, 36), "liver": (28, 8, 24)}
    organs |= {"spleen": (6, 4, 24), "stomach": (12, 8, 24), "bladder": (19, 12, 4), "sacrum": (19, 2, 6)}
    for name, place in organs.items():
        put(name, *place)
    return label_map(array, Grid.axis_aligned(array.shape, (8.0, 8.0, 10.0)).affine)  # type: ignore[arg-type]


def turned(mask: LabelMap, order: tuple[int, int, int], flips: tuple[int, int, int]) -> LabelMap:
    """The same patient at the same place, with voxel axes in another order and direction."""
    array, affine = mask.array, mask.affine
    affine = affine[:, [*order, 3]]
    array = array.transpose(order)
    for axis, flip in enumerate(flips):
        if flip:
            move = np.eye(4)
            move[axis, axis], move[axis, 3] = -1, array.shape[axis] - 1
            affine, array = affine @ move, np.flip(array, axis)
    return mask.with_array(np.ascontiguousarray(array), affine=affine)


def sheared(mask: LabelMap, part: float) -> LabelMap:
    """The mask with its third axis leaning towards the first by so much of its length, as rounded headers have it."""
    lean = np.eye(4)
    lean[0, 2] = part * mask.spacing[2] / mask.spacing[0]
    return mask.with_array(mask.array, affine=mask.affine @ lean)


def tilted(mask: LabelMap, degrees: float) -> LabelMap:
    """The mask rotated about the left–right axis, as an oblique scan."""
    turn, angle = np.eye(4), np.radians(degrees)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return mask.with_array(mask.array, affine=turn @ mask.affine)
