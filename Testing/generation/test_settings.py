"""A request read against a bundle: defaults from the recommendations, and everything that the bundle cannot do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from MAISILib.bundles.bundle import Bundle
from MAISILib.diffusion.solver_names import Sampling
from MAISILib.errors import RequestError
from MAISILib.generation.request import GenerateRequest
from MAISILib.generation.settings import resolve

MANY_RECOMMENDED: dict[str, Any] = {
    "modality": {"t1": 9, "t2": 10},
    "recommended": [
        {"regions": ["head"], "size": (16, 16, 16), "spacing": (1, 1, 1), "modality": "t1"},
        {"regions": ["head"], "size": (16, 16, 16), "spacing": (2, 2, 2), "modality": "t2"},
        {"regions": ["chest", "abdomen"], "size": (16, 16, 16), "spacing": (3, 3, 3)},
    ],
}


def test_what_is_not_said_comes_from_the_bundle(rflow: Bundle) -> None:
    settings = resolve(rflow, GenerateRequest(anatomy=["Liver", 28]))
    assert (settings.size, settings.spacing) == ((16, 16, 16), (4.0, 4.0, 4.0))
    assert settings.sampling == Sampling("euler", 4)
    assert (settings.modality, settings.modality_code, settings.free_modality) == ("ct", 1, None)
    assert settings.labels == (1, 28)


@pytest.mark.parametrize(
    ("fields", "spacing"),
    [
        ({}, 1),
        ({"modality": "T2"}, 2),
        ({"modality": 10, "body_region": ["head"]}, 2),
        ({"body_region": ["head"]}, 1),
        ({"body_region": ["Thorax", "abdomen"]}, 3),
        ({"body_region": ["lower"]}, 1),
    ],
)
def test_recommendation_fits_regions_and_modality(
    tiny: Callable[..., Bundle], fields: dict[str, Any], spacing: float
) -> None:
    settings = resolve(tiny(**MANY_RECOMMENDED), GenerateRequest(mask="none", **fields))
    assert settings.spacing == (spacing,) * 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"anatomy": ["livr"]}, "'livr'.*'liver'"),
        ({"anatomy": [77]}, "77"),
        ({"modality": "cr"}, r"Unknown modality 'cr'; this bundle makes ct \(1\)\. Did you mean 'ct'"),
        ({"modality": 8}, "Unknown modality 8"),
        ({"body_region": ["chst"]}, "'chst'.*'chest'"),
        ({"output_size": (18, 16, 16)}, r"18×16×16 .*divisible by 4.*Nearest: 20×16×16"),
        ({"spacing": (4, 4, 11)}, r"z must lie in 0\.5–10 mm.*Nearest: 4×4×10"),
        ({"steps": 1001}, "1001 steps are too many.*1000"),
        ({"solver": "huen"}, "Unknown solver 'huen'.*Did you mean 'heun'"),
        ({"solver": "ddim"}, "'ddim' does not fit.*use euler or heun or ab2"),
        ({"controllable_anatomy_size": {"liver": 0.5}}, r"no mask generator.*liver"),
    ],
)
def test_refusals_name_the_value_and_what_would_do(rflow: Bundle, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        resolve(rflow, GenerateRequest(**fields))


def test_size_outside_the_limits_names_the_nearest_legal_one(tiny: Callable[..., Bundle]) -> None:
    limits = {"size_x": [16, 32], "size_y": [16, 32], "size_z": [16, 24], "equal_xy": True}
    bundle = tiny(limits=limits)
    with pytest.raises(RequestError, match=r"x must be one of 16, 32.*Nearest: 32×32×24"):
        resolve(bundle, GenerateRequest(mask="none", output_size=(40, 40, 20)))
    with pytest.raises(RequestError, match=r"x and y must be equal.*Nearest"):
        resolve(bundle, GenerateRequest(mask="none", output_size=(16, 32, 16)))


def test_field_of_view_too_small_says_which_spacing_would_do(tiny: Callable[..., Bundle]) -> None:
    bundle = tiny(limits={"min_field_of_view_xy": {"": 48.0, "chest": 64.0}})
    assert resolve(bundle, GenerateRequest(mask="none", spacing=(3, 3, 3)))
    with pytest.raises(RequestError, match=r"48×48 mm.*chest needs at least 64 mm.*spacing 4×4×3 mm"):
        resolve(bundle, GenerateRequest(mask="none", spacing=(3, 3, 3), body_region=["thorax"]))


def test_guidance_needs_an_unconditional_input(rflow: Bundle, tiny: Callable[..., Bundle]) -> None:
    assert resolve(rflow, GenerateRequest(guidance_scale=2)).free_modality == 0
    bundle = tiny(unconditional_modality=None)
    assert resolve(bundle, GenerateRequest(mask="none")).free_modality is None
    with pytest.raises(RequestError, match=r"guidance cannot be used.*--guidance"):
        resolve(bundle, GenerateRequest(mask="none", guidance_scale=2))


def test_bundle_without_a_mask_library_says_what_to_give(tiny: Callable[..., Bundle]) -> None:
    with pytest.raises(RequestError, match=r"no mask library\. Give a mask file, or use --no-mask"):
        resolve(tiny(), GenerateRequest())


def test_bundle_without_a_controlnet_makes_images_only(tiny: Callable[..., Bundle]) -> None:
    bundle = tiny(with_controlnet=False, with_masks=1)
    assert resolve(bundle, GenerateRequest(mask="none"))
    with pytest.raises(RequestError, match="without a mask only"):
        resolve(bundle, GenerateRequest())


def test_region_input_is_asked_for_where_no_mask_tells_it(ddpm: Bundle) -> None:
    assert resolve(ddpm, GenerateRequest(mask="none", body_region=["pelvis", "chest"])).regions == (3, 1)
    with pytest.raises(RequestError, match=r"needs body regions.*--body-region"):
        resolve(ddpm, GenerateRequest(mask="none"))


@pytest.mark.parametrize(
    ("kind", "solver", "chosen"),
    [
        ("rflow", None, Sampling("euler", 6)),
        ("rflow", "heun", Sampling("heun", 3)),
        ("rflow", "ab3", Sampling("ab3", 6)),
        ("ddpm", None, Sampling("dpm++", 6)),
        ("ddpm", "ddim", Sampling("ddim", 6)),
    ],
)
def test_a_draft_costs_six_evaluations_of_any_solver(
    tiny: Callable[..., Bundle], kind: str, solver: str | None, chosen: Sampling
) -> None:
    request = GenerateRequest(preset="draft", solver=solver, mask="none", body_region=["chest"])
    assert resolve(tiny(kind=kind), request).sampling == chosen
    assert chosen.evaluations == 6


def test_a_draft_has_no_other_number_of_steps() -> None:
    with pytest.raises(RequestError, match="preset 'draft' says how many steps"):
        GenerateRequest(preset="draft", steps=10)
