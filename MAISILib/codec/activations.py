"""Where a layer's output lies until it is read: on the device, in host memory, or in a file."""

from __future__ import annotations

import math
import mmap
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch

from MAISILib.codec.layers import Box
from MAISILib.errors import OutOfMemory


class Activation:
    """A volume ``(X, Y, Z, C)`` that is written and read in boxes.

    Args:
        tensor: The volume; it is not copied.
        mapping: The memory-mapped file that holds it.
    """

    def __init__(self, tensor: torch.Tensor, mapping: mmap.mmap | None = None) -> None:
        self._tensor, self._mapping = tensor, mapping

    @classmethod
    def empty(cls, shape: tuple[int, ...], storage: str, device: Any, folder: Path) -> Activation:
        """Room for a volume.

        Args:
            shape: ``(X, Y, Z, C)``.
            storage: ``device``, ``host`` (pinned beside a GPU) or ``file``.
            device: The device that computes.
            folder: Where the file goes.

        Raises:
            OutOfMemory: The disk has not enough room.
        """
        if storage == "device":
            return cls(torch.empty(shape, device=device))
        if storage == "host":
            return cls(torch.empty(shape, pin_memory=device.type == "cuda"))
        size = 4 * math.prod(shape)
        free = shutil.disk_usage(folder).free
        if size > free:
            raise OutOfMemory(
                f"{folder.parent} has {free / 1e9:.1f} GB free; a temporary file needs {size / 1e9:.1f} GB. "
                "Free some space there, or let TMPDIR name a larger disk."
            )
        path = folder / f"{uuid.uuid4().hex}.activation"
        with path.open("w+b") as file:
            file.truncate(size)
            mapping = mmap.mmap(file.fileno(), size)
        return cls(torch.frombuffer(mapping, dtype=torch.float32).view(shape), mapping)

    def read(self, box: Box, device: Any) -> torch.Tensor:
        """A part, on ``device``; a view where it lies there already."""
        part = self._tensor[tuple(slice(*span) for span in box)]
        if self._mapping is None:
            return part.to(device, non_blocking=True)
        part = part.clone()
        self._let_go()
        return part.to(device)

    def write(self, box: Box, tile: torch.Tensor) -> None:
        """Puts a tile in its place."""
        self._tensor[tuple(slice(*span) for span in box)].copy_(tile)
        self._let_go()

    def everything(self) -> torch.Tensor:
        """The whole volume, where it lies."""
        return self._tensor if self._mapping is None else self._tensor.clone()

    def first_channels(self, count: int) -> Activation:
        """The same memory with only its first channels."""
        return Activation(self._tensor[..., :count], self._mapping)

    def close(self) -> None:
        """Forgets the volume."""
        del self._tensor

    def _let_go(self) -> None:
        """The process holds no page of the file longer than it needs; the system writes them out when it must."""
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)
