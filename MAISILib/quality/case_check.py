"""What is wrong with one image and its mask: brightness of organs, and whether the two belong together.

The one way in which a case is judged: a sample when it is made, and any image and mask in ``maisi evaluate quality``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from MAISILib.quality.counting import counted
from MAISILib.quality.hu_check import OrganCheck, OrganRange, QualityReport, check_hu
from MAISILib.resampling import to_canonical
from MAISILib.volumes import LabelMap, Volume

#: Above this many HU is bone, below that many is gas; at coarse resolution thin bone mixes with soft tissue.
_BONE_HU, _GAS_HU = 180.0, -300.0
#: An organ whose median is never above this is full of gas.
_GASEOUS_HU = -200.0
#: Values are clipped to these HU before image and mask are compared: metal would outweigh all else.
_CLIPPED = (-1000, 1000)
#: An image that varies less than this many HU shows nothing.
_BLANK_HU = 10.0
#: Borders in the mask are not steeper than the rest: the mask is not of this image.
_LEAST_BOUNDARY = 1.5
#: A better mask leaves less than this part of the variance unexplained that the own mask leaves.
_CLEARLY_LESS = 0.9
_LITTLE_OVERLAP, _LITTLE_CONTRAST = 0.5, 0.3
#: In larger images every second voxel along each axis stands for all, or every third …: enough for shares and means.
_MOST_VOXELS = 4_000_000
#: What a case comes to, the worst first.
VERDICTS: tuple[str, ...] = ("failed", "unusual", "not checked", "passed")


@dataclass(frozen=True)
class Finding:
    """Something that a person should know about a case.

    Args:
        verdict: What it makes of the case: ``failed`` (it must not be used), ``unusual`` or ``not checked``.
        text: What it is.
    """

    verdict: str
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
        bone_dice: Dice of the mask's bone and what a threshold finds; NaN for a mask without bone.
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
        """The worst of ``VERDICTS`` that a finding has; ``passed`` without findings."""
        return min((finding.verdict for finding in self.findings), key=VERDICTS.index, default="passed")

    @property
    def passed(self) -> bool | None:
        """Whether nothing failed; ``None`` where it was not checked."""
        return None if self.verdict == "not checked" else self.verdict != "failed"

    @property
    def medians(self) -> dict[str, float]:
        """Organ → median HU."""
        return {organ.organ: organ.median_hu for organ in self.hu.organs} if self.hu else {}

    def measures(self) -> dict[str, float | None]:
        """The figures of image against mask; ``None`` where there is none."""
        names = ("boundary_contrast", "explained_variance", "bone_dice", "gas_dice")
        return {name: _or_none(getattr(self, name)) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: what the provenance of a generated sample holds as ``quality``."""
        return {
            "verdict": self.verdict,
            "findings": [finding.text for finding in self.findings],
            **self.measures(),
            "lesions": {
                name: {"contrast_hu": _or_none(hu), "deviations": _or_none(deviations)}
                for name, (hu, deviations) in self.lesions.items()
            },
            "hu": self.hu.to_dict() if self.hu else None,
        }

    def summary(self) -> str:
        """One line for people: the verdict, and why."""
        if self.findings:
            return f"{self.verdict} – {'; '.join(finding.text for finding in self.findings)}"
        return f"{self.verdict} ({counted(len(self.hu.organs) if self.hu else 0, 'organ')} with known HU)"


_NO_VALUE = Finding("failed", "the image has voxels without a value (NaN)")


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


def read_verdict(quality: object) -> tuple[str, list[str]]:
    """What the part ``quality`` of a provenance says.

    Args:
        quality: From :meth:`CaseCheck.to_dict`; from an earlier version, which checked HU only; or anything else.

    Returns:
        One of ``VERDICTS``, and its reasons; ``not checked`` where nothing is said.
    """
    if isinstance(quality, Mapping) and quality.get("verdict") in VERDICTS:
        findings = quality.get("findings")
        return str(quality["verdict"]), [str(text) for text in findings] if isinstance(findings, list) else []
    organs = [organ for organ in hu_of(quality) if isinstance(organ, Mapping)]
    off = ", ".join(str(organ.get("organ")) for organ in organs if not organ.get("passed"))
    if not organs:
        return "not checked", []
    return ("failed", [f"outside the expected HU: {off}"]) if off else ("passed", [])


def hu_of(quality: object) -> list[Any]:
    """The organs whose HU were checked, from the part ``quality`` of a provenance, also of one that holds HU only."""
    if not isinstance(quality, Mapping):
        return []
    hu = quality.get("hu") if "verdict" in quality else quality
    organs = hu.get("organs") if isinstance(hu, Mapping) else None
    return organs if isinstance(organs, list) else []


