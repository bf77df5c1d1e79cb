"""Images for the training of an autoencoder: read once, checked, kept in memory, varied for every use."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from MAISILib.errors import FileFormatError
from MAISILib.training.datalist import DataItem, check_same_place
from MAISILib.training.modalities import is_ct, modality_code
from MAISILib.volumes import Grid, Volume

if TYPE_CHECKING:
    import torch

    from MAISILib.anatomy.labels import LabelTable

#: The cache leaves this part of the computer's memory free.
_LEFT_FREE = 0.25
#: Air around a CT; what lies outside an MR image is its darkest value.
AIR_HU = -1000.0

Size = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
Spacing = tuple[
    Annotated[float, Field(gt=0, allow_inf_nan=False)],
    Annotated[float, Field(gt=0, allow_inf_nan=False)],
    Annotated[float, Field(gt=0, allow_inf_nan=False)],
]
Part = Annotated[float, Field(ge=0, le=1)]


class Crop(BaseModel):
    """Where training patches are cut.

    Attributes:
        around: ``anything`` is a box anywhere in the image; ``body`` a box that holds a voxel drawn at random from
            those with a label.
        probability: Of a box around the body; else it lies anywhere.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    around: Literal["anything", "body"] = "anything"
    probability: Part = 1.0


class ImageSettings(BaseModel):
    """How images are read, cropped and varied. Names and defaults are the published ones where they exist.

    Attributes:
        random_aug: Vary training images: rotation, zoom and shear, flips; MR also in contrast, bias field, ringing.
        spacing_type: ``original`` keeps voxels, ``fixed`` resamples to ``spacing``, ``rand_zoom`` zooms by 0.5 to 1.5.
        spacing: Voxel size in mm for ``fixed``.
        select_channel: Channel of images with several, from 0.
        modality: Of items whose datalist does not say.
        patch_size: Voxels of a training patch; smaller images are filled with air.
        val_patch_size: Held-out images are cut or filled to it, centred; ``None`` keeps them whole.
        val_sliding_window_patch_size: Held-out images larger than it are coded in windows.
        divisor: Whole held-out images are filled up to a multiple of it.
        crop: Where patches are cut.
        mirror: Probability of a mirrored patient, left and right labels exchanged.
        cache: Part of the images that may be kept in memory, as far as that allows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    random_aug: bool = True
    spacing_type: Literal["original", "fixed", "rand_zoom"] = "original"
    spacing: Spacing | None = None
    select_channel: Annotated[int, Field(ge=0)] = 0
    modality: str | int = "ct"
    patch_size: Size = (64, 64, 64)
    val_patch_size: Size | None = None
    val_sliding_window_patch_size: Size | None = None
    divisor: Annotated[int, Field(gt=0)] = 4
    crop: Crop = Crop()
    mirror: Part = 0.0
    cache: Part = 1.0

    @model_validator(mode="after")
    def _fixed_has_a_spacing(self) -> ImageSettings:
        if (self.spacing_type == "fixed") != (self.spacing is not None):
            raise ValueError("spacing_type 'fixed' and a spacing go together; give both or neither")
        return self


@dataclass(frozen=True)
class ImageSample:
    """One image for a network.

    Args:
        image: ``(1, X, Y, Z)`` float32. CT: [0, 1] is [−1000, 1000] HU. MR: 0 and 1 are the percentiles 0 and 99.5, and
            values go on above.
        label: ``(1, X, Y, Z)`` uint8.
        spacing: Voxel size in mm.
        modality_code: Class code.
    """

    image: torch.Tensor
    label: torch.Tensor | None
    spacing: tuple[float, float, float]
    modality_code: int


@dataclass(frozen=True)
class PreparedImage:
    """The part of loading that does not depend on chance.

    Args:
        image: ``(X, Y, Z)`` in RAS order: CT int16 in HU, MR in the file's type.
        label: The same shape, uint8.
        affine: ``(4, 4)``, voxel index to RAS+ mm.
        window: The values that become 0 and 1.
        is_ct: Whether values are clipped at 1.
    """

    image: np.ndarray
    label: np.ndarray | None
    affine: np.ndarray
    window: tuple[float, float]
    is_ct: bool

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return self.image.nbytes + (0 if self.label is None else self.label.nbytes)


class ImageDataset:
    """Images of a datalist, one :class:`ImageSample` at a time.

    Args:
        items: Which images.
        settings: How they are read and varied.
        table: What their labels mean, and which of them change places in a mirror.
        training: Random patches; else the whole image, or its middle, always the same.
        cache: Instead of ``settings.cache``: a part of the images (float), or their number (int).

    Raises:
        RequestError: An unknown modality.
    """

    def __init__(
        self,
        items: Sequence[DataItem],
        settings: ImageSettings,
        table: LabelTable,
        *,
        training: bool,
        cache: int | float | None = None,
    ) -> None:
        from MAISILib.training.transforms import Transforms

        self._items, self._settings, self._table = list(items), settings, table
        self._codes = [
            modality_code(settings.modality if item.modality is None else item.modality, where=item.name)
            for item in items
        ]
        self._transforms = Transforms(settings, table, training=training)
        part = settings.cache if cache is None else cache
        self._cached = part if isinstance(part, int) else round(part * len(self._items))
        self._cache: dict[int, PreparedImage] = {}

    def __len__(self) -> int:
        return len(self._items)

    def name(self, index: int) -> str:
        """What an image is called."""
        return self._items[index].name

    def load(self, index: int, rng: random.Random) -> ImageSample:
        """One image, or a patch of it; all chance comes from ``rng``.

        Raises:
            FileFormatError: The image cannot be read, has NaN voxels, or its label has another size or place.
            MaskError: The label holds something else than whole numbers from 0 to 255.
        """
        image, label, spacing = self._transforms(self.prepared(index), rng)
        return ImageSample(image, label, spacing, self._codes[index])

    def prepared(self, index: int) -> PreparedImage:
        """Image and label in RAS order on the wanted voxels, from memory where they are there.

        Raises:
            MaisiError: As :meth:`load`.
        """
        found = self._cache.get(index)
        if found is None:
            found = prepare(self._items[index], self._settings, self._codes[index], self._table)
            if len(self._cache) < self._cached and has_room(found.bytes):
                self._cache[index] = found
        return found


def prepare(item: DataItem, settings: ImageSettings, code: int, table: LabelTable) -> PreparedImage:
    """Reads an item: one channel, RAS order, resampled where the settings fix the voxel size.

    Raises:
        MaisiError: As :meth:`ImageDataset.load`.
    """
    from MAISILib.files.images import read_image, read_mask
    from MAISILib.resampling import nearest, resample_volume, to_canonical

    ct = is_ct(code)
    volume = read_image(item.image, "HU" if ct else "arbitrary", settings.select_channel)
    low, high = (AIR_HU, 1000.0) if ct else (float(v) for v in np.percentile(volume.array, (0.0, 99.5)))
    if not low < high:
        raise FileFormatError(f"{item.image} is {low:g} nearly everywhere, so it has no contrast. Leave it out.")
    labels = None
    if item.label is not None:
        mask = read_mask(item.label, table)
        check_same_place(volume.grid, mask.grid, item)
        labels, _ = to_canonical(mask.array, mask.affine)
    image, affine = to_canonical(volume.array, volume.affine)
    if settings.spacing is not None:
        source = Grid(image.shape, affine)  # type: ignore[arg-type]
        target = with_spacing(source, settings.spacing)
        image, affine = resample_volume(Volume(image, affine), target, fill=low).array, target.affine
        labels = None if labels is None else nearest(labels, source, target)
    if ct and image.dtype != np.int16:
        limits = np.iinfo(np.int16)
        image = np.rint(image).clip(limits.min, limits.max).astype(np.int16)
    return PreparedImage(image, labels, affine, (low, high), ct)


def with_spacing(grid: Grid, spacing: tuple[float, float, float]) -> Grid:
    """The grid of the same extent, centred, with voxels of the wanted size (mm), at least one along each axis."""
    size = [max(1, round(n * old / new)) for n, old, new in zip(grid.shape, grid.spacing, spacing, strict=True)]
    return centred(grid, (size[0], size[1], size[2]), spacing)


def centred(grid: Grid, size: tuple[int, int, int], spacing: tuple[float, float, float]) -> Grid:
    """A grid with the middle and the axes of another."""
    affine = grid.affine.copy()
    affine[:3, :3] *= np.asarray(spacing) / np.asarray(grid.spacing)
    affine[:3, 3] = grid.center - affine[:3, :3] @ ((np.asarray(size) - 1) / 2)
    return Grid(size, affine)


def has_room(more: int) -> bool:
    """Whether a cache may take so many bytes more."""
    import psutil

    memory = psutil.virtual_memory()
    return memory.available - more > _LEFT_FREE * memory.total
