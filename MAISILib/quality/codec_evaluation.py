"""What an autoencoder loses: real images through it and back, compared with what went in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from MAISILib.errors import FileFormatError, MaskError, RequestError
from MAISILib.files.images import read_image, read_mask
from MAISILib.quality.counting import counted
from MAISILib.quality.fidelity import Fidelity, compare
from MAISILib.quality.image_sets import ImageFile, about, named
from MAISILib.quality.slice_features import body_of
from MAISILib.quality.slice_geometry import fill_up, regrid, resample_to
from MAISILib.resampling import resample_labels, to_canonical
from MAISILib.volumes import LabelMap, Volume

if TYPE_CHECKING:
    from MAISILib.anatomy.labels import LabelTable

#: Image and reference from 0 to 1 → distance.
Perceptual = Callable[[np.ndarray, np.ndarray], float]
_FIGURES = {
    "psnr_db": "PSNR dB",
    "psnr_body_db": "PSNR body dB",
    "ssim": "SSIM",
    "ssim_body": "SSIM body",
    "mae_hu": "MAE HU",
    "mae_body_hu": "MAE body HU",
    "lpips": "LPIPS",
}


@dataclass(frozen=True)
class CodecCase:
    """One image: its fidelity, and LPIPS where weights were given (else ``None``)."""

    name: str
    fidelity: Fidelity
    lpips: float | None = None

    def figures(self) -> dict[str, float | None]:
        """All figures but those of labels; ``None`` for what is not finite or was not measured."""
        plain = {**self.fidelity.to_dict(), "lpips": self.lpips}
        return {name: plain[name] for name in _FIGURES}


@dataclass(frozen=True)
class CodecReport:
    """All images.

    Attributes:
        cases: One for each.
        labels: Label → name, of the masks.
        left_out: Why images were left out.
    """

    cases: tuple[CodecCase, ...]
    labels: dict[int, str]
    left_out: tuple[str, ...] = ()

    def summary(self) -> dict[str, dict[str, float] | None]:
        """Figure → mean and standard deviation over the images that have it."""
        return {name: _spread([case.figures()[name] for case in self.cases]) for name in _FIGURES}

    def labels_mae(self) -> dict[str, dict[str, float] | None]:
        """Name of each label → mean absolute error in HU, mean and standard deviation over the images."""
        values = {
            label: [case.fidelity.mae_label_hu.get(label) for case in self.cases]
            for label in sorted({label for case in self.cases for label in case.fidelity.mae_label_hu})
        }
        return {self.labels.get(label, f"label {label}"): _spread(found) for label, found in values.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        cases = [{"name": case.name, **case.fidelity.to_dict(), "lpips": case.lpips} for case in self.cases]
        labels = self.labels_mae()
        return {"summary": self.summary(), "mae_label_hu": labels, "cases": cases, "left_out": list(self.left_out)}

    def table(self) -> str:
        """A Markdown table: figures, and errors of labels."""
        rows = [(_FIGURES[name], spread) for name, spread in self.summary().items()]
        rows += [(f"MAE HU, label {name}", spread) for name, spread in self.labels_mae().items()]
        lines = [f"| {counted(len(self.cases), 'image')} | mean | ± |", "|---|---|---|"]
        return "\n".join([*lines, *(f"| {n} | {s['mean']:.4g} | {s['deviation']:.2g} |" for n, s in rows if s)])


def evaluate_codec(
    cases: Sequence[ImageFile],
    reconstruct: Callable[[np.ndarray], np.ndarray],
    table: LabelTable,
    *,
    compression: int,
    bounds: tuple[float, float] = (-1000.0, 1000.0),
    spacing: tuple[float, float, float] | None = None,
    perceptual: Perceptual | None = None,
    skip_bad: bool = False,
    on_case: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> CodecReport:
    """Sends every image through an autoencoder and back.

    Args:
        cases: Real CTs; where a mask lies beside one, the body is what it labels, else what is brighter than −300 HU
            and what that encloses.
        reconstruct: Image ``(X, Y, Z)`` in HU, axes divisible by ``compression`` → the same through the autoencoder.
        table: What labels mean.
        compression: Images are filled up with air to a multiple of it; what was added is not measured.
        bounds: HU that the autoencoder knows; values beyond are clipped on both sides.
        spacing: Voxel size in mm to resample to first; ``None`` keeps each image's own.
        perceptual: Also measure this distance.
        skip_bad: Leave out what cannot be used.
        on_case: Called after each image; may raise to stop.

    Raises:
        FileFormatError: Images or masks that cannot be used; all of them are named.
    """
    found: list[CodecCase] = []
    problems: list[str] = []
    for number, case in enumerate(cases, 1):
        try:
            image, labels = _read(case, table, spacing)
            rebuilt = reconstruct(fill_up(image, compression))[tuple(map(slice, image.shape))]
            fidelity = compare(rebuilt, image, labels, *bounds)
            found.append(CodecCase(case.name, fidelity, _lpips(perceptual, rebuilt, image, bounds)))
        except (FileFormatError, MaskError, RequestError) as error:
            problems.append(about(case, error))
        on_case(number, len(cases), case.name)
    if problems and not (skip_bad and found):
        raise FileFormatError(named(problems, len(cases)))
    return CodecReport(tuple(found), {label.value: label.name for label in table}, tuple(problems))


def _read(
    case: ImageFile, table: LabelTable, spacing: tuple[float, float, float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Image ``(X, Y, Z)`` along R, A and S, and labels on the same grid; without a mask, the body is 200."""
    read = read_image(case.path)
    image = Volume(*to_canonical(read.array.astype(np.float32), read.affine))
    if spacing is not None:
        image = resample_to(image, regrid(image.grid, spacing))
    if case.mask is None:
        return image.array, np.where(body_of(image.array), table.BODY, 0)
    mask: LabelMap = resample_labels(read_mask(case.mask, table), image.grid)
    return image.array, mask.array


def _lpips(
    perceptual: Perceptual | None, image: np.ndarray, reference: np.ndarray, bounds: tuple[float, float]
) -> float | None:
    if perceptual is None:
        return None
    low, high = bounds
    return perceptual(*((array.clip(low, high) - low) / (high - low) for array in (image, reference)))


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return {"mean": float(np.mean(known)), "deviation": float(np.std(known))} if known else None
