"""Stored latents: what a file holds, how it is written, and how it is read again.

``<name>_emb.safetensors`` holds the posterior's ``mean`` and ``deviation``, each ``(C, x, y, z)`` and not scaled, and
in its metadata where they lie and what they were made from. ``<name>_emb.nii.gz`` is the published layout: one sample
of the posterior, ``(x, y, z, C)``, with nothing about its origin.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from MAISILib.errors import FailedTrainingError, FileFormatError
from MAISILib.files.checks import read_json_object
from MAISILib.volumes import Grid, check_affine

if TYPE_CHECKING:
    import torch

SUFFIX = "_emb.safetensors"
PUBLISHED_SUFFIXES = ("_emb.nii.gz", "_emb.nii")
FORMAT_VERSION = 1
#: The key of the safetensors metadata under which the header stands as JSON.
_KEY = "maisi_latent"
_Affine = list[list[float]]


class LatentHeader(BaseModel):
    """What a stored latent says about itself.

    Attributes:
        version: Layout of the file.
        affine: ``(4, 4)``, latent voxel index to RAS+ mm.
        image_affine: ``(4, 4)``, voxel index of the encoded image to RAS+ mm.
        image_shape: Voxels ``(X, Y, Z)`` of the encoded image.
        image_spacing: Its voxel size in mm.
        autoencoder_sha256: Of the weights that encoded it.
        source: Name of the image's file.
        source_sha256: Of that file, and of its label's.
        label_sha256: ``None`` where there was no label.
        modality: Name or class code.
        mirrored: Whether the patient was mirrored before encoding.
        precision: Type in which it was asked to be stored.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)] = FORMAT_VERSION
    affine: _Affine
    image_affine: _Affine
    image_shape: tuple[int, int, int]
    image_spacing: tuple[float, float, float]
    autoencoder_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    source: str
    source_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    label_sha256: str | None = None
    modality: str | int
    mirrored: bool = False
    precision: Literal["float16", "float32"] = "float16"

    @property
    def image_grid(self) -> Grid:
        """Where the voxels of the encoded image lay."""
        return Grid(self.image_shape, check_affine(np.asarray(self.image_affine), "stored latent"))


def is_latent(path: Path) -> bool:
    """Whether a file is a stored latent, by its name."""
    return path.name.lower().endswith((SUFFIX, *PUBLISHED_SUFFIXES))


def stored_beside(image: Path) -> Path | None:
    """The stored latent of an image, in the same folder; ``None`` where there is none."""
    name = image.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".nrrd")
    paths = (image.with_name(name + suffix) for suffix in (SUFFIX, *PUBLISHED_SUFFIXES))
    return next((path for path in paths if path.is_file()), None)


