"""How large organs are, and how large that is among others: the condition vector of a mask generator.

A size is a percentile from 0 to 1 among the training masks, or −1 for an organ that is not there (MAISI,
arXiv:2409.11169, section 3.2). An organ that the picture cuts off is larger than what is seen of it: it counts neither
among those that percentiles are taken of, nor as a measurement.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MAISILib.anatomy.labels import LabelTable
from MAISILib.errors import FileFormatError, MaskError
from MAISILib.volumes import LabelMap

FORMAT, VERSION = "maisi-organ-sizes", 1
ABSENT = -1.0
#: Every entry of the vector that tells nothing: the unconditional side of guidance.
NOT_TOLD = -2.0
#: Percentiles that a table keeps: 0, 5, … 100 %.
_STEPS = np.linspace(0.0, 1.0, 21)
#: Entries that were not asked for come from one of so many training masks, those nearest to what was asked for.
NEAREST = 10
#: How far an organ that is cut off, of which the size is not known, is from any percentile.
_UNKNOWN_DISTANCE = 0.5


@dataclass(frozen=True)
class OrganSize:
    """An organ in a mask.

    Args:
        volume_mm3: What is seen of it.
        is_whole: Whether all of it is seen: it neither touches the border of the grid nor the first or last slice of
            the patient, where the mask says where the patient ends (label 200).
    """

    volume_mm3: float
    is_whole: bool


def measure_sizes(mask: LabelMap, labels: Sequence[int]) -> list[OrganSize | None]:
    """The size of each label in a mask, ``None`` where it is absent.

    Args:
        mask: In any orientation.
        labels: Which labels.
    """
    from scipy import ndimage

    voxel_mm3 = float(np.prod(mask.spacing))
    counts = np.bincount(mask.array.ravel(), minlength=256)
    boxes = ndimage.find_objects(mask.array, max_label=255)
    first, last = np.zeros(3, int), np.asarray(mask.array.shape)
    if counts[LabelTable.BODY]:
        along = int(np.argmax(np.abs(mask.affine[2, :3]) / np.asarray(mask.spacing)))
        patient = np.flatnonzero((mask.array != 0).any(axis=tuple({0, 1, 2} - {along})))
        first[along], last[along] = patient[0], patient[-1] + 1

    def size_of(label: int) -> OrganSize | None:
        box = boxes[label - 1]
        if box is None:
            return None
        is_whole = all(low < part.start and part.stop < high for part, low, high in zip(box, first, last, strict=True))
        return OrganSize(float(counts[label]) * voxel_mm3, is_whole)

    return [size_of(label) for label in labels]


@dataclass(frozen=True)
class SizeTable:
    """What sizes the training masks have.

    Args:
        names: The controllable anatomies, in the order of the condition vector.
        quantiles: For each the volumes in mm³ at 0, 5, … 100 % of the whole organs, ascending; ``None`` where the
            published table does not tell volumes.
        rows: The condition vector of each training mask; ``None`` for an organ that is cut off.
    """

    names: tuple[str, ...]
    quantiles: tuple[tuple[float, ...] | None, ...]
    rows: tuple[tuple[float | None, ...], ...]

    @classmethod
    def build(cls, names: Sequence[str], masks: Sequence[Sequence[OrganSize | None]]) -> SizeTable:
        """The table of a training set.

        Args:
            names: The controllable anatomies.
            masks: Their sizes in each mask, as of :func:`measure_sizes`.

        Raises:
            MaskError: An anatomy is whole in fewer than two masks.
        """
        quantiles: list[tuple[float, ...] | None] = []
        for name, sizes in zip(names, zip(*masks, strict=True), strict=True):
            volumes = [size.volume_mm3 for size in sizes if size is not None and size.is_whole]
            if len(volumes) < 2:
                raise MaskError(
                    f"{name!r} is whole in {len(volumes)} of {len(masks)} masks, so its size cannot be ranked. "
                    "Take it out of the controllable anatomies, or give masks that show it."
                )
            quantiles.append(tuple(round(float(v), 1) for v in np.quantile(volumes, _STEPS)))
        table = cls(tuple(names), tuple(quantiles), ())
        rows = tuple(tuple(_rounded(p) for p in table.percentiles(sizes)) for sizes in masks)
        return cls(table.names, table.quantiles, rows)

    def percentiles(self, sizes: Sequence[OrganSize | None]) -> list[float | None]:
        """The vector of a mask: percentile 0–1, −1 where an organ is absent, ``None`` where it is cut off."""
        return [
            ABSENT if size is None else (self.percentile(name, size.volume_mm3) if size.is_whole else None)
            for name, size in zip(self.names, sizes, strict=True)
        ]

    def percentile(self, name: str, volume_mm3: float) -> float | None:
        """Where a volume stands among the training masks, 0–1; ``None`` where the table does not tell volumes."""
        known = self.quantiles[self.names.index(name)]
        return None if known is None else float(np.interp(volume_mm3, known, _STEPS))

    def volume(self, name: str, percentile: float) -> float | None:
        """The volume in mm³ at a percentile 0–1; ``None`` where the table does not tell volumes."""
        known = self.quantiles[self.names.index(name)]
        return None if known is None else float(np.interp(percentile, _STEPS, known))

    def training_vector(self, sizes: Sequence[OrganSize | None], rng: random.Random) -> list[float]:
        """The conditions that a network learns a mask with.

        Of an organ that is cut off only the least size is known: its percentile is drawn between that of the part that
        is seen and 1, anew each time.
        """
        vector = []
        for name, size in zip(self.names, sizes, strict=True):
            at_least = ABSENT if size is None else self.percentile(name, size.volume_mm3) or 0.0
            vector.append(at_least if size is None or size.is_whole else rng.uniform(at_least, 1.0))
        return vector

    def complete(self, asked: Mapping[str, float], seed: int, *, present: Collection[str] = ()) -> list[float]:
        """A whole vector for a request that names some sizes; the rest as in a training mask that is near to it.

        The mask is one of the :data:`NEAREST` whose named sizes differ least from those asked for, chosen by the seed.
        An organ that it cuts off is as large as in the next mask that shows it whole.

        Args:
            asked: Anatomy → percentile 0–1 or −1.
            seed: Chooses among near masks.
            present: Anatomies that must be there.

        Raises:
            MaskError: No training mask tells an entry that was not asked for.
        """
        rng = random.Random(seed)
        columns = {self.names.index(name): size for name, size in asked.items()}

        def distance(row: tuple[float | None, ...]) -> float:
            own = ((size, row[column]) for column, size in columns.items())
            return sum(_UNKNOWN_DISTANCE if there is None else abs(size - there) for size, there in own)

        shuffled = list(self.rows)
        rng.shuffle(shuffled)
        near = sorted(shuffled, key=distance)
        chosen = near[:NEAREST]
        rng.shuffle(chosen)
        ordered = [*chosen, *near[NEAREST:]]
        vector = []
        for column, name in enumerate(self.names):
            size = columns.get(column, ordered[0][column])
            if size is None or (size < 0 and column not in columns and name in present):  # cut off is not absent
                size = next((s for row in ordered if (s := row[column]) is not None and s >= 0), None)
            if size is None:
                raise MaskError(
                    f"The table of organ sizes does not tell how large {name!r} may be. Give its size as well."
                )
            vector.append(float(size))
        return vector

    def to_json(self) -> str:
        """The table as :func:`read_size_table` reads it."""
        anatomies = [{"name": n, "volumes_mm3": q} for n, q in zip(self.names, self.quantiles, strict=True)]
        rows = ",\n  ".join(json.dumps(row) for row in self.rows)
        head = f'"format": "{FORMAT}", "version": {VERSION}'
        listed = ",\n  ".join(json.dumps(anatomy) for anatomy in anatomies)
        return f'{{{head},\n "anatomies": [\n  {listed}],\n "masks": [\n  {rows}]}}\n'


def read_size_table(path: Path, names: Sequence[str]) -> SizeTable:
    """Reads a table of ours, or the published ``all_anatomy_size_conditions.json`` (a list of ``{"organ_size": […]}``).

    Args:
        path: The file.
        names: The bundle's controllable anatomies, in order.

    Raises:
        FileFormatError: Missing, no such table, or for other anatomies.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileFormatError(
            f"{path} is missing: the table of organ sizes. Download or import the bundle again."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} cannot be read as a table of organ sizes ({error}).") from None
    try:
        if isinstance(content, list):
            table = SizeTable(
                tuple(names), (None,) * len(names), tuple(_rows((e["organ_size"] for e in content), names))
            )
        else:
            table = _ours(content, names)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{path} is no table of organ sizes for {', '.join(names)}: {error}.") from None
    if not table.rows:
        raise FileFormatError(f"{path} lists no masks. Download or import the bundle again.")
    return table


