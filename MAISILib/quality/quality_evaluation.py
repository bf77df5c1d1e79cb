"""Checks all cases of a folder, against the bundle's table and against one another; the worst come first."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MAISILib.errors import FileFormatError, MaskError
from MAISILib.files.atomic import write_text
from MAISILib.files.images import read_image, read_mask
from MAISILib.quality.agreement import explained_variance
from MAISILib.quality.case_check import VERDICTS, CaseCheck, Finding, check_case, fits_better
from MAISILib.quality.counting import counted
from MAISILib.quality.hu_check import UNUSUAL, OrganRange, robust_statistics
from MAISILib.quality.image_sets import ImageFile
from MAISILib.resampling import to_canonical
from MAISILib.volumes import LabelMap, Volume

if TYPE_CHECKING:
    from MAISILib.anatomy.labels import LabelTable

#: Called with (cases done, cases in all, name); may raise to stop.
OnCase = Callable[[int, int, str], None]
#: Images and masks are thinned out to about so many voxels before masks are tried on other images.
_VOXELS_COMPARED = 200_000
#: Each image is tried with the masks of at most so many other cases.
_OTHER_MASKS = 50
#: Fewer cases say nothing about what is usual.
_LEAST_CASES = 8


@dataclass(frozen=True)
class SetCheck:
    """All cases, the worst first.

    Attributes:
        cases: Their checks.
        ranges: The quality table that they were held against.
    """

    cases: tuple[CaseCheck, ...]
    ranges: tuple[OrganRange, ...]

    def count(self, verdict: str) -> int:
        """How many cases have a verdict."""
        return sum(case.verdict == verdict for case in self.cases)

    @property
    def verdicts(self) -> list[str]:
        """The verdicts worth counting, the best first; unchecked cases are rare."""
        return [verdict for verdict in reversed(VERDICTS) if verdict != "not checked" or self.count(verdict)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        counts = {verdict.replace(" ", "_"): self.count(verdict) for verdict in VERDICTS}
        checks = [{"name": case.name, **case.to_dict()} for case in self.cases]
        return {"cases": len(self.cases), **counts, "checks": checks}

    def __str__(self) -> str:
        counts = ", ".join(f"{self.count(verdict)} {verdict}" for verdict in self.verdicts)
        bad = [f"{case.name}: {case.summary()}" for case in self.cases if case.findings]
        return "\n".join([f"{counted(len(self.cases), 'case')}: {counts}", *bad])

    def write_tables(self, folder: Path) -> list[Path]:
        """Writes ``quality.json`` and ``quality.csv`` (one line for each case, a column for each organ's median HU).

        Raises:
            OutputError: The folder cannot be written.
        """
        organs = [expected.organ for expected in self.ranges]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        measures = list(CaseCheck("").measures())
        writer.writerow(["case", "verdict", "findings", *measures, *(f"{organ} HU" for organ in organs)])
        for case in self.cases:
            figures = [*case.measures().values(), *(case.medians.get(organ) for organ in organs)]
            cells = ["" if value is None else f"{value:.4g}" for value in figures]
            writer.writerow([case.name, case.verdict, "; ".join(f.text for f in case.findings), *cells])
        paths = [folder / "quality.json", folder / "quality.csv"]
        write_text(paths[0], json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")
        write_text(paths[1], text.getvalue())
        return paths


@dataclass(frozen=True)
class _Thinned:
    """What is kept of a case to try other masks on it."""

    image: np.ndarray
    labels: np.ndarray


def read_case(case: ImageFile, table: LabelTable, units: str = "HU") -> tuple[Volume, LabelMap | None]:
    """The image and the mask of a case.

    Raises:
        FileFormatError: The image, or the mask, cannot be read, or has voxels without a value.
        MaskError: The mask holds what are no labels.
    """
    image = read_image(case.path, units)
    return image, None if case.mask is None else read_mask(case.mask, table)


def read_or_nothing(case: ImageFile, table: LabelTable) -> tuple[Volume, LabelMap | None] | None:
    """As :func:`read_case`; ``None`` for what cannot be read."""
    try:
        return read_case(case, table)
    except (FileFormatError, MaskError):
        return None


def evaluate_quality(
    cases: Sequence[ImageFile],
    table: LabelTable,
    ranges: Sequence[OrganRange],
    on_case: OnCase = lambda done, total, name: None,
) -> SetCheck:
    """Checks every case alone, then the cases against one another.

    Args:
        cases: Images with their masks.
        table: What labels mean.
        ranges: Expected medians; empty where there are none.
        on_case: Called after each case.
    """
    checks: list[CaseCheck] = []
    thinned: dict[str, _Thinned] = {}
    for number, case in enumerate(cases, 1):
        try:
            image, mask = read_case(case, table)
            check = check_case(case.name, image, mask, ranges)
            if mask is not None and check.hu is not None:
                pair = (to_canonical(each.array, each.affine)[0] for each in (image, mask))
                thinned[case.name] = _thinned(*pair)
        except (FileFormatError, MaskError) as error:
            check = CaseCheck(case.name, (Finding("failed", str(error)),))
        checks.append(check)
        on_case(number, len(cases), case.name)
    checks = [_against_other_masks(check, thinned) for check in checks]
    checks = _against_the_set(checks)
    worst = sorted(checks, key=lambda check: (VERDICTS.index(check.verdict), -len(check.findings)))
    return SetCheck(tuple(worst), tuple(ranges))


def _thinned(image: np.ndarray, labels: np.ndarray) -> _Thinned:
    step = max(1, round((image.size / _VOXELS_COMPARED) ** (1 / 3)))
    part = (slice(None, None, step),) * 3
    return _Thinned(image[part].astype(np.float32).clip(-1000, 1000), labels[part].copy())


def _against_other_masks(check: CaseCheck, thinned: dict[str, _Thinned]) -> CaseCheck:
    """Adds that another case's mask fits the image better."""
    own = thinned.get(check.name)
    if own is None or any("mirrored" in finding.text for finding in check.findings):
        return check
    others = [name for name, other in thinned.items() if name != check.name and other.labels.shape == own.labels.shape]
    fits = {
        name: explained_variance(own.image, thinned[name].labels) for name in others[:: len(others) // _OTHER_MASKS + 1]
    }
    fits = {name: value for name, value in fits.items() if value == value}
    if not fits:
        return check
    best, mine = max(fits, key=fits.__getitem__), explained_variance(own.image, own.labels)
    if not fits_better(fits[best], mine):
        return check
    shares = f"explains {fits[best]:.0%} of the image's variance, its own {mine:.0%}"
    text = f"the mask is not this image's: even that of {best} {shares}"
    return replace(check, findings=(Finding("failed", text), *check.findings))


def _against_the_set(checks: Sequence[CaseCheck]) -> list[CaseCheck]:
    """Adds organs that lie far from where they lie in the other cases."""
    organs: dict[str, list[float]] = {}
    for check in checks:
        for organ, value in check.medians.items():
            organs.setdefault(organ, []).append(value)
    found = []
    for check in checks:
        added = []
        for organ, value in check.medians.items():
            values = organs[organ]
            if len(values) < _LEAST_CASES:
                continue
            middle, deviation = robust_statistics(values)
            distance = (value - middle) / deviation
            if abs(distance) > UNUSUAL:
                far = f"{abs(distance):.1f} deviations from the set's {middle:.0f}"
                added.append(Finding("unusual", f"{organ} has {value:.0f} HU, {far}"))
        found.append(replace(check, findings=(*check.findings, *added)))
    return found
