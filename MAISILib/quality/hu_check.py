"""Does every organ have the brightness that it has in patients? Median HU inside the mask against known ranges.

The ranges come from a table of medians over real CTs, per group of organs. A median passes inside
[min(mean − 6 standard deviations, 0.5th percentile), max(mean + 6 standard deviations, 99.5th percentile)]; for bone
the upper bound is 1000 HU (MAISI's published quality check).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MAISILib.errors import FileFormatError

#: Fewer voxels than this say little about a median.
_MINIMUM_VOXELS = 10
_BONE_UPPER_BOUND = 1000.0
COLUMNS: tuple[str, ...] = ("organ", "labels", "percentile_0_5", "percentile_99_5", "sigma_6_low", "sigma_6_high")


@dataclass(frozen=True)
class OrganRange:
    """Where the median of one group of labels should lie, in HU."""

    organ: str
    labels: tuple[int, ...]
    low: float
    high: float


@dataclass(frozen=True)
class OrganCheck:
    """What was found for one group: its voxels, its median in HU, the range, and the verdict."""

    organ: str
    labels: tuple[int, ...]
    voxels: int
    median_hu: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Whether the median lies in the range."""
        return self.low <= self.median_hu <= self.high


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
    """Reads a statistics table (csv with the columns of ``COLUMNS``; ``labels`` are separated by spaces).

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
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # a short row holds None
            raise FileFormatError(f"{path}, line {number}: not a row of quality statistics ({error}).") from error
        high = max(numbers["sigma_6_high"], numbers["percentile_99_5"])
        ranges.append(
            OrganRange(
                organ=organ,
                labels=labels,
                low=min(numbers["sigma_6_low"], numbers["percentile_0_5"]),
                high=_BONE_UPPER_BOUND if organ == "bone" else high,
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
            checks.append(
                OrganCheck(expected.organ, expected.labels, int(inside.size), median, expected.low, expected.high)
            )
    return QualityReport(tuple(checks))


def _common_box(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    """What holds all boxes: voxels elsewhere need not be looked at. Nothing where there are none."""
    if not boxes:
        return (slice(0),)
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def median_statistics(medians: dict[str, list[float]], labels: dict[str, Sequence[int]]) -> list[dict[str, Any]]:
    """Rows of a statistics table from the medians (HU) measured in patients, for every organ with at least 3."""
    rows = []
    for organ, values in medians.items():
        if len(values) < 3:
            continue
        array = np.asarray(values)
        mean, deviation = array.mean(), array.std(ddof=1)
        numbers = (*np.percentile(array, (0.5, 99.5)), mean - 6 * deviation, mean + 6 * deviation)
        row = {"organ": organ, "labels": " ".join(map(str, labels[organ]))}
        rows.append(row | {name: f"{v:.3f}" for name, v in zip(COLUMNS[2:], numbers, strict=True)})
    return rows
