"""Latents made up in memory, in the place of stored ones."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from MAISILib.anatomy.labels import Label, LabelTable, default_table
from Testing.tiny_bundle import BODY, LIVER, LUNG, LUNG_TUMOR, tiny_patient

#: A label that only the user's own table knows; its host is the liver.
NEW_LESION = 150


def table_with_a_new_lesion() -> LabelTable:
    lesion = Label(NEW_LESION, "my lesion", "tumors", (255, 0, 0), host=LIVER)
    return LabelTable("mine", [*(default_table()[value] for value in (LIVER, LUNG, LUNG_TUMOR, BODY)), lesion])


def labels_with(lesion: int | None = None) -> torch.Tensor:
    """``(16, 16, 16)``: body, liver, lung, and at wish 2³ voxels of a lesion in the middle of the liver."""
    array = tiny_patient().array.copy()
    if lesion is not None:
        array[6:8, 6:8, 4:6] = lesion
    return torch.from_numpy(array)


@dataclass
class StoredLatents:
    """Has the face of a ``LatentDataset``: latents ``(4, 8, 8, 8)``, one for each entry of ``labels``."""

    labels: list[torch.Tensor | None]
    modality: int = 1
    regions: tuple[int | None, int | None] = (None, None)
    names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return self.names[index] if self.names else f"case_{index}"

    def load(self, index: int, rng: random.Random) -> Any:
        latent = torch.randn(4, 8, 8, 8, generator=torch.Generator().manual_seed(index))
        return SimpleNamespace(
            latent=latent,
            label=self.labels[index],
            spacing=(4.0, 4.0, 4.0),
            modality_code=self.modality,
            regions=self.regions,
        )


def label_values(bits: torch.Tensor) -> np.ndarray:
    """Labels ``(X, Y, Z)`` of bits ``(8, X, Y, Z)``."""
    return sum(bits[k].numpy().astype(int) << k for k in range(8))  # type: ignore[return-value]
