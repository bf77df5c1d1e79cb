"""How long a fine-tuning will take on this computer, before it is begun."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from MAISILib.generation.plan import plan
from MAISILib.generation.request import GenerateRequest

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle

#: Predictions of a training step: two samples, each with its mask and with the mask whose label became its host.
_PREDICTIONS = 4
#: Predictions of the parent in a training step, of which nothing is learned back: one for each sample.
_PARENTS_PREDICTIONS = 2
#: A prediction that is learned from, in predictions: the way back costs twice the way there.
_WITH_GRADIENT = 3
#: Part of the volume that a sample is, on average: four of five are boxes of an eighth.
_PART = 0.8 / 8 + 0.2
#: Solver steps of all pictures: six during the training, and both of the comparison.
_PICTURE_STEPS, _PICTURES = 6 * 8 + 2 * 20, 8
#: Encoding a case, in decodings; each is also encoded mirrored.
_ENCODINGS = 2


def estimate_seconds(bundle: Bundle, cases: int, steps: int, device: str = "auto") -> float:
    """Seconds that a fine-tuning takes, reading of the cases left out; right to a factor of two or so.

    Args:
        bundle: The parent.
        cases: Number of cases.
        steps: Training steps.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.

    Raises:
        BundleError: The bundle has no ControlNet.
        RequestError: The device is not there.
    """
    bundle.entry("controlnet")
    planned = plan(bundle, GenerateRequest(mask_file=Path("mask.nii.gz")), device)  # which is not read
    seconds = {stage.name: stage.seconds for stage in planned.stages}
    prediction = seconds["diffusion"] / planned.steps
    training = steps * (_PREDICTIONS * _WITH_GRADIENT + _PARENTS_PREDICTIONS) * _PART * prediction
    pictures = _PICTURE_STEPS * prediction + _PICTURES * seconds["decode"]
    return training + pictures + cases * _ENCODINGS * seconds["decode"]
