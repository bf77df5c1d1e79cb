"""Features of volumes on disk, one file for each: a run goes on where it stopped, and memory does not grow with it."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from MAISILib.errors import FileFormatError, RequestError
from MAISILib.files.atomic import atomic_path, output_error, write_text
from MAISILib.quality.fid import PLANES, SliceStatistics
from MAISILib.quality.image_sets import ImageFile, Spacing

#: Says what the features in a folder are.
HEADER = "features.json"
_FORMAT = "maisi-slice-features"

Features = dict[str, np.ndarray]


class FeatureStore:
    """A folder of features.

    Args:
        folder: Made at the first write.
        features_name: What the features are, as the network's wrapper tells; ``None`` takes what the folder holds.
        anew: Features of another name that lie there do not count, and will be replaced.

    Attributes:
        folder: As given.
        features_name: Name of the features.

    Raises:
        RequestError: The folder holds features of another network or another preprocessing, or files of others.
        FileFormatError: The folder holds none, though they are asked for.
    """

    def __init__(self, folder: Path, features_name: str | None, *, anew: bool = False) -> None:
        self.folder = folder
        self._is_there = (folder / HEADER).is_file()
        stored = _header(folder).features if self._is_there else None
        if features_name is None:
            if stored is None:
                raise FileFormatError(f"{folder} holds no stored features (no {HEADER}).")
            features_name = stored
        elif stored not in (None, features_name) and not anew:
            raise RequestError(
                f"{folder} holds features of another network or another preprocessing: {stored!r} there, "
                f"{features_name!r} wanted. Give another folder, the same options as then, or --ignore-existing."
            )
        elif not self._is_there and (foreign := next(_archives(folder), None)) is not None:
            raise RequestError(
                f"{foreign} was not written here, and might be overwritten: {folder} has no {HEADER}. Give another "
                "folder for the features."
            )
        self.features_name = features_name
        self._anew = anew

    def prepare(self) -> None:
        """Writes what the features are; where they are to be made anew, those that lie there are deleted.

        Raises:
            OutputError: The folder cannot be written.
        """
        if self._anew and self._is_there:
            for path in filter(_is_own, _archives(self.folder)):
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise output_error(path, error) from None
        self._write_header(None)  # until they are all there, they are nobody's set

    def finish(self, names: Sequence[str], spacing: Spacing | None) -> None:
        """Makes the features of these volumes the set that the folder stands for, whatever else was kept before.

        Args:
            names: The volumes.
            spacing: Their voxel size in mm along R, A and S; ``None`` where they were resampled.

        Raises:
            OutputError: The folder cannot be written.
        """
        self._write_header(list(names), spacing)

    def has(self, image: ImageFile) -> bool:
        """Whether the features of this very file are stored: same size and time of its last change."""
        path = self._path(image.name)
        if not _is_own(path):
            return False
        try:
            with np.load(path) as stored:
                return str(stored["source"]) == _identity(image.path)
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
            return False

    def write(self, image: ImageFile, features: Features) -> None:
        """Keeps the features of an image.

        Raises:
            OutputError: The file cannot be written.
        """
        arrays: dict[str, Any] = {plane: np.asarray(vectors, np.float32) for plane, vectors in features.items()}
        with atomic_path(self._path(image.name)) as temporary:
            np.savez(temporary, source=np.array(_identity(image.path)), **arrays)

    def names(self) -> list[str]:
        """The volumes of the last run, in its order.

        Raises:
            FileFormatError: That run has not finished.
        """
        names = _header(self.folder).volumes
        if names is None:
            raise FileFormatError(
                f"{self.folder} holds features of a run that did not finish, so they are no whole set. Give the "
                "images, and keep features where they were (--features): what is there is not computed again."
            )
        return names

    def spacing(self) -> Spacing | None:
        """Voxel size in mm along R, A and S of volumes that were not resampled."""
        return _header(self.folder).spacing

    def read(self, name: str) -> Features:
        """The features of a volume: plane → ``(S, F)`` float64.

        Raises:
            FileFormatError: The file is missing or damaged.
        """
        path = self._path(name)
        try:
            with np.load(path) as stored:
                return {plane: stored[plane].astype(np.float64) for plane in PLANES}
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise FileFormatError(
                f"{path} holds no features ({error}). Delete it; the next run makes it anew."
            ) from None

    def _write_header(self, volumes: list[str] | None, spacing: Spacing | None = None) -> None:
        header = {"format": _FORMAT, **_Header(self.features_name, volumes, spacing)._asdict()}
        write_text(self.folder / HEADER, json.dumps(header, ensure_ascii=False) + "\n")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"


class FeatureSet:
    """Stored features of chosen volumes, read one volume at a time.

    Args:
        store: Where they are.
        names: Which volumes.
    """

    def __init__(self, store: FeatureStore, names: Sequence[str]) -> None:
        self._store, self.names = store, tuple(names)

    @property
    def features_name(self) -> str:
        """What the features are."""
        return self._store.features_name

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Features]:
        return (self._store.read(name) for name in self.names)

    def statistics(self) -> SliceStatistics:
        """Statistics of all volumes, in the memory of one.

        Raises:
            FileFormatError: Features that cannot be read.
        """
        found = SliceStatistics(self.features_name)
        for features in self:
            found.add(features)
        return found


def is_store(folder: Path) -> bool:
    """Whether features lie in a folder, and not only a file of the same name as ours."""
    try:
        return bool(_header(folder))
    except FileFormatError:
        return False


class _Header(NamedTuple):
    """What the features in a folder are, the volumes of a whole set, and their voxel size unless resampled."""

    features: str
    volumes: list[str] | None
    spacing: Spacing | None


def _header(folder: Path) -> _Header:
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        if header["format"] == _FORMAT:
            names, spacing = header.get("volumes"), header.get("spacing")
            if spacing is not None:
                x, y, z = map(float, spacing)
                spacing = x, y, z
            return _Header(str(header["features"]), None if names is None else [str(name) for name in names], spacing)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise FileFormatError(f"{folder / HEADER} does not say what the features in its folder are. Give another folder.")


def _archives(folder: Path) -> Iterator[Path]:
    """All archives of a folder, whoever wrote them, but for those of stores that lie in it."""
    for inside, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not Path(inside, name, HEADER).is_file()]
        yield from (Path(inside, name) for name in names if name.endswith(".npz"))


def _is_own(path: Path) -> bool:
    """Whether an archive holds what :meth:`FeatureStore.write` puts into one, and nothing else."""
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist()) == {f"{name}.npy" for name in ("source", *PLANES)}
    except (OSError, zipfile.BadZipFile):
        return False


def _identity(path: Path) -> str:
    status = path.stat()
    return f"{path.name} {status.st_size} {status.st_mtime_ns}"
