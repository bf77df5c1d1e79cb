"""Finds images and their segmentations in a plain folder by their names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from MAISILib.errors import FileFormatError

#: What a file's name may end with, longest first.
_SUFFIXES = (".seg.nrrd", ".safetensors", ".nii.gz", ".nii", ".nrrd", ".nhdr")
_LABEL_MARKS = ("_seg", "_label", "_labels", "_mask")
#: ``_0000`` is nnU-Net's first channel, ``_emb`` a stored latent.
_IMAGE_MARKS = ("_ct", "_image", "_emb", "_0000")
#: A folder for each patient or sample holds files that are called what they are, as `maisi generate` writes them.
_BARE_LABELS = ("seg", "label", "labels", "mask")
_BARE_IMAGES = ("ct", "image")
_SPLITS = {"train": False, "training": False, "val": True, "validation": True}


@dataclass(frozen=True)
class Pair:
    """An image and, where there is one, its segmentation; ``modality`` where the name tells it."""

    name: str
    image: Path
    label: Path | None
    modality: str | None


def core_name(path: Path) -> str:
    """What image, segmentation and latent of one patient have in common: ``pt_1`` of ``pt_1_ct.nii.gz``.

    Of ``sample-0000/image.nii.gz`` it is the folder's name.
    """
    stem = _stem(path)
    if stem.lower() in (*_BARE_LABELS, *_BARE_IMAGES) and path.parent.name:
        return path.parent.name
    for mark in (*_IMAGE_MARKS, *_LABEL_MARKS):
        if stem.lower().endswith(mark) and len(stem) > len(mark):
            return stem[: -len(mark)]
    return stem


def folder_splits(folder: Path) -> list[tuple[Path, bool]]:
    """The folders that hold images, and whether they are held out: ``train`` and ``validation``, or itself."""
    parts = [(part, _SPLITS[part.name.lower()]) for part in sorted(folder.iterdir()) if part.name.lower() in _SPLITS]
    parts = [(part, held_out) for part, held_out in parts if part.is_dir()]
    return parts if any(not held_out for _, held_out in parts) else [(folder, False)]


def find_pairs(folder: Path) -> tuple[list[Pair], list[str]]:
    """Pairs in one folder, in natural order of their names, and what is wrong with the rest.

    ``X_ct``/``X_seg``, ``X``/``X_seg`` (or ``_label``, ``_mask``, ``.seg.nrrd``), or ``imagesTr``/``labelsTr`` with or
    without ``_0000``; of several channels of one patient the first. An image without a segmentation is a pair too.

    Raises:
        FileFormatError: There is no image at all.
    """
    if (folder / "imagesTr").is_dir():
        images, found = _files(folder / "imagesTr"), _files(folder / "labelsTr")
    else:
        images = [path for path in _files(folder) if not _is_label(path)]
        found = [path for path in _files(folder) if _is_label(path)]
    labels, problems = _by_name(found)
    stems = {_stem(path) for path in images}
    images = [path for path in images if not _is_further_channel(path, stems)]
    if not images:
        raise FileFormatError(
            f"{folder} holds no images. Give a folder with pairs (X_ct.nii.gz and X_seg.nii.gz, or imagesTr and "
            "labelsTr), or a datalist (JSON)."
        )
    pairs = [
        Pair(core_name(p), p, labels.get(core_name(p)), "ct" if _stem(p).lower().endswith("_ct") else None)
        for p in sorted(images, key=natural_order)
    ]
    alone = sorted(labels.keys() - {pair.name for pair in pairs})
    return pairs, problems + [f"{labels[name]} has no image." for name in alone]


def _by_name(labels: list[Path]) -> tuple[dict[str, Path], list[str]]:
    first: dict[str, Path] = {}
    problems = []
    for path in sorted(labels, key=natural_order):
        if first.setdefault(core_name(path), path) is not path:
            problems.append(f"{path} and {first[core_name(path)].name} are segmentations of one image; keep one.")
    return first, problems


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [p for p in folder.iterdir() if p.name.lower().endswith(_SUFFIXES) and p.name[0] != "." and p.is_file()]


def _stem(path: Path) -> str:
    suffix = next((s for s in _SUFFIXES if path.name.lower().endswith(s)), path.suffix)
    return path.name[: len(path.name) - len(suffix)]


def _is_label(path: Path) -> bool:
    stem = _stem(path).lower()
    return path.name.lower().endswith(".seg.nrrd") or stem.endswith(_LABEL_MARKS) or stem in _BARE_LABELS


def _is_further_channel(path: Path, stems: set[str]) -> bool:
    """Whether this is channel 1, 2, … of a patient whose channel 0 is there."""
    match = re.fullmatch(r"(.+)_(\d{4})", _stem(path))
    return match is not None and match[2] != "0000" and f"{match[1]}_0000" in stems


def natural_order(path: Path) -> list[tuple[int, str]]:
    """A key that sorts pt_2 before pt_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]
