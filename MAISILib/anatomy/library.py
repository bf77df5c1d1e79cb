"""The mask library: ready-made masks, found by what they hold and by their size."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from MAISILib.anatomy.labels import LabelTable
from MAISILib.anatomy.library_index import FORMAT, VERSION, MaskEntry, read_index
from MAISILib.anatomy.masks import REGIONS, check_mask, region_name, regions_of
from MAISILib.errors import FileFormatError, MaskError, OutputError, RequestError
from MAISILib.volumes import LabelMap

INDEX_NAME, MASKS_NAME = "masks.json", "masks"
NIFTI = (".nii.gz", ".nii")
#: Voxel sizes that differ by less (relative) are the same.
EXACT = 1e-3
#: So many masks are named where none fits.
_NEAREST = 3


@dataclass(frozen=True)
class Candidate:
    """A mask that fits a search.

    Args:
        entry: The mask.
        exact: Whether it has the wanted size and voxel size, so that it needs no resampling.
        distance_mm: How far its field of view is from the wanted one (length of the difference over the three axes).
        reason: Why it was chosen, in words.
    """

    entry: MaskEntry
    exact: bool
    distance_mm: float
    reason: str


class MaskLibrary:
    """The masks of one index file. Use :meth:`open`.

    Args:
        folder: What the files are relative to; nothing outside is ever read.
        entries: The masks.
        table: What the labels mean.
        name: Shown in messages.
    """

    def __init__(self, folder: Path, entries: Sequence[MaskEntry], table: LabelTable, name: str) -> None:
        self.folder = folder
        self.entries = tuple(entries)
        self.table = table
        self.name = name

    def __len__(self) -> int:
        return len(self.entries)

    @classmethod
    def open(cls, index_path: Path, format: Literal["maisi", "published", "auto"], table: LabelTable) -> MaskLibrary:
        """Reads an index; no mask is loaded.

        Raises:
            FileFormatError: The index is missing, is not of this format or version, or an entry is wrong or points
                outside of its folder.
        """
        index_path = Path(index_path)
        entries = read_index(index_path, format)
        return cls(index_path.absolute().parent, entries, table, index_path.name)

    def search(
        self,
        labels: Sequence[int],
        size: Sequence[int] | None = None,
        spacing: Sequence[float] | None = None,
        *,
        field_of_view: Sequence[float] | None = None,
        tolerance: float = EXACT,
        body_regions: Sequence[str] | None = None,
        rng_seed: int = 0,
        limit: int = 10,
    ) -> list[Candidate]:
        """Masks that hold every requested anatomy, best first.

        A mask with a tumor is used only where that tumor is asked for. Masks of the wanted size and voxel size come
        first, then those with the nearest field of view; equally good ones are shuffled by the seed.

        Args:
            labels: Requested label values; empty for any.
            size: Wanted number of voxels ``(X, Y, Z)``.
            spacing: Wanted voxel size in mm. Size and spacing go together; without them every mask is equally good.
            field_of_view: Wanted extent in mm, instead of size and spacing.
            tolerance: Voxel sizes that differ by less (relative) count as the wanted one.
            body_regions: Regions that the mask must reach over: ``"head"``, ``"chest"``, ``"abdomen"``, ``"lower"``.
            rng_seed: Chooses among equally good ones.
            limit: At most so many.

        Raises:
            RequestError: A label is not in the table, a region is unknown, only one of size and spacing is given, or a
                field of view with them.
            MaskError: No mask fits; the message says which label is in none, how many masks have each, and which masks
                come nearest.
        """
        wanted = {self.table.find(value).value for value in labels}
        regions = [REGIONS.index(region_name(word)) for word in body_regions or ()]
        if (size is None) != (spacing is None):
            raise RequestError("A mask is searched by size and voxel size together; give both or neither.")
        if field_of_view is not None and size is not None:
            raise RequestError("Size and voxel size tell the field of view; give either these or that.")
        fitting = [entry for entry in self.entries if self._fits(entry, wanted, regions)]
        if not fitting:
            raise MaskError(f"{self._nothing_fits(wanted, body_regions or ())} {self._nearest(wanted, regions)}")
        candidates = [_candidate(entry, size, spacing, field_of_view, tolerance) for entry in fitting]
        random.Random(rng_seed).shuffle(candidates)
        candidates.sort(key=lambda c: (not c.exact, round(c.distance_mm, 3), _resampling(c.entry, spacing)))
        return candidates[:limit]

    def absence(self, found: Sequence[Candidate]) -> str:
        """Which of the masks found are not in the library's folder, and what to do; empty where all of them are.

        A published list comes with a zip of its masks, which is to be unpacked. Only the zip's own list is read here.

        Raises:
            FileFormatError: Masks are not there, and a zip beside the index cannot be unpacked.
        """
        from MAISILib.files.archives import opened_zip

        files = [candidate.entry.file for candidate in found]
        absent = [file for file in files if not os.path.isfile(self.folder / file)]
        if not absent:
            return ""
        told = f"{self.name}: {len(absent)} of the {len(files)} masks listed are not in {self.folder}."
        for archive in sorted(self.folder.glob("*.zip")):
            with opened_zip(archive) as (_, members):
                packed = {PurePosixPath(name).name for name, _ in members}
            if PurePosixPath(absent[0]).name in packed:
                return f"{told} Unpack {archive.name} so that {absent[0]} is there."
        return f"{told} Download them again, so that {absent[0]} is there."

    def load(self, candidate: Candidate | MaskEntry) -> LabelMap:
        """Reads the mask of a candidate.

        Raises:
            FileFormatError: The file is missing, lies outside of the library folder, or is not what the index says.
            MaskError: It holds labels that the table does not know.
        """
        from MAISILib.files.nifti import read_labels

        entry = candidate.entry if isinstance(candidate, Candidate) else candidate
        path = (self.folder / entry.file).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise FileFormatError(f"{self.name}: {entry.file!r} leads out of the library folder. It was not opened.")
        if not path.is_file():
            raise FileFormatError(
                f"{self.name}: the mask {entry.file!r} is missing from {self.folder}. Download it again."
            )
        mask = read_labels(path, self.table, source=f"{self.name}: {entry.file}")
        if mask.array.shape != entry.size:
            raise FileFormatError(
                f"{self.name}: {entry.file!r} has {_times(mask.array.shape)} voxels, the index says "
                f"{_times(entry.size)}. Download or build the library again."
            )
        if not _close(mask.spacing, entry.spacing):
            raise FileFormatError(
                f"{self.name}: {entry.file!r} has voxels of {_times(mask.spacing)} mm, the index says "
                f"{_times(entry.spacing)} mm. Download or build the library again."
            )
        check_mask(mask, self.table)
        lacking = sorted(entry.labels - set(mask.labels))
        if lacking:
            raise FileFormatError(
                f"{self.name}: {entry.file!r} lacks {', '.join(map(self.table.describe, lacking))}, which the index "
                "promises. Download or build the library again."
            )
        return mask

    def _fits(self, entry: MaskEntry, wanted: set[int], regions: Sequence[int]) -> bool:
        return wanted <= entry.labels and not self._tumors(entry) - wanted and _reaches_over(entry, regions)

    def _tumors(self, entry: MaskEntry) -> set[int]:
        return {value for value in entry.labels if value in self.table and self.table[value].is_tumor}

    def _nearest(self, wanted: set[int], regions: Sequence[int]) -> str:
        """The masks that lack the fewest of the anatomies, with what keeps them from fitting."""

        def obstacles(entry: MaskEntry) -> list[str]:
            lacking, tumors = sorted(wanted - entry.labels), sorted(self._tumors(entry) - wanted)
            told = [f"lacks {', '.join(self.table[v].name for v in lacking)}"] if lacking else []
            told += [f"has {', '.join(self.table[v].name for v in tumors)}"] if tumors else []
            if not _reaches_over(entry, regions):
                shown = " to ".join(dict.fromkeys(entry.regions)) if entry.regions else "no known region"
                told.append(f"shows {shown}")
            return told

        ranked = sorted(self.entries, key=lambda e: (len(wanted - e.labels), len(obstacles(e)), e.file))
        listed = "; ".join(f"{entry.file} ({'; '.join(obstacles(entry))})" for entry in ranked[:_NEAREST])
        return f"Nearest: {listed}."

    def _nothing_fits(self, wanted: set[int], words: Sequence[str]) -> str:
        counts = {value: sum(value in entry.labels for entry in self.entries) for value in sorted(wanted)}
        listed = ", ".join(f"{self.table[value].name}: {count}" for value, count in counts.items())
        missing = [self.table[value].name for value, count in counts.items() if not count]
        complete = [entry for entry in self.entries if wanted <= entry.labels]
        if missing:
            why = f"none of its {len(self)} masks has {', '.join(missing)} (masks with each: {listed})"
            advice = "Ask for something else, or bring a mask of your own."
        elif not complete:
            why = f"none of its {len(self)} masks has all of them at once (masks with each: {listed})"
            advice = "Ask for fewer, or bring a mask of your own."
        elif all(self._tumors(entry) - wanted for entry in complete):
            tumors = sorted({self.table[value].name for entry in complete for value in self._tumors(entry) - wanted})
            why = (
                f"its {len(complete)} masks with these labels have a tumor that was not asked for ({', '.join(tumors)})"
            )
            advice = "Ask for the tumor as well, or for other anatomies."
        else:
            why = f"none of the {len(complete)} masks with these labels reaches over {', '.join(words)}"
            advice = "Ask for fewer body regions."
        return f"The mask library {self.name!r} has no mask for this request: {why}. {advice}"


def build_library(masks: Path | Iterable[tuple[str, LabelMap]], folder: Path, table: LabelTable) -> Path:
    """Writes a mask library in our format: one uint8 NIfTI per mask, and the index.

    The library is made in a hidden folder inside ``folder`` and moved to its place when it is whole. Until then a
    library that is there already stays as it was; while files are moved there is no index. Masks of an earlier library
    that have other names stay, but are not in the index.

    Args:
        masks: A folder or a zip of ``.nii.gz`` or ``.nii`` masks, or pairs of name and mask.
        folder: Where to; made where it does not exist.
        table: What the labels mean.

    Returns:
        The path of the index, ``folder/masks.json``.

    Raises:
        MaskError: A mask is empty or has labels that the table does not know.
        FileFormatError: There are no masks, or one cannot be read.
        OutputError: A name is not a plain file name or occurs twice, or the folder cannot be written.
    """
    from MAISILib.files.atomic import output_error

    folder = Path(folder)
    is_new, staging = not folder.exists(), None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".maisi-", dir=folder))
        files = _written(masks, staging, table)
        index = folder / INDEX_NAME
        (folder / MASKS_NAME).mkdir(exist_ok=True)
        index.unlink(missing_ok=True)  # it must never list masks of which some are old and some are new
        for file in (*files, INDEX_NAME):
            os.replace(staging / file, folder / file)
    except OSError as error:
        raise output_error(folder, error) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return index


def _written(masks: Path | Iterable[tuple[str, LabelMap]], folder: Path, table: LabelTable) -> list[str]:
    """Writes masks and index into an empty folder; the masks' files, relative to it."""
    from MAISILib.files.atomic import write_text
    from MAISILib.files.nifti import write_labels

    pairs = masks if not isinstance(masks, Path) else (_from_folder if masks.is_dir() else _from_zip)(masks, table)
    rows: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    for name, mask in pairs:
        _check_name(name, names, name)
        check_mask(mask, table)
        file = f"{MASKS_NAME}/{name}.nii.gz"
        write_labels(mask, folder / file, description=mask.source or "mask library", synthetic=False)
        regions = regions_of(mask)
        rows[file] = {
            "file": file,
            "size": list(mask.array.shape),
            "spacing": [round(step, 6) for step in mask.spacing],
            "labels": mask.labels,
            "top_region": regions.top if regions else None,
            "bottom_region": regions.bottom if regions else None,
        }
    if not rows:
        where = f" in {masks}" if isinstance(masks, Path) else ""
        raise FileFormatError(f"There are no masks to build a library from{where}. Give .nii.gz label maps.")
    listed = ",\n  ".join(json.dumps(row) for row in rows.values())
    write_text(folder / INDEX_NAME, f'{{"format": "{FORMAT}", "version": {VERSION}, "masks": [\n  {listed}\n]}}\n')
    return list(rows)


