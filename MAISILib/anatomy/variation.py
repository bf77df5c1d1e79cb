"""Makes another patient of a mask: turned, bent, with organs of other sizes and lesions at other places."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from MAISILib.anatomy.lesion_variation import vary_lesions
from MAISILib.anatomy.shape_variation import vary_shape
from MAISILib.errors import RequestError
from MAISILib.volumes import LabelMap


@dataclass(frozen=True)
class Variation:
    """How far a variation may go; each number is the largest change, and 0 leaves that out.

    Args:
        rotation: Degrees about each axis of the mask.
        scale: Part by which the patient becomes larger or smaller along each axis.
        bend: Millimeters of the smooth displacement that bends everything a little.
        organs: Part by which each organ becomes larger or smaller for itself.
        lesions: Part by which the diameter of each lesion changes.
        move: Millimeters that a lesion moves within its host.
    """

    rotation: float = 5.0
    scale: float = 0.05
    bend: float = 5.0
    organs: float = 0.12
    lesions: float = 0.25
    move: float = 20.0

    def __post_init__(self) -> None:
        most = {"rotation": 30.0, "scale": 0.3, "bend": 12.0, "organs": 0.4, "lesions": 0.6, "move": 500.0}
        for name, limit in most.items():
            if not 0 <= getattr(self, name) <= limit:
                raise RequestError(f"A variation's {name} is 0 to {limit:g}, not {getattr(self, name):g}.")


def vary_mask(mask: LabelMap, seed: int, variation: Variation | None = None) -> LabelMap:
    """Another patient on the grid of a mask; the same for the same seed.

    Every label of the mask stays, none is added, and each voxel has one label. A lesion never leaves the tissues in
    which it lies. The number of tries is bounded: what cannot be varied stays as it is, and the notes say so.

    Args:
        mask: In any orientation, at least 2 voxels along each axis.
        seed: Of everything that is random.
        variation: How far it may go; the default suits whole patients.
    """
    wanted = variation or Variation()
    shape_rng, lesion_rng = (np.random.default_rng([seed, part]) for part in range(2))
    varied = vary_shape(
        mask, shape_rng, rotation=wanted.rotation, scale=wanted.scale, bend=wanted.bend, organs=wanted.organs
    )
    varied = vary_lesions(varied, lesion_rng, scale=wanted.lesions, move_mm=wanted.move)
    return varied.with_array(varied.array, notes=(*varied.notes, f"Varied with seed {seed}."))
