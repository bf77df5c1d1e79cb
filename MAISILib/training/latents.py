"""Latents for the training of a diffusion model: drawn from the stored posteriors, scaled, with their conditions."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from MAISILib.errors import FileFormatError
from MAISILib.training import latent_files
from MAISILib.training.datalist import DataItem
from MAISILib.training.images import has_room
from MAISILib.training.modalities import modality_code

if TYPE_CHECKING:
    from MAISILib.anatomy.labels import LabelTable
    from MAISILib.bundles.bundle import Bundle

#: Index of the top-most and of the bottom-most body region (0 head, 1 chest, 2 abdomen, 3 lower), where they are known.
Regions = tuple[int | None, int | None]


@dataclass(frozen=True)
class LatentSample:
    """One latent with its conditions.

    Args:
        latent: ``(C, x, y, z)`` float32, scaled.
        label: ``(X, Y, Z)`` uint8, on the grid of the encoded image.
        spacing: Voxel size of the encoded image in mm.
        modality_code: Class code.
        regions: Top-most and bottom-most body region.
    """

    latent: torch.Tensor
    label: torch.Tensor | None
    spacing: tuple[float, float, float]
    modality_code: int
    regions: Regions


@dataclass(frozen=True)
class _Known:
    """What is known about a latent before it is read."""

    spacing: tuple[float, float, float]
    modality_code: int
    regions: Regions
    autoencoder_sha256: str | None


@dataclass(frozen=True)
class _Stored:
    """A posterior in the type of its file, and its label map."""

    mean: torch.Tensor
    deviation: torch.Tensor | None
    label: torch.Tensor | None

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in (self.mean, self.deviation, self.label) if t is not None)


class LatentDataset:
    """Stored latents of a datalist, one :class:`LatentSample` at a time.

    Args:
        items: Which latents: ``_emb.safetensors`` of ``maisi encode``, or the published ``_emb.nii.gz``.
        autoencoder_sha256: Weights that must have encoded them. Without it, all must come from the same ones. Published
            files do not say where they come from.
        scale_factor: What latents are multiplied by; see :func:`latent_scale_factor`.
        sample: Draw from the posterior anew each time; else the mean is given. A published latent is a sample already.
        table: What labels mean; the public table where not given.
        modality: Of items that do not say.
        modalities: Names that a bundle gives to codes.
        cache: Keep latents in memory, as far as that allows.

    Attributes:
        autoencoder_sha256: Weights that encoded the items; ``None`` where nobody knows.
        scale_factor: As given.

    Raises:
        FileFormatError: Latents from another autoencoder, or files that are no latents.
        RequestError: An unknown modality.
    """

    def __init__(
        self,
        items: Sequence[DataItem],
        *,
        autoencoder_sha256: str | None = None,
        scale_factor: float = 1.0,
        sample: bool = True,
        table: LabelTable | None = None,
        modality: str | int = "ct",
        modalities: Mapping[str, int] | None = None,
        cache: bool = True,
    ) -> None:
        from MAISILib.anatomy.labels import default_table

        self._items, self._sample = list(items), sample
        self._table = table or default_table()
        self._known = [_known(item, modality, modalities) for item in items]
        self.autoencoder_sha256 = _one_autoencoder(self._items, self._known, autoencoder_sha256)
        self.scale_factor = scale_factor
        self._cache: dict[int, _Stored] | None = {} if cache else None

    @classmethod
    def of_bundle(
        cls, bundle: Bundle, items: Sequence[DataItem], *, sample: bool, table: LabelTable | None = None
    ) -> LatentDataset:
        """Latents of a bundle's autoencoder, with its scale factor, names of modalities and labels (or ``table``).

        Raises:
            FileFormatError: Latents from another autoencoder, or files that are no latents.
        """
        return cls(
            items,
            autoencoder_sha256=bundle.weights_sha256()["autoencoder"],
            scale_factor=bundle.scale_factor(),
            sample=sample,
            table=table or bundle.labels,
            modalities=bundle.manifest.modality,
        )

    def __len__(self) -> int:
        return len(self._items)

    def name(self, index: int) -> str:
        """What a latent is called."""
        return self._items[index].name

    def scaled(self, scale_factor: float) -> LatentDataset:
        """The same latents, multiplied by another factor; they stay in memory once."""
        other = copy.copy(self)
        other.scale_factor = scale_factor
        return other

    def load(self, index: int, rng: random.Random) -> LatentSample:
        """One latent; all chance comes from ``rng``.

        Raises:
            FileFormatError: The file cannot be read, or its label map does not fit.
            MaskError: The label map holds something else than whole numbers from 0 to 255.
        """
        stored, known = self._stored(index), self._known[index]
        latent = stored.mean.float()
        if self._sample and stored.deviation is not None:
            generator = torch.Generator("cpu").manual_seed(rng.getrandbits(63))
            latent = latent + stored.deviation.float() * torch.randn(latent.shape, generator=generator)
        return LatentSample(latent * self.scale_factor, stored.label, known.spacing, known.modality_code, known.regions)

    def moments(self, index: int) -> tuple[float, float, int]:
        """Sum of a latent's values and of their squares as expected over the posterior, not scaled; and how many."""
        stored = self._stored(index)
        mean = stored.mean.double()
        squares = float((mean**2).sum())
        if self._sample and stored.deviation is not None:
            squares += float((stored.deviation.double() ** 2).sum())
        return float(mean.sum()), squares, mean.numel()

    def _stored(self, index: int) -> _Stored:
        found = None if self._cache is None else self._cache.get(index)
        if found is None:
            found = _read(self._items[index], self._table)
            if self._cache is not None and has_room(found.bytes):
                self._cache[index] = found
        return found