def _check_name(name: str, earlier: dict[str, str], file: str) -> None:
    """Makes sure that a mask's name is a file name on every system and none of the earlier ones; notes its file."""
    plain = bool(name) and name[0] != "." and PureWindowsPath(name).name == name and not set(name) & set('<>:"|?*\0')
    if not plain:
        raise OutputError(f"{name!r} is not a plain file name. Name each mask with letters, digits, '-' and '_'.")
    if other := earlier.get(name.casefold()):
        raise OutputError(f"Two masks are named {name!r}: {other} and {file}. Give each mask a name of its own.")
    earlier[name.casefold()] = file


def _mask_name(file: str) -> str:
    return PurePosixPath(file).name.removesuffix(".gz").removesuffix(".nii")


def _from_folder(folder: Path, table: LabelTable) -> Iterable[tuple[str, LabelMap]]:
    from MAISILib.files.nifti import read_labels

    for path in sorted((*folder.glob("*.nii.gz"), *folder.glob("*.nii"))):
        yield _mask_name(path.name), read_labels(path, table)


def _from_zip(archive: Path, table: LabelTable) -> Iterable[tuple[str, LabelMap]]:
    """Unpacks one mask after the other, wherever in the archive it lies; the whole archive is tested before."""
    from MAISILib.files.archives import opened_zip, unpack_member
    from MAISILib.files.nifti import read_labels

    with tempfile.TemporaryDirectory() as scratch, opened_zip(archive) as (source, members):
        members = [(n, m) for n, m in members if n.lower().endswith(NIFTI) and not n.startswith("__MACOSX/")]
        names: dict[str, str] = {}
        for file, _ in members:
            _check_name(_mask_name(file), names, file)
        if damaged := source.testzip():
            raise FileFormatError(f"{archive}: {damaged!r} in it is damaged. Download or copy it again.")
        for file, member in members:
            path = Path(scratch, PurePosixPath(file).name)
            unpack_member(source, member, path)
            yield _mask_name(file), read_labels(path, table, f"{archive.name}: {file}")
            path.unlink()


