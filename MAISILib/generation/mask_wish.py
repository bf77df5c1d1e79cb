"""What a bundle's mask generator is asked for, and whether it drew that. Knows sizes and labels, no networks."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MAISILib.anatomy.envelope import add_body
from MAISILib.anatomy.labels import LabelTable
from MAISILib.anatomy.mask_cleanup import clean_up
from MAISILib.anatomy.organ_sizes import ABSENT, SizeTable, measure_sizes, read_size_table
from MAISILib.errors import BundleError, RequestError, did_you_mean
from MAISILib.resources import resources_folder
from MAISILib.volumes import Grid, LabelMap

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle
    from MAISILib.bundles.manifest import MaskGeneratorEntry

#: Sizes that were drawn further than this (percentile, of 1) from what was asked for are pointed out.
SIZE_TOLERANCE = 0.25


class MaskWish:
    """Sizes and anatomies that generated masks shall have.

    Args:
        bundle: Whose generator.
        sizes: Controllable anatomy → percentile 0–1, or −1 for absent.
        labels: Labels that the masks must hold.

    Raises:
        RequestError: The bundle has no mask generator, or the generator cannot do what is asked for.
        FileFormatError: The bundle's table of organ sizes cannot be read.
    """

    def __init__(self, bundle: Bundle, sizes: Mapping[str, float], labels: tuple[int, ...] = ()) -> None:
        self.entry = generator_of(bundle, sizes)
        self.table = bundle.labels
        self.names = tuple(bundle.manifest.controllable)
        self.asked = checked_sizes(bundle, sizes)
        self.classes = class_labels(bundle, self.entry)
        self.labels = tuple(self.table.find(name).value for name in self.names)
        unknown = sorted({*labels} - {int(v) for v in self.classes})
        if unknown:
            names = ", ".join(self.table.describe(v) for v in unknown)
            raise RequestError(f"The mask generator of bundle {bundle.name!r} does not draw {names}. Leave it out.")
        self._must_hold = {*labels, *(self.table.find(n).value for n, size in self.asked.items() if size != ABSENT)}
        _refuse_several_lesions(bundle, self._must_hold)
        self.sizes_path: Path | None = None if self.entry.sizes is None else bundle.path(self.entry.sizes)
        self._sizes: SizeTable | None = None
        if self.sizes_path is not None:
            self._sizes = read_size_table(self.sizes_path, self.names)
        elif missing := [name for name in self.names if name not in self.asked]:
            raise RequestError(
                f"Bundle {bundle.name!r} has no table of organ sizes, so each size must be given. Missing: "
                f"{', '.join(missing)}."
            )

    @property
    def size_table(self) -> SizeTable | None:
        """Sizes of organs among the training masks."""
        return self._sizes

    def conditions(self, seed: int) -> list[float]:
        """The whole condition vector: what was asked for, the rest from a training mask near to it.

        A lesion that was not asked for is absent.
        """
        asked = dict(self.asked)
        for name, label in zip(self.names, self.labels, strict=True):
            if name not in asked and self.table[label].is_tumor and label not in self._must_hold:
                asked[name] = ABSENT
        if self._sizes is None:
            return [asked[name] for name in self.names]
        present = [n for n, label in zip(self.names, self.labels, strict=True) if label in self._must_hold]
        return self._sizes.complete(asked, seed, present=present)

    def finish(self, labels: np.ndarray, conditions: list[float]) -> LabelMap:
        """A drawn label map ``(X, Y, Z)`` uint8 with its geometry: cleaned up, with a body, without absent organs."""
        grid = Grid.axis_aligned(self.entry.size, self.entry.spacing)
        drawn = LabelMap(labels, grid.affine, self.table, "generated")
        unwanted = [label for label, size in zip(self.labels, conditions, strict=True) if size == ABSENT]
        mask = clean_up(drawn, one_piece=self.entry.one_piece, unwanted=unwanted)
        return add_body(mask) if LabelTable.BODY in self.table and mask.array.any() else mask

    def missing(self, mask: LabelMap) -> list[str]:
        """Names of anatomies that were asked for and are not in a mask."""
        return [self.table[value].name for value in sorted(self._must_hold - set(mask.labels))]

    def misses(self, sizes: dict[str, dict[str, Any]]) -> list[float]:
        """How far each size that was asked for is from what became of it, in percentiles (0–1).

        Args:
            sizes: From :meth:`sizes_of`. An organ that is cut off misses by 1; one whose volumes the bundle does not
                tell by 0.
        """
        found = []
        for name, asked in self.asked.items():
            is_told = self._sizes is not None and self._sizes.volume(name, asked) is not None
            percentile = sizes[name]["percentile"]
            found.append(0.0 if not is_told else 1.0 if percentile is None else abs(percentile - asked))
        return found

    def sizes_of(self, mask: LabelMap, conditions: list[float]) -> dict[str, dict[str, Any]]:
        """What each controllable anatomy has become, as the provenance shows it.

        Returns:
            Name → ``asked`` (percentile; ``None`` where not asked), ``condition`` (what the network was told),
            ``volume_mm3`` (0 where absent), ``percentile`` (among the training masks; −1 where absent, ``None`` where
            it is cut off or the bundle does not tell volumes), ``is_whole`` and ``is_as_asked`` (within
            :data:`SIZE_TOLERANCE`).
        """
        report: dict[str, dict[str, Any]] = {}
        measured = measure_sizes(mask, self.labels)
        for name, size, condition in zip(self.names, measured, conditions, strict=True):
            percentile: float | None = ABSENT
            if size is not None:
                percentile = self._sizes.percentile(name, size.volume_mm3) if self._sizes and size.is_whole else None
            asked = self.asked.get(name)
            off = None if asked is None or percentile is None else abs(percentile - asked)
            report[name] = {
                "asked": asked,
                "condition": round(condition, 3),
                "volume_mm3": 0.0 if size is None else round(size.volume_mm3, 1),
                "percentile": None if percentile is None else round(percentile, 3),
                "is_whole": size is not None and size.is_whole,
                "is_as_asked": None if off is None else off <= SIZE_TOLERANCE,
            }
        return report


def generator_of(bundle: Bundle, sizes: Collection[str] = ()) -> MaskGeneratorEntry:
    """How a bundle's mask generator works.

    Args:
        bundle: The bundle.
        sizes: Anatomies whose size is wanted, for the message.

    Raises:
        RequestError: It has none.
    """
    manifest = bundle.manifest
    if manifest.mask_generator is None or not {"mask_autoencoder", "mask_diffusion"} <= manifest.networks.keys():
        wanted = f"organ sizes cannot be set ({', '.join(sizes)})" if sizes else "masks cannot be generated"
        raise RequestError(
            f"Bundle {bundle.name!r} has no mask generator, so {wanted}. Choose masks from its library with --anatomy."
        )
    return manifest.mask_generator


def checked_sizes(bundle: Bundle, sizes: Mapping[str, float]) -> dict[str, float]:
    """The sizes by the bundle's own names of its controllable anatomies.

    Raises:
        RequestError: A name that the generator does not know (with the nearest) or that is given twice, or more lesions
            than it draws at once.
    """
    known = {" ".join(name.replace("_", " ").casefold().split()): name for name in bundle.manifest.controllable}
    checked: dict[str, float] = {}
    for asked, size in sizes.items():
        name = known.get(" ".join(asked.replace("_", " ").casefold().split()))
        if name is None:
            hint = did_you_mean(asked, known.values())
            raise RequestError(
                f"The size of {asked!r} cannot be chosen in bundle {bundle.name!r}.{hint} It takes sizes of "
                f"{', '.join(known.values())}."
            )
        if name in checked:
            raise RequestError(f"The size of {name!r} is given twice. Give it once.")
        checked[name] = size
    _refuse_several_lesions(bundle, [bundle.labels.find(name).value for name, size in checked.items() if size >= 0])
    return checked


def _refuse_several_lesions(bundle: Bundle, labels: Collection[int]) -> None:
    lesions = [bundle.labels[value].name for value in sorted(labels) if bundle.labels[value].is_tumor]
    if generator_of(bundle).one_lesion and len(lesions) > 1:
        raise RequestError(
            f"A mask from the generator of bundle {bundle.name!r} has one lesion at most; {', '.join(lesions)} were "
            "asked for. Ask for one of them."
        )


def class_labels(bundle: Bundle, entry: MaskGeneratorEntry) -> np.ndarray:
    """The label that each output channel of the mask autoencoder becomes, uint8.

    Raises:
        BundleError: The table of classes is missing or does not number them from 0 on.
    """
    becomes = np.arange(256, dtype=np.uint8)
    for label, into in entry.merged.items():
        becomes[label] = into
    if isinstance(entry.classes, list):
        return becomes[entry.classes]
    paths = (bundle.path(entry.classes), resources_folder() / entry.classes)
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        raise BundleError(f"Bundle {bundle.name!r}: the table of classes {entry.classes!r} is missing.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = {int(row["generator_index"]): int(row["label"]) for row in csv.DictReader(file)}
        return becomes[[rows[index] for index in range(len(rows))]]
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise BundleError(f"{path} is no table of classes: {error!r}. Columns: generator_index, label.") from None
