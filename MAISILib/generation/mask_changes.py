"""What a request changes in the masks that it takes from a library or a file: another patient, a new lesion."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from MAISILib.anatomy.grids import Box
from MAISILib.anatomy.labels import LabelTable
from MAISILib.anatomy.lesion_insertion import WithLesion, insert_lesion, lesion_and_hosts
from MAISILib.anatomy.variation import vary_mask
from MAISILib.volumes import Grid, LabelMap

if TYPE_CHECKING:
    from MAISILib.generation.request import GenerateRequest, LesionWish


class MaskChanges:
    """Varies masks and puts lesions into them, each sample in its own way.

    Args:
        request: What is wanted.
        table: The bundle's labels.

    Raises:
        RequestError: The lesion, its host or its shape is unknown.
    """

    def __init__(self, request: GenerateRequest, table: LabelTable) -> None:
        self._vary, self._wish = request.vary, request.insert_lesion
        self._lesion, self._hosts = 0, [0]
        if self._wish is not None:
            wish = self._wish
            self._lesion, self._hosts = lesion_and_hosts(table, wish.lesion, wish.host, wish.shape)

    def __bool__(self) -> bool:
        return self._vary is not None or self._wish is not None

    @property
    def needs(self) -> tuple[int, ...]:
        """Labels that a mask of the library must have before; a body is made where it is missing."""
        return (self._hosts[0],) if self._hosts[0] not in (0, LabelTable.BODY) else ()

    @property
    def adds(self) -> tuple[int, ...]:
        """Labels that a mask has afterwards in any case."""
        return (self._lesion,) if self._lesion else ()

    def apply(self, mask: LabelMap, seed: int, within: Box | None = None) -> tuple[LabelMap, dict[str, Any]]:
        """The changed mask, and what was done, for the provenance.

        Args:
            mask: From the library or a file, with a body.
            seed: Of the sample's mask.
            within: Where everything stays, in voxel indices; the whole grid by default.

        Raises:
            MaskError: The lesion does not fit into its host, or that is absent.
        """
        done: dict[str, Any] = {}
        if self._vary is not None:
            variation = random.Random(f"{self._vary}/{seed}").getrandbits(32)
            mask = _varied(mask, variation, within)
            done["variation"] = {"seed": variation}
        if self._wish is not None:
            made = self._with_lesion(mask, self._wish, seed)
            mask, done["insertion"] = made.mask, asdict(made.insertion)
        return mask, done

    def check(self, mask: LabelMap) -> None:
        """Finds out before the work whether a mask takes the lesion.

        Raises:
            MaskError: As :meth:`apply`.
        """
        if self._wish is not None:
            self._with_lesion(mask, self._wish, seed=0)

    def _with_lesion(self, mask: LabelMap, wish: LesionWish, seed: int) -> WithLesion:
        return insert_lesion(mask, self._lesion, wish.diameter, host=wish.host, shape=wish.shape, seed=seed)


def box_of(grid: Grid, inside: Grid) -> Box:
    """The part of ``inside`` that another grid with parallel axes covers, in voxel indices of ``inside``."""
    ends = np.array([[0, 0, 0, 1], [*(n - 1 for n in grid.shape), 1]]).T
    indices = np.linalg.solve(inside.affine, grid.affine @ ends)[:3]
    most = np.asarray(inside.shape) - 1
    first = np.clip(np.ceil(indices.min(axis=1) - 1e-3), 0, most).astype(int)
    last = np.clip(np.floor(indices.max(axis=1) + 1e-3), 0, most).astype(int)
    return Box(tuple(map(int, first)), tuple(map(int, last)))  # type: ignore[arg-type]


def _varied(mask: LabelMap, seed: int, within: Box | None) -> LabelMap:
    if within is None:
        return vary_mask(mask, seed)
    part = tuple(slice(first, last + 1) for first, last in zip(*within, strict=True))
    varied = vary_mask(mask.with_array(np.ascontiguousarray(mask.array[part])), seed)
    array = mask.array.copy()
    array[part] = varied.array
    return varied.with_array(array)
