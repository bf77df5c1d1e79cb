"""Encodes images once, so that a diffusion model can be trained on their latents; what is there already is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from MAISILib.anatomy.grids import SPACING_TOLERANCE
from MAISILib.errors import FileFormatError, MaskError, RequestError
from MAISILib.files.checks import file_sha256
from MAISILib.generation.progress import CancelToken, OnProgress, Progress, silent
from MAISILib.training.datalist import LATENTS_NAME, DataItem, Datalist, check_same_place, write_datalist
from MAISILib.training.images import AIR_HU, centred
from MAISILib.training.latent_files import SUFFIX, LatentHeader, is_latent, latent_grid, read_header, write_latent
from MAISILib.training.mirroring import mirrored_image, mirrored_labels
from MAISILib.training.modalities import is_ct, modality_code
from MAISILib.volumes import Grid, LabelMap, Volume

if TYPE_CHECKING:
    from MAISILib.anatomy.labels import LabelTable
    from MAISILib.bundles.bundle import Bundle
    from MAISILib.codec.codec import Codec

MASK_SUFFIX = "_mask.nii.gz"
MIRRORED_SUFFIX = "-mirrored"


@dataclass(frozen=True)
class GridRule:
    """Which voxels images are resampled to before they are encoded. Axes run along R, A and S as nearly as they did.

    Args:
        keep: Keep the voxels; only fill up with air to a multiple of ``step``.
        size: Voxels ``(X, Y, Z)``. Without ``spacing`` they cover the image's extent, as published.
        spacing: Voxel size in mm. Without ``size`` there are as many as cover the image, rounded up to ``step``.
        step: Along every axis the number of voxels is a multiple of it. Without ``size`` and ``spacing``: the multiple
            that is nearest to the image's own number, over the image's extent (published: 128). ``None`` takes the
            bundle's step; where there is no bundle, images are encoded as they are.
    """

    keep: bool = False
    size: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    step: int | None = None

    def __post_init__(self) -> None:
        if self.keep and (self.size or self.spacing):
            raise RequestError("Keeping the voxels and giving a size or spacing contradict each other. Give one.")
        positive = [*(self.size or ()), *(self.spacing or ()), *(() if self.step is None else (self.step,))]
        if not all(math.isfinite(value) and value > 0 for value in positive):
            raise RequestError(f"Sizes and spacings must be positive; got size {self.size}, spacing {self.spacing} mm.")
        if self.size and self.step and any(n % self.step for n in self.size):
            raise RequestError(f"Size {self.size}: each number must be divisible by {self.step}.")

    def of(self, image: Grid) -> Grid:
        """The grid for an image whose axes run along R, A and S as nearly as without interpolation."""
        if self.size is not None:
            extent = image.field_of_view
            x, y, z = self.spacing or (mm / n for mm, n in zip(extent, self.size, strict=True))
            return centred(image, self.size, (x, y, z))
        if self.spacing is not None and not np.allclose(self.spacing, image.spacing, rtol=SPACING_TOLERANCE):
            step = self.step or 1
            counts = (mm / s / step for mm, s in zip(image.field_of_view, self.spacing, strict=True))
            x, y, z = (math.ceil(n - SPACING_TOLERANCE) * step for n in counts)
            return centred(image, (x, y, z), self.spacing)
        if self.keep or self.spacing is not None or self.step is None:
            return self._filled(image)
        x, y, z = (max(1, math.floor(n / self.step + 0.5)) * self.step for n in image.shape)
        return replace(self, size=(x, y, z)).of(image)

    def _filled(self, grid: Grid) -> Grid:
        step = self.step or 1
        x, y, z = (math.ceil(n / step) * step for n in grid.shape)
        first = [-((new - old) // 2) for new, old in zip((x, y, z), grid.shape, strict=True)]
        affine = grid.affine.copy()  # voxels stay where they are: nothing is interpolated
        affine[:3, 3] += affine[:3, :3] @ np.asarray(first)
        return Grid((x, y, z), affine)


@dataclass(frozen=True)
class Encoded:
    """What was done.

    Args:
        datalist: ``latents.json``, which names all of it.
        encoded: Names encoded now.
        kept: Names that were there already.
        skipped: Why others were left out.
    """

    datalist: Path
    encoded: tuple[str, ...]
    kept: tuple[str, ...]
    skipped: tuple[str, ...]


def grid_step(bundle: Bundle) -> int:
    """The number that all sizes which a bundle was trained on are multiples of; at least what its networks need.

    From the manifest's limits: 128 for the published models (their latents were made so), ``size_divisor`` for bundles
    that allow any size.
    """
    limits = bundle.manifest.limits
    sizes = [*limits.size_x, *limits.size_y, *limits.size_z, *(n for t in limits.size_triples or () for n in t)]
    return math.lcm(bundle.size_divisor, math.gcd(*sizes)) if sizes else bundle.size_divisor


def check_request(bundle: Bundle, grid: GridRule, modality: str | int | None = None) -> None:
    """Finds out what is wrong with a request before images are looked at. PyTorch is not loaded.

    Raises:
        RequestError: A size that the bundle's networks cannot take, or an unknown modality.
        BundleError: The autoencoder's weights are missing or damaged.
    """
    if grid.size and any(n % bundle.size_divisor for n in grid.size):
        wanted = tuple(max(1, round(n / bundle.size_divisor)) * bundle.size_divisor for n in grid.size)
        raise RequestError(
            f"Size {grid.size}: '{bundle.name}' needs multiples of {bundle.size_divisor}. Nearest: {wanted}."
        )
    if modality is not None:
        modality_code(modality, bundle.manifest.modality)
    bundle.check_file("autoencoder")


def encode_items(
    coder: Bundle | Codec,
    data: Datalist,
    out: Path,
    *,
    autoencoder_sha256: str | None = None,
    table: LabelTable | None = None,
    grid: GridRule | None = None,
    modality: str | int | None = None,
    mirrored: bool = False,
    precision: Literal["float16", "float32"] = "float16",
    device: str = "cpu",
    memory: int | None = None,
    skip_bad: bool = False,
    on_skip: Callable[[str], None] = lambda message: None,
    on_progress: OnProgress = silent,
    cancel: CancelToken | None = None,
) -> Encoded:
    """Writes ``<name>_emb.safetensors``, ``<name>_mask.nii.gz`` for images with a label, and ``latents.json``.

    A latent is kept where it was made from the same files by the same autoencoder on the same grid. Every file appears
    as a whole, so that a run that was broken off goes on where it stopped.

    Args:
        coder: A bundle, or an autoencoder in a codec (whose scale factor plays no part).
        data: Images with their labels.
        out: Folder.
        autoencoder_sha256: Of the codec's weights; a bundle knows its own.
        table: What labels mean, for mirroring; the bundle's, or the public one.
        grid: Which voxels; default is nearest multiple of :func:`grid_step` for bundles, and for codecs as they are.
        modality: Of images that do not say; the bundle's first, else CT.
        mirrored: Also encode every training patient mirrored, as ``<name>-mirrored``, left and right labels exchanged:
            the latent of a mirrored image is not the mirrored latent.
        precision: Type in which latents are stored.
        device: Where a bundle's autoencoder runs; a codec has its own.
        memory: Bytes that the process may fill; all that is free by default. Images that do not fit are encoded in
            tiles, with the same outcome but for rounding.
        skip_bad: Go on without images that cannot be read.
        on_skip: Called with the reason for each of them.
        on_progress: Hears of every image: stage ``encode``.
        cancel: Stops at the next tile.

    Returns:
        What was done.

    Raises:
        FileFormatError: Images that cannot be used: all of them are named, after the others have been encoded.
        RequestError: An image is named like what the mirrored patient of another is called.
        BundleError: The autoencoder cannot be loaded.
        OutOfMemory: An image is too large for the memory, also in tiles. Nothing was allocated for it.
        OutputError: The folder cannot be written.
        Cancelled: On request.
    """
    work = _Work(coder, out, autoencoder_sha256, table, grid, modality, mirrored, precision, device, memory, cancel)
    jobs = list(work.jobs(data))
    _check_names_apart(jobs)
    done: dict[bool, list[str]] = {True: [], False: []}
    entries: dict[bool, list[DataItem]] = {True: [], False: []}
    problems: list[str] = []
    for number, (item, is_mirrored, held_out) in enumerate(jobs):
        work.cancel.check()
        on_progress(Progress("encode", number, len(jobs), _stored_name(item, is_mirrored)))
        try:
            entry, was_there = work.encode(item, is_mirrored)
        except (FileFormatError, MaskError, RequestError) as error:
            problems.append(f"{item.name}: {error}")
            continue
        done[was_there].append(entry.name)
        entries[held_out].append(entry)
    problems = list(dict.fromkeys(problems))
    if problems and not (skip_bad and (done[True] or done[False])):
        listed = " ".join(f"({number}) {text}" for number, text in enumerate(problems, 1))
        raise FileFormatError(f"{len(problems)} images cannot be encoded; the others are done. {listed}")
    for problem in problems:
        on_skip(problem)
    path = write_datalist(out / LATENTS_NAME, entries[False], entries[True])
    on_progress(Progress("encode", len(jobs), len(jobs), "done"))
    return Encoded(path, tuple(done[False]), tuple(done[True]), tuple(problems))


class _Work:
    """Encodes one item after the other with the same settings; loads the autoencoder when it is first needed."""

    def __init__(
        self,
        coder: Bundle | Codec,
        out: Path,
        autoencoder_sha256: str | None,
        table: LabelTable | None,
        grid: GridRule | None,
        modality: str | int | None,
        mirrored: bool,
        precision: Literal["float16", "float32"],
        device: str,
        memory: int | None,
        cancel: CancelToken | None,
    ) -> None:
        from MAISILib.anatomy.labels import default_table
        from MAISILib.bundles.bundle import Bundle

        self.cancel = cancel or CancelToken()
        self._out, self._mirrored, self._device, self._memory = out, mirrored, device, memory
        self._precision: Literal["float16", "float32"] = precision
        self._names: Mapping[str, int] = {}
        rule = grid or GridRule()
        if isinstance(coder, Bundle):
            check_request(coder, rule, modality)
            self._bundle, self._codec = coder, None
            self._sha256 = autoencoder_sha256 or file_sha256(coder.check_file("autoencoder"))
            self._names = coder.manifest.modality
            free = rule.keep or rule.size or rule.spacing
            step = coder.size_divisor if free else grid_step(coder)
            self._rule = replace(rule, step=rule.step or step)
            self._table = table or coder.labels
            self._modality = next(iter(self._names)) if modality is None else modality
        else:
            self._bundle, self._codec = None, coder
            if autoencoder_sha256 is None:
                raise RequestError("Encoding with a codec needs the SHA-256 of its weights: latents are known by it.")
            self._sha256, self._rule = autoencoder_sha256, rule
            self._table = table or default_table()
            self._modality = "ct" if modality is None else modality
        modality_code(self._modality, self._names)

    def jobs(self, data: Datalist) -> Iterator[tuple[DataItem, bool, bool]]:
        """Item, whether it is mirrored, whether it is held out. Held-out patients are never mirrored."""
        for item in data.training:
            for is_mirrored in (False, True) if self._mirrored else (False,):
                yield item, is_mirrored, False
        for item in data.validation:
            yield item, False, True

    def encode(self, item: DataItem, is_mirrored: bool) -> tuple[DataItem, bool]:
        """The entry of a latent, and whether it was there already."""
        from MAISILib.files.images import read_grid
        from MAISILib.resampling import canonical_grid

        if is_latent(item.image):
            raise FileFormatError(f"{item.image} is a stored latent already. Give the images.")
        named = self._modality if item.modality is None else item.modality
        code = modality_code(named, self._names)
        target = self._rule.of(canonical_grid(read_grid(item.image)))
        name = _stored_name(item, is_mirrored)
        path, mask_path = self._out / f"{name}{SUFFIX}", self._out / f"{name}{MASK_SUFFIX}"
        header = LatentHeader(
            affine=target.affine.tolist(),  # until the latent tells how many voxels it stands for
            image_affine=target.affine.tolist(),
            image_shape=target.shape,
            image_spacing=target.spacing,
            autoencoder_sha256=self._sha256,
            source=item.image.name,
            source_sha256=file_sha256(item.image),
            label_sha256=None if item.label is None else file_sha256(item.label),
            modality=named,
            mirrored=is_mirrored,
            precision=self._precision,
        )
        was_there = _is_there(path, header) and (item.label is None or mask_path.is_file())
        labels = None
        if not was_there or (item.label is not None and item.top_region_index is None):
            labels = self._labels(item, target, is_mirrored, mask_path, was_there)
        if not was_there:
            self._write(item, target, is_ct(code), path, header)
        fields: dict[str, Any] = {"dim": target.shape, "spacing": target.spacing, "modality": named}
        if labels is not None and item.top_region_index is None:
            fields |= _regions(labels)
        label = None if item.label is None else mask_path
        return replace(item, name=name, image=path, label=label, **fields), was_there

    def _labels(self, item: DataItem, target: Grid, is_mirrored: bool, path: Path, was_there: bool) -> LabelMap | None:
        """The item's label map on the target grid, written where it is not there yet."""
        from MAISILib.files.images import read_grid, read_mask
        from MAISILib.files.nifti import write_labels
        from MAISILib.resampling import resample_labels

        if item.label is None:
            return None
        if was_there:
            return read_mask(path, self._table)
        mask = read_mask(item.label, self._table)
        check_same_place(read_grid(item.image), mask.grid, item)
        mask = resample_labels(mask, target)
        if is_mirrored:
            mask = mask.with_array(mirrored_labels(mask.array, self._table))
        write_labels(mask, path, item.name, synthetic=False)
        return mask

    def _write(self, item: DataItem, target: Grid, ct: bool, path: Path, header: LatentHeader) -> None:
        from MAISILib.codec.codec import IntensityScale
        from MAISILib.files.images import read_image
        from MAISILib.resampling import resample_volume, to_canonical
        from MAISILib.training.encoding_memory import way_to_encode

        volume = read_image(item.image, "HU" if ct else "arbitrary", 0)
        fill = AIR_HU if ct else float(volume.array.min())
        volume = resample_volume(Volume(*to_canonical(volume.array, volume.affine), volume.units), target, fill=fill)
        array = mirrored_image(volume.array) if header.mirrored else volume.array
        codec, scale = self._loaded(), None if ct else IntensityScale("mr")
        how = way_to_encode(codec, array.shape, self._memory)
        posterior = codec.posterior(array, scale, how, on_tile=lambda done, total: self.cancel.check())
        mean, deviation = (value[0] for value in posterior)
        factors = {n / m for n, m in zip(array.shape, mean.shape[1:], strict=True)}
        factor = int(next(iter(factors)))
        if factors != {factor}:
            raise RequestError(
                f"{item.image}: {array.shape} voxels are no multiple of what a latent voxel of this autoencoder stands "
                f"for (it made {tuple(mean.shape[1:])}). Give a size or a step."
            )
        affine = latent_grid(target, factor).affine.tolist()
        write_latent(path, mean, deviation, header.model_copy(update={"affine": affine}))

    def _loaded(self) -> Codec:
        if self._codec is None:
            from MAISILib.codec.codec import Codec, IntensityScale

            assert self._bundle is not None
            intensity = self._bundle.manifest.intensity
            scale = IntensityScale("ct", intensity.low, intensity.high) if intensity.kind == "ct" else IntensityScale()
            self._codec = Codec(self._bundle.load("autoencoder", self._device), 1.0, scale, device=self._device)
        return self._codec


