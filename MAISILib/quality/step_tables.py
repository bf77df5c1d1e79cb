"""FID and time of one model against its steps and solvers, and of two models: runs that take hours, and go on.

Images are kept as files, one folder for each way of sampling; a run that was stopped makes only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MAISILib.errors import FileFormatError, RequestError
from MAISILib.files.atomic import write_text
from MAISILib.files.images import read_image
from MAISILib.files.nifti import write_volume
from MAISILib.quality.counting import counted
from MAISILib.quality.fid_evaluation import Features, FidReport, OnDone, check_apart, check_several, evaluate_fid
from MAISILib.quality.image_sets import ImageFile, about, check_spacings, named
from MAISILib.volumes import LabelMap, Volume

#: Steps of the published comparison.
STEPS = (5, 10, 20, 30, 50, 100)
#: Smaller ones are drawn as this: 0 has no logarithm.
_LEAST_FID = 1e-9
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 660, 360, 96, 310
_COLORS = ("#1b4f7d", "#c0392b", "#2f8f5b", "#b7791f", "#7d3c98")


@dataclass(frozen=True)
class Sampling:
    """One way to make images.

    Args:
        model: Which weights: name, and the beginning of their checksum.
        kind: ``rflow`` or ``ddpm``.
        solver: Name of the solver.
        steps: Number of its steps.
    """

    model: str
    kind: str
    solver: str
    steps: int

    @property
    def folder(self) -> str:
        """Where its images are kept."""
        return f"{self.model}/{self.solver}-{self.steps}"


#: A case, a way of sampling, and the number of the case (from 0) → its image and the seconds that it took.
Make = Callable[[ImageFile, Sampling, int], tuple[Volume, float]]


@dataclass(frozen=True)
class Row:
    """What was measured on one way of sampling.

    Attributes:
        sampling: The way.
        report: 2.5D FID against the real images.
        seconds: Of the fastest image: what else a computer does only adds.
    """

    sampling: Sampling
    report: FidReport
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        s = self.sampling
        told = {"model": s.model, "kind": s.kind, "solver": s.solver, "steps": s.steps, "seconds": self.seconds}
        return {**told, **self.report.to_dict()}


def measure(
    ways: Sequence[Sampling],
    cases: Sequence[ImageFile],
    make: Make,
    real: Path,
    make_features: Callable[[], Features],
    work: Path,
    *,
    read_mask: Callable[[Path], LabelMap],
    seed: int,
    resampled: bool = False,
    replicates: int | None = None,
    on_done: OnDone = lambda stage, done, total, what: None,
) -> list[Row]:
    """Makes the image of each case's mask in each way, and measures the FID of each set.

    The ways take turns at each case, so that what slows the machine for a while slows all of them.

    Args:
        ways: How to sample.
        cases: Real images with their masks.
        make: Makes one image.
        real: The folder (or list) that holds the cases; names of stored features start from it.
        make_features: See :func:`evaluate_fid`.
        work: Images and features are kept here; what is there already and was made of the same is not made again.
        read_mask: Reads a mask; raises a :class:`MaisiError` where it cannot be used.
        seed: Of the noise; with the number of a case it decides the case's noise.
        resampled: See :func:`evaluate_fid`.
        replicates: See :func:`evaluate_fid`.
        on_done: Called after each image; may raise to stop.

    Raises:
        FileFormatError: Images without a mask, or that cannot be used (all of them are named).
        MaisiError: What ``read_mask`` raises.
        RequestError: There are less than two cases, voxel sizes differ, or ``work`` lies among them.
    """
    check_apart(work, "real", real, cases, "--work")
    without = [str(case.path) for case in cases if case.mask is None]
    if without:
        listed = ", ".join([*without[:3], *(["…"] if len(without) > 3 else [])])
        raise FileFormatError(f"{counted(len(without), 'image')} without a mask to make an image of: {listed}.")
    check_several(len(cases), "real")
    # All of them are sound before the first image is made.
    masks = [_mask_sha256(read_mask(case.mask)) for case in cases if case.mask is not None]
    _check_images(cases, make_features(), resampled, on_done)
    for number, (case, mask) in enumerate(zip(cases, masks, strict=True)):
        for way in ways:
            made_of = origin(way, seed, number, mask)
            _make_once(image_file(work, way, case), made_of, lambda c=case, w=way, n=number: make(c, w, n))
            on_done("images", number + 1, len(cases), f"{case.name}, {way.solver} {way.steps}")
    real_root = (real if real.is_dir() else real.parent).absolute()
    real_list = _listed(work / "lists" / "real.txt", [case.path.absolute() for case in cases])
    rows = []
    for way in ways:
        made = [image_file(work, way, case) for case in cases]
        report = evaluate_fid(
            real_list,
            _listed(work / "lists" / f"{way.folder}.txt", made),
            make_features,
            roots=(real_root, work.absolute() / "images" / way.folder),
            resampled=resampled,
            folder=work / "features" / way.folder,
            real_folder=work / "features" / "real",
            replicates=replicates,
            on_done=on_done,
        )
        assert report is not None
        rows.append(Row(way, report, min(_told(file.with_name("seconds.json"))["seconds"] for file in made)))
    return rows


def image_file(work: Path, way: Sampling, case: ImageFile) -> Path:
    """Where the image of a case's mask is kept."""
    return work.absolute() / "images" / way.folder / case.name / "image.nii.gz"


def origin(way: Sampling, seed: int, number: int, mask_sha256: str) -> dict[str, Any]:
    """What an image is made of, as it is kept beside it: another one is not taken for it."""
    told = {"model": way.model, "solver": way.solver, "steps": way.steps}
    return {**told, "seed": seed, "number": number, "mask_sha256": mask_sha256}


