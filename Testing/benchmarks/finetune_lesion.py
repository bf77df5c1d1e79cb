"""Does fine-tuning teach a new label, and leave the rest alone? Bright balls painted into patients, then unseen ones.

``python Testing/benchmarks/finetune_lesion.py --data OPENKBP [--bundle head-neck-mini] [--steps 600] --out RUN``. Six
training patients get a ball of +300 HU with a label of its own; the fine-tuned bundle generates four validation
patients with the label, its parent the same patients without it, from the same noise. ``--out`` resumes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

import MAISILib as maisi
from MAISILib.anatomy.masks import remove_tumors
from MAISILib.files.nifti import write_labels, write_volume
from MAISILib.jobs.folder import Event
from MAISILib.training.cases import read_cases
from MAISILib.training.finetune import FineTuning, build_and_load, finetune
from MAISILib.training.finetune_data import plan_preparation
from MAISILib.training.head_neck import BODY, TARGET, case_names, crop_grid, read_case, sample_case
from MAISILib.training.label_mapping import propose_mapping
from MAISILib.training.new_labels import parse_new_labels
from MAISILib.training.rendering import Renderer, difference_of
from MAISILib.volumes import LabelMap, Volume

LESION, ADDED_HU, RADIUS_MM = 150, 300.0, 20.0
NEW_LABEL = f"lesion={LESION}:target"
#: Whole patients, who fill most of the grid, evenly spread over the list.
TRAINED, UNSEEN = 6, 4


def with_ball(
    ct: np.ndarray, labels: np.ndarray, spacing: tuple[float, ...], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """CT (HU) and labels ``(X, Y, Z)`` with a ball of +300 HU in soft tissue, which becomes label 150."""
    inside = np.argwhere(np.isin(labels, (BODY, TARGET)))
    index = np.indices(ct.shape).reshape(3, -1).T
    rng = np.random.default_rng(seed)
    best, most = inside[0], -1
    for center in inside[rng.integers(len(inside), size=40)]:  # the place that holds most soft tissue
        near = (((index - center) * spacing) ** 2).sum(axis=1) <= RADIUS_MM**2
        soft = int(np.isin(labels.reshape(-1)[near], (BODY, TARGET)).sum())
        if soft > most:
            best, most = center, soft
    ball = ((((index - best) * spacing) ** 2).sum(axis=1) <= RADIUS_MM**2).reshape(ct.shape)
    ball &= np.isin(labels, (BODY, TARGET))
    return np.where(ball, ct + ADDED_HU, ct), np.where(ball, LESION, labels).astype(np.uint8)


def painted(data: Path, split: str, count: int, bundle: maisi.Bundle) -> list[tuple[str, np.ndarray, LabelMap]]:
    """Name, CT and label map of so many patients, each with a ball."""
    best, table = bundle.manifest.recommended[0], bundle.labels
    found = []
    for number, name in enumerate(case_names(data / split)):
        case = read_case(data / split, name)
        grid = crop_grid(case, best.size, best.spacing, 0.5)
        ct, labels = sample_case(case, grid)
        found.append((int((labels > 0).sum()), name, number, ct, labels, grid.affine))
        if len(found) >= 5 * count:
            break
    found.sort(key=lambda entry: -entry[0])
    rows = []
    for _, name, number, ct, labels, affine in found[:count]:
        bright, with_lesion = with_ball(ct, labels, best.spacing, number)
        rows.append((name, bright, LabelMap(with_lesion, affine, table, name)))
    return rows


def main() -> None:
    """Paints, fine-tunes, generates, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train/ and validation/ of OpenKBP")
    parser.add_argument("--bundle", default="head-neck-mini")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("runs/finetune-lesion"))
    given = parser.parse_args()
    if given.data is None:
        print("no --data: nothing to fine-tune on")
        return
    bundle = maisi.open_bundle(given.bundle)
    cases = given.out / "cases"
    entries = []
    for name, ct, mask in painted(given.data, "train", TRAINED, bundle):
        image, segmentation = cases / f"{name}_ct.nii.gz", cases / f"{name}_seg.nii.gz"
        write_volume(Volume(np.round(ct).astype(np.int16), mask.affine), image, "painted lesion", synthetic=False)
        write_labels(mask, segmentation, "painted lesion", synthetic=False)
        entries.append({"image": image.name, "segmentation": segmentation.name})
    (cases / "cases.json").write_text(json.dumps(entries), encoding="utf-8")

    started = time.perf_counter()
    new_labels = parse_new_labels([NEW_LABEL], bundle.labels)
    found = read_cases(cases / "cases.json")
    plan = plan_preparation(bundle, propose_mapping(found, bundle.labels, new_labels), new_labels)
    tuned = finetune(FineTuning(plan, found, given.out / "bundle", given.steps), resume=True, on_event=_tell)
    minutes = (time.perf_counter() - started) / 60
    print(f"fine-tuned in {minutes:.1f} min (this session): {json.dumps(tuned.metrics)}", flush=True)

    child = maisi.open_bundle(tuned.bundle)
    renderer = Renderer(bundle, bundle.load("diffusion"))
    before = bundle.load("controlnet")
    after = build_and_load(bundle, child.path(child.entry("controlnet").weights))
    rows, steps = [], bundle.manifest.schedule.steps
    for number, (name, _, mask) in enumerate(painted(given.data, "validation", UNSEEN, bundle)):
        mask = LabelMap(mask.array, mask.affine, child.labels, name)
        parents = renderer.image(before, remove_tumors(mask, [LESION]), steps=steps, seed=number)
        childs = renderer.image(after, mask, steps=steps, seed=number)
        rows.append(difference_of(parents, childs, mask, (LESION,)))
        print(name, json.dumps({key: round(value, 1) for key, value in rows[-1].items()}), flush=True)
    mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    print("mean", json.dumps({key: round(value, 1) for key, value in mean.items()}))
    (given.out / "result.json").write_text(json.dumps({"mean": mean, "cases": rows, "minutes": minutes}) + "\n")


def _tell(event: Event) -> None:
    if event.message or event.done % 50 == 0:
        print(event.stage, event.done, event.total, event.message or event.metrics, flush=True)


if __name__ == "__main__":
    main()
