"""Where the mask of a sample comes from, on which grid the networks work, and on which the user gets the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from MAISILib.anatomy.envelope import add_body, has_body
from MAISILib.anatomy.grids import content_box, losses
from MAISILib.anatomy.labels import LabelTable
from MAISILib.anatomy.library import Candidate, MaskLibrary
from MAISILib.anatomy.masks import REGIONS, check_mask, regions_of
from MAISILib.errors import MaskError
from MAISILib.files.checks import file_sha256
from MAISILib.generation.mask_changes import MaskChanges, box_of
from MAISILib.generation.mask_grid import grid_for_mask
from MAISILib.generation.mask_wish import MaskWish
from MAISILib.generation.settings import Settings, resolve
from MAISILib.resampling import resample_labels
from MAISILib.volumes import Grid, LabelMap

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle
    from MAISILib.generation.mask_generation import GeneratedMask
    from MAISILib.generation.request import GenerateRequest


#: So many masks of a library are tried, where a lesion is to be put into one.
_CANDIDATES = 5


@dataclass(frozen=True)
class ConditioningMask:
    """The mask of one sample.

    Args:
        model: On the grid of the networks.
        output: On the grid of the result; for a user's mask, the user's own grid.
        source: Where it came from, for provenance.
    """

    model: LabelMap
    output: LabelMap
    source: dict[str, Any]

    @property
    def regions(self) -> tuple[int | None, int | None]:
        """Top-most and bottom-most body region (0–3) of the model's mask, ``None`` where it shows none."""
        found = regions_of(self.model)
        return (None, None) if found is None else (REGIONS.index(found.top), REGIONS.index(found.bottom))


class MaskSource:
    """Gives every sample its mask, or ``None`` for images without one.

    Raises:
        MaskError: The mask file or the library cannot serve the request. Raised at once, before networks are loaded.
    """

    def __init__(self, bundle: Bundle, request: GenerateRequest, settings: Settings) -> None:
        self._bundle, self._settings = bundle, settings
        self._from_file: ConditioningMask | None = None
        self._candidates: list[Candidate] = []
        self.wish: MaskWish | None = None
        self._changes = MaskChanges(request, bundle.labels)
        if request.mask == "file":
            self._from_file = _read_users_mask(bundle, request, settings)
            self._changes.check(self._from_file.output)
        elif request.mask == "library":
            entry = bundle.manifest.masks
            assert entry is not None, "resolve() has checked it"
            self._library = MaskLibrary.open(bundle.path(entry.index), entry.format, bundle.labels)
            self._search(request, seed=0)
        elif request.mask == "generated":
            self.wish = MaskWish(bundle, request.controllable_anatomy_size, settings.labels)
        self._request = request

    @property
    def grid(self) -> Grid | None:
        """The networks' grid where a user's mask decides it."""
        return self._from_file.model.grid if self._from_file else None

    def for_sample(self, seed: int) -> ConditioningMask | None:
        """The mask for a sample with this seed; for generated ones see :meth:`from_generated`."""
        if self._request.mask == "none":
            return None
        if self._from_file:
            return self._changed(self._from_file, seed) if self._changes else self._from_file
        candidate, mask, changes = self._from_library(seed)
        model = self._on_model_grid(mask, repr(candidate.entry.file))
        source = {
            "kind": "library",
            "entry": candidate.entry.file,
            "sha256": file_sha256(self._library.folder / candidate.entry.file),
            "reason": candidate.reason,
            "notes": list(mask.notes),
            **changes,
        }
        return ConditioningMask(model, model, source)

    def _from_library(self, seed: int) -> tuple[Candidate, LabelMap, dict[str, Any]]:
        """The best mask of the library, changed as wished; the next best one where that has no room for a lesion."""
        *others, last = self._search(self._request, seed)
        for candidate in (*others, last):
            mask = self._library.load(candidate)
            if LabelTable.BODY in self._bundle.labels:
                mask = add_body(mask)
            try:
                return candidate, *self._changes.apply(mask, seed)
            except MaskError:
                if candidate is last:
                    raise
        raise AssertionError("a search finds at least one mask")

    def _changed(self, given: ConditioningMask, seed: int) -> ConditioningMask:
        """The user's mask, varied within what the networks see of it."""
        within = box_of(given.model.grid, given.output.grid)
        output, changes = self._changes.apply(given.output, seed, within)
        model = self._complete(resample_labels(output, given.model.grid), str(given.source["path"]))
        source = {**given.source, "notes": list(output.notes), "lost": _lost(output, model), **changes}
        return ConditioningMask(model, output, source)

    def from_generated(self, generated: GeneratedMask) -> ConditioningMask:
        """A mask that the mask generator has made, on the grid of the networks."""
        wish = self.wish
        assert wish is not None, "only a request for generated masks has any"
        model = self._on_model_grid(generated.mask, "that was generated")
        source: dict[str, Any] = {
            "kind": "generated",
            "attempts": generated.attempts,
            "sizes": generated.sizes,
            "notes": list(generated.mask.notes),
        }
        if wish.sizes_path is not None:
            source["sizes_table"] = {"path": str(wish.sizes_path), "sha256": file_sha256(wish.sizes_path)}
        return ConditioningMask(model, model, source)

    def _on_model_grid(self, mask: LabelMap, name: str) -> LabelMap:
        settings = self._settings
        assert settings.spacing is not None
        grid = Grid.axis_aligned(settings.size, settings.spacing, tuple(mask.grid.center))
        return self._complete(mask if _fits_exactly(mask.grid, grid) else resample_labels(mask, grid), name)

    def _complete(self, model: LabelMap, name: str) -> LabelMap:
        """The model's mask, if nothing that was asked for has got lost on its grid."""
        missing = {*self._settings.labels, *self._changes.adds} - set(model.labels)
        if missing:
            names = ", ".join(self._bundle.labels[v].name for v in sorted(missing))
            raise MaskError(
                f"The mask {name} has {names}, but not within {model.array.shape} voxels of "
                f"{model.spacing} mm. Ask for a larger field of view or smaller voxels."
            )
        return model

    def _search(self, request: GenerateRequest, seed: int) -> list[Candidate]:
        return self._library.search(
            [*self._settings.labels, *self._changes.needs],
            self._settings.size,
            self._settings.spacing,
            body_regions=request.body_region,
            rng_seed=seed,
            limit=_CANDIDATES if self._changes.adds else 1,
        )


