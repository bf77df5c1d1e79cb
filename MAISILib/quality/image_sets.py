"""A set of images to be measured: those of a folder and of the folders in it, or those that a text file lists."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from MAISILib.errors import FileFormatError, MaisiError, RequestError
from MAISILib.files.images import read_grid
from MAISILib.files.pairs import core_name, find_pairs, natural_order
from MAISILib.quality.counting import counted
from MAISILib.volumes import Grid

#: Spacings apart by less than this part count as the same: headers keep float32, and some programs round.
_SAME_SPACING = 0.01

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class ImageFile:
    """One image of a set.

    Args:
        name: Unique in its set: the path from the set's folder, without what tells the kind of file.
        path: The image.
        mask: Its label map, where one lies beside it.
    """

    name: str
    path: Path
    mask: Path | None = None


def find_images(source: Path | str, root: Path | str | None = None, limit: int | None = None) -> list[ImageFile]:
    """The images of a set, in natural order of their paths.

    Args:
        source: A folder (``X_ct``/``X_seg``, ``X``/``X_mask``, ``image``/``mask`` and the like, at any depth), a text
            file with one path in each line, or one image. Masks are found beside the images.
        root: What paths in a text file start from; its own folder where not given.
        limit: At most so many: the first ones.

    Raises:
        FileFormatError: There is nothing there, no image among it, or a listed file is missing; all of them are named.
        RequestError: ``limit`` is less than one.
    """
    source = Path(source)
    if limit is not None and limit < 1:
        raise RequestError(f"{limit} images cannot be measured. Ask for one at least.")
    if source.is_dir():
        found = _in_folder(source)
    elif source.suffix.lower() == ".txt":
        found = _in_list(source, Path(root) if root is not None else source.parent)
    elif source.is_file():
        beside = [image for image in _in_folder(source.parent) if image.path == source]
        found = beside or [ImageFile(core_name(source), source)]
    else:
        raise FileFormatError(f"{source} does not exist. Give a folder of images, or a text file that lists them.")
    return found[:limit]


def check_spacings(
    sets: Sequence[Sequence[ImageFile]], what_to_do: str, known: Sequence[tuple[Path, Spacing]] = ()
) -> tuple[Spacing | None, list[str]]:
    """Makes sure that all images have the same voxel size along R, A and S, to which they are turned.

    Args:
        sets: The images; only headers are read.
        what_to_do: Advice for the message.
        known: What has another source, and the voxel size there.

    Returns:
        The voxel size in mm along R, A and S, ``None`` without an image; and what is wrong with files that cannot be
        read, one message for each.

    Raises:
        RequestError: Two spacings differ; the message names an image of each.
    """
    problems: list[str] = []
    first: tuple[Path, Spacing] | None = None

    def spacings() -> Iterator[tuple[Path, Spacing]]:
        yield from known
        for image in (image for one in sets for image in one):
            try:
                yield image.path, _spacing_along_ras(read_grid(image.path))
            except MaisiError as error:
                problems.append(str(error))

    for path, spacing in spacings():
        first = first or (path, spacing)
        if any(abs(a - b) > _SAME_SPACING * b for a, b in zip(spacing, first[1], strict=True)):
            voxels = [" × ".join(f"{s:.4g}" for s in sizes) for sizes in (first[1], spacing)]
            raise RequestError(
                f"The images have different voxel sizes (along R, A, S): {first[0]} {voxels[0]} mm, {path} {voxels[1]} "
                f"mm. {what_to_do}"
            )
    return first and first[1], problems


def about(image: ImageFile, error: Exception) -> str:
    """What is wrong with an image; its path stands there once."""
    return str(error) if str(image.path) in str(error) else f"{image.path}: {error}"


def named(problems: Sequence[str], total: int) -> str:
    """One message about all files that cannot be used."""
    listed = " ".join(f"({number}) {text}" for number, text in enumerate(problems, 1))
    found = f"{len(problems)} of {counted(total, 'image')} cannot be used: {listed}"
    return f"{found} Repair them, or go on without them: --skip-bad, or a text file that lists the others."


def _spacing_along_ras(grid: Grid) -> Spacing:
    """Voxel size in mm along R, A and S, each of the voxel axis that lies nearest."""
    from nibabel.orientations import io_orientation

    along = io_orientation(grid.affine)[:, 0]
    x, y, z = (grid.spacing[int(axis)] for axis in along.argsort())
    return x, y, z


def _in_folder(folder: Path) -> list[ImageFile]:
    found: list[ImageFile] = []
    for inside, names, _ in os.walk(folder):
        names[:] = sorted((name for name in names if name[0] != "."), key=lambda name: natural_order(Path(name)))
        try:
            pairs, _ = find_pairs(Path(inside))
        except FileFormatError:  # no images in this one
            continue
        found += [ImageFile(_name(pair.image, folder), pair.image, pair.label) for pair in pairs]
        names[:] = [name for name in names if name not in ("imagesTr", "labelsTr")]
    if not found:
        raise FileFormatError(f"{folder} holds no images (.nii.gz, .nii, .nrrd, .nhdr), nor do the folders in it.")
    return _unique(found)


def _in_list(file: Path, root: Path) -> list[ImageFile]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(
            f"{file} cannot be read ({error}). Give a text file with one path in each line."
        ) from None
    paths = [root / line for line in lines if line and not line.startswith("#")]
    if not paths:
        raise FileFormatError(f"{file} lists no images. Write one path in each line.")
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        files = counted(len(missing), "file")
        raise FileFormatError(f"{file} lists {files} that cannot be found: {', '.join(missing)}.")
    masks: dict[Path, Path | None] = {}
    for folder in dict.fromkeys(path.parent for path in paths):
        with contextlib.suppress(FileFormatError):  # stored under names that tell nothing
            masks |= {pair.image: pair.label for pair in find_pairs(folder)[0]}
    return _unique([ImageFile(_name(path, root), path, masks.get(path)) for path in paths])


def _name(path: Path, folder: Path) -> str:
    place = path.parent.relative_to(folder) if path.is_relative_to(folder) else Path()
    core = core_name(path)
    return (place.parent if core == place.name else place).joinpath(core).as_posix()


def _unique(images: list[ImageFile]) -> list[ImageFile]:
    """The same with a number behind names that occur twice, as ``a.nii`` and ``a.nrrd`` have them."""
    counts, seen = Counter(image.name for image in images), Counter[str]()
    unique = []
    for image in images:
        seen[image.name] += 1
        name = f"{image.name}-{seen[image.name]}" if counts[image.name] > 1 else image.name
        unique.append(ImageFile(name, image.path, image.mask))
    return unique