def _stored_name(item: DataItem, is_mirrored: bool) -> str:
    return item.name + (MIRRORED_SUFFIX if is_mirrored else "")


def _check_names_apart(jobs: list[tuple[DataItem, bool, bool]]) -> None:
    taken: dict[str, Path] = {}
    for item, is_mirrored, _ in jobs:
        name = _stored_name(item, is_mirrored)
        other = taken.setdefault(name.casefold(), item.image)
        if other is not item.image:
            raise RequestError(f"Latents of {item.image} and {other} would both be named {name!r}. Rename one image.")


def _is_there(path: Path, wanted: LatentHeader) -> bool:
    """Whether a latent was made as wanted. A damaged or foreign file is not: it is made again."""
    if not path.is_file():
        return False
    try:
        found = read_header(path)
    except FileFormatError:
        return False
    geometry = {"affine", "image_affine", "image_spacing", "source"}
    same = found.model_dump(exclude=geometry) == wanted.model_dump(exclude=geometry)
    return same and np.allclose(found.image_affine, wanted.image_affine, atol=1e-4)


def _regions(labels: LabelMap) -> dict[str, Any]:
    """The one-hot regions of the published format; empty where no label tells them."""
    from MAISILib.anatomy.masks import REGIONS, regions_of

    found = regions_of(labels)
    if found is None:
        return {}
    one_hot = {name: tuple(int(name == region) for region in REGIONS) for name in REGIONS}
    return {"top_region_index": one_hot[found.top], "bottom_region_index": one_hot[found.bottom]}
