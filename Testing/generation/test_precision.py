"""Reduced precision on a CPU: on request, and nearly the same image."""

from __future__ import annotations

import pytest

from MAISILib.bundles.bundle import Bundle
from MAISILib.generation import plan as planning
from MAISILib.generation.pipeline import generate
from MAISILib.generation.request import GenerateRequest


@pytest.mark.skipif(not planning.computes_bfloat16("cpu"), reason="this CPU imitates bfloat16")
def test_bfloat16_makes_nearly_the_same_image(rflow: Bundle) -> None:
    images = [
        generate(rflow, GenerateRequest(mask="none", steps=2, precision=precision), device="cpu").samples[0]
        for precision in ("float32", "bfloat16", "bfloat16")
    ]
    assert images[1].provenance["device"]["precision"] == "bfloat16"
    wide, narrow, again = (sample.image.array.astype(float) for sample in images)
    assert (narrow == again).all()
    assert 0 < abs(narrow - wide).mean() < 40
