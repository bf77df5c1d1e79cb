"""What ``head-neck-mini`` reaches on patients that it was not trained on; an old and a new bundle side by side, too.

``python Testing/benchmarks/head_neck_mini.py --data OPENKBP/validation [--bundle NAME_OR_FOLDER ...] [--json FILE]``:

codec   The autoencoder: PSNR in the body, SSIM, error in HU. Dice of bone and gas in the reconstructed real CT, which
        no image that is decoded by it can be expected to pass.
images  One image for each patient's mask: median HU beside the real patient's, Dice of bone and gas, HU outside.
fid     2.5D FID against the real patients, with features of the first bundle's autoencoder: of the images, of the
        reconstructions, and of one half of the real patients against the other.
ddpm    With ``--ddpm BUNDLE``: FID and time of the last bundle and of its DDPM variant, from one run.
sizes   The mask generator asked for small and for large organs, against the difference between real patients.

``--export FOLDER`` writes each patient's CT and mask, for ``maisi evaluate``, and measures nothing.
``--reuse FOLDER`` keeps every generated image, so that a run that was interrupted goes on. Without ``--data`` the
masks are those of the bundle's library, of patients that it was trained on, and there is no CT to compare with.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import MAISILib as maisi
from MAISILib.anatomy.library import MaskLibrary
from MAISILib.anatomy.organ_sizes import measure_sizes
from MAISILib.codec.codec import Codec, IntensityScale
from MAISILib.files.atomic import atomic_path, write_text
from MAISILib.files.nifti import write_labels, write_volume
from MAISILib.generation.mask_generation import generate_masks
from MAISILib.generation.mask_wish import MaskWish
from MAISILib.quality.agreement import ThresholdStructure, largest_hu_outside, median_hu, threshold_dice
from MAISILib.quality.fid import SliceStatistics
from MAISILib.quality.fidelity import compare
from MAISILib.quality.slice_features import features_of_bundle
from MAISILib.training.head_neck import AIR, AIR_HU, BODY, BONE, BONE_HU, case_names, crop_grid, read_case, sample_case

PARTS = ("codec", "images", "fid", "ddpm", "sizes")
GROUPS = {"bone_hu": (BONE,), "soft_tissue_hu": (BODY,), "gas_hu": (AIR,)}
#: How the labels were made: of what no planner contoured, above 180 HU is bone and below −300 HU is gas.
STRUCTURES = {
    "bone_dice": ThresholdStructure(labels=(BONE,), within=(BONE, BODY, AIR), above=BONE_HU),
    "gas_dice": ThresholdStructure(labels=(AIR,), within=(BONE, BODY, AIR), below=AIR_HU),
}
SIZES, SIZE_SEEDS = (0.2, 0.8), 10

Row = dict[str, Any]


@dataclass(frozen=True)
class Patient:
    """A mask on the recommended grid and, for patients of ``--data``, the real CT there in HU, ``(X, Y, Z)``."""

    name: str
    mask: maisi.LabelMap
    ct: np.ndarray | None

    @property
    def number(self) -> int:
        """The number in the name: it decides the noise, so that every patient has noise of its own."""
        return int("".join(filter(str.isdigit, self.name)) or 0)


def read_patients(bundle: maisi.Bundle, data: Path | None, count: int | None) -> list[Patient]:
    """Patients of ``data``, else of the bundle's library; ``count`` of them, spread over all."""
    best = bundle.manifest.recommended[0]

    def spread(all_of_them: Sequence[Any], count: int) -> Sequence[Any]:
        return all_of_them[:: max(1, len(all_of_them) // count)][:count]

    if data is None:
        assert bundle.manifest.masks is not None
        library = MaskLibrary.open(bundle.path(bundle.manifest.masks.index), "maisi", bundle.labels)
        return [
            Patient(Path(e.file).name.split(".")[0], library.load(e), None) for e in spread(library.entries, count or 2)
        ]
    patients = []
    for name in spread(case_names(data), count or sys.maxsize):
        case = read_case(data, name)
        grid = crop_grid(case, best.size, best.spacing, 0.5)
        ct, labels = sample_case(case, grid)
        patients.append(Patient(name, maisi.LabelMap(labels, grid.affine, bundle.labels, name), ct))
    return patients


def key_of(bundle: maisi.Bundle) -> str:
    """Name, version and the beginning of a checksum over all weights and the schedule."""
    look = json.dumps([bundle.weights_sha256(), bundle.manifest.schedule.model_dump()], sort_keys=True)
    return f"{bundle.name}-{bundle.manifest.version}-{hashlib.sha256(look.encode()).hexdigest()[:8]}"


class Store:
    """Everything generated, kept in a folder: one ``npz`` per bundle and request."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed

    def image_path(self, bundle: maisi.Bundle, patient: Patient, steps: int | None) -> Path:
        """Where an image is kept; another mask, as of other labels, has another name."""
        mask = hashlib.sha256(patient.mask.array.tobytes()).hexdigest()[:8]
        steps = steps or bundle.manifest.schedule.steps
        return self._folder / key_of(bundle) / f"{patient.name}-{mask}-steps-{steps}-seed-{self._seed}.npz"

    def image(
        self, bundle: maisi.Bundle, patient: Patient, steps: int | None, anew: bool = False
    ) -> tuple[np.ndarray, float]:
        """The image of a patient's mask ``(X, Y, Z)`` in HU, and the seconds of its diffusion and decoding."""

        def make() -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as folder:
                mask_file = Path(folder) / "mask.nii.gz"
                write_labels(patient.mask, mask_file)
                sample = self._sample(bundle, patient.number, mask_file=mask_file, steps=steps)
            return {"image": sample.image.array, "seconds": sum(sample.provenance["seconds"].values())}

        stored = self._kept(self.image_path(bundle, patient, steps), make, anew)
        return stored["image"], float(stored["seconds"])

    def mask(self, bundle: maisi.Bundle, anatomy: str, size: float, index: int) -> maisi.LabelMap:
        """The mask with the given index in which an anatomy was asked for in a size (percentile, 0 to 1)."""

        def make() -> dict[str, Any]:
            wish = MaskWish(bundle, {anatomy: size})
            (made,) = generate_masks(bundle, wish, [self._seed + index], lambda name: nullcontext(bundle.load(name)))
            return {"mask": made.mask.array, "affine": made.mask.affine}

        name = f"{anatomy.replace(' ', '-')}-{size}-{index}-seed-{self._seed}.npz"
        stored = self._kept(self._folder / key_of(bundle) / name, make)
        return maisi.LabelMap(stored["mask"], stored["affine"], bundle.labels)

    def _sample(self, bundle: maisi.Bundle, index: int, **fields: Any) -> maisi.Sample:
        request = maisi.GenerateRequest(seed=self._seed, first_index=index, quality_check=False, **fields)
        return maisi.generate(bundle, request).samples[0]

    def _kept(self, path: Path, make: Callable[[], dict[str, Any]], anew: bool = False) -> dict[str, np.ndarray]:
        if anew or not path.is_file():
            arrays = make()
            with atomic_path(path) as temporary:
                np.savez_compressed(temporary, **arrays)
        with np.load(path) as stored:
            return dict(stored)


class Benchmark:
    """The parts, each giving plain data for JSON and printing it."""

    def __init__(self, given: argparse.Namespace, store: Store) -> None:
        self.bundles = {key_of(b): b for b in map(maisi.open_bundle, given.bundle)}
        first = next(iter(self.bundles.values()))
        self.ddpm_bundle = maisi.open_bundle(given.ddpm) if given.ddpm else None
        self.patients = read_patients(first, given.data, given.cases)
        self.steps, self.store = given.steps, store
        self.features = functools.cache(lambda: features_of_bundle(first))
        self.reconstructions = functools.cache(self._reconstruct)

    def _reconstruct(self, key: str) -> list[np.ndarray]:
        """The real CTs through a bundle's autoencoder."""
        bundle = self.bundles[key]
        intensity = bundle.manifest.intensity
        scale = IntensityScale(intensity.kind, intensity.low, intensity.high)
        codec = Codec(bundle.load("autoencoder"), 1.0, scale)
        return [codec.decode(codec.encode(patient.ct)) for patient in self.patients if patient.ct is not None]

    def codec(self) -> Row:
        """The autoencoder on the real CTs."""
        return {key: report(f"codec, {key}", self._codec_rows(key)) for key in self.bundles}

    def _codec_rows(self, key: str) -> Iterable[Row]:
        for patient, image in zip(self.patients, self.reconstructions(key), strict=True):
            assert patient.ct is not None
            found = compare(image, patient.ct, patient.mask.array).to_dict()
            found.pop("mae_label_hu")
            yield {"case": patient.name, **found, **agreement(image, patient)}

    def images(self) -> Row:
        """One image for each mask; the bundles take turns, so that their seconds can be compared."""
        rows: dict[str, list[Row]] = {key: [] for key in self.bundles}
        for patient in self.patients:
            for key, bundle in self.bundles.items():
                image, seconds = self.store.image(bundle, patient, self.steps)
                rows[key].append(image_row(patient, image) | {"seconds": seconds})
                print(f"{patient.name}, {key}: {seconds:.1f} s", flush=True)
        return {key: report(f"images in {self._steps_of(key)} steps, {key}", found) for key, found in rows.items()}

    def _steps_of(self, key: str) -> int:
        return self.steps or self.bundles[key].manifest.schedule.steps

    def fid(self) -> Row:
        """2.5D FID against the real patients; ``ratio`` is to the generated images of the first bundle."""
        real = [patient.ct for patient in self.patients if patient.ct is not None]
        reference, rows = self._statistics(real), []
        for key, bundle in self.bundles.items():
            generated = [self.store.image(bundle, patient, self.steps)[0] for patient in self.patients]
            for what, images in (("generated", generated), ("reconstructed", self.reconstructions(key))):
                rows.append({"case": f"{key}, {what}", **self._statistics(images).distance(reference)})
        for row in rows:
            row["ratio"] = row["mean"] / rows[0]["mean"]
        if len(real) > 1:
            halves = [self._statistics(real[start::2], self.patients[start::2]) for start in (0, 1)]
            rows.append({"case": "real, one half against the other", **halves[0].distance(halves[1]), "ratio": None})
        name = self.features().name
        return {"features": name, "volumes": len(real)} | report(
            f"FID of {len(real)} volumes; {name}", rows, mean=False
        )

    def ddpm(self) -> Row:
        """The last bundle against its DDPM variant in all steps: FID, and seconds measured one after the other."""
        bundle, ddpm = list(self.bundles.values())[-1], self.ddpm_bundle
        assert ddpm is not None
        made: dict[str, list[tuple[np.ndarray, float]]] = {key_of(bundle): [], key_of(ddpm): []}
        for patient in self.patients:
            anew = not self.store.image_path(ddpm, patient, None).is_file()
            made[key_of(bundle)].append(self.store.image(bundle, patient, self.steps, anew))
            made[key_of(ddpm)].append(self.store.image(ddpm, patient, None))
            print(patient.name, *(f"{key}: {images[-1][1]:.1f} s" for key, images in made.items()), flush=True)
        real = self._statistics(patient.ct for patient in self.patients if patient.ct is not None)
        rows: list[Row] = []
        for key, images in made.items():
            distance = self._statistics(image for image, _ in images).distance(real)
            rows.append({"case": key, **distance, "seconds": float(np.mean([seconds for _, seconds in images]))})
        for row in rows:
            row["times_as_long"] = row["seconds"] / rows[0]["seconds"]
        return report(f"rectified flow in {self._steps_of(key_of(bundle))} steps, and DDPM", rows, mean=False)

    def sizes(self) -> Row:
        """Volumes (ml) of whole organs, asked for small and large, beside real patients at those percentiles."""
        found: Row = {}
        for key, bundle in self.bundles.items():
            rows = [self._sizes_row(bundle, name) for name in bundle.manifest.controllable]
            title = f"volumes in ml, {key}"
            found[key] = report(title, rows, mean=False) if rows else None
            if not rows:
                print(f"\n{title}: the bundle has no mask generator")
        return found

    def _sizes_row(self, bundle: maisi.Bundle, name: str) -> Row:
        label = bundle.labels.find(name).value
        whole = [s.volume_mm3 for p in self.patients for s in measure_sizes(p.mask, [label]) if s and s.is_whole]
        real = np.quantile(whole, SIZES) / 1000 if whole else (math.nan, math.nan)
        made, row = [], {"case": name, "patients": len(whole)}
        for size in SIZES:
            masks = (self.store.mask(bundle, name, size, index) for index in range(SIZE_SEEDS))
            sizes = [s for mask in masks for s in measure_sizes(mask, [label])]
            volumes = [s.volume_mm3 / 1000 if s else 0.0 for s in sizes if s is None or s.is_whole]
            made.append(float(np.mean(volumes)) if volumes else math.nan)
            row[f"whole_{size:.0%}"] = len(volumes)
        for size, in_patients, generated in zip(SIZES, real, made, strict=True):
            row |= {f"real_{size:.0%}": float(in_patients), f"made_{size:.0%}": generated}
        return row | {"response": float((made[1] - made[0]) / (real[1] - real[0]))}

    def _statistics(self, images: Iterable[np.ndarray], patients: Sequence[Patient] | None = None) -> SliceStatistics:
        statistics = SliceStatistics(self.features().name)
        for patient, image in zip(patients or self.patients, images, strict=True):
            try:
                statistics.add(self.features()(maisi.Volume(image, patient.mask.affine)))
            except maisi.RequestError as error:
                raise maisi.RequestError(f"{patient.name}: {error}") from error
        return statistics


def export(patients: Iterable[Patient], folder: Path) -> None:
    """Writes ``image.nii.gz`` (HU) and ``mask.nii.gz`` into a folder for each patient."""
    for patient in patients:
        assert patient.ct is not None
        image = maisi.Volume(patient.ct.round().astype(np.int16), patient.mask.affine)
        write_volume(image, folder / patient.name / "image.nii.gz", patient.name, synthetic=False)
        write_labels(patient.mask, folder / patient.name / "mask.nii.gz", patient.name, synthetic=False)
        print(folder / patient.name, flush=True)


def agreement(image: np.ndarray, patient: Patient) -> dict[str, float]:
    """Dice of the structures that HU find again."""
    return {name: threshold_dice(image, patient.mask.array, s) for name, s in STRUCTURES.items()}


def image_row(patient: Patient, image: np.ndarray) -> Row:
    """What is measured on one generated image; medians of the real patient beside it."""
    labels = patient.mask.array
    medians = median_hu(image, labels, GROUPS)
    row: Row = {"case": patient.name, **medians}
    if patient.ct is not None:
        real = median_hu(patient.ct, labels, GROUPS)
        row |= {f"real_{name}": value for name, value in real.items()}
        row |= {f"{name}_off": abs(medians[name] - value) for name, value in real.items()}
    return row | {"outside_hu": largest_hu_outside(image, labels), **agreement(image, patient)}


def report(title: str, rows: Iterable[Row], *, mean: bool = True) -> Row:
    """Prints a table row by row and gives it as plain data, with the mean over the rows that have the figure."""
    print(f"\n{title}", flush=True)
    shown: list[Row] = []

    def show(row: Row) -> None:
        if not shown:
            print(f"{'':<40}", *(f"{name:>{max(9, len(name))}}" for name in row if name != "case"))
        figures = [
            f"{'–' if v is None else format(v, '.3g' if abs(v) < 1 else '.2f'):>{max(9, len(k))}}"
            for k, v in row.items()
            if k != "case"
        ]
        print(f"{row['case']:<40}", *figures, flush=True)

    for row in rows:
        show(row)
        shown.append(row)
    found: Row = {"cases": shown}
    if mean and shown:
        found["mean"] = {key: average([row[key] for row in shown]) for key in shown[0] if key != "case"}
        show({"case": "mean", **found["mean"]})
    return found


def average(values: Sequence[float | None]) -> float | None:
    """The mean of those that are there and finite."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(known)) if known else None


def without_nan(data: Any) -> Any:
    """The same with None for what JSON cannot hold."""
    if isinstance(data, Mapping):
        return {key: without_nan(value) for key, value in data.items()}
    if isinstance(data, list):
        return [without_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of OpenKBP cases; default: masks of the bundle's library")
    parser.add_argument(
        "--bundle", nargs="+", default=["head-neck-mini"], help="names or folders; the first gives features"
    )
    parser.add_argument("--ddpm", help="bundle of the last bundle's DDPM variant")
    parser.add_argument("--cases", type=int, help="patients; default all of --data, else 2")
    parser.add_argument("--steps", type=int, help="solver steps; default: each bundle's own")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", choices=PARTS, action="append", help="may be given several times")
    parser.add_argument("--reuse", type=Path, help="folder of generated images")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--export", type=Path, help="write CTs and masks of --data as files here instead")
    given = parser.parse_args()
    needs_ct = {"codec", "fid", "ddpm"}
    parts = given.only or ([p for p in PARTS if p != "ddpm" or given.ddpm] if given.data else ["images"])
    if "ddpm" in parts and not given.ddpm:
        parser.error("the part ddpm needs --ddpm BUNDLE")
    if given.data is None and needs_ct & set(parts):
        parser.error(f"{', '.join(sorted(needs_ct & set(parts)))}: real CTs are needed; give --data")
    if given.export:
        if given.data is None:
            parser.error("--export: real CTs are needed; give --data")
        return export(read_patients(maisi.open_bundle(given.bundle[0]), given.data, given.cases), given.export)
    print("patients not trained on" if given.data else "masks of training patients (give --data for others)")
    with tempfile.TemporaryDirectory() as folder:
        try:
            benchmark = Benchmark(given, Store(given.reuse or Path(folder), given.seed))
            figures: Row = {
                "machine": platform.platform(),
                "cores": os.cpu_count(),
                "patients": [patient.name for patient in benchmark.patients],
                "steps": given.steps,
                "seed": given.seed,
            }
            for part in parts:
                figures[part] = getattr(benchmark, part)()
                if given.json:  # after each part: what is measured is not lost
                    write_text(given.json, json.dumps(without_nan(figures), indent=2) + "\n")
        except maisi.MaisiError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
