"""Does every organ have the brightness that it has in patients? Median HU inside the mask against known ranges.

The ranges come from a table of medians over real CTs, per group of organs. A median passes inside
[min(mean − 6 standard deviations, 0.5th percentile), max(mean + 6 standard deviations, 99.5th percentile)]; for bone
the upper bound is 1000 HU (MAISI's published quality check).

Where an organ holds gas in some patients, that range is so wide that it finds little. Of an organ whose range reaches
below −300 HU a table therefore also says what its tissue has, which depends less on gas: the upper quartile of its
voxels above −300 HU, as median and robust deviation (1.4826 × the median absolute deviation) over patients. Tissue
farther away than five deviations is unusual; that does not make an organ fail. Other organs are told by their median.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MAISILib.errors import FileFormatError
from MAISILib.quality.agreement import TISSUE_HU

#: Fewer voxels than this say little about a median.
_MINIMUM_VOXELS = 10
_BONE_UPPER_BOUND = 1000.0
#: Something is unusual beyond so many robust deviations, each of which counts as so many HU at least.
UNUSUAL, LEAST_DEVIATION_HU = 5.0, 5.0
COLUMNS: tuple[str, ...] = ("organ", "labels", "percentile_0_5", "percentile_99_5", "sigma_6_low", "sigma_6_high")
#: Columns that a table may lack, and cells that may be empty.
TISSUE_COLUMNS: tuple[str, ...] = ("tissue", "tissue_deviation")


@dataclass(frozen=True)
class OrganRange:
    """Where the median of one group of labels should lie, in HU, and what its tissue has where that is known."""

    organ: str
    labels: tuple[int, ...]
    low: float
    high: float
    tissue: float | None = None
    tissue_deviation: float | None = None


@dataclass(frozen=True)
class OrganCheck:
    """What was found for one group: its voxels, its median in HU, the range, and the verdict.

    ``tissue_hu`` is the upper quartile of its tissue, ``tissue_deviations`` how many deviations that is from the
    patients'; ``None`` where the table says nothing of it, or there is no tissue.
    """

    organ: str
    labels: tuple[int, ...]
    voxels: int
    median_hu: float
    low: float
    high: float
    tissue_hu: float | None = None
    tissue_deviations: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the median lies in the range."""
        return self.low <= self.median_hu <= self.high

    @property
    def is_unusual(self) -> bool:
        """Whether the tissue is far from that of patients."""
        return self.tissue_deviations is not None and abs(self.tissue_deviations) > UNUSUAL


