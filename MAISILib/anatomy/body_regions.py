"""Which body region a structure belongs to, and which regions a patient shows who has no structures at all."""

from __future__ import annotations

import re

import numpy as np

from MAISILib.anatomy.labels import Label
from MAISILib.volumes import LabelMap

#: Region of the labels of a group, where all of its structures lie in one.
_BY_GROUP = {
    "head and neck": "head",
    "lungs and airways": "chest",
    "thorax": "chest",
    "ribs and sternum": "chest",
    "abdominal organs": "abdomen",
    "pelvic organs": "lower",
}
#: Names that tell more than the group does; the first that fits. Structures of several regions tell none.
_BY_NAME = (
    (r"spinal cord|thyroid|\bbone\b|air cavity|aorta|vena cava|autochthon|humerus|iliopsoas|vertebrae c[5-7]", None),
    (r"vertebrae c[1-4]", "head"),
    (r"vertebrae t\d|scapula|clavic|pulmonary|subclavian|brachiocephalic", "chest"),
    (r"vertebrae l\d|portal|hepatic|kidney", "abdomen"),
    (r"sacrum|vertebrae s1|\bhip\b|femur|gluteus|iliac", "lower"),
)
#: An axial slice that is smaller than this (mm²) shows head, neck or limbs: an adult's head has about 25 000.
_HEAD_MM2 = 33_000.0
#: Two pieces of a slice of which the second has so much of the first are legs, if no third has so much of it.
_LEGS, _NO_THIRD = 0.5, 0.3
#: What is shorter than this (mm) tells nothing.
_LEAST_MM = 50.0
#: How far below the shoulders, and above the crotch, chest and abdomen of an adult end (mm).
_CHEST_ENDS, _ABDOMEN_ENDS = 280.0, 480.0
_LOWER_BEGINS, _ABDOMEN_BEGINS = 230.0, 430.0
#: Slices that are looked at lie so far apart.
_STEP_MM = 10.0


def region_of_label(label: Label) -> str | None:
    """The body region in which a structure lies: ``head``, ``chest``, ``abdomen``, ``lower``, or ``None``."""
    name = label.name.casefold()
    for pattern, region in _BY_NAME:
        if re.search(pattern, name):
            return region
    return None if label.host is not None else _BY_GROUP.get(label.group)


def regions_by_shape(mask: LabelMap) -> tuple[str, str] | None:
    """Top-most and bottom-most body region, judged by nothing but the outline of the patient.

    Slices are head, legs or trunk by the size and number of their pieces; the trunk is divided by its usual lengths,
    from the shoulders down where a head is seen, else from the crotch up where legs are. A trunk that shows neither is
    taken for chest and abdomen, and for the lower region as well where it is long. That is an estimate for adults.

    Args:
        mask: In any orientation; what is not background is the patient.

    Returns:
        ``None`` where too little is seen.
    """
    kinds, step = _kinds_of_slices(mask)
    if len(kinds) * step < _LEAST_MM:
        return None
    trunk = [at for at, kind in enumerate(kinds) if kind == "trunk"]
    if len(trunk) * step < _LEAST_MM:
        short = max(set(kinds), key=kinds.count)
        return ("lower", "lower") if short == "legs" else ("head", "head")
    length = (trunk[-1] - trunk[0] + 1) * step
    has_head = kinds[: trunk[0]].count("head") * step >= _LEAST_MM
    has_legs = kinds[trunk[-1] + 1 :].count("legs") * step >= _LEAST_MM
    if has_head:
        bottom = "chest" if length <= _CHEST_ENDS else "abdomen" if length <= _ABDOMEN_ENDS else "lower"
        return "head", "lower" if has_legs else bottom
    if has_legs:
        top = "lower" if length <= _LOWER_BEGINS else "abdomen" if length <= _ABDOMEN_BEGINS else "chest"
        return top, "lower"
    return "chest", "abdomen" if length <= _ABDOMEN_ENDS else "lower"


def _kinds_of_slices(mask: LabelMap) -> tuple[list[str], float]:
    """``head``, ``legs`` or ``trunk`` for slices of the patient from top to bottom, and their distance in mm."""
    import cc3d

    spacing = np.asarray(mask.spacing)
    axis = int(np.argmax(np.abs(mask.affine[2, :3]) / spacing))
    slices = np.moveaxis(mask.array, axis, 0)
    if mask.affine[2, axis] > 0:
        slices = slices[::-1]
    stride = max(1, round(_STEP_MM / spacing[axis]))
    pixel_mm2 = float(np.prod(np.delete(spacing, axis)))
    kinds = []
    for each in slices[stride // 2 :: stride]:
        pieces = cc3d.connected_components(np.ascontiguousarray(each != 0), connectivity=8)
        areas = np.zeros(4)
        found = np.sort(np.bincount(pieces.ravel())[1:])[::-1][:3] * pixel_mm2
        areas[: len(found)] = found
        if not areas[0]:
            continue
        if areas[1] >= _LEGS * areas[0] and areas[2] < _NO_THIRD * areas[0]:
            kinds.append("legs")
        else:
            kinds.append("head" if areas[0] < _HEAD_MM2 else "trunk")
    return kinds, stride * float(spacing[axis])
