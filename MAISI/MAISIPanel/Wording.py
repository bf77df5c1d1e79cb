"""How the panel writes durations, sizes and what is wrong."""

from __future__ import annotations

from slicer.i18n import tr as _

#: Of what is wrong; legible on light and dark panels.
PROBLEM_COLOR = "#d04437"
PROBLEM_STYLE = f"color: {PROBLEM_COLOR}"


def durationText(seconds: float) -> str:
    """A duration for people: ``"8 s"``, ``"3 min"``, ``"1 h 20 min"``. Longer ones are rounded more."""
    seconds = max(0.0, seconds)
    if seconds < 59.5:
        return _("{0} s").format(max(1, round(seconds)))
    minutes = round(seconds / 60)
    if minutes < 60:
        return _("{0} min").format(minutes)
    if minutes % 60 == 0:
        return _("{0} h").format(minutes // 60)
    return _("{0} h {1} min").format(minutes // 60, minutes % 60)


def bytesText(count: float | None) -> str:
    """A file size for people, in decimal units as disks have them; empty where it is not known."""
    if not count:
        return ""
    for unit, size, digits in (("GB", 1e9, 1), ("MB", 1e6, 0)):
        if count >= size:
            return f"{count / size:.{digits}f} {unit}"
    return f"{max(1, round(count / 1e3))} kB"


def timesText(values: object) -> str:
    """``(80, 56, 64)`` as ``"80 × 56 × 64"``."""
    return " × ".join(f"{value:g}" for value in values)  # type: ignore[attr-defined]