@dataclass(frozen=True)
class QualityReport:
    """All checked organs of one sample."""

    organs: tuple[OrganCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether no organ failed. True where there was nothing to check."""
        return all(organ.passed for organ in self.organs)

    @property
    def failures(self) -> list[OrganCheck]:
        """The organs outside their range."""
        return [organ for organ in self.organs if not organ.passed]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        organs = [{**asdict(o), "passed": o.passed} for o in self.organs]
        for organ in organs:  # JSON has no NaN
            organ["median_hu"] = organ["median_hu"] if math.isfinite(organ["median_hu"]) else None
        return {"passed": self.passed, "organs": organs}


def read_ranges(path: Path) -> list[OrganRange]:
    """Reads a statistics table (csv with the columns of ``COLUMNS``, with or without those of ``TISSUE_COLUMNS``).

    ``labels`` are separated by spaces.

    Raises:
        FileFormatError: A column is missing or a cell is not a number.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    ranges = []
    for number, row in enumerate(rows, start=2):
        try:
            numbers = {name: float(row[name]) for name in COLUMNS[2:]}
            organ, labels = row["organ"], tuple(int(v) for v in row["labels"].split())
            tissue, deviation = (float(row[name]) if row.get(name) else None for name in TISSUE_COLUMNS)
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # a short row holds None
            raise FileFormatError(f"{path}, line {number}: not a row of quality statistics ({error}).") from error
        high = max(numbers["sigma_6_high"], numbers["percentile_99_5"])
        ranges.append(
            OrganRange(
                organ=organ,
                labels=labels,
                low=min(numbers["sigma_6_low"], numbers["percentile_0_5"]),
                high=_BONE_UPPER_BOUND if organ == "bone" else high,
                tissue=tissue,
                tissue_deviation=deviation,
            )
        )
    return ranges


def check_hu(image: np.ndarray, labels: np.ndarray, ranges: Sequence[OrganRange]) -> QualityReport:
    """Checks the median HU of each organ group that the mask holds.

    Args:
        image: ``(X, Y, Z)`` in HU. NaN counts as outside every range.
        labels: ``(X, Y, Z)`` integers from 0 to 255 on the same grid.
        ranges: What is expected.
    """
    from scipy import ndimage

    boxes, checks = ndimage.find_objects(labels, 255), []
    for expected in ranges:
        box = _common_box([boxes[label - 1] for label in expected.labels if boxes[label - 1]])
        inside = image[box][np.isin(labels[box], expected.labels)]
        if inside.size >= _MINIMUM_VOXELS:
            median = float(np.median(inside))
            tissue, deviations = _tissue(inside, expected)
            checks.append(
                OrganCheck(
                    organ=expected.organ,
                    labels=expected.labels,
                    voxels=int(inside.size),
                    median_hu=median,
                    low=expected.low,
                    high=expected.high,
                    tissue_hu=tissue,
                    tissue_deviations=deviations,
                )
            )
    return QualityReport(tuple(checks))


def tissue_quartile(inside: np.ndarray) -> float | None:
    """The upper quartile of the voxels of an organ that are no gas, in HU; ``None`` for less than ten of them.

    At coarse resolution many voxels of a hollow organ are half gas; the upper quartile is what is left of its wall.
    """
    tissue = inside[inside > TISSUE_HU]
    return float(np.percentile(tissue, 75)) if tissue.size >= _MINIMUM_VOXELS else None


def _tissue(inside: np.ndarray, expected: OrganRange) -> tuple[float | None, float | None]:
    if expected.tissue is None or expected.tissue_deviation is None:
        return None, None
    found = tissue_quartile(inside)
    return found, None if found is None else (found - expected.tissue) / expected.tissue_deviation


def robust_statistics(values: Sequence[float]) -> tuple[float, float]:
    """Median and robust deviation (1.4826 × the median absolute deviation) in HU; that is 5 HU at least."""
    middle = float(np.median(values))
    return middle, max(1.4826 * float(np.median(np.abs(np.asarray(values) - middle))), LEAST_DEVIATION_HU)


def _common_box(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    """What holds all boxes: voxels elsewhere need not be looked at. Nothing where there are none."""
    if not boxes:
        return (slice(0),)
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def median_statistics(
    medians: Mapping[str, list[float]], labels: Mapping[str, Sequence[int]], tissue: Mapping[str, list[float]]
) -> list[dict[str, Any]]:
    """Rows of a statistics table, for every organ with medians of at least 3 patients.

    Args:
        medians: Organ → its median HU in each patient that has it.
        labels: Organ → its labels.
        tissue: Organ → its :func:`tissue_quartile` in patients; goes into the table where the range of the median
            reaches into gas, and 3 patients have tissue.
    """
    rows = []
    for organ, values in medians.items():
        if len(values) < 3:
            continue
        array = np.asarray(values)
        mean, deviation = array.mean(), array.std(ddof=1)
        numbers = (*np.percentile(array, (0.5, 99.5)), mean - 6 * deviation, mean + 6 * deviation)
        row = {"organ": organ, "labels": " ".join(map(str, labels[organ]))}
        row |= {name: f"{v:.3f}" for name, v in zip(COLUMNS[2:], numbers, strict=True)}
        reaches_gas = min(numbers[0], numbers[2]) < TISSUE_HU and len(tissue[organ]) >= 3
        known = robust_statistics(tissue[organ]) if reaches_gas else ()
        cells = [f"{v:.3f}" for v in known] or [""] * len(TISSUE_COLUMNS)
        rows.append(row | dict(zip(TISSUE_COLUMNS, cells, strict=True)))
    return rows
