"""Fine-tunings of seconds: what the user has, and what is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from MAISILib.bundles.bundle import Bundle
from MAISILib.training.cases import read_cases
from MAISILib.training.finetune_data import plan_preparation
from MAISILib.training.finetune_request import FineTuning
from MAISILib.training.label_mapping import propose_mapping
from MAISILib.training.new_labels import parse_new_labels
from Testing.tiny_bundle import LIVER
from Testing.training.users_cases import LESION, patient, write_case, write_image, write_list, write_segments

NEW = (f"lesion={LESION}:liver",)


def write_three_cases(folder: Path) -> Path:
    """NIfTI, NRRD, and a segmentation saved by Slicer beside other organs; in a folder with a name."""
    folder = folder / "Fälle von Station 3"
    entries = [write_case(folder, "Änne M"), write_case(folder, "bob", suffix=".nrrd", shift=1)]
    ct, mask = patient(shift=2)
    write_image(folder / "carl_ct.nii.gz", ct.array, ct.affine)
    lesion = (mask.array == LESION).astype(np.uint8)
    write_segments(folder / "carl.seg.nrrd", lesion, ct.affine, [{"Name": "Lesion", "LabelValue": 1}])
    organs = np.where(mask.array == LESION, LIVER, mask.array)
    write_image(folder / "carl_organs.nii.gz", organs, ct.affine)
    entries.append(
        {"image": "carl_ct.nii.gz", "segmentation": "carl.seg.nrrd", "body_segmentation": "carl_organs.nii.gz"}
    )
    return write_list(folder, entries)


def asked(
    parent: Path,
    cases: Path,
    out: Path,
    steps: int = 3,
    *,
    new: Any = NEW,
    edits: Any = None,
    recipe: Any = None,
    **options: Any,
) -> FineTuning:
    """What a user asks for, with a validation every other step.

    Args:
        parent: The bundle's folder.
        cases: The list of cases.
        out: Folder of the new bundle.
        steps: Training steps.
        new: New labels as typed.
        edits: Of the mapping.
        recipe: Fields of the recipe to change.
        **options: Of ``plan_preparation``.
    """
    bundle = Bundle(parent)
    labels = parse_new_labels(new, bundle.labels)
    found = read_cases(cases)
    mapping = propose_mapping(found, bundle.labels, labels)
    plan = plan_preparation(bundle, mapping.edited(edits or {}, bundle.labels), labels, **options)
    return FineTuning(plan, found, out, steps, {"validate_every": 2, **(recipe or {})})
