"""2.5D FID between two sets of files: features once for each volume, then distances, their spread, and KID."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from MAISILib.errors import FileFormatError, RequestError
from MAISILib.files.images import read_image
from MAISILib.quality.bootstrap import Confidence, bootstrap
from MAISILib.quality.companions import Companions
from MAISILib.quality.feature_store import HEADER, FeatureSet, FeatureStore, is_store
from MAISILib.quality.fid import PLANES
from MAISILib.quality.image_sets import ImageFile, about, check_spacings, find_images, named
from MAISILib.quality.kernel_distance import kernel_distance
from MAISILib.volumes import Volume

#: Called with (stage, done, total, what); may raise to stop.
OnDone = Callable[[str, int, int, str], None]
_SIDES = ("real", "generated")
#: The distance of more features than this takes seconds: it is drawn again only where that is asked for.
_MANY_FEATURES, _REPLICATES = 512, 200


class Features(Protocol):
    """What gives features of the slices of a volume, and says what they are."""

    name: str

    def __call__(self, volume: Volume) -> dict[str, np.ndarray]:
        """Plane → features of its slices ``(S, F)``."""
        ...


@dataclass(frozen=True)
class FidReport:
    """How far two sets of volumes are apart.

    Attributes:
        features: What was compared.
        volumes: Number of volumes of the real and of the generated set.
        fid: ``xy``, ``yz``, ``zx``, ``mean`` → 2.5D FID.
        confidence: The same → spread under the bootstrap; empty where none was drawn.
        replicates: How often it was drawn.
        kid: The same → 2.5D KID.
        left_out: Why images were left out.
    """

    features: str
    volumes: tuple[int, int]
    fid: dict[str, float]
    confidence: dict[str, Confidence]
    replicates: int
    kid: dict[str, float]
    left_out: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        real, generated = self.volumes
        lines = [f"{real} real and {generated} generated volumes; {self.features}"]
        lines.append(f"{'plane':<6}{'FID':>11}{'95 % interval':>25}{'KID':>12}")
        for plane, value in self.fid.items():
            spread = self.confidence.get(plane)
            interval = f"{spread.low:.4g} to {spread.high:.4g}" if spread else "–"
            lines.append(f"{plane:<6}{value:>11.4g}{interval:>25}{self.kid[plane]:>12.4g}")
        if spread := self.confidence.get("mean"):
            lines.append(f"bias of so few volumes, about: {spread.bias:.4g} ({self.replicates} bootstrap replicates)")
        return "\n".join([*lines, *(f"left out: {reason}" for reason in self.left_out)])


def evaluate_fid(
    real: Path,
    generated: Path,
    make_features: Callable[[], Features],
    *,
    features_name: str | None = None,
    roots: tuple[Path | None, Path | None] = (None, None),
    limit: int | None = None,
    resampled: bool = False,
    folder: Path | None = None,
    real_folder: Path | None = None,
    anew: bool = False,
    replicates: int | None = None,
    skip_bad: bool = False,
    companions: Companions | None = None,
    on_done: OnDone = lambda stage, done, total, what: None,
) -> FidReport | None:
    """Measures how far two sets of volumes are apart.

    Args:
        real: A folder, a text file of paths (see :func:`find_images`), or a folder of stored features.
        generated: The same.
        make_features: Builds the network; called after all files were found and compared.
        features_name: What these features would be called, where that is known before the network is built: stored
            features of another name are refused. ``None`` has two stored sets compared whatever they are.
        roots: What paths in the two text files start from.
        limit: At most so many images of each set.
        resampled: Whether features are taken after resampling to one voxel size; else all images must have one.
        folder: Where features are kept, in ``real`` and ``generated``; a temporary folder where not given. With several
            processes on several machines it must be one that all of them see.
        real_folder: Where features of the real set are kept, if elsewhere: several sets may share them.
        anew: Compute features again that lie there.
        replicates: Of the bootstrap; 0 draws none. ``None`` is 200 with up to 512 features and 0 with more.
        skip_bad: Leave out what cannot be read.
        companions: Processes that share the volumes out.
        on_done: Called after each volume and replicate.

    Returns:
        The distances; ``None`` in all processes but the first.

    Raises:
        FileFormatError: Images that cannot be used; all of them are named.
        RequestError: A set of less than two images, different voxel sizes, stored features that are others, or
            features that would be kept among the images.
    """
    companions = companions or Companions()
    given: dict[str, Path] = dict(zip(_SIDES, (real, generated), strict=True))
    sources = {side: _found(source, root, limit) for (side, source), root in zip(given.items(), roots, strict=True)}
    images = {side: found for side, found in sources.items() if not isinstance(found, Path)}
    kept = {side: folder / side for side in images if folder is not None}
    if real_folder is not None and "real" in images:
        kept["real"] = real_folder
    for side, found in sources.items():
        for place in kept.values():
            check_apart(place, side, given[side], [] if isinstance(found, Path) else found)
    stored = {side: FeatureStore(found, None) for side, found in sources.items() if isinstance(found, Path)}
    names = {side: store.names()[:limit] for side, store in stored.items()}
    for side, found in [*images.items(), *names.items()]:
        check_several(len(found), side)
    _check_same(stored, features_name)
    spacing = None
    if not resampled:
        what_to_do = "Give --spacing to resample all of them."
        known = [(store.folder, size) for store in stored.values() if (size := store.spacing()) is not None]
        spacing, problems = check_spacings(list(images.values()), what_to_do, known)
        total = sum(map(len, images.values()))
        if problems and not skip_bad:
            raise FileFormatError(named(problems, total))
    features = make_features() if images else None
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(str(folder)) as place:
        place = Path(companions.firsts(place))
        left_out: list[str] = []
        if features is not None:
            _check_same(stored, features.name)
            new = {side: FeatureStore(kept.get(side, place / side), features.name, anew=anew) for side in images}
            for side, store in new.items():
                names[side], bad = _stored(store, images[side], features, companions, skip_bad, side, on_done)
                if companions.is_first:
                    store.finish(names[side], spacing)
                left_out += bad
                check_several(len(names[side]), side)
            stored |= new
        sets = {side: FeatureSet(store, names[side]) for side, store in stored.items()}
        report = _measured(sets, replicates, tuple(left_out), on_done) if companions.is_first else None
        companions.everyones([])  # the first process reads what the others wrote: nobody leaves before it
    return report


def _found(source: Path, root: Path | None, limit: int | None) -> Path | list[ImageFile]:
    """The images of a set, or its folder where that holds stored features."""
    if not (source / HEADER).is_file():
        return find_images(source, root, limit)
    try:
        images = find_images(source, root, limit)
    except FileFormatError:  # no images
        return source
    if is_store(source):
        raise RequestError(
            f"{source} holds stored features ({HEADER}) as well as images ({images[0].path}), so it is not clear which "
            f"of them to take. Move {HEADER} and the .npz files that came with it elsewhere, or delete them."
        )
    return images


def _stored(
    store: FeatureStore,
    images: list[ImageFile],
    features: Features,
    companions: Companions,
    skip_bad: bool,
    side: str,
    on_done: OnDone,
) -> tuple[list[str], list[str]]:
    """Has the features of all images in the store; gives the names of those that are there, and what is wrong."""
    if companions.is_first:
        store.prepare()
    companions.everyones([])
    mine = companions.share_of(images)
    problems: list[tuple[str, str]] = []
    for number, image in enumerate(mine, 1):
        if not store.has(image):
            try:
                store.write(image, features(read_image(image.path)))
            except (FileFormatError, RequestError) as error:
                problems.append((image.name, about(image, error)))
        on_done(f"features, {side}", number, len(mine), image.name)
    problems = companions.everyones(problems)
    texts = [text for _, text in problems]
    if texts and not skip_bad:
        raise FileFormatError(named(texts, len(images)))
    bad = {name for name, _ in problems}
    return [image.name for image in images if image.name not in bad], texts


def _measured(
    sets: dict[str, FeatureSet], replicates: int | None, left_out: tuple[str, ...], on_done: OnDone
) -> FidReport:
    real, generated = sets["real"], sets["generated"]
    statistics = [one.statistics() for one in (real, generated)]
    fid = statistics[0].distance(statistics[1])
    if replicates is None:
        replicates = _REPLICATES if statistics[0].planes[next(iter(PLANES))].mean.size <= _MANY_FEATURES else 0
    confidence = {}
    if replicates:
        confidence = bootstrap(
            real, generated, fid, replicates, on_done=lambda done, total: on_done("bootstrap", done, total, "")
        )
    kid = kernel_distance(real, generated)
    return FidReport(real.features_name, (len(real), len(generated)), fid, confidence, replicates, kid, left_out)


def check_apart(kept: Path, side: str, source: Path, images: Sequence[ImageFile], option: str = "--features") -> None:
    """Makes sure that what is computed does not lie among images: it would be taken for some, or overwrite some.

    Args:
        kept: Where it shall be kept.
        side: Which set of images, for the message.
        source: Where they come from: a folder or a list.
        images: Those found there; none where it holds stored features.
        option: The option that tells ``kept``.

    Raises:
        RequestError: It lies in or above their folders.
    """
    within = kept.resolve()
    if source.is_dir():
        place = source.resolve()
        is_among = within.is_relative_to(place) or place.is_relative_to(within)
    else:
        is_among = any(path.resolve().is_relative_to(within) for path in {image.path.parent for image in images})
    if is_among:
        raise RequestError(
            f"What is computed would be kept in {kept}, among the files of the {side} set ({source}). Give another "
            f"folder ({option}), neither in nor above those of the images."
        )


def _check_same(stored: dict[str, FeatureStore], wanted: str | None) -> None:
    """Stored sets must hold the features that are asked for, if any are, and the same ones."""
    found = {f"{store.folder} holds": store.features_name for store in stored.values()}
    if wanted is not None:
        found["the options ask for"] = wanted
    if len(set(found.values())) > 1:
        listed = "; ".join(f"{whose} {name!r}" for whose, name in found.items())
        raise RequestError(
            f"Features differ: {listed}. Give the options that stored features were computed with, or images in their "
            "place."
        )


def check_several(count: int, side: str) -> None:
    """Makes sure that a set is one.

    Raises:
        RequestError: It has less than two images.
    """
    if count < 2:
        raise RequestError(
            f"The {side} set has {count} image{'' if count == 1 else 's'}; a distance between sets needs at least two "
            "in each, and says little below some tens."
        )
