"""Label maps for the training of a mask generator: read, brought onto its grid, varied; and their latents."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from MAISILib.anatomy.labels import LabelTable, default_table
from MAISILib.anatomy.organ_sizes import OrganSize, SizeTable, measure_sizes
from MAISILib.bundles.bundle import open_bundle
from MAISILib.errors import TrainingError
from MAISILib.training.datalist import DataItem, OnSkip
from MAISILib.training.denoising import mask_bits
from MAISILib.training.images import has_room
from MAISILib.training.mask_recipes import MaskSettings
from MAISILib.training.mirroring import mirrored_labels
from MAISILib.volumes import Grid, LabelMap

#: Spacings that differ by less (relative) are the same.
_SAME_SPACING = 1e-3


def _on_stderr(reason: str) -> None:
    print(reason, file=sys.stderr)


class MaskDataset:
    """Label maps of a datalist on one grid.

    Args:
        items: Whose ``label`` is read; where there is none, ``image`` is the label map.
        settings: Grid, classes, variations.
        table: What the labels mean; by default as ``settings.labels_of`` says.
        on_skip: Called with the reason where label maps are left out for their grid.

    Raises:
        FileFormatError: A header cannot be read.
    """

    def __init__(
        self,
        items: Sequence[DataItem],
        settings: MaskSettings,
        table: LabelTable | None = None,
        on_skip: OnSkip = _on_stderr,
    ) -> None:
        self._settings = settings
        self.table = table or (open_bundle(settings.labels_of).labels if settings.labels_of else default_table())
        self._items = list(items)
        if not settings.resample:
            self._items = [item for item in self._items if _on_grid(item, settings)]
            left_out = len(items) - len(self._items)
            if left_out:
                on_skip(
                    f"{left_out} of {len(items)} label maps left out: they do not have {_times(settings.size)} voxels "
                    f"of {_times(settings.spacing)} mm."
                )
        self._is_class = np.isin(np.arange(256), settings.classes)
        self._cache: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._items)

    def name(self, index: int) -> str:
        """What a label map is called."""
        return self._items[index].name

    def load(self, index: int) -> np.ndarray:
        """A label map on the generator's grid, ``(X, Y, Z)`` uint8 in RAS order.

        Raises:
            FileFormatError: It cannot be read.
            MaskError: It holds something else than whole numbers from 0 to 255.
            TrainingError: It holds labels that are not among the classes.
        """
        array = self._cache.get(index)
        if array is None:
            array = self._read(self._items[index])
            if self._settings.cache and has_room(array.nbytes):
                self._cache[index] = array
        return array

    def _read(self, item: DataItem) -> np.ndarray:
        from MAISILib.files.images import read_mask
        from MAISILib.resampling import nearest, to_canonical

        path = item.label or item.image
        mask = read_mask(path, self.table)
        array, affine = to_canonical(mask.array, mask.affine)
        source, settings = Grid(array.shape, affine), self._settings  # type: ignore[arg-type]
        if source.shape != settings.size or not _same_spacing(source.spacing, settings.spacing):
            directions = affine[:3, :3] / np.asarray(source.spacing) * np.asarray(settings.spacing)
            target = np.eye(4)
            target[:3, :3] = directions
            target[:3, 3] = source.center - directions @ ((np.asarray(settings.size) - 1) / 2)
            array = nearest(array, source, Grid(settings.size, target))
        counts = np.bincount(array.ravel(), minlength=256)
        unknown = [int(label) for label in np.flatnonzero(counts) if not self._is_class[label]]
        if unknown:
            raise TrainingError(
                f"{path} holds labels that are no classes of this generator: {', '.join(map(str, unknown))}. Add them "
                "to 'classes' and to the autoencoder's output channels, or take them out of the mask."
            )
        return array

    def vary(self, array: np.ndarray, rng: random.Random) -> np.ndarray:
        """The patient mirrored and stretched at random; what the stretch brings in at the border repeats the border."""
        if rng.random() < self._settings.mirror:
            array = mirrored_labels(array, self.table)
        if self._settings.stretch == 0:
            return array
        from scipy import ndimage

        factors = np.array([1 / (1 + rng.uniform(-1, 1) * self._settings.stretch) for _ in range(3)])
        middle = (np.asarray(array.shape) - 1) / 2
        return ndimage.affine_transform(
            array, factors, middle - factors * middle, order=0, mode="nearest", prefilter=False
        )

    def sizes(self, array: np.ndarray, labels: Sequence[int]) -> list[OrganSize | None]:
        """Sizes of organs in a label map of this grid."""
        return measure_sizes(LabelMap(array, np.diag([*self._settings.spacing, 1.0]), self.table), labels)

    def size_table(self, controllable: Sequence[str]) -> SizeTable:
        """The sizes of the controllable anatomies in all label maps, unvaried.

        Raises:
            RequestError: A name is not in the label table.
            MaskError: An anatomy is whole in fewer than two masks.
        """
        labels = [self.table.find(name).value for name in controllable]
        return SizeTable.build(controllable, [self.sizes(self.load(i), labels) for i in range(len(self))])


class MaskLatents:
    """The posterior of every mask in ``variants`` variations; made when first needed.

    Variation 0 of a data set without chance is the mask itself.

    Args:
        masks: Which masks.
        autoencoder: A trained mask autoencoder; is frozen and follows the device of whoever asks.
        variants: How many variations of each mask there are.
        seed: Of the variations.
        labels: Whose sizes are measured in each variation.
        cache: Keep latents in memory, where a quarter of it stays free all the same.
    """

    def __init__(
        self, masks: MaskDataset, autoencoder: Any, variants: int, seed: int, labels: Sequence[int], *, cache: bool
    ) -> None:
        self._masks, self._variants, self._seed, self._labels = masks, variants, seed, labels
        self._autoencoder = autoencoder.eval().requires_grad_(False)
        self._sizes: dict[int, list[OrganSize | None]] = {}
        # One block for all: small pieces, left between the large ones of each encoding, keep those from being freed.
        self._cache: torch.Tensor | None = None
        self._keeps = cache

    def __len__(self) -> int:
        return len(self._masks)

    def name(self, index: int) -> str:
        """What a mask is called."""
        return self._masks.name(index)

    def load(
        self, index: int, variant: int | None, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, list[OrganSize | None]]:
        """A mask's posterior and sizes.

        Args:
            index: Which mask.
            variant: Which variation; ``None`` for the mask as it is.
            device: Where to encode.

        Returns:
            Mean and deviation ``(C, x, y, z)`` on the CPU, not scaled, and the sizes.
        """
        place = index * (self._variants + 1) + (0 if variant is None else 1 + variant % self._variants)
        if self._cache is not None and place in self._sizes:
            return self._cache[place, 0], self._cache[place, 1], self._sizes[place]
        array = self._masks.load(index)
        if variant is not None:
            array = self._masks.vary(array, random.Random(f"{self._seed}/{index}/{variant % self._variants}"))
        with torch.no_grad():
            mean, deviation = self._autoencoder.to(device).encode(mask_bits(array)[None].to(device).float())
        posterior, sizes = torch.stack([mean[0], deviation[0]]).float().cpu(), self._masks.sizes(array, self._labels)
        if self._keeps and self._cache is None:
            count = len(self) * (self._variants + 1)
            self._keeps = has_room(count * posterior.nbytes)
            self._cache = posterior.new_empty((count, *posterior.shape)) if self._keeps else None
        if self._cache is not None:
            self._cache[place], self._sizes[place] = posterior, sizes
        return posterior[0], posterior[1], sizes

    def scale_factor(self, most: int = 64) -> float:
        """One over the deviation of the latents of (at most so many, evenly chosen) masks, sampling noise included."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).round().astype(int))
        cpu = torch.device("cpu")
        moments = [
            (mean.mean(), (mean**2 + deviation**2).mean())
            for mean, deviation, _ in (self.load(int(index), None, cpu) for index in chosen)
        ]
        mean, square = (float(torch.stack(list(values)).double().mean()) for values in zip(*moments, strict=True))
        return (square - mean**2) ** -0.5


def _on_grid(item: DataItem, settings: MaskSettings) -> bool:
    from MAISILib.files.images import read_grid
    from MAISILib.resampling import canonical_grid

    grid = canonical_grid(read_grid(item.label or item.image))
    return grid.shape == settings.size and _same_spacing(grid.spacing, settings.spacing)


def _same_spacing(first: Sequence[float], second: Sequence[float]) -> bool:
    return all(abs(a / b - 1) < _SAME_SPACING for a, b in zip(first, second, strict=True))


def _times(values: Sequence[float]) -> str:
    return "×".join(f"{value:.4g}" for value in values)
