"""Requests: what is accepted, what is refused and in which words, and JSON in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from MAISILib.errors import RequestError
from MAISILib.generation.request import PUBLISHED_KEYS, GenerateRequest

PUBLISHED: dict[str, Any] = {
    "num_output_samples": 3,
    "body_region": ["chest", "abdomen"],
    "anatomy_list": ["liver", "hepatic tumor"],
    "modality": 1,
    "num_inference_steps": 30,
    "output_size": [512, 512, 128],
    "spacing": [0.8, 0.8, 2.5],
    "cfg_guidance_scale": 2.5,
    "random_seed": "0",
    "autoencoder_sliding_window_infer_size": [48, 48, 48],
    "autoencoder_sliding_window_infer_overlap": 0.25,
    "controllable_anatomy_size": [["liver", 0.5], ["hepatic tumor", -1]],
    "mask_generation_num_inference_steps": 1000,
    "image_output_ext": ".nii.gz",
    "label_output_ext": ".nii.gz",
    "autoencoder_tp_num_splits": 4,
}


def test_json_round_trip_keeps_everything() -> None:
    request = GenerateRequest(
        anatomy=["liver", 28],
        mask_file=Path("a") / "mask.nii.gz",
        mask_ct=Path("ct.nrrd"),
        output_size=(64, 64, 32),
        spacing=(2, 2, 4.5),
        steps=7,
        schedule="upstream",
        guidance_scale=1.5,
        seed=2**62,
        count=3,
        first_index=4,
        quality_check=False,
        decode="windows",
    )
    assert request.mask == "file"
    assert GenerateRequest.from_json(request.to_json()) == request
    assert GenerateRequest.from_json(GenerateRequest().to_json()) == GenerateRequest()


def test_published_file_is_read() -> None:
    assert set(PUBLISHED) <= set(PUBLISHED_KEYS)
    request = GenerateRequest.from_json(json.dumps(PUBLISHED))
    assert request == GenerateRequest(
        count=3,
        body_region=["chest", "abdomen"],
        anatomy=["liver", "hepatic tumor"],
        modality=1,
        steps=30,
        output_size=(512, 512, 128),
        spacing=(0.8, 0.8, 2.5),
        guidance_scale=2.5,
        seed=0,
        decode_overlap=0.25,
        controllable_anatomy_size={"liver": 0.5, "hepatic tumor": -1},
        mask_steps=1000,
    )
    assert request.mask == "generated"


@pytest.mark.parametrize("key", sorted(PUBLISHED_KEYS))
def test_null_in_a_published_file_means_not_given(key: str) -> None:
    assert GenerateRequest.from_json(json.dumps({key: None})) == GenerateRequest()


def test_keys_that_both_forms_share_are_read_in_either_spelling() -> None:
    for sizes in ([["liver", 0.5]], {"liver": 0.5}):
        request = GenerateRequest.from_json(json.dumps({"controllable_anatomy_size": sizes, "output_size": [8, 8, 8]}))
        assert request.controllable_anatomy_size == {"liver": 0.5}
        assert request.output_size == (8, 8, 8)


def test_published_file_is_written_and_read_back() -> None:
    request = GenerateRequest.from_json(json.dumps(PUBLISHED))
    written = request.to_published()
    assert set(written) <= set(PUBLISHED_KEYS)
    assert written["random_seed"] == 0
    assert written["controllable_anatomy_size"] == [["liver", 0.5], ["hepatic tumor", -1.0]]
    assert GenerateRequest.from_json(json.dumps(written)) == request


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"anatomie": ["liver"]}', r"Unknown field 'anatomie'\. Did you mean 'anatomy'"),
        ('{"num_outputs_samples": 2}', "'num_output_samples'"),
        ('{"random_seed": 1, "seed": 2}', "'random_seed' and 'seed' mean the same"),
        ('{"random_seed": "-1"}', r"seed: .*greater than or equal to 0 \(got '-1'\)"),
        ('{"random_seed": "one"}', r"seed: .*integer.* \(got 'one'\)"),
        ('{"controllable_anatomy_size": [["liver", 0.5, 1]]}', r"\[name, size\] pairs .*\['liver', 0\.5, 1\]"),
        ('{"controllable_anatomy_size": ["liver"]}', "pairs"),
        ('{"seed": 1', "not JSON"),
        ("[1, 2]", "JSON object, not a list"),
        ("[" * 100_000, "not JSON"),
        ('{"seed": ' + "9" * 5000 + "}", "not JSON"),
    ],
)
def test_unusable_file_is_named_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        GenerateRequest.from_json(text, "my.json")
    assert str(caught.value).startswith("my.json")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"seeds": 1}, r"Unknown field 'seeds'\. Did you mean 'seed'"),
        ({"count": 0}, r"count: .*greater than or equal to 1 \(got 0\)"),
        ({"steps": 0}, r"steps: .*\(got 0\)"),
        ({"seed": -3}, r"seed: .*\(got -3\)"),
        ({"seed": 2**63}, r"seed: .*less than"),
        ({"first_index": -1}, r"first_index: .*\(got -1\)"),
        ({"spacing": (1.0, 0.0, 1.0)}, r"spacing\.1: .*greater than 0 \(got 0\.0\)"),
        ({"spacing": (1.0, 1.0, float("nan"))}, r"spacing\.2: .*\(got nan\)"),
        ({"output_size": (64, 64)}, r"output_size\.2: .*required"),
        ({"output_size": (64, -1, 64)}, r"output_size\.1: .*\(got -1\)"),
        ({"guidance_scale": float("inf")}, r"guidance_scale: .*\(got inf\)"),
        ({"guidance_scale": 21}, r"guidance_scale: .*\(got 21\)"),
        ({"schedule": "fast"}, r"schedule: .*'exact' or 'upstream' \(got 'fast'\)"),
        ({"decode_overlap": 1.0}, r"decode_overlap: .*\(got 1\.0\)"),
        ({"mask": "file"}, "mask_file"),
        ({"mask": "none", "mask_file": "a.nii"}, "contradict"),
        ({"mask": "library", "mask_file": "a.nii"}, "contradict"),
        ({"mask": "none", "anatomy": ["liver"]}, "no anatomy"),
        ({"mask_ct": "ct.nii"}, "mask_ct belongs to a mask_file"),
        ({"controllable_anatomy_size": {"liver": 3}}, r"controllable_anatomy_size .*'liver': 3"),
    ],
)
def test_every_refusal_names_the_field_and_the_value(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        GenerateRequest(**fields)


def test_several_mistakes_are_told_at_once() -> None:
    with pytest.raises(RequestError, match=r"steps: .*\(got -1\)\. count: .*\(got 0\)"):
        GenerateRequest(count=0, steps=-1)
