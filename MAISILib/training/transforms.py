"""Turns a prepared image into what a network sees: a patch, its intensities in [0, 1], varied at random.

The published order is kept in effect (intensity, zoom, crop, variation), but the patch is cut first, with a margin for
what turning it needs, so that a large image costs no more than a small one. The variations are MONAI's dictionary
transforms; each use seeds them anew from the item's own random numbers.
"""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from monai.transforms.croppad.dictionary import DivisiblePadd, ResizeWithPadOrCropd
from monai.transforms.intensity.dictionary import (
    RandAdjustContrastd,
    RandBiasFieldd,
    RandGibbsNoised,
    RandHistogramShiftd,
)
from monai.transforms.spatial.dictionary import RandAffined, RandFlipd, RandRotate90d, Resized
from monai.transforms.transform import MapTransform, RandomizableTransform

from MAISILib.training.mirroring import Pairs, exchange, mirrored_pairs

if TYPE_CHECKING:
    from MAISILib.anatomy.labels import LabelTable
    from MAISILib.training.images import ImageSettings, PreparedImage

#: Random zoom: how often, and its bounds.
_ZOOM_PROBABILITY, _ZOOM = 0.3, (0.5, 1.5)
#: Random affine: how often; rotation in radians, scale and shear as parts.
_AFFINE_PROBABILITY, _ROTATION, _SCALE, _SHEAR = 0.3, np.pi / 12, 0.1, 0.05
#: A patch is cut with this part more on each side before it is turned, so that its corners are not empty.
_MARGIN = 0.2
_FLIP_PROBABILITY = 0.5
#: MR: how often each kind of change; ringing as the part of k-space that is lost (1 would be all of it).
_MR_PROBABILITY, _RINGING = 0.3, (0.0, 0.5)
#: A labelled voxel is looked for by drawing voxels; after so many in vain all of them are listed.
_DRAWS = 1000

Result = tuple[torch.Tensor, "torch.Tensor | None", tuple[float, float, float]]
Box = tuple[np.ndarray, np.ndarray]


