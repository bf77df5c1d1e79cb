"""Each sample is judged in the one way in which images are judged, and the verdict travels with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from MAISILib.bundles.bundle import Bundle
from MAISILib.files.nifti import write_labels
from MAISILib.generation import pipeline
from MAISILib.generation.pipeline import generate
from MAISILib.generation.request import GenerateRequest
from MAISILib.generation.result import Sample
from MAISILib.quality.hu_check import OrganRange
from MAISILib.quality.image_sets import find_images
from MAISILib.quality.quality_evaluation import evaluate_quality
from Testing.tiny_bundle import BODY, LIVER, tiny_patient

TABLE = "organ,labels,percentile_0_5,percentile_99_5,sigma_6_low,sigma_6_high\nliver,1,-2000,2000,-2000,2000\n"
RANGES = [OrganRange("liver", (LIVER,), -2000.0, 2000.0)]


def only(bundle: Bundle, **fields: object) -> Sample:
    [sample] = generate(bundle, GenerateRequest(steps=1, **fields)).samples  # type: ignore[arg-type]
    return sample


def test_a_sample_has_the_verdict_that_its_saved_files_get(tiny: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = tiny(with_masks=1, quality="quality.csv")
    (bundle.folder / "quality.csv").write_text(TABLE, encoding="utf-8")
    sample = only(bundle, seed=3)
    sample.save(tmp_path / "out")
    [check] = evaluate_quality(find_images(tmp_path / "out"), bundle.labels, RANGES).cases
    written = json.loads((tmp_path / "out" / "provenance.json").read_text(encoding="utf-8"))
    assert written["quality"] == json.loads(json.dumps(check.to_dict()))
    assert written["quality"]["hu"]["organs"][0]["organ"] == "liver"
    told = sample.summary(tmp_path / "out")
    assert (told["verdict"], told["passed"], told["quality"]) == (check.verdict, check.passed, check.summary())


def test_a_sample_is_not_made_again_because_image_and_mask_disagree(tiny: Callable[..., Bundle]) -> None:
    sample = only(tiny(with_masks=1), seed=3)
    assert sample.quality is not None
    assert sample.quality.verdict == "failed"
    assert "no edges of the image" in sample.quality.summary()
    assert sample.attempts == 1


def test_a_sample_is_the_same_whether_it_is_judged_or_not(tiny: Callable[..., Bundle]) -> None:
    bundle = tiny(with_masks=1)
    judged, plain = only(bundle, seed=3), only(bundle, seed=3, quality_check=False)
    assert judged.image.array.tobytes() == plain.image.array.tobytes()
    assert (plain.quality, plain.provenance["quality"], plain.summary("x")["quality"]) == (None, None, "not checked")


def test_a_mask_of_nothing_but_a_body_is_judged(tiny: Callable[..., Bundle], tmp_path: Path) -> None:
    body = tiny_patient()
    body = body.with_array(np.where(body.array > 0, BODY, 0).astype(np.uint8))
    write_labels(body, tmp_path / "body.nii.gz")
    sample = only(tiny(), mask_file=tmp_path / "body.nii.gz")
    assert sample.quality is not None
    assert sample.quality.verdict == "passed"
    assert sample.quality.boundary_contrast > 1.5  # the skin
    assert sample.quality.measures()["bone_dice"] is None


@pytest.mark.parametrize("mask", ["library", "none"])
def test_an_image_without_hounsfield_units_is_not_judged(tiny: Callable[..., Bundle], mask: str) -> None:
    sample = only(tiny(with_masks=1, intensity={"kind": "mr"}), mask=mask)
    assert sample.quality is not None
    assert sample.quality.summary() == "not checked – the image is not in HU: only blankness was checked"
    assert sample.summary("x")["passed"] is None


def test_an_image_without_values_is_told(tiny: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    decode = pipeline.Codec.decode

    def broken(*arguments: object, **options: object) -> np.ndarray:
        array = decode(*arguments, **options)  # type: ignore[arg-type]
        array[4:8] = np.nan
        return array

    monkeypatch.setattr(pipeline.Codec, "decode", broken)
    sample = only(tiny(with_masks=1))
    assert sample.quality is not None
    assert sample.quality.summary() == "failed – the image has voxels without a value (NaN)"
    assert (sample.image.array[4:8] == -1000).all()