def _mask_sha256(mask: LabelMap) -> str:
    """Of the voxels (little-endian int32, C order), their shape (int64) and the affine (float64, rounded to 1e-4)."""
    found = hashlib.sha256(np.ascontiguousarray(mask.array, "<i4").tobytes())
    found.update(np.array(mask.array.shape, "<i8").tobytes())
    found.update((np.asarray(mask.affine, "<f8").round(4) + 0.0).tobytes())  # no negative zeros
    return found.hexdigest()


def _check_images(cases: Sequence[ImageFile], features: Features, resampled: bool, on_done: OnDone) -> None:
    problems: list[str] = []
    if not resampled:
        _, problems = check_spacings([cases], "Give --spacing to resample all of them.")
    for number, case in enumerate(cases, 1):
        try:
            features(read_image(case.path))
        except (FileFormatError, RequestError) as error:
            problems.append(about(case, error))
        on_done("looking through", number, len(cases), case.name)
    if problems:
        raise FileFormatError(named(list(dict.fromkeys(problems)), len(cases)))


def _make_once(file: Path, made_of: dict[str, Any], make: Callable[[], tuple[Volume, float]]) -> None:
    told = file.with_name("seconds.json")
    if told.is_file():
        known = _told(told)
        if known and {**known, **made_of} == known and _is_image(file):
            return
        told.unlink()  # first: else a run stopped between the two files leaves an image with another one's origin
    image, seconds = make()
    write_volume(image, file, f"{made_of['solver']} {made_of['steps']}")
    # Last: an image without it is made again.
    write_text(told, json.dumps({"seconds": seconds, **made_of}, indent=2) + "\n")


def _is_image(file: Path) -> bool:
    try:
        read_image(file)
    except FileFormatError:
        return False
    return True


def _listed(file: Path, paths: Sequence[Path]) -> Path:
    """A text file with one path in each line: exactly these are measured, whatever else lies beside them."""
    write_text(file, "".join(f"{path}\n" for path in paths))
    return file


def _told(file: Path) -> dict[str, Any]:
    """What is known about an image; nothing where the file is damaged, and then the image is made again."""
    try:
        known = dict(json.loads(file.read_text(encoding="utf-8")))
        known["seconds"] = float(known["seconds"])
        return known if 0 <= known["seconds"] < math.inf else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def table_of(rows: Sequence[Row]) -> str:
    """A Markdown table: FID for each plane, its interval, and time as a multiple of the first row's."""
    base = max(rows[0].seconds, 1e-9)
    lines = [
        "| model | solver | steps | FID xy | yz | zx | mean | 95 % interval | KID mean | time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        way, fid, spread = row.sampling, row.report.fid, row.report.confidence.get("mean")
        interval = f"{spread.low:.3g} to {spread.high:.3g}" if spread else "–"
        figures = " | ".join(f"{fid[key]:.4g}" for key in ("xy", "yz", "zx", "mean"))
        lines.append(
            f"| {way.model} ({way.kind}) | {way.solver} | {way.steps} | {figures} | {interval} "
            f"| {row.report.kid['mean']:.3g} | {row.seconds / base:.2f} × |"
        )
    return "\n".join(lines)


def chart_of(rows: Sequence[Row]) -> str:
    """FID (mean of three planes) against the steps, a line for each solver, both on logarithmic scales, as SVG."""
    solvers = list(dict.fromkeys(row.sampling.solver for row in rows))
    steps = sorted({row.sampling.steps for row in rows})
    values = [max(row.report.fid["mean"], _LEAST_FID) for row in rows]
    low, high = min(values) / 1.2, max(values) * 1.2
    first, last = math.log(steps[0]), math.log(steps[-1])

    def height(value: float) -> float:
        return _BOTTOM - math.log(max(value, _LEAST_FID) / low) / math.log(high / low) * (_BOTTOM - 20)

    def place(row: Row) -> tuple[float, float]:
        along = (math.log(row.sampling.steps) - first) / ((last - first) or 1)
        return _LEFT + along * (_WIDTH - _LEFT - 120), height(row.report.fid["mean"])

    shapes = [f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>']
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    ticks = [tick for tick in (n * 10.0**k for k in decades for n in (1, 2, 5)) if low <= tick <= high]
    for tick in ticks if len(ticks) > 1 else sorted({*values}):
        y = height(tick)
        shapes.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 110}" y1="{y:.0f}" y2="{y:.0f}" stroke="#e3e6e9"/>')
        shapes.append(f'<text x="{_LEFT - 8}" y="{y + 4:.0f}" text-anchor="end">{tick:.3g}</text>')
    labelled = set()
    for number, solver in enumerate(solvers):
        color = _COLORS[number % len(_COLORS)]
        line = sorted((row for row in rows if row.sampling.solver == solver), key=lambda row: row.sampling.steps)
        points = [place(row) for row in line]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        shapes.append(f'<polyline points="{drawn}" fill="none" stroke="{color}" stroke-width="2"/>')
        shapes += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in points]
        shapes.append(f'<text x="{_WIDTH - 100}" y="{40 + 20 * number}" fill="{color}">{solver}</text>')
        for row, (x, _) in zip(line, points, strict=True):
            if row.sampling.steps not in labelled:
                labelled.add(row.sampling.steps)
                shapes.append(f'<text x="{x:.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{row.sampling.steps}</text>')
    shapes.append(f'<text x="{(_LEFT + _WIDTH - 110) / 2:.0f}" y="{_HEIGHT - 10}" text-anchor="middle">steps</text>')
    shapes.append(f'<text x="16" y="{_BOTTOM / 2:.0f}" transform="rotate(-90 16 {_BOTTOM / 2:.0f})">2.5D FID</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
    return f'{head}font-size="13" fill="#1d2329">{"".join(shapes)}</svg>\n'
