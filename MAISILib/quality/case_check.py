"""What is wrong with one image and its mask: brightness of organs, and whether the two belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from MAISILib.quality.agreement import (
    ThresholdStructure,
    boundary_contrast,
    contrast_to_host,
    explained_variance,
    mirrored,
    threshold_dice,
)
from MAISILib.quality.hu_check import OrganCheck, OrganRange, QualityReport, check_hu
from MAISILib.resampling import to_canonical
from MAISILib.volumes import LabelMap, Volume

#: Above this many HU is bone, below that many is gas; at coarse resolution thin bone mixes with soft tissue.
_BONE_HU, _GAS_HU = 180.0, -300.0
#: An organ whose median is never above this is full of gas.
_GASEOUS_HU = -200.0
#: Values are clipped to these HU before image and mask are compared: metal would outweigh all else.
_CLIPPED = (-1000.0, 1000.0)
#: An image that varies less than this many HU shows nothing.
_BLANK_HU = 10.0
#: Borders in the mask are not steeper than the rest: the mask is not of this image.
_LEAST_BOUNDARY = 1.5
#: A better mask leaves less than this part of the variance unexplained that the own mask leaves.
_CLEARLY_LESS = 0.9
_LITTLE_OVERLAP, _LITTLE_CONTRAST = 0.5, 0.3


@dataclass(frozen=True)
class Finding:
    """Something that a person should know about a case.

    Args:
        fails: Whether the case must not be used; else it is unusual.
        text: What it is.
    """

    fails: bool
    text: str


@dataclass(frozen=True)
class CaseCheck:
    """All that was measured on one case.

    Attributes:
        name: Of the case.
        findings: What is wrong, the worst first.
        hu: Medians of organs against their ranges; ``None`` without a mask or a table.
        boundary_contrast: See :func:`boundary_contrast`.
        explained_variance: See :func:`explained_variance`.
        bone_dice: Dice of the mask's bone and what a threshold finds.
        gas_dice: The same of gas.
        lesions: Name → contrast to its host in HU and in deviations.
    """

    name: str
    findings: tuple[Finding, ...] = ()
    hu: QualityReport | None = None
    boundary_contrast: float = math.nan
    explained_variance: float = math.nan
    bone_dice: float = math.nan
    gas_dice: float = math.nan
    lesions: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """``passed``, ``unusual`` or ``failed``."""
        if any(finding.fails for finding in self.findings):
            return "failed"
        return "unusual" if self.findings else "passed"

    @property
    def medians(self) -> dict[str, float]:
        """Organ → median HU."""
        return {organ.organ: organ.median_hu for organ in self.hu.organs} if self.hu else {}

    def measures(self) -> dict[str, float | None]:
        """The figures of image against mask; ``None`` where there is none."""
        names = ("boundary_contrast", "explained_variance", "bone_dice", "gas_dice")
        return {name: _or_none(getattr(self, name)) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. ``hu`` is what the provenance of a generated sample holds as ``quality``."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "findings": [finding.text for finding in self.findings],
            **self.measures(),
            "lesions": {
                name: {"contrast_hu": _or_none(hu), "deviations": _or_none(deviations)}
                for name, (hu, deviations) in self.lesions.items()
            },
            "hu": self.hu.to_dict() if self.hu else None,
        }


def fits_better(other: float, own: float) -> bool:
    """Whether a mask that explains ``other`` of an image's variance is clearly better than the own one."""
    return 1 - other < _CLEARLY_LESS * (1 - own)


def structures_of(ranges: Sequence[OrganRange], body: int) -> dict[str, ThresholdStructure]:
    """Bone and gas as a quality table names them, each looked for among bone, gas and what is nothing but body.

    Args:
        ranges: The table.
        body: Label of the body.
    """
    bone = tuple(label for r in ranges if r.organ == "bone" for label in r.labels)
    gas = tuple(label for r in ranges if r.high <= _GASEOUS_HU for label in r.labels)
    within = (*bone, *gas, body)
    found = {}
    if bone:
        found["bone_dice"] = ThresholdStructure(bone, within, above=_BONE_HU)
    if gas:
        found["gas_dice"] = ThresholdStructure(gas, within, below=_GAS_HU)
    return found


