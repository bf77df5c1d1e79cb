"""How many training patients must ``evaluate novelty`` know to tell copies from strangers?

``python -m Testing.benchmarks.novelty_size --data OPENKBP/train OPENKBP/validation [--trials 50]``.
Does nothing without ``--data``.

Some patients, drawn at random, play those trained on; the others are strangers. A copy is a patient shifted by 3 voxels
along each axis (air comes in, and what leaves the image is lost), with noise of 20 HU. Columns: strangers called a
copy, copies not called one, both in any of the two spaces, over all trials.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import MAISILib as maisi
from MAISILib.cli.evaluate_codec import codec_of
from MAISILib.files.images import read_image
from MAISILib.quality.image_sets import find_images
from MAISILib.quality.novelty import expected_between
from MAISILib.quality.signatures import SPACES, Signature

#: Training patients.
SIZES = (4, 6, 8, 10, 12, 16, 20, 24, 32, 64, 128)
#: Every so many-th patient has a copy.
COPIED = 5
#: Strangers in a trial.
STRANGERS = 60


def signatures(folders: list[Path]) -> tuple[list[Signature], dict[int, Signature]]:
    """Those of all patients, and the copies of some by the patient's number."""
    bundle = maisi.open_bundle("head-neck-mini")
    best, codec, rng = bundle.manifest.recommended[0], codec_of(bundle, "cpu"), np.random.default_rng(0)
    grid = maisi.Grid.axis_aligned(best.size, best.spacing)

    def signature(volume: maisi.Volume) -> Signature:
        return Signature(volume, grid, lambda image: codec.encode(image)[0].numpy())

    patients: list[Signature] = []
    copies: dict[int, Signature] = {}
    for image in [image for folder in folders for image in find_images(folder)]:
        volume = read_image(image.path)
        if len(patients) % COPIED == 0:
            noisy = volume.array + rng.normal(0, 20, volume.array.shape).astype(np.float32)
            moved = np.full_like(noisy, -1000)
            moved[3:, 3:, 3:] = noisy[:-3, :-3, :-3]
            copies[len(patients)] = signature(maisi.Volume(moved, volume.affine, "HU"))
        patients.append(signature(volume))
    return patients, copies


def main() -> None:
    """Reads the command line and prints a row for each number of training patients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", help="folders of real CTs")
    parser.add_argument("--trials", type=int, default=50)
    given = parser.parse_args()
    if not given.data:
        print("novelty_size needs real CTs: --data FOLDER ...")
        return
    patients, copies = signatures(given.data)
    count = len(patients)
    apart = {space: np.full((count, count), np.inf) for space in SPACES}
    from_copy = {space: np.zeros((count, count)) for space in SPACES}
    for space in SPACES:
        for row in range(count):
            for column in range(row):
                distance = patients[row].distance(patients[column], space)
                apart[space][row, column] = apart[space][column, row] = distance
        for number, copy in copies.items():
            from_copy[space][number] = [copy.distance(patient, space) for patient in patients]
    print(f"{count} patients, {given.trials} trials each")
    print("| training patients | strangers called a copy | copies not found |\n|---|---|---|")
    for size in (size for size in SIZES if size + STRANGERS <= count):
        rng = np.random.default_rng(size)
        called = missed = known_copies = 0
        for _ in range(given.trials):
            order = rng.permutation(count)
            known, others = order[:size], order[size : size + STRANGERS]
            copied = [number for number in known if number in copies]
            called_now, found_now = np.zeros(STRANGERS, bool), np.zeros(len(copied), bool)
            for space in SPACES:
                bound = expected_between(apart[space][np.ix_(known, known)]).copy_below
                called_now |= apart[space][np.ix_(others, known)].min(axis=1) < bound
                found_now |= from_copy[space][np.ix_(copied, known)].min(axis=1, initial=np.inf) < bound
            called += int(called_now.sum())
            missed += int((~found_now).sum())
            known_copies += len(copied)
        print(f"| {size} | {called} of {given.trials * STRANGERS} | {missed} of {known_copies} |", flush=True)


if __name__ == "__main__":
    main()