def latent_grid(image: Grid, factor: int) -> Grid:
    """Where the latent voxels of an image lie: each stands for ``factor`` image voxels along every axis."""
    affine = image.affine.copy()
    affine[:3, :3] *= factor
    affine[:3, 3] += image.affine[:3, :3] @ np.full(3, (factor - 1) / 2)
    x, y, z = (n // factor for n in image.shape)
    return Grid((x, y, z), affine)


def write_latent(path: Path, mean: torch.Tensor, deviation: torch.Tensor, header: LatentHeader) -> None:
    """Writes a posterior, as a whole or not at all.

    Args:
        path: The file.
        mean: ``(C, x, y, z)``, not scaled.
        deviation: The same shape.
        header: Origin, geometry and precision. What float16 cannot hold keeps float32.

    Raises:
        FailedTrainingError: The autoencoder gave NaN or infinity.
        OutputError: The file cannot be written.
    """
    import torch
    from safetensors.torch import save_file

    from MAISILib.files.atomic import atomic_path

    tensors = {"mean": mean, "deviation": deviation}
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            source = header.source
            raise FailedTrainingError(f"{path}: not written: the autoencoder's {name} of {source} is NaN or infinite.")
        narrow = value.to(getattr(torch, header.precision))
        tensors[name] = (narrow if bool(torch.isfinite(narrow).all()) else value.float()).contiguous()
    with atomic_path(path) as temporary:
        save_file(tensors, str(temporary), {_KEY: header.model_dump_json()})
        temporary.chmod(0o644)  # safetensors writes files that only their owner may read


def read_header(path: Path) -> LatentHeader:
    """What a ``_emb.safetensors`` file says about itself; the tensors are not read.

    Raises:
        FileFormatError: Missing, damaged, no stored latent, or of a newer version.
    """
    with _opened(path, "numpy") as file:
        return _header(path, file.metadata() or {})


def read_posterior(path: Path) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mean and deviation ``(C, x, y, z)``, not scaled, in the type that the file has.

    A published ``_emb.nii.gz`` holds a sample: it is given as mean, without deviation.

    Raises:
        FileFormatError: Missing, damaged, or no stored latent.
    """
    if path.name.lower().endswith(PUBLISHED_SUFFIXES):
        return _read_published(path), None
    from safetensors import SafetensorError

    with _opened(path) as file:
        _header(path, file.metadata() or {})
        try:
            mean, deviation = file.get_tensor("mean"), file.get_tensor("deviation")
        except SafetensorError as error:
            raise FileFormatError(f"{path} is no stored latent ({error}). Encode the images again.") from None
    if mean.ndim != 4 or mean.shape != deviation.shape or not mean.is_floating_point():
        raise FileFormatError(
            f"{path}: mean {tuple(mean.shape)} and deviation {tuple(deviation.shape)} are no (C, x, y, z) of one size."
        )
    for value in (mean, deviation):
        if not bool(value.isfinite().all()):
            raise FileFormatError(f"{path} holds NaN or infinity. Encode the image again.")
    return mean, deviation


def check_latent(path: Path, label: Grid | None) -> None:
    """Opens a stored latent's header and compares it with the grid of its label map.

    Raises:
        FileFormatError: No usable latent, or a label map of another size or place.
    """
    if path.name.lower().endswith(PUBLISHED_SUFFIXES):
        from MAISILib.files.images import read_grid

        shape = read_grid(path).shape
        if label is not None:
            check_label_shape(shape, label.shape, path)
        return
    header = read_header(path)
    if label is not None and not header.image_grid.same_as(label, 0.1 * min(header.image_spacing)):
        raise FileFormatError(
            f"{path}: its label map ({label.shape} voxels of {label.spacing} mm) does not lie where the encoded image "
            f"lay ({header.image_shape} voxels of {header.image_spacing} mm). Encode the images again."
        )


def check_label_shape(latent: tuple[int, ...], label: tuple[int, ...], path: Path) -> None:
    """Makes sure that a label map has the same whole number of voxels per latent voxel along every axis.

    Raises:
        FileFormatError: It does not.
    """
    factors = {n / m for n, m in zip(label, latent, strict=True)}
    if len(factors) != 1 or not next(iter(factors)).is_integer():
        raise FileFormatError(
            f"{path} has {latent} latent voxels and its label map {label} voxels: not the same whole number for each "
            "along every axis. Give the label map on the grid of the encoded image."
        )


def read_sidecar(path: Path) -> dict[str, Any]:
    """What the published scripts write beside a latent, ``<name>_emb.nii.gz.json``; empty where there is none.

    Raises:
        FileFormatError: It is there and is no JSON object.
    """
    side = path.with_name(path.name + ".json")
    if not side.is_file():
        return {}
    return read_json_object(side, "Remove it, or write it again.")


def _read_published(path: Path) -> torch.Tensor:
    import torch

    from MAISILib.files.checks import check_finite
    from MAISILib.files.nifti import read_array

    array, _ = read_array(path, channels=True)
    if array.ndim != 4:
        raise FileFormatError(f"{path} has {array.ndim} axes; a stored latent has four, channels last.")
    check_finite(array, path)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 0), dtype=np.float32))


@contextmanager
def _opened(path: Path, framework: str = "pt") -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    from MAISILib.files.checks import check_is_file, unreadable

    check_is_file(path)
    try:
        with safe_open(str(path), framework=framework) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error


def _header(path: Path, metadata: dict[str, str]) -> LatentHeader:
    if _KEY not in metadata:
        raise FileFormatError(f"{path} is no stored latent: its metadata does not say how it was made. Encode again.")
    try:
        return LatentHeader.model_validate_json(metadata[_KEY])
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise FileFormatError(
            f"{path}: field '{field}' of the stored latent: {problem['msg']}. Encode the image again, or update."
        ) from None
