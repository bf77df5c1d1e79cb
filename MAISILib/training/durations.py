"""How long a fine-tuning takes, in words that people choose by."""

from __future__ import annotations

from MAISILib.errors import RequestError, did_you_mean

#: Training steps by duration.
DURATIONS = {"quick": 40, "normal": 150, "long": 600}


def steps_of(duration: str, steps: int | None = None) -> int:
    """Training steps; a number wins over the word.

    Raises:
        RequestError: An unknown word, or a number below 1.
    """
    if steps is not None:
        if steps < 1:
            raise RequestError(f"{steps} training steps are not possible. Give 1 or more.")
        return steps
    if duration not in DURATIONS:
        known = ", ".join(f"{name} ({count} steps)" for name, count in DURATIONS.items())
        raise RequestError(f"Unknown duration {duration!r}; there are {known}.{did_you_mean(duration, DURATIONS)}")
    return DURATIONS[duration]
