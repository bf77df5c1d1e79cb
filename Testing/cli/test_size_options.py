"""``--size-of`` and ``--generate-mask``: what they ask for, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from MAISILib.cli.options import build_request
from MAISILib.errors import RequestError
from Testing.cli.conftest import Maisi
from Testing.tiny_mask_generator import make_generating_bundle


def test_sizes_become_a_request() -> None:
    request = build_request(size_of=["Left parotid gland=0.25", "larynx = absent"], seed=1)
    assert request.mask == "generated"
    assert request.controllable_anatomy_size == {"Left parotid gland": 0.25, "larynx": -1.0}
    assert build_request(generate_mask=True).mask == "generated"


def test_options_win_over_the_request_file(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps({"mask_file": "mask.nii.gz", "seed": 4}))
    request = build_request(request_file=path, size_of=["liver=0.5"])
    assert (request.mask, request.mask_file, request.seed) == ("generated", None, 4)


@pytest.mark.parametrize("option", ["mandible", "=0.5", "mandible=large", "mandible="])
def test_size_that_cannot_be_read_says_how_to_write_it(option: str) -> None:
    with pytest.raises(RequestError, match=r"write NAME=SIZE, for example mandible=0\.8"):
        build_request(size_of=[option])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"no_mask": True}, "--no-mask and --size-of contradict"),
        ({"mask": Path("m.nii.gz")}, "--mask and --size-of contradict"),
        ({"mask_ct": Path("ct.nii.gz")}, "mask_ct belongs to a mask_file"),
    ],
)
def test_two_sources_of_masks_contradict_each_other(fields: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        build_request(size_of=["liver=0.5"], **fields)  # type: ignore[arg-type]


def test_size_beyond_its_range_is_refused() -> None:
    with pytest.raises(RequestError, match=r"0 to 1 \(percentile\) or -1 \(absent\)"):
        build_request(size_of=["liver=80"])


def test_generate_with_a_size(maisi: Maisi, work: Path, tmp_path: Path) -> None:
    bundle = make_generating_bundle(tmp_path / "generating")
    outcome = maisi("generate", "--bundle", bundle.folder, "--size-of", "liver=0.8", "--out", "out", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    provenance = json.loads((work / "out/sample-0000/provenance.json").read_text())
    assert provenance["mask_source"]["sizes"]["liver"]["asked"] == 0.8
    assert "\n    liver: " in outcome.out
    assert "(asked for: 80%)" in outcome.out
    plan = maisi("plan", "--bundle", bundle.folder, "--generate-mask", "--json")
    assert [stage["name"] for stage in plan.json["stages"]] == ["mask", "diffusion", "decode"]


def test_bundle_without_a_mask_generator_refuses(refused: Maisi, tiny: Path) -> None:
    outcome = refused("generate", "--bundle", tiny, "--size-of", "liver=0.8")
    assert "has no mask generator, so organ sizes cannot be set (liver)" in outcome.err
