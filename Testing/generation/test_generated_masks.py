"""Masks made to order: repeatable, with what was asked for in them, and with a report of what became of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from MAISILib.bundles.bundle import Bundle
from MAISILib.diffusion.solver_names import SOLVER_NAMES, Sampling
from MAISILib.errors import BundleError, FileFormatError, MaskError, RequestError
from MAISILib.generation import mask_generation
from MAISILib.generation.conditioning import prepare
from MAISILib.generation.mask_generation import (
    GeneratedMask,
    generate_masks,
    generated_volumes,
    latent_shape,
    mask_denoiser,
    most_likely_classes,
    real_volumes,
)
from MAISILib.generation.mask_wish import MaskWish, class_labels
from MAISILib.generation.pipeline import generate, plan_request
from MAISILib.generation.provenance import check_replay
from MAISILib.generation.request import GenerateRequest
from MAISILib.generation.result import Sample
from Testing.tiny_bundle import BODY, LIVER, LUNG, LUNG_TUMOR
from Testing.tiny_mask_generator import CONTROLLABLE, make_generating_bundle

LOBE = CONTROLLABLE[1]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_generating_bundle(tmp_path_factory.mktemp("bundles") / "generating")


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., Bundle]:
    numbers = itertools.count()
    return lambda **changes: make_generating_bundle(tmp_path / f"own-{next(numbers)}", **changes)


def draw(bundle: Bundle, sizes: dict[str, float], seeds: list[int], **options: Any) -> list[GeneratedMask]:
    wish = MaskWish(bundle, sizes, options.pop("labels", ()))
    return generate_masks(bundle, wish, seeds, lambda name: nullcontext(bundle.load(name)), **options)


def samples(bundle: Bundle, **fields: Any) -> list[Sample]:
    return generate(bundle, GenerateRequest(quality_check=False, **fields), device="cpu").samples


def test_sizes_lead_to_a_generated_mask(bundle: Bundle) -> None:
    (sample,) = samples(bundle, controllable_anatomy_size={"Liver": 0.8})
    assert sample.mask is not None
    assert {LIVER, BODY} <= set(sample.mask.labels)
    source = sample.provenance["mask_source"]
    assert source["kind"] == "generated"
    liver, tumor = source["sizes"]["liver"], source["sizes"]["lung tumor"]
    assert (liver["asked"], liver["condition"]) == (0.8, 0.8)
    assert liver["volume_mm3"] == np.count_nonzero(sample.mask.array == LIVER) * 64
    assert (tumor["asked"], tumor["percentile"], tumor["volume_mm3"]) == (None, -1.0, 0.0)
    assert sample.provenance["seconds"]["mask"] > 0


def test_sample_alone_has_the_mask_that_it_has_in_a_batch(bundle: Bundle) -> None:
    fields: dict[str, Any] = {"mask": "generated", "seed": 3}
    batch = [s.mask for s in samples(bundle, count=3, **fields)]
    (alone,) = (s.mask for s in samples(bundle, first_index=2, **fields))
    assert alone is not None
    arrays = [mask.array for mask in batch if mask is not None]
    assert np.array_equal(alone.array, arrays[2])
    assert len({array.tobytes() for array in arrays}) == 3


def test_sizes_that_were_not_asked_for_vary_with_the_seed(bundle: Bundle) -> None:
    drawn = draw(bundle, {"liver": 0.5}, list(range(6)), sampling=Sampling("ddim", 1))
    assert {mask.conditions[0] for mask in drawn} == {0.5}
    assert len({mask.conditions[1] for mask in drawn}) > 2
    assert {mask.conditions[2] for mask in drawn} == {-1.0}  # lesions come on request only


def test_conditions_matter(bundle: Bundle) -> None:
    """The networks are told the sizes: the same noise gives another mask."""
    unet, shape = bundle.load("mask_diffusion"), latent_shape(bundle)
    x = torch.randn(1, *shape)
    small, large = (mask_denoiser(unet, [size, 0.5, -1.0])(x, 500.0) for size in (0.1, 0.9))
    assert not torch.allclose(small, large, atol=1e-4)


def test_guidance_goes_beyond_what_was_told(bundle: Bundle) -> None:
    unet, x = bundle.load("mask_diffusion"), torch.randn(1, *latent_shape(bundle))
    told, free = (mask_denoiser(unet, c)(x, 500.0) for c in ([0.1, 0.5, -1.0], [-2.0] * 3))
    guided = mask_denoiser(unet, [0.1, 0.5, -1.0], guidance_scale=3.0)(x, 500.0)
    torch.testing.assert_close(guided, free + 3 * (told - free))


def test_what_shall_be_absent_is_absent(bundle: Bundle) -> None:
    (mask,) = draw(bundle, {LOBE: -1.0}, [4])
    assert LUNG not in mask.mask.labels
    assert mask.sizes[LOBE]["is_as_asked"]


def test_a_lesion_appears_when_it_is_asked_for(bundle: Bundle) -> None:
    for options in ({"sizes": {"lung tumor": 0.4}}, {"sizes": {}, "labels": (LUNG_TUMOR,)}):
        (mask,) = draw(bundle, seeds=[1], **options)  # type: ignore[arg-type]
        assert LUNG_TUMOR in mask.mask.labels
        assert mask.conditions[2] >= 0


def test_of_masks_that_miss_the_size_the_nearest_is_kept(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    table = MaskWish(bundle, {"liver": 0.9}).size_table
    assert table is not None
    largest = (table.volume("liver", 1.0) or 0) / 64  # voxels

    def draws(*parts: float) -> tuple[GeneratedMask, int]:
        """The mask that is kept when each attempt shows so large a part of the largest liver, and the attempts."""
        turns: list[float] = []

        def liver(autoencoder: Any, latent: torch.Tensor) -> torch.Tensor:
            classes = torch.full((16, 16, 16), 4)
            classes[0] = classes[-1] = classes[:, 0] = classes[:, -1] = classes[..., 0] = classes[..., -1] = 0
            inner = torch.zeros(12**3)
            inner[: round(parts[len(turns)] * largest)] = 1
            classes[2:-2, 2:-2, 2:-2][inner.view(12, 12, 12) > 0] = 1
            turns.append(1)
            return classes

        monkeypatch.setattr(mask_generation, "most_likely_classes", liver)
        (mask,) = draw(bundle, {"liver": 0.9}, [1], sampling=Sampling("ddim", 1))
        return mask, len(turns)

    mask, turns = draws(0.05, 0.98)
    assert (turns, mask.attempts) == (2, 2)
    assert mask.sizes["liver"]["is_as_asked"]
    mask, turns = draws(0.01, 0.1, 0.05)
    assert (turns, mask.attempts) == (3, 2)
    assert not mask.sizes["liver"]["is_as_asked"]


def test_anatomy_that_never_appears_ends_the_request(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []

    def body_only(autoencoder: Any, latent: torch.Tensor) -> torch.Tensor:
        turns.append(1)
        return torch.full((16, 16, 16), 4)

    monkeypatch.setattr(mask_generation, "most_likely_classes", body_only)
    with pytest.raises(MaskError, match=r"asked for liver.*3 attempts"):
        draw(bundle, {"liver": 0.5}, [1, 2], sampling=Sampling("ddim", 1))
    assert len(turns) == 6


def test_body_is_put_around_organs_where_it_is_not_generated(own: Callable[..., Bundle]) -> None:
    (mask,) = draw(own(classes=[0, LIVER, LUNG]), {}, [0])
    assert BODY in mask.mask.labels
    assert any("smooth hull" in note for note in mask.mask.notes)


def test_slabs_give_the_classes_of_the_whole_volume(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder: Any = bundle.load("mask_autoencoder")
    latent = torch.randn(1, *latent_shape(bundle))
    whole = autoencoder.decode(latent).argmax(1)[0]
    monkeypatch.setattr(mask_generation, "_SLAB_VOXELS", 3 * 16 * 16)
    assert torch.equal(most_likely_classes(autoencoder, latent), whole)


def test_output_grid_need_not_be_the_generators(bundle: Bundle) -> None:
    (sample,) = samples(bundle, mask="generated", output_size=(24, 24, 24), spacing=(3.0, 3.0, 3.0))
    assert sample.mask is not None
    assert sample.mask.grid.same_as(sample.image and sample.mask.grid)
    assert sample.image.array.shape == sample.mask.array.shape == (24, 24, 24)


def test_plan_counts_the_mask(bundle: Bundle) -> None:
    request = GenerateRequest(mask="generated")
    few, many = (plan_request(bundle, request.model_copy(update={"mask_steps": n}), "cpu") for n in (2, 200))
    assert [stage.name for stage in few.stages] == ["mask", "diffusion", "decode"]
    assert many.stages[0].seconds > 10 * few.stages[0].seconds > 0


@pytest.mark.parametrize("solver", SOLVER_NAMES["ddpm"])
def test_the_masks_solver_and_steps_can_be_chosen_and_are_recorded(bundle: Bundle, solver: str) -> None:
    first, again = (samples(bundle, mask="generated", mask_solver=solver, mask_steps=2)[0] for _ in range(2))
    assert (first.provenance["settings"]["mask_solver"], first.provenance["settings"]["mask_steps"]) == (solver, 2)
    assert first.mask is not None
    assert again.mask is not None
    assert np.array_equal(first.mask.array, again.mask.array)


def test_classes_of_the_published_generator_come_from_its_table(own: Callable[..., Bundle]) -> None:
    bundle = own(classes=[0, LIVER, LUNG])
    entry = bundle.manifest.mask_generator
    assert entry is not None
    published = class_labels(bundle, entry.model_copy(update={"classes": "mask_generator_labels.csv"}))
    assert len(published) == 125
    assert [published[0], published[21], published[124]] == [0, 26, 200]
    with pytest.raises(BundleError, match="table of classes 'no\\.csv' is missing"):
        class_labels(bundle, entry.model_copy(update={"classes": "no.csv"}))
    with pytest.raises(BundleError, match="is no table of classes"):
        class_labels(bundle, entry.model_copy(update={"classes": "labels.csv"}))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"controllable_anatomy_size": {"livr": 0.5}}, r"'livr' cannot be chosen.*Did you mean 'liver'"),
        ({"controllable_anatomy_size": {"liver": 0.5, "Liver": 0.1}}, "given twice"),
        ({"mask": "generated", "mask_steps": 1001}, "Mask generator: 1001 steps are too many.*1000"),
        ({"mask": "generated", "mask_solver": "euler"}, "Mask generator: .*'euler' does not fit.*ancestral or ddim"),
    ],
)
def test_refusals_name_the_value_and_what_would_do(bundle: Bundle, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        prepare(bundle, GenerateRequest(**fields))


def test_two_lesions_are_refused_unless_the_bundle_says_otherwise(own: Callable[..., Bundle]) -> None:
    one, many = (own(classes=[0, LIVER, LUNG_TUMOR, LUNG, BODY, 26], one_lesion=only) for only in (True, False))
    for bundle in (one, many):
        with (bundle.folder / "labels.csv").open("a", encoding="utf-8") as table:
            table.write("26,,,,,,,,,,,\n")
    wish: dict[str, Any] = {"controllable_anatomy_size": {"lung tumor": 0.5}, "anatomy": ["hepatic tumor"]}
    with pytest.raises(RequestError, match=r"one lesion at most; lung tumor, hepatic tumor were asked for"):
        prepare(one, GenerateRequest(**wish))
    assert prepare(many, GenerateRequest(**wish)).masks.wish is not None


def test_merged_labels_are_drawn_as_what_they_belong_to(own: Callable[..., Bundle]) -> None:
    bundle = own(merged={LUNG_TUMOR: LUNG})
    assert class_labels(bundle, bundle.manifest.mask_generator).tolist() == [0, LIVER, LUNG, LUNG, BODY]  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"does not draw 23 \(lung tumor\)"):
        prepare(bundle, GenerateRequest(mask="generated", anatomy=["lung tumor"]))


def test_generator_says_what_it_does_not_draw(own: Callable[..., Bundle]) -> None:
    with pytest.raises(RequestError, match=r"does not draw 23 \(lung tumor\)"):
        prepare(own(classes=[0, LIVER, LUNG, BODY]), GenerateRequest(mask="generated", anatomy=["lung tumor"]))


def test_bundle_without_a_generator_says_so(rflow: Bundle) -> None:
    with pytest.raises(RequestError, match=r"no mask generator, so organ sizes cannot be set \(liver\).*--anatomy"):
        prepare(rflow, GenerateRequest(controllable_anatomy_size={"liver": 0.5}))
    with pytest.raises(RequestError, match="no mask generator, so masks cannot be generated"):
        prepare(rflow, GenerateRequest(mask="generated"))


def test_without_a_table_of_sizes_each_size_is_needed(own: Callable[..., Bundle]) -> None:
    bundle = own(sizes=None)
    with pytest.raises(RequestError, match=f"Missing: {LOBE}, lung tumor"):
        MaskWish(bundle, {"liver": 0.3})
    (mask,) = draw(bundle, {"liver": 0.3, LOBE: 0.5, "lung tumor": -1}, [0])
    assert mask.conditions == [0.3, 0.5, -1.0]


def test_damaged_size_table_is_found_before_the_work(own: Callable[..., Bundle]) -> None:
    bundle = own()
    (bundle.folder / "sizes.json").write_text("{}")
    with pytest.raises(FileFormatError, match=r"sizes\.json is no table of organ sizes"):
        prepare(bundle, GenerateRequest(mask="generated"))


def test_replay_notices_another_size_table(own: Callable[..., Bundle]) -> None:
    bundle = own()
    (sample,) = samples(bundle, mask="generated", mask_steps=1)
    check_replay(bundle, sample.provenance)
    (bundle.folder / "sizes.json").write_text("{}")
    with pytest.raises(FileFormatError, match=r"table of organ sizes .* has changed"):
        check_replay(bundle, sample.provenance)


def test_volumes_for_the_benchmark(bundle: Bundle) -> None:
    assert real_volumes(bundle, "liver", [0.0, 1.0]) == [1000.0, 12000.0]
    volumes = generated_volumes(bundle, "liver", 0.5, [0, 1], steps=1)
    assert len(volumes) == 2
    assert all(volume is None or volume > 0 for volume in volumes)
