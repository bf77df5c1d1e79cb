"""What a volume is compared by, whatever its place: spectra of its latent and of its image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from MAISILib.errors import FileFormatError, RequestError
from MAISILib.files.images import read_image
from MAISILib.memory import give_back
from MAISILib.quality.image_sets import ImageFile, about
from MAISILib.quality.slice_features import body_of
from MAISILib.resampling import resample_volume, to_canonical
from MAISILib.volumes import Grid, Volume

#: Called with (what, done, total, name); may raise to stop.
OnDone = Callable[[str, int, int, str], None]
#: Image → its latent ``(C, x, y, z)``.
Encode = Callable[[np.ndarray], np.ndarray]

#: Values outside these HU are clipped before images are compared.
_CLIPPED = (-1000.0, 1000.0)
SPACES = ("latent", "image")


class Signature:
    """A volume reduced to what it is compared by, whatever its place: spectra of its latent and of its image.

    Args:
        image: In HU, on any grid.
        grid: Voxels and spacing that all volumes are brought to, about the middle of the body.
        encode: Gives the latent of an image on this grid.

    Attributes:
        coarse: ``(X/2, Y/2, Z/2)`` float32, the image in half the resolution, clipped to ±1000 HU.
        spectra: Space → spectrum of the array without its mean, of length 1.

    Raises:
        RequestError: Nothing in the image is brighter than −300 HU, or it holds NaN or infinity.
    """

    def __init__(self, image: Volume, grid: Grid, encode: Encode) -> None:
        centred = _centred(image, grid)
        x, y, z = (n // 2 for n in grid.shape)
        self.coarse = centred[: 2 * x, : 2 * y, : 2 * z].reshape(x, 2, y, 2, z, 2).mean((1, 3, 5), dtype=np.float32)
        self.spectra = {"latent": _spectrum(encode(centred)), "image": _spectrum(self.coarse[None])}

    def distance(self, other: Signature, space: str) -> float:
        """1 − the largest correlation coefficient over all shifts: 0 for the same, about 1 for what has no relation."""
        product = (self.spectra[space].conj() * other.spectra[space]).sum(axis=0)
        last = self._lengths(space)
        correlations = np.fft.irfftn(product, last, axes=(0, 1, 2))
        return max(0.0, 1.0 - float(correlations.max()))

    def _lengths(self, space: str) -> tuple[int, int, int]:
        """Of the padded array: an even number along each axis."""
        _, x, y, half = self.spectra[space].shape
        return x, y, 2 * (half - 1)


def _centred(image: Volume, grid: Grid) -> np.ndarray:
    """The image on a grid of this size whose middle is the body's centre of gravity, clipped to ±1000 HU."""
    if not np.isfinite(image.array).all():
        raise RequestError("The image holds NaN or infinity.")
    image = Volume(*to_canonical(image.array, image.affine), image.units)
    body = body_of(image.array)
    if not body.any():
        raise RequestError("The image is blank: nothing is brighter than -300 HU.")
    counts = [body.sum(axis=tuple({0, 1, 2} - {axis}), dtype=np.int64) for axis in range(3)]
    index = [float(count @ np.arange(count.size)) / int(count.sum()) for count in counts]
    center = (image.affine @ np.append(index, 1.0))[:3]
    target = Grid.axis_aligned(grid.shape, grid.spacing, tuple(center))
    return resample_volume(image, target, fill=_CLIPPED[0]).array.astype(np.float32).clip(*_CLIPPED)


def _spectrum(channels: np.ndarray) -> np.ndarray:
    """Of ``(C, x, y, z)``, each channel less its mean, all of them together of length 1; padded, lest ends meet."""
    channels = channels - channels.mean(axis=(1, 2, 3), keepdims=True)
    channels = channels / max(float(np.sqrt((channels**2).sum())), 1e-12)
    lengths = [n + n // 4 + (n + n // 4) % 2 for n in channels.shape[1:]]
    # A transform of one length 1 array and of another: the inverse of their product is their correlation.
    return np.fft.rfftn(channels, lengths, axes=(1, 2, 3)).astype(np.complex64)


def read_signatures(
    images: Sequence[ImageFile], grid: Grid, encode: Encode, what: str, on_done: OnDone = lambda *news: None
) -> tuple[dict[str, Signature], list[str]]:
    """Name → signature of each image; and what is wrong with images that cannot be read or are blank."""
    found: dict[str, Signature] = {}
    problems: list[str] = []
    for number, image in enumerate(images, 1):
        try:
            found[image.name] = Signature(read_image(image.path), grid, encode)
        except (FileFormatError, RequestError) as error:
            problems.append(about(image, error))
        give_back("cpu")  # what an image took lies around its small signature
        on_done(what, number, len(images), image.name)
    return found, problems
