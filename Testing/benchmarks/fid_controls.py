"""Does FID tell what it should? Real CTs against real ones, and against ones that were made worse and worse.

``python Testing/benchmarks/fid_controls.py --data FOLDER [--spacing 6 6 4] [--json FILE]``. FOLDER is any that
``maisi evaluate`` reads. Every second of its CTs is compared with the others: as they are, and blurred, noisy, or
shifted by more and more. It measures with ``maisi evaluate fid``, as a user would. Does nothing without ``--data``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from MAISILib.quality.image_sets import find_images

LOW, HIGH = -1000.0, 1000.0


def blurred(image: np.ndarray, voxels: float) -> np.ndarray:
    """Gaussian blur of a standard deviation in voxels."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, voxels)


def noisy(image: np.ndarray, hu: float) -> np.ndarray:
    """Gaussian noise of a standard deviation in HU, the same for every amount but for its size."""
    return image + hu * np.random.default_rng(0).standard_normal(image.shape)


def shifted(image: np.ndarray, hu: float) -> np.ndarray:
    """Everything but air brighter."""
    return np.where(image > LOW + 1, image + hu, image)


WORSE: dict[str, tuple[Callable[[np.ndarray, float], np.ndarray], tuple[float, ...]]] = {
    "blur (voxels)": (blurred, (0.5, 1, 2)),
    "noise (HU)": (noisy, (15, 40, 100)),
    "shift (HU)": (shifted, (20, 50, 100)),
}


def distance(real: Path, other: Path, features: Path, spacing: list[str], *more: str) -> dict[str, Any]:
    """The report of ``maisi evaluate fid``."""
    command = [sys.executable, "-m", "MAISILib", "evaluate", "fid", str(real), str(other), "--json", *more]
    command += ["--features", str(features), "--spacing", *spacing]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    """Reads the command line and prints a row for each set."""
    import nibabel as nib

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of CTs")
    parser.add_argument("--spacing", nargs=3, default=["6", "6", "4"], help="mm")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    if given.data is None:
        print("needs --data: real patients are not part of the project")
        return
    cases = find_images(given.data)
    print(f"{len(cases[::2])} CTs against {len(cases[1::2])} others (FID, mean of three planes, and its 95 % interval)")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        real = work / "real.txt"
        real.write_text("".join(f"{case.path.resolve()}\n" for case in cases[::2]), encoding="utf-8")
        sets: list[tuple[str, float, Callable[[np.ndarray, float], np.ndarray] | None]] = [("as they are", 0.0, None)]
        sets += [(what, amount, change) for what, (change, amounts) in WORSE.items() for amount in amounts]
        for number, (what, amount, change) in enumerate(sets):
            folder = work / f"set-{number}"
            folder.mkdir()
            for case in cases[1::2]:
                image: Any = nib.load(case.path)  # type: ignore[attr-defined]
                array = np.asarray(image.dataobj, np.float32)
                array = array if change is None else change(array, amount)
                saved = nib.Nifti1Image(array.clip(LOW, HIGH).round().astype(np.int16), image.affine)  # type: ignore
                nib.save(saved, folder / f"{case.name}.nii.gz")  # type: ignore[attr-defined]
            told = distance(real, folder, work / "features", given.spacing, *(["--bootstrap", "0"] if change else []))
            spread = told["confidence"].get("mean")
            between = f"  {spread['low']:.4g} to {spread['high']:.4g}" if spread else ""
            print(f"{what:16}{amount or '':>8}{told['fid']['mean']:12.5g}{between}", flush=True)
            rows.append({"set": what, "amount": amount, "fid": told["fid"], "confidence": told["confidence"]})
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
