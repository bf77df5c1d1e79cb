"""What every reader asks of a file from outside before it trusts a header."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MAISILib.errors import FileFormatError

if TYPE_CHECKING:
    import numpy as np

#: More voxels than any scanner makes (1600³); a header that claims more is damaged or made to harm.
MAX_VOXELS = 4_000_000_000
#: Deflate cannot shrink data by more than about 1032 to 1 (RFC 1951: a match of 258 bytes takes at least 2 bits).
_MAX_DEFLATE_RATIO = 1040


def check_is_file(path: Path) -> None:
    """Makes sure that ``path`` is a file that holds something.

    Raises:
        FileFormatError: It is missing, a folder, or empty.
    """
    try:
        if path.is_dir():
            raise FileFormatError(f"{path} is a folder; give a file. Load DICOM in Slicer and save it as .nii.gz.")
        if not path.is_file():
            raise FileFormatError(f"{path} does not exist. Check the name and the folder.")
        if path.stat().st_size == 0:
            raise FileFormatError(f"{path} is empty. Copy or export it again.")
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> FileFormatError:
    """The error to raise where the system or a parser gave up on ``path``."""
    if isinstance(error, PermissionError):
        return FileFormatError(f"{path} cannot be read: no permission.")
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return FileFormatError(f"{path} cannot be read ({reason}). It is damaged or cut short: copy or export it again.")


def read_json_object(path: Path, advice: str) -> dict[str, Any]:
    """The JSON object in a file that stands beside another.

    Args:
        path: A file.
        advice: What to do where it is damaged, as a sentence.

    Raises:
        FileFormatError: It cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} cannot be read ({error}). {advice}") from None
    if not isinstance(content, dict):
        raise FileFormatError(f"{path}: a JSON object is needed, this is a {type(content).__name__}. {advice}")
    return content


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hex digits, read in pieces.

    Raises:
        FileFormatError: The file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()


def spatial_shape(shape: tuple[int, ...], path: Path) -> tuple[int, int, int]:
    """The three spatial sizes of an image whose further axes, if any, have one entry.

    Raises:
        FileFormatError: The image has fewer than three axes, several frames, or an axis without voxels.
    """
    if len(shape) < 3:
        raise FileFormatError(f"{path} has {len(shape)} axes {shape}; a 3D image is needed, not a single slice.")
    if any(n != 1 for n in shape[3:]):
        raise FileFormatError(
            f"{path} has {len(shape)} axes {shape}: a series of frames or a vector image. "
            "Save one frame or channel as a 3D image."
        )
    if any(n < 1 for n in shape[:3]):
        raise FileFormatError(f"{path} has no voxels: its size is {shape[:3]}. Export it again.")
    x, y, z = (int(n) for n in shape[:3])
    return x, y, z


def one_channel(array: np.ndarray, channel: int | None, path: Path) -> np.ndarray:
    """``(X, Y, Z)`` of an image that may have several channels in a fourth axis; ``None`` where there is only one.

    Raises:
        FileFormatError: The image does not have that channel.
    """
    if array.ndim == 3:
        return array
    if channel is None or not 0 <= channel < array.shape[3]:
        raise FileFormatError(
            f"{path} has {array.shape[3]} channels, numbered from 0; there is no channel {channel}. Choose another one."
        )
    return array[..., channel].copy(order="C")


def check_size(shape: tuple[int, int, int], item_bytes: int, path: Path, *, stored: int, compressed: bool) -> None:
    """Refuses, before anything is allocated, an image larger than its file can hold or this computer can take.

    Args:
        shape: Voxels ``(X, Y, Z)`` that the header claims.
        item_bytes: Bytes of one voxel.
        path: For the message.
        stored: Bytes of voxel data in the file.
        compressed: Whether these bytes are compressed.

    Raises:
        FileFormatError: The claim cannot be true, or the image is too large.
    """
    voxels = shape[0] * shape[1] * shape[2]
    needed = voxels * item_bytes
    size = " × ".join(map(str, shape))
    if voxels > MAX_VOXELS:
        raise FileFormatError(f"{path} claims {size} voxels, more than {MAX_VOXELS:,}. The header is damaged.")
    if needed > stored * (_MAX_DEFLATE_RATIO if compressed else 1):
        raise FileFormatError(
            f"{path} claims {size} voxels ({needed:,} bytes) but holds only {stored:,} bytes. "
            "It is damaged or cut short: copy or export it again."
        )
    available = _available_memory()
    if available is not None and 2 * needed > available:  # the array once, and once more while it is converted
        raise FileFormatError(
            f"{path} has {size} voxels and needs about {2 * needed / 2**30:.1f} GiB of memory; "
            f"{available / 2**30:.1f} GiB are free. Crop or resample it first, or close other programs."
        )


def check_finite(array: np.ndarray, path: Path) -> None:
    """Makes sure that a floating-point image has a value in every voxel.

    Raises:
        FileFormatError: There are NaN or infinite voxels.
    """
    if array.dtype.kind != "f":
        return
    import numpy as np  # here: listing bundles hashes their files with this module and needs no arrays

    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise FileFormatError(
            f"{path} has no value (NaN or infinity) in {bad:,} of {array.size:,} voxels. "
            "Fill them first: −1000 HU is air in a CT."
        )


def _available_memory() -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)