def _ours(content: Any, names: Sequence[str]) -> SizeTable:
    if content["format"] != FORMAT or content["version"] != VERSION:
        raise ValueError(f"format {content['format']!r}, version {content['version']!r}")
    own = [anatomy["name"] for anatomy in content["anatomies"]]
    if own != list(names):
        raise ValueError(f"it is for {', '.join(own)}")
    quantiles = [tuple(float(v) for v in anatomy["volumes_mm3"]) for anatomy in content["anatomies"]]
    if any(len(q) != len(_STEPS) or sorted(q) != list(q) for q in quantiles):
        raise ValueError(f"'volumes_mm3' needs {len(_STEPS)} ascending volumes")
    return SizeTable(tuple(names), tuple(quantiles), tuple(_rows(content["masks"], names)))


def _rows(rows: Any, names: Sequence[str]) -> Iterator[tuple[float | None, ...]]:
    for row in rows:
        vector = tuple(None if size is None else float(size) for size in row)
        if len(vector) != len(names) or not all(s is None or s == ABSENT or 0 <= s <= 1 for s in vector):
            raise ValueError(f"the row {row!r} does not hold {len(names)} sizes of 0–1 or −1")
        yield vector


def _rounded(percentile: float | None) -> float | None:
    return None if percentile is None else round(percentile, 3)