def check_case(name: str, image: Volume, mask: LabelMap | None, ranges: Sequence[OrganRange]) -> CaseCheck:
    """Checks one case.

    Args:
        name: Of the case.
        image: In HU.
        mask: On the image's grid, in whatever order of voxels; without one only a blank image is found.
        ranges: The quality table; empty where the bundle has none.
    """
    image = Volume(*to_canonical(image.array, image.affine), image.units)
    values = image.array.astype(np.float32).clip(*_CLIPPED)
    if not np.isfinite(values).all():
        return CaseCheck(name, (Finding(True, "the image has voxels without a value (NaN)"),))
    if float(values.max() - values.min()) < _BLANK_HU:
        return CaseCheck(name, (Finding(True, f"the image is blank: all voxels are about {values.mean():.0f} HU"),))
    if mask is None:
        return CaseCheck(name, (Finding(False, "no mask beside the image: only blankness was checked"),))
    if not mask.array.any():
        return CaseCheck(name, (Finding(True, "the mask is empty"),))
    array, affine = to_canonical(mask.array, mask.affine)
    mask = mask.with_array(array, affine=affine)
    if not mask.grid.same_as(image.grid, 0.1 * min(image.spacing)):
        return CaseCheck(name, (Finding(True, _elsewhere(image, mask)),))
    labels, hu = mask.array, check_hu(values, mask.array, ranges)
    findings = [Finding(True, _off(organ)) for organ in hu.failures]
    boundary, explained = boundary_contrast(values, labels), explained_variance(values, labels)
    better = max(explained_variance(values, flipped) for flipped in mirrored(labels))
    if fits_better(better, explained):
        findings.insert(0, Finding(True, _percent("the mask is mirrored left to right", better, explained)))
    elif boundary < _LEAST_BOUNDARY:
        findings.append(
            Finding(True, f"the mask's borders are no edges of the image ({boundary:.2f} times as steep as the rest)")
        )
    dice = {key: threshold_dice(values, labels, s) for key, s in structures_of(ranges, mask.table.BODY).items()}
    for key, value in dice.items():
        if value < _LITTLE_OVERLAP:
            what = key.removesuffix("_dice")
            findings.append(Finding(False, f"{what} of the mask and of the image overlap little (Dice {value:.2f})"))
    lesions = _lesions(values, mask)
    for lesion, (_, deviations) in lesions.items():
        if mask.table.find(lesion).is_tumor and abs(deviations) < _LITTLE_CONTRAST:
            findings.append(Finding(False, f"{lesion} can hardly be told from its host ({deviations:+.2f} deviations)"))
    return CaseCheck(name, tuple(findings), hu, boundary, explained, lesions=lesions, **dice)


def _lesions(values: np.ndarray, mask: LabelMap) -> dict[str, tuple[float, float]]:
    hosts, present = mask.table.hosts(), set(mask.labels)
    return {
        mask.table[lesion].name: contrast_to_host(values, mask.array, lesion, host)
        for lesion, host in hosts.items()
        if {lesion, host} <= present
    }


def _off(organ: OrganCheck) -> str:
    how = "dark" if organ.median_hu < organ.low else "bright"
    return f"{organ.organ} is too {how}: median {organ.median_hu:.0f} HU, expected {organ.low:.0f} to {organ.high:.0f}"


def _percent(what: str, better: float, worse: float) -> str:
    return f"{what}: the other way it explains {better:.0%} of the image's variance, as it is {worse:.0%}"


def _elsewhere(image: Volume, mask: LabelMap) -> str:
    shapes = [" × ".join(map(str, grid.shape)) for grid in (image.grid, mask.grid)]
    if shapes[0] != shapes[1]:
        return f"image ({shapes[0]} voxels) and mask ({shapes[1]}) differ in size"
    return "image and mask lie in different places"


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