def latent_scale_factor(dataset: LatentDataset) -> float:
    """One over the standard deviation of all latents together, as the data set draws them.

    For a latent drawn from N(μ, σ²) the second moment is μ² + σ²; its mean over all voxels and channels, less the
    squared mean, is the variance. With ``sample=False`` the deviations are left out, as they are from the latents.

    Raises:
        FileFormatError: There are no latents, or they are all the same value.
    """
    total = squares = count = 0.0
    for index in range(len(dataset)):
        one = dataset.moments(index)
        total, squares, count = total + one[0], squares + one[1], count + one[2]
    variance = squares / count - (total / count) ** 2 if count else 0.0
    if not variance > 0:
        raise FileFormatError(f"{len(dataset)} latents have no variance, so there is no scale for them. Encode again.")
    return variance**-0.5


#: What messages and checkpoints call the SHA-256 of the autoencoder that made the latents.
AUTOENCODER_FACT = "autoencoder of the latents"


def latent_facts(autoencoder_sha256: str | None, scale_factor: float) -> dict[str, str]:
    """What a resumed run must find again in its latents, by what messages call it."""
    return {
        AUTOENCODER_FACT: autoencoder_sha256 or "unknown",
        "scale of the latents": f"{scale_factor:.6g}",
    }


def _read(item: DataItem, table: LabelTable) -> _Stored:
    from MAISILib.files.images import read_mask
    from MAISILib.resampling import to_canonical

    mean, deviation = latent_files.read_posterior(item.image)
    label = None
    if item.label is not None:
        mask = read_mask(item.label, table)
        array, _ = to_canonical(mask.array, mask.affine)
        latent_files.check_label_shape(tuple(mean.shape[1:]), array.shape, item.image)
        label = torch.from_numpy(array)
    return _Stored(mean, deviation, label)


def _known(item: DataItem, modality: str | int, modalities: Mapping[str, int] | None) -> _Known:
    path, side, sha256 = item.image, cast("dict[str, Any]", {}), None
    if not latent_files.is_latent(path):
        raise FileFormatError(f"{path} is an image, and latents are needed. Encode it first: maisi encode --help.")
    if path.name.lower().endswith(latent_files.SUFFIX):
        header = latent_files.read_header(path)
        side, sha256 = {"spacing": header.image_spacing, "modality": header.modality}, header.autoencoder_sha256
    else:
        side = latent_files.read_sidecar(path)
    spacing = item.spacing or _numbers(side.get("spacing"), 3, path, "spacing")
    if spacing is None:
        raise FileFormatError(f"{path}: no spacing, neither in the datalist nor in {path.name}.json. Add it (mm).")
    named = next((m for m in (item.modality, side.get("modality")) if m is not None), modality)
    regions = (
        _region(item.top_region_index or _numbers(side.get("top_region_index"), 4, path, "top_region_index")),
        _region(item.bottom_region_index or _numbers(side.get("bottom_region_index"), 4, path, "bottom_region_index")),
    )
    return _Known((spacing[0], spacing[1], spacing[2]), modality_code(named, modalities, item.name), regions, sha256)


def _numbers(values: Any, count: int, path: Path, field: str) -> tuple[float, ...] | None:
    if values is None:
        return None
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count or not np.isfinite(numbers).all() or min(numbers) < 0:
        raise FileFormatError(f"{path}: its {field} is {values!r}; {count} numbers are needed.")
    return numbers


def _region(one_hot: tuple[float, ...] | None) -> int | None:
    return None if one_hot is None or not any(one_hot) else int(np.argmax(one_hot))


def _one_autoencoder(items: Sequence[DataItem], known: Sequence[_Known], wanted: str | None) -> str | None:
    """The weights that encoded all items, which are ``wanted`` where that is given."""
    expected = wanted
    for item, one in zip(items, known, strict=True):
        if one.autoencoder_sha256 is None:
            continue
        expected = expected or one.autoencoder_sha256
        if one.autoencoder_sha256 != expected:
            whose = "this training's" if wanted else f"that of {items[0].name}"
            raise FileFormatError(
                f"{item.image} was made by another autoencoder: SHA-256 of its weights is {one.autoencoder_sha256}, "
                f"{whose} is {expected}. Encode the images with that autoencoder: maisi encode."
            )
    return expected
