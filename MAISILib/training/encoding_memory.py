"""How an image goes through the encoder within the memory at hand."""

from __future__ import annotations

import shutil
import tempfile
from typing import TYPE_CHECKING

import psutil
import torch

from MAISILib.errors import OutOfMemory
from MAISILib.generation.plan import available_bytes

if TYPE_CHECKING:
    from MAISILib.codec.codec import Codec
    from MAISILib.codec.strategies import Strategy


def way_to_encode(codec: Codec, shape: tuple[int, ...], memory: int | None = None) -> Strategy:
    """The fastest way to encode an image in the memory that is left now; all ways give the same but for rounding.

    Args:
        codec: With its autoencoder loaded.
        shape: Voxels ``(X, Y, Z)`` of the image, which is loaded too.
        memory: Bytes that the process may fill on the codec's device, with all that it holds already; default is all
            that is free.

    Raises:
        OutOfMemory: No way fits. Nothing was allocated.
    """
    beside = codec.device.startswith("cuda")  # a device with memory of its own
    held = torch.cuda.memory_allocated(codec.device) if beside else psutil.Process().memory_info().rss
    room = available_bytes(codec.device)
    limit = room if memory is None else min(room, memory)
    host = psutil.virtual_memory().available if beside else None
    disk = shutil.disk_usage(tempfile.gettempdir()).free
    found = codec.way_to_encode(shape, limit - held, host=host, disk=disk)
    if found.bytes > limit - held:
        size = "×".join(map(str, shape))
        told = "were asked for" if limit == memory else "are free"
        raise OutOfMemory(
            f"Encoding {size} voxels on {codec.device} needs at least {found.bytes / 1e9:.2f} GB beside the "
            f"{held / 1e9:.2f} GB that the process holds; {limit / 1e9:.2f} GB in all {told}. "
            "Allow more (--memory), close other programs, or let images have fewer voxels (--size, --spacing)."
        )
    return found.strategy