def check_case(name: str, image: Volume, mask: LabelMap | None, ranges: Sequence[OrganRange]) -> CaseCheck:
    """Checks one case.

    Args:
        name: Of the case.
        image: Only a blank image is found where it is not in HU.
        mask: On the image's grid, in whatever order of voxels; without one only a blank image is found.
        ranges: The quality table; empty where the bundle has none.
    """
    if image.units != "HU":
        return _check_without_units(name, image)
    image = Volume(*to_canonical(image.array, image.affine), image.units)
    values = image.array.clip(*_CLIPPED)
    if not np.isfinite(values).all():
        return CaseCheck(name, (_NO_VALUE,))
    if float(values.max()) - float(values.min()) < _BLANK_HU:
        return CaseCheck(name, (Finding("failed", f"the image is blank: all voxels are about {values.mean():.0f} HU"),))
    if mask is None:
        return CaseCheck(name, (Finding("not checked", "there is no mask: only blankness was checked"),))
    if not mask.array.any():
        return CaseCheck(name, (Finding("failed", "the mask is empty"),))
    array, affine = to_canonical(mask.array, mask.affine)
    mask = mask.with_array(array, affine=affine)
    if not mask.grid.same_as(image.grid, 0.1 * min(image.spacing)):
        return CaseCheck(name, (Finding("failed", _elsewhere(image, mask)),))
    hu, lesions = check_hu(values, array, ranges), _lesions(values, mask)
    step = math.ceil((array.size / _MOST_VOXELS) ** (1 / 3))
    boundary = boundary_contrast(values, array, step)
    values, labels = (each[::step, ::step, ::step] for each in (values, array))
    explained = explained_variance(values, labels)
    better = max(explained_variance(values, flipped) for flipped in mirrored(labels))
    shown = structures_of(ranges, mask.table.BODY)
    shown = {key: structure for key, structure in shown.items() if np.isin(labels, structure.labels).any()}
    check = CaseCheck(
        name,
        (),
        hu,
        boundary,
        explained,
        lesions=lesions,
        **{key: threshold_dice(values, labels, structure) for key, structure in shown.items()},
    )
    tumors = {lesion for lesion in lesions if mask.table.find(lesion).is_tumor}
    return replace(check, findings=(*_unknown_labels(mask), *_findings(check, better, tumors)))


def _check_without_units(name: str, image: Volume) -> CaseCheck:
    if not np.isfinite(image.array).all():
        return CaseCheck(name, (_NO_VALUE,))
    if image.array.max() == image.array.min():
        return CaseCheck(name, (Finding("failed", "the image is blank: all voxels have one value"),))
    return CaseCheck(name, (Finding("not checked", "the image is not in HU: only blankness was checked"),))


def _unknown_labels(mask: LabelMap) -> Iterator[Finding]:
    unknown = [label for label in mask.labels if label not in mask.table]
    if unknown:
        listed = ", ".join(f"{label} ({counted(int(mask.counts[label]), 'voxel')})" for label in unknown)
        yield Finding("failed", f"the bundle does not know labels of the mask: {listed}")


def _findings(check: CaseCheck, better: float, tumors: set[str]) -> Iterator[Finding]:
    """What the figures say, the worst first.

    Args:
        check: The figures.
        better: Which part of the variance the mask explains when it is mirrored.
        tumors: Lesions that must be told from their host.
    """
    assert check.hu is not None
    is_mirrored = fits_better(better, check.explained_variance)
    if is_mirrored:
        yield Finding("failed", _percent("the mask is mirrored left to right", better, check.explained_variance))
    for organ in check.hu.failures:
        yield Finding("failed", _off(organ))
    if not is_mirrored and check.boundary_contrast < _LEAST_BOUNDARY:
        how = f"{check.boundary_contrast:.2f} times as steep as the rest"
        yield Finding("failed", f"the mask's borders are no edges of the image ({how})")
    for organ in check.hu.organs:
        if organ.passed and organ.is_unusual:
            yield Finding("unusual", _far(organ))
    for what, dice in (("bone", check.bone_dice), ("gas", check.gas_dice)):
        if dice < _LITTLE_OVERLAP:
            yield Finding("unusual", f"{what} of the mask and of the image overlap little (Dice {dice:.2f})")
    for lesion, (_, deviations) in check.lesions.items():
        if lesion in tumors and abs(deviations) < _LITTLE_CONTRAST:
            text = f"{lesion} can hardly be told from its host ({deviations:+.2f} deviations)"
            yield Finding("unusual", text)


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


def _far(organ: OrganCheck) -> str:
    assert organ.tissue_deviations is not None
    how = "dark" if organ.tissue_deviations < 0 else "bright"
    far = f"upper quartile {organ.tissue_hu:.0f} HU, {abs(organ.tissue_deviations):.1f} deviations from patients"
    return f"the tissue of {organ.organ} is unusually {how} ({far})"


def _percent(what: str, better: float, worse: float) -> str:
    return f"{what}: the other way it explains {better:.0%} of the image's variance, as it is {worse:.0%}"


def _elsewhere(image: Volume, mask: LabelMap) -> str:
    shapes = [" × ".join(map(str, grid.shape)) for grid in (image.grid, mask.grid)]
    if shapes[0] != shapes[1]:
        return f"image ({shapes[0]} voxels) and mask ({shapes[1]}) differ in size"
    return "image and mask lie in different places"


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
