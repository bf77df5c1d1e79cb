"""What UNet and ControlNet learn from a stored latent: the noisy latent, its conditions, the right answer, the weights.

Used by :mod:`MAISILib.training.diffusion_task` and :mod:`MAISILib.training.controlnet_task`.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

from MAISILib.anatomy.labels import LabelTable
from MAISILib.anatomy.masks import label_bits
from MAISILib.bundles.manifest import ScheduleEntry
from MAISILib.diffusion.networks import CONDITION_SCALE
from MAISILib.diffusion.schedules import FlowSchedule, Schedule, schedule_of
from MAISILib.errors import TrainingError
from MAISILib.training.task import Tensors, generator_of

if TYPE_CHECKING:
    from MAISILib.training.latents import LatentSample

#: Times at which held-out items are denoised, as parts of the training schedule.
_VALIDATION_TIMES = (0.15, 0.5, 0.85)


def make_schedule(fields: dict[str, Any]) -> Schedule:
    """The noise schedule of a recipe, whose fields have not been checked yet.

    Raises:
        TrainingError: A field that no schedule has, or a value that does not fit.
    """
    try:
        return schedule_of(ScheduleEntry.model_validate(fields))
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, p['loc'])) or 'it'} is {p['input']!r}: {p['msg']}" for p in error.errors())
        raise TrainingError(f"The recipe's schedule does not fit: {'; '.join(problems)}.") from None


def diffusion_item(
    sample: LatentSample, schedule: Schedule, rng: random.Random, air_weight: float, time_power: float = 1.0
) -> Tensors:
    """What a UNet learns from a latent at a random time ``T·u^time_power``, u uniform.

    Returns:
        ``clean`` and ``noise`` ``(C, x, y, z)``, ``time`` (for rectified flow bent by the latent's size),
        ``weight`` ``(1, x, y, z)``, ``class_labels``, ``spacing`` ``(3,)`` and, where the sample has them,
        ``top_region`` and ``bottom_region`` ``(4,)``; all but the first three as the network takes them.
    """
    clean = sample.latent
    voxels = clean[0].numel()
    drawn = rng.random() ** time_power * schedule.train_timesteps
    if isinstance(schedule, FlowSchedule):
        time = torch.tensor(schedule.bend(drawn, voxels), dtype=torch.float32)
    else:
        time = torch.tensor(int(drawn), dtype=torch.long)
    weight = torch.ones((1, *clean.shape[1:]))
    if sample.label is not None and air_weight < 1:
        weight = at_latent_voxels(sample.label > 0, clean.shape) * (1 - air_weight) + air_weight
    item = {
        "clean": clean,
        "noise": torch.randn(clean.shape, generator=generator_of(rng)),
        "time": time,
        "weight": weight,
        "class_labels": torch.tensor(sample.modality_code),
        "spacing": torch.tensor(sample.spacing, dtype=torch.float32) * CONDITION_SCALE,
    }
    for name, region in zip(("top_region", "bottom_region"), sample.regions, strict=True):
        if region is not None:
            item[name] = nn.functional.one_hot(torch.tensor(region), 4).float() * CONDITION_SCALE
    return item


def box_of(
    sample: LatentSample, size: tuple[int, int, int], rng: random.Random, around: Collection[int] = ()
) -> LatentSample:
    """A box of a latent, with its part of the label map, that holds a latent voxel of the body drawn at random.

    Where the labels ``around`` are there, it holds a voxel of theirs. Without a label map, or with an empty one, it
    lies anywhere. Axes shorter than the box are taken whole.
    """
    shape = sample.latent.shape[1:]
    size = tuple(min(n, s) for n, s in zip(shape, size, strict=True))  # type: ignore[assignment]
    held = [rng.randrange(n) for n in shape]
    if sample.label is not None:
        wanted = torch.isin(sample.label, torch.tensor([*around], dtype=sample.label.dtype))
        inside = wanted if bool(wanted.any()) else sample.label > 0
        body = at_latent_voxels(inside, sample.latent.shape)[0].nonzero()
        held = body[rng.randrange(len(body))].tolist() if len(body) else held
    starts = [min(max(0, h - rng.randrange(s)), n - s) for h, s, n in zip(held, size, shape, strict=True)]
    cut = tuple(slice(a, a + s) for a, s in zip(starts, size, strict=True))
    label = sample.label
    if label is not None:
        factor = label.shape[0] // shape[0]
        label = label[tuple(slice(factor * one.start, factor * one.stop) for one in cut)].contiguous()
    return replace(sample, latent=sample.latent[(slice(None), *cut)].contiguous(), label=label)


def check_conditions(item: Tensors, unet: Any, name: str) -> None:
    """Makes sure that an item has what its UNet wants to be told.

    Raises:
        TrainingError: A body region is missing, or the network has no such modality code.
    """
    for edge in ("top", "bottom"):
        if getattr(unet, f"include_{edge}_region_index_input") and f"{edge}_region" not in item:
            raise TrainingError(
                f"{name} has no {edge}-most body region, and this network is told one. Give {edge}_region_index in the "
                "data list, or a label map with organs that tell it."
            )
    code, codes = int(item["class_labels"]), unet.num_class_embeds
    if codes is not None and not 0 <= code < codes:
        raise TrainingError(f"{name} has modality code {code}; this network knows 0 to {codes - 1}.")


def at_latent_voxels(inside: torch.Tensor, latent_shape: torch.Size) -> torch.Tensor:
    """A region of the image ``(X, Y, Z)`` as 0 and 1 on the latent grid ``(1, x, y, z)``.

    A latent voxel belongs to it if any of its image voxels does.
    """
    factor = inside.shape[0] // latent_shape[1]
    return nn.functional.max_pool3d(inside.float()[None, None], factor)[0]


def labels_of(sample: LatentSample, name: str) -> np.ndarray:
    """The label map of a sample, ``(X, Y, Z)`` uint8.

    Raises:
        TrainingError: It has none.
    """
    if sample.label is None:
        raise TrainingError(f"{name} has no label map. A ControlNet learns from label maps: give one for every item.")
    return sample.label.numpy()


def mask_bits(labels: np.ndarray) -> torch.Tensor:
    """Bits ``(8, X, Y, Z)`` uint8 of a label map, as the ControlNet reads it."""
    return torch.from_numpy(np.ascontiguousarray(label_bits(labels)))


def labels_to_forget(
    labels: np.ndarray, probability: float, rng: random.Random, keep: Collection[int] = ()
) -> list[int]:
    """Draws each label with the given probability; never background, body or ``keep``."""
    if probability == 0:
        return []
    spared = {0, LabelTable.BODY, *keep}
    present = [int(v) for v in np.flatnonzero(np.bincount(labels.ravel(), minlength=256)) if v not in spared]
    return [v for v in present if rng.random() < probability]


def relabelled(labels: np.ndarray, changes: dict[int, int]) -> np.ndarray:
    """The label map with old labels replaced by new ones, all at once."""
    lookup = np.arange(256, dtype=np.uint8)
    lookup[list(changes)] = list(changes.values())
    return lookup[labels]


def as_body(labels: np.ndarray, forgotten: Collection[int]) -> np.ndarray:
    """The label map without the forgotten labels, so that a network learns to do with masks that lack them."""
    return relabelled(labels, dict.fromkeys(forgotten, LabelTable.BODY)) if forgotten else labels


def condition_inputs(batch: Tensors) -> Tensors:
    """The part of a batch that :func:`MAISILib.diffusion.networks.predict` takes as conditions."""
    return {n: batch[n] for n in ("class_labels", "spacing", "top_region", "bottom_region") if n in batch}


def prediction_target(schedule: Schedule, batch: Tensors) -> torch.Tensor:
    """What the UNet shall say of a batch at its times."""
    return schedule.target(batch["clean"], batch["noise"], batch["time"])


def weight_of_times(schedule: Schedule, times: torch.Tensor, limit: float) -> torch.Tensor:
    """How much errors of the prediction weigh at ``times`` ``(N,)``, so that noise is learned as velocity would be.

    An error of the noise ε is one of the velocity ``α·ε − σ·x₀`` divided by α (Salimans and Ho 2022,
    arXiv:2202.00512), so its square weighs ``1/ᾱ``, at most ``limit``. Where velocity is predicted: 1.
    """
    if isinstance(schedule, FlowSchedule) or schedule.predicts_velocity:
        return torch.ones_like(times, dtype=torch.float32)
    return (1 / schedule.signal().to(times.device)[times]).clamp(max=limit)


def weighted_mean(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Mean of each sample: values ``(N, C, x, y, z)``, weight ``(N, 1, x, y, z)`` with a positive sum → ``(N,)``."""
    return (values * weight).flatten(1).sum(1) / (weight.flatten(1).sum(1) * values.shape[1])


def validation_batches(item: Tensors, schedule: Schedule, device: torch.device) -> Iterator[Tensors]:
    """The item as a batch of one, at each of three fixed times."""
    for part in _VALIDATION_TIMES:
        time = torch.tensor(round(part * schedule.train_timesteps), dtype=item["time"].dtype)
        yield {name: value[None].to(device) for name, value in {**item, "time": time}.items()}
