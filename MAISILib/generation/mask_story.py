"""What became of the wishes for a sample's mask, in lines for people. Reads the provenance; loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def mask_story(mask_source: Mapping[str, Any] | None) -> list[str]:
    """One line for each organ whose size was asked for, for each change of the mask, and for all that it has lost.

    Of a user's mask it tells the notes, too: that it was straightened, say, or where its body comes from.

    Args:
        mask_source: ``mask_source`` of a provenance; ``None`` where there is no mask.

    Returns:
        Empty where there is nothing to tell.
    """
    source = mask_source or {}
    sizes = source.get("sizes")
    lines = [_size(name, size) for name, size in sizes.items() if size["asked"] is not None] if sizes else []
    if variation := source.get("variation"):
        lines.append(f"another patient, variation {variation['seed']}")
    if insertion := source.get("insertion"):
        lines.append(
            f"{insertion['lesion']} of {insertion['diameter_mm']:.1f} mm in {insertion['host']} (asked for: "
            f"{insertion['asked_mm']:g} mm)"
        )
    for loss in source.get("lost", ()):
        line = f"{loss['name']}: the model's voxels keep {loss['kept']} of its {loss['voxels']} voxels"
        lines.append(line if loss["kept"] else f"{line}, so the image does not show it")
    return [*lines, *source.get("notes", ())] if source.get("kind") == "file" else lines


def _size(name: str, size: Mapping[str, Any]) -> str:
    asked = "absent" if size["asked"] < 0 else f"{size['asked']:.0%}"
    if not size["volume_mm3"]:
        became = "absent"
    else:
        became = f"{size['volume_mm3'] / 1000:.1f} ml"
        if size["percentile"] is not None:
            became += f", larger than {size['percentile']:.0%} of the patients"
        elif not size["is_whole"]:
            became += " of it in the picture, so its size is not known"
    verdict = {True: "", False: ": NOT AS ASKED", None: ""}[size["is_as_asked"]]
    return f"{name}: {became} (asked for: {asked}){verdict}"
