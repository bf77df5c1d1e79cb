"""The index of a mask library: which masks there are and what they hold.

Two formats are read. Ours, ``{"format": "maisi-mask-library", "version": 1, "masks": [...]}``, gives for each mask its
``file`` (relative to the index), ``size``, ``spacing``, ``labels``, ``top_region`` and ``bottom_region``. The published
one is a JSON list with ``pseudo_label_filename``, ``dim``, ``spacing``, ``label_list`` and, for the model with region
input, ``top_region_index`` and ``bottom_region_index`` (one-hot).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from MAISILib.anatomy.masks import REGION_LABELS, REGIONS, BodyRegions
from MAISILib.errors import FileFormatError

FORMAT, VERSION = "maisi-mask-library", 1


@dataclass(frozen=True)
class MaskEntry:
    """One mask of the library, as the index describes it.

    Args:
        file: Path relative to the library folder.
        size: Number of voxels ``(X, Y, Z)`` in the file.
        spacing: Voxel size in mm.
        labels: Label values in the mask.
        regions: Top-most and bottom-most body region; ``None`` where nothing tells them.
    """

    file: str
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    labels: frozenset[int]
    regions: BodyRegions | None

    @property
    def field_of_view(self) -> tuple[float, float, float]:
        """Extent in mm along the three voxel axes."""
        x, y, z = (n * s for n, s in zip(self.size, self.spacing, strict=True))
        return x, y, z


def read_index(index_path: Path, format: str) -> list[MaskEntry]:
    """The masks of an index file of format ``"maisi"`` or ``"published"``; ``"auto"`` takes the one that it has.

    Raises:
        FileFormatError: The index is missing, is not of this format or version, or an entry is wrong or points outside
            of its folder.
    """
    try:
        content = json.loads(index_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileFormatError(f"The mask library {index_path} is missing. Download or build it again.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as problem:
        raise FileFormatError(f"The mask library {index_path} cannot be read as JSON: {problem}.") from None
    if format == "auto":
        format = "published" if isinstance(content, list) else "maisi"
    rows = _rows(content, format, index_path)
    read = _own_entry if format == "maisi" else _published_entry
    entries = []
    for number, row in enumerate(rows, start=1):
        where = f"{index_path}, mask {number}"
        if not isinstance(row, dict):
            raise FileFormatError(f"{where}: an object is needed, got {type(row).__name__}.")
        entries.append(read(row, where))
    if not entries:
        raise FileFormatError(f"The mask library {index_path} holds no masks. Download or build it again.")
    return entries


def _rows(content: Any, format: str, path: Path) -> list[Any]:
    if format == "published":
        if not isinstance(content, list):
            raise FileFormatError(f"{path} is not a published mask list: it holds no JSON list.")
        return content
    if format != "maisi":
        raise FileFormatError(f"Mask libraries are of format 'maisi' or 'published'; got {format!r}.")
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("masks"), list):
        raise FileFormatError(f'{path} is not a mask library: it lacks "format": "{FORMAT}" or its list of masks.')
    version = content.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        advice = "It was made by a newer version of MAISI for Slicer; update." if newer else "Build the library again."
        raise FileFormatError(f"{path} has version {version!r}; this program reads version {VERSION}. {advice}")
    return content["masks"]


def _own_entry(row: Mapping[str, Any], where: str) -> MaskEntry:
    labels = _labels(row, "labels", where)
    regions = (row.get("top_region"), row.get("bottom_region"))
    if any(word is not None and word not in REGIONS for word in regions):
        raise FileFormatError(f"{where}: the body regions {regions} are not of {', '.join(REGIONS)}.")
    told = None if None in regions else BodyRegions(*regions)  # type: ignore[arg-type]
    return MaskEntry(_file(row, "file", where), *_geometry(row, "size", where), labels, told or _regions_from(labels))


def _published_entry(row: Mapping[str, Any], where: str) -> MaskEntry:
    labels = _labels(row, "label_list", where)
    ends = []
    for key in ("top_region_index", "bottom_region_index"):
        hot = row.get(key)
        if hot is None:
            continue
        if not isinstance(hot, list) or sorted(hot) != [0, 0, 0, 1]:
            raise FileFormatError(f"{where}: {key} {hot!r} is not a list of three zeros and a one.")
        ends.append(REGIONS[hot.index(1)])
    told = BodyRegions(*ends) if len(ends) == 2 else None
    file = _file(row, "pseudo_label_filename", where)
    return MaskEntry(file, *_geometry(row, "dim", where), labels, told or _regions_from(labels))


def _regions_from(labels: frozenset[int]) -> BodyRegions | None:
    present = [region for region in REGIONS if labels & set(REGION_LABELS[region])]
    return BodyRegions(present[0], present[-1]) if present else None


def _file(row: Mapping[str, Any], key: str, where: str) -> str:
    """A path that stays in the library folder, as written in the index."""
    file = row.get(key)
    if not isinstance(file, str) or not file or "\0" in file:
        raise FileFormatError(f"{where}: {key} {file!r} is not a file name.")
    windows, posix = PureWindowsPath(file), PurePosixPath(file)
    if windows.drive or windows.root or posix.is_absolute() or ".." in windows.parts:
        raise FileFormatError(
            f"{where}: {key} {file!r} leads out of the library folder. Only relative paths below it are read."
        )
    return windows.as_posix()


def _geometry(
    row: Mapping[str, Any], size_key: str, where: str
) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    size, spacing = row.get(size_key), row.get("spacing")
    if not _three(size) or not all(float(n).is_integer() and n >= 1 for n in size):  # type: ignore[union-attr]
        raise FileFormatError(f"{where}: {size_key} {size!r} is not three whole numbers from 1.")
    if not _three(spacing) or not all(math.isfinite(s) and s > 0 for s in spacing):  # type: ignore[union-attr]
        raise FileFormatError(f"{where}: spacing {spacing!r} is not three positive numbers of mm.")
    return tuple(int(n) for n in size), tuple(float(s) for s in spacing)  # type: ignore[return-value,union-attr]


def _three(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(n) in (int, float) for n in value)


def _labels(row: Mapping[str, Any], key: str, where: str) -> frozenset[int]:
    values = row.get(key)
    if not isinstance(values, list) or not all(type(v) in (int, float) and v in range(256) for v in values):
        raise FileFormatError(f"{where}: {key} {str(values)[:80]!r} is not a list of labels 0–255.")
    return frozenset(int(v) for v in values if v)
