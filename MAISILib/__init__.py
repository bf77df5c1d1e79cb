"""MAISI for Slicer: synthetic CT and MR volumes with their segmentations, from a request.

The names below are loaded when they are first used, so that ``import MAISILib`` costs nothing::

    import MAISILib as maisi

    bundle = maisi.open_bundle("head-neck-mini")
    request = maisi.GenerateRequest(output_size=(96, 96, 96), spacing=(4.0, 4.0, 2.5), seed=7)
    print(maisi.plan(bundle, request, device="auto"))
    result = maisi.generate(bundle, request)
    result.save("out")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from MAISILib.anatomy.lesion_insertion import insert_lesion
    from MAISILib.anatomy.variation import Variation, vary_mask
    from MAISILib.bundles.bundle import Bundle, open_bundle
    from MAISILib.errors import (
        BundleError,
        Cancelled,
        DownloadError,
        FailedTrainingError,
        FileFormatError,
        LicenceError,
        MaisiError,
        MaskError,
        OutOfMemory,
        OutputError,
        RequestError,
        TrainingError,
    )
    from MAISILib.generation.pipeline import generate
    from MAISILib.generation.plan import Plan, plan
    from MAISILib.generation.progress import CancelToken, Progress
    from MAISILib.generation.request import GenerateRequest
    from MAISILib.generation.result import GenerateResult, Sample
    from MAISILib.volumes import Grid, LabelMap, Volume

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "BundleError",
    "CancelToken",
    "Cancelled",
    "DownloadError",
    "FailedTrainingError",
    "FileFormatError",
    "GenerateRequest",
    "GenerateResult",
    "Grid",
    "LabelMap",
    "LicenceError",
    "MaisiError",
    "MaskError",
    "OutOfMemory",
    "OutputError",
    "Plan",
    "Progress",
    "RequestError",
    "Sample",
    "TrainingError",
    "Variation",
    "Volume",
    "generate",
    "insert_lesion",
    "open_bundle",
    "plan",
    "vary_mask",
]

_HOMES = {
    "MAISILib.anatomy.lesion_insertion": ("insert_lesion",),
    "MAISILib.anatomy.variation": ("Variation", "vary_mask"),
    "MAISILib.bundles.bundle": ("Bundle", "open_bundle"),
    "MAISILib.errors": tuple(
        name for name in __all__ if name.endswith("Error") or name in ("Cancelled", "OutOfMemory")
    ),
    "MAISILib.generation.pipeline": ("generate",),
    "MAISILib.generation.plan": ("Plan", "plan"),
    "MAISILib.generation.progress": ("CancelToken", "Progress"),
    "MAISILib.generation.request": ("GenerateRequest",),
    "MAISILib.generation.result": ("GenerateResult", "Sample"),
    "MAISILib.volumes": ("Grid", "LabelMap", "Volume"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Loads a public name from its room at first use (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
