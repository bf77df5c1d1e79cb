"""Names of modalities and the class codes that networks take for them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache

from MAISILib.errors import RequestError, did_you_mean
from MAISILib.resources import resource

#: Codes of CT; higher ones are MR, 0 is unknown (``Resources/modalities.csv``).
CT_CODES = range(1, 8)


@cache
def known_modalities() -> dict[str, int]:
    """Every modality of the public models and its code."""
    with resource("modalities.csv").open(encoding="utf-8", newline="") as file:
        return {row["modality"]: int(row["code"]) for row in csv.DictReader(file)}


def modality_code(modality: str | int, own: Mapping[str, int] | None = None, where: str = "") -> int:
    """The class code of a modality.

    Args:
        modality: Name, in upper or lower case, or code.
        own: Names of a bundle, which come before the public ones.
        where: What has this modality, for the message.

    Raises:
        RequestError: No such name.
    """
    names = {**known_modalities(), **{name.lower(): code for name, code in (own or {}).items()}}
    text = str(modality).strip().lower()
    if text in names:
        return names[text]
    if text.isdecimal() and int(text) < 128:  # the published networks embed 128 classes
        return int(text)
    said = f"{where}: unknown" if where else "Unknown"
    raise RequestError(
        f"{said} modality {modality!r}.{did_you_mean(text, names)} Give a name such as ct or mri_t1, or a code 0–127."
    )


def is_ct(code: int) -> bool:
    """Whether a class code means CT, whose values are Hounsfield units; unknown (0) does not."""
    return code in CT_CODES