def _reaches_over(entry: MaskEntry, regions: Sequence[int]) -> bool:
    if not regions or entry.regions is None:
        return not regions
    return REGIONS.index(entry.regions.top) <= min(regions) and REGIONS.index(entry.regions.bottom) >= max(regions)


def _candidate(
    entry: MaskEntry,
    size: Sequence[int] | None,
    spacing: Sequence[float] | None,
    field_of_view: Sequence[float] | None,
    tolerance: float,
) -> Candidate:
    if size is not None and spacing is not None:
        if tuple(size) == entry.size and _close(spacing, entry.spacing, tolerance):
            return Candidate(entry, True, 0.0, "size and voxel size are as asked for")
        field_of_view = [n * s for n, s in zip(size, spacing, strict=True)]
    if field_of_view is None:
        return Candidate(entry, False, 0.0, f"{_times(entry.size)} voxels of {_times(entry.spacing)} mm")
    view = field_of_view
    distance = math.dist(view, entry.field_of_view)
    reason = (
        f"{_times(entry.size)} voxels of {_times(entry.spacing)} mm; its field of view of "
        f"{_times(entry.field_of_view)} mm is {distance:.0f} mm from the {_times(view)} mm asked for"
    )
    return Candidate(entry, False, distance, reason)


def _resampling(entry: MaskEntry, spacing: Sequence[float] | None) -> float:
    """How much coarser or finer the voxels are than asked for: breaks ties between equal fields of view."""
    if spacing is None:
        return 0.0
    return round(sum(abs(math.log(a / b)) for a, b in zip(entry.spacing, spacing, strict=True)), 3)


def _close(first: Sequence[float], second: Sequence[float], tolerance: float = EXACT) -> bool:
    return all(math.isclose(a, b, rel_tol=tolerance) for a, b in zip(first, second, strict=True))


def _times(values: Sequence[float]) -> str:
    return " × ".join(f"{value:.4g}" for value in values)