class RandMirrord(RandomizableTransform, MapTransform):
    """Reflects channel-first arrays at the first spatial axis (right–left in RAS order) and exchanges labels.

    Args:
        keys: What is reflected.
        label_keys: Which of them hold labels, whose left and right ones change places.
        pairs: Labels that change places.
        prob: Probability.
    """

    def __init__(
        self, keys: Sequence[str], label_keys: Sequence[str] = ("label",), pairs: Pairs = (), prob: float = 0.5
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self._label_keys, self._becomes = set(label_keys), torch.from_numpy(exchange(pairs))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """``data`` as it is, or reflected."""
        result = dict(data)
        self.randomize(None)
        if self._do_transform:
            for key in self.key_iterator(result):
                value = result[key].flip(1)
                if key in self._label_keys:
                    value = _like(value, self._becomes[torch.as_tensor(value).long()])
                result[key] = value
        return result


class Transforms:
    """All that happens between a prepared image and a sample.

    Args:
        settings: Sizes and variations.
        table: Tells which labels change places in a mirror.
        training: Random patches; else the whole image or its middle.
    """

    def __init__(self, settings: ImageSettings, table: LabelTable, *, training: bool) -> None:
        self._settings, self._training = settings, training
        self._pairs = mirrored_pairs(table)
        self._composed: dict[tuple[bool, bool], Compose] = {}
        self._turn = threading.Lock()  # MONAI's transforms keep what they drew in themselves

    def __call__(self, prepared: PreparedImage, rng: random.Random) -> Result:
        """Image ``(1, X, Y, Z)`` float32, label uint8 of the same shape, and the voxel size in mm."""
        data = self._patch(prepared, rng) if self._training else _whole(prepared)
        with self._turn, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI's on patches of nothing but air, and on its own speed
            compose = self._compose(prepared.is_ct, "label" in data)
            compose.set_random_state(seed=rng.getrandbits(32))
            data: Any = compose(data)
        image, label = data["image"], data.get("label")
        spacing = np.sqrt((np.asarray(image.affine)[:3, :3] ** 2).sum(axis=0))
        return (
            image.as_tensor().float().contiguous(),
            None if label is None else label.as_tensor().round().to(torch.uint8).contiguous(),
            (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        )

    def _compose(self, is_ct: bool, has_label: bool) -> Compose:
        if (is_ct, has_label) not in self._composed:
            make = training_transforms if self._training else validation_transforms
            label_keys = ("label",) if has_label else ()
            made = make(self._settings, ("image",), label_keys, self._pairs, is_ct=is_ct)
            self._composed[is_ct, has_label] = Compose(made)
        return self._composed[is_ct, has_label]

    def _patch(self, prepared: PreparedImage, rng: random.Random) -> dict[str, MetaTensor]:
        """A box that becomes a patch when it is zoomed, with the margin that turning needs."""
        settings, patch = self._settings, np.asarray(self._settings.patch_size)
        zoom = 1.0
        if settings.spacing_type == "rand_zoom" and rng.random() < _ZOOM_PROBABILITY:
            zoom = rng.uniform(*_ZOOM)
        size = np.maximum(1, np.rint(patch / zoom).astype(int))
        around_body = settings.crop.around == "body" and rng.random() < settings.crop.probability
        start = random_box(prepared, size, rng, around_body=around_body)
        margin = np.ceil(size * _MARGIN).astype(int) if settings.random_aug else np.zeros(3, int)
        data = _cut(prepared, start - margin, size + 2 * margin)
        if (size != patch).any():
            wanted = patch + 2 * np.rint(margin * patch / size).astype(int)
            data = Resized(list(data), tuple(wanted), mode=["area", "nearest"][: len(data)])(data)  # type: ignore[arg-type]
        return data  # type: ignore[return-value]


def training_transforms(
    settings: ImageSettings, image_keys: Sequence[str], label_keys: Sequence[str], pairs: Pairs, *, is_ct: bool
) -> list[MapTransform]:
    """MONAI transforms of a training patch, channel-first, intensities in [0, 1].

    Args:
        settings: What is wanted.
        image_keys: Images, which all vary alike.
        label_keys: Their label maps.
        pairs: Labels that change places in a mirror.
        is_ct: Hounsfield units are left as they are; MR intensities vary.
    """
    transforms: list[Any] = []
    keys = [*image_keys, *label_keys]
    if settings.random_aug:
        if not is_ct:
            transforms += [
                RandBiasFieldd(image_keys, prob=_MR_PROBABILITY, coeff_range=(0.0, 0.3)),
                RandGibbsNoised(image_keys, prob=_MR_PROBABILITY, alpha=_RINGING),
                RandAdjustContrastd(image_keys, prob=_MR_PROBABILITY, gamma=(0.5, 2.0)),
                RandHistogramShiftd(image_keys, prob=_MR_PROBABILITY, num_control_points=10),
            ]
        transforms.append(
            RandAffined(
                keys,
                spatial_size=settings.patch_size,
                prob=_AFFINE_PROBABILITY,
                rotate_range=_ROTATION,
                scale_range=_SCALE,
                shear_range=_SHEAR,
                mode=["bilinear"] * len(image_keys) + ["nearest"] * len(label_keys),
                padding_mode="zeros",
            )
        )
        transforms += [RandFlipd(keys, prob=_FLIP_PROBABILITY, spatial_axis=axis) for axis in (1, 2)]
        if settings.patch_size[0] == settings.patch_size[1]:
            transforms.append(RandRotate90d(keys, prob=_FLIP_PROBABILITY))
    mirror = max(settings.mirror, _FLIP_PROBABILITY if settings.random_aug else 0.0)
    if mirror > 0:
        transforms.append(RandMirrord(keys, label_keys, pairs, mirror))
    return transforms


def validation_transforms(
    settings: ImageSettings,
    image_keys: Sequence[str],
    label_keys: Sequence[str],
    pairs: Pairs = (),
    *,
    is_ct: bool = True,
) -> list[MapTransform]:
    """MONAI transforms of a held-out image: cut and filled to ``val_patch_size``, or filled to a multiple.

    Arguments are those of :func:`training_transforms`; nothing is mirrored or varied.
    """
    keys = [*image_keys, *label_keys]
    if settings.val_patch_size is not None:
        return [ResizeWithPadOrCropd(keys, settings.val_patch_size)]
    return [DivisiblePadd(keys, settings.divisor)]


def random_box(prepared: PreparedImage, size: np.ndarray, rng: random.Random, *, around_body: bool) -> np.ndarray:
    """First voxel ``(3,)`` of a random box of ``size``; along an axis where the image is shorter, it is centred.

    With ``around_body`` and any label, the box holds a voxel drawn evenly from those with a label.
    """
    shape = np.asarray(prepared.image.shape)
    low, high = np.zeros(3, int), shape - size
    if around_body and prepared.label is not None:
        voxel = _labelled_voxel(prepared.label, rng)
        if voxel is not None:
            low, high = np.maximum(low, voxel - size + 1), np.minimum(high, voxel)
    starts = [rng.randint(int(a), int(b)) if b >= a else int(b) // 2 for a, b in zip(low, high, strict=True)]
    return np.asarray(starts)


def _labelled_voxel(label: np.ndarray, rng: random.Random) -> np.ndarray | None:
    for _ in range(_DRAWS):
        voxel = tuple(rng.randrange(n) for n in label.shape)
        if label[voxel]:
            return np.asarray(voxel)
    filled = np.flatnonzero(label)
    return np.asarray(np.unravel_index(filled[rng.randrange(filled.size)], label.shape)) if filled.size else None


def _cut(prepared: PreparedImage, start: np.ndarray, size: np.ndarray) -> dict[str, MetaTensor]:
    """A box of image and label, which may reach outside; there it is air without a label."""
    shape = np.asarray(prepared.image.shape)
    inside = tuple(slice(max(0, a), max(0, min(n, a + s))) for a, s, n in zip(start, size, shape, strict=True))
    at = tuple(slice(part.start - a, part.stop - a) for part, a in zip(inside, start, strict=True))
    affine = prepared.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start
    arrays: dict[str, np.ndarray] = {"image": np.zeros(size, np.float32)}
    arrays["image"][at] = _unit(prepared, prepared.image[inside])
    if prepared.label is not None:
        arrays["label"] = np.zeros(size, np.uint8)
        arrays["label"][at] = prepared.label[inside]
    return {key: MetaTensor(torch.from_numpy(a)[None], affine=torch.from_numpy(affine)) for key, a in arrays.items()}


def _whole(prepared: PreparedImage) -> dict[str, MetaTensor]:
    return _cut(prepared, np.zeros(3, int), np.asarray(prepared.image.shape))


def _unit(prepared: PreparedImage, values: np.ndarray) -> np.ndarray:
    """Intensities as networks see them: 0 and 1 are the window's ends; MR goes on above."""
    low, high = prepared.window
    unit = (values.astype(np.float32) - low) / (high - low)
    return unit.clip(0.0, 1.0) if prepared.is_ct else np.maximum(unit, 0.0)


def _like(value: Any, tensor: torch.Tensor) -> Any:
    return MetaTensor(tensor, meta=value.meta) if isinstance(value, MetaTensor) else tensor
