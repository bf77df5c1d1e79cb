"""The one family of exceptions that MAISILib raises on purpose.

Every message says what is wrong, where, and what to do. The command line prints them without a traceback and
leaves with the exception's ``exit_code``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MaisiError(Exception):
    """Base of all errors that MAISILib raises on purpose."""

    exit_code = 3


class RequestError(MaisiError):
    """A request that cannot be carried out as written: an unknown name, an illegal size, a contradiction."""

    exit_code = 2


class BundleError(MaisiError):
    """A model bundle that is missing, damaged, of a newer version, or does not fit its networks."""

    exit_code = 2


class MaskError(MaisiError):
    """A segmentation that cannot condition a model."""

    exit_code = 2


class FileFormatError(MaisiError):
    """A file from outside that is missing, unreadable or not what it should be."""

    exit_code = 2


class OutputError(MaisiError):
    """A result that cannot be written: no permission, no space, a file in the way."""

    exit_code = 2


class LicenceError(BundleError):
    """Weights whose licence has not been accepted yet."""


class DownloadError(BundleError):
    """Weights that could not be fetched, or arrived damaged."""


class OutOfMemory(MaisiError):
    """The run does not fit into the memory at hand."""


class TrainingError(MaisiError):
    """A training that cannot start as asked: recipe, data or run folder do not fit."""

    exit_code = 2


class FailedTrainingError(TrainingError):
    """A training that broke off: its numbers are no longer finite, the loss diverges, a process is gone."""

    exit_code = MaisiError.exit_code


class Cancelled(MaisiError):
    """The user cancelled the run."""

    exit_code = 130


def means_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: a type of its own on GPUs, a plain RuntimeError of PyTorch's allocator on a CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("not enough memory", "out of memory")
    )


def nearest_names(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Names in ``known`` that read like ``name``, best first, for "did you mean" hints."""
    known = list(known)
    lowered = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=limit, cutoff=0.5)
    inside = [k for low, k in lowered.items() if name.lower() in low and low not in close]
    return [lowered[c] for c in close] + inside[: max(0, limit - len(close))]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'a', 'b'?"`` for a misspelt name, or an empty string where nothing is near."""
    names = nearest_names(name, known)
    return f" Did you mean {', '.join(repr(n) for n in names)}?" if names else ""