class Prepared(NamedTuple):
    """A request that was checked against its bundle, with everything read that is no network."""

    settings: Settings
    masks: MaskSource


def prepare(bundle: Bundle, request: GenerateRequest) -> Prepared:
    """Does all checks of a request that need neither PyTorch nor weights; reads the mask file or the library's index.

    Raises:
        RequestError: The request does not fit the bundle.
        MaskError: The mask file or the library cannot serve the request.
        FileFormatError: A file cannot be read.
    """
    settings = resolve(bundle, request)
    return Prepared(settings, MaskSource(bundle, request, settings))


def _fits_exactly(mask: Grid, wanted: Grid) -> bool:
    return mask.shape == wanted.shape and all(
        abs(a / b - 1) < 1e-3 for a, b in zip(mask.spacing, wanted.spacing, strict=True)
    )


def _read_users_mask(bundle: Bundle, request: GenerateRequest, settings: Settings) -> ConditioningMask:
    from MAISILib.files.images import read_image, read_mask

    assert request.mask_file is not None
    path = request.mask_file
    users = read_mask(path, bundle.labels)
    check_mask(users, bundle.labels)
    present = users.labels
    missing = [bundle.labels[v].name for v in settings.labels if v not in present]
    if missing:
        raise MaskError(f"{path} has no {', '.join(missing)}, which --anatomy asks for. Leave that out, or label it.")
    ct = read_image(request.mask_ct, may_lean=True) if request.mask_ct else None
    if LabelTable.BODY in bundle.labels and (ct is not None or not has_body(users)):
        users = add_body(users, ct)
    grid = grid_for_mask(
        bundle,
        users.grid,
        content_box(users),
        recommended=settings.size,
        spacing=settings.spacing,
        size=request.output_size,
        regions=request.body_region,
    )
    model = resample_labels(users, grid)
    source: dict[str, Any] = {
        "kind": "file",
        "path": str(path.absolute()),
        "sha256": file_sha256(path),
        "notes": list(users.notes),
        "lost": _lost(users, model),
    }
    if request.mask_ct:
        source["ct"] = {"path": str(request.mask_ct.absolute()), "sha256": file_sha256(request.mask_ct)}
    return ConditioningMask(model=model, output=users, source=source)


def _lost(users: LabelMap, model: LabelMap) -> list[dict[str, Any]]:
    """The structures that the networks do not see as they are in the user's mask, for the provenance."""
    return [loss._asdict() for loss in losses(users, model)]
