"""The walk from request to result: repeatable, one network at a time, failed samples made again."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import MAISILib as maisi
from MAISILib.bundles.bundle import Bundle
from MAISILib.diffusion.solver_names import SOLVER_NAMES
from MAISILib.errors import MaskError, OutOfMemory
from MAISILib.generation import pipeline
from MAISILib.generation.pipeline import generate, generate_samples, sample_seed
from MAISILib.generation.request import GenerateRequest
from MAISILib.quality.hu_check import OrganRange
from Testing.tiny_bundle import BODY, LIVER, LUNG, LUNG_TUMOR

BOTH = pytest.mark.parametrize("kind", ["rflow", "ddpm"])
IMPOSSIBLE = [OrganRange("liver", (LIVER,), 5000.0, 6000.0)]


@pytest.fixture
def bundle(kind: str, request: pytest.FixtureRequest) -> Bundle:
    return request.getfixturevalue(kind)


@pytest.fixture
def with_ranges(tiny: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bundle]:
    """A bundle whose HU check has these ranges; given several lists, they are used one attempt after the other."""

    def make(*attempts: list[OrganRange]) -> Bundle:
        bundle = tiny(with_masks=1, quality="quality.csv")
        (bundle.folder / "quality.csv").write_text("organ,labels\n")
        monkeypatch.setattr(pipeline, "read_ranges", lambda path: attempts[-1])
        check, turns = pipeline.check_hu, iter(attempts)
        monkeypatch.setattr(pipeline, "check_hu", lambda image, mask, _: check(image, mask, next(turns, attempts[-1])))
        return bundle

    return make


@pytest.mark.parametrize(("kind", "solver"), [(kind, name) for kind, names in SOLVER_NAMES.items() for name in names])
def test_every_solver_makes_an_image_that_can_be_made_again(bundle: Bundle, solver: str) -> None:
    request = GenerateRequest(anatomy=["liver"], seed=7, solver=solver, steps=3, quality_check=False)
    first, again = generate(bundle, request), generate(bundle, request)
    assert first.image.array.std() > 10
    assert first.image.array.tobytes() == again.image.array.tobytes()
    assert first.provenance["settings"]["solver"] == solver


@BOTH
def test_same_seed_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    request = GenerateRequest(anatomy=["liver"], seed=7)
    first, again = generate(bundle, request), generate(Bundle(bundle.folder), request)
    assert first.image.array.dtype == np.int16
    assert first.image.array.std() > 10
    assert first.image.array.tobytes() == again.image.array.tobytes()
    first.save(tmp_path / "a")
    again.save(tmp_path / "b")
    for name in ("image.nii.gz", "mask.nii.gz", "preview.png"):
        assert (tmp_path / "a/sample-0000" / name).read_bytes() == (tmp_path / "b/sample-0000" / name).read_bytes()


@BOTH
def test_sample_alone_equals_the_same_sample_of_a_batch(bundle: Bundle) -> None:
    batch = generate(bundle, GenerateRequest(seed=3, count=3)).samples
    assert [sample.name for sample in batch] == ["sample-0000", "sample-0001", "sample-0002"]
    assert len({sample.image.array.tobytes() for sample in batch}) == 3
    for k in (0, 2):
        alone = generate(bundle, GenerateRequest(seed=3, first_index=k)).samples[0]
        assert (alone.index, alone.seed) == (k, batch[k].seed)
        assert np.array_equal(alone.image.array, batch[k].image.array)
        mine, theirs = alone.mask, batch[k].mask
        assert mine is not None
        assert theirs is not None
        assert np.array_equal(mine.array, theirs.array)


def test_different_seeds_differ(rflow: Bundle) -> None:
    images = {generate(rflow, GenerateRequest(mask="none", seed=seed)).image.array.tobytes() for seed in range(4)}
    assert len(images) == 4
    seeds = {sample_seed(seed, index, purpose) for seed in range(9) for index in range(9) for purpose in ("noise", "")}
    assert len(seeds) == 2 * 81
    assert max(seeds) < 2**63


def test_large_batches_are_made_in_visits(rflow: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: Counter[str] = Counter()
    load = Bundle.load

    def counting(self: Bundle, network: str, device: Any = "cpu") -> Any:
        loads[network] += 1
        return load(self, network, device)

    monkeypatch.setattr(Bundle, "load", counting)
    monkeypatch.setattr(pipeline, "SAMPLES_PER_VISIT", 2)
    samples = generate(rflow, GenerateRequest(count=5, steps=1)).samples
    assert [sample.index for sample in samples] == [0, 1, 2, 3, 4]
    assert loads == {"diffusion": 3, "controlnet": 3, "autoencoder": 3}
    assert np.array_equal(samples[4].image.array, generate(rflow, GenerateRequest(first_index=4, steps=1)).image.array)


def test_samples_come_one_by_one_after_the_request_was_checked(rflow: Bundle) -> None:
    with pytest.raises(maisi.RequestError):
        generate_samples(rflow, GenerateRequest(anatomy=["livr"]))
    samples = generate_samples(rflow, GenerateRequest(count=2, steps=1))
    assert next(samples).index == 0


@BOTH
def test_air_outside_the_mask_is_exactly_minus_1000(bundle: Bundle) -> None:
    result = generate(bundle, GenerateRequest(steps=2))
    assert result.mask is not None
    outside = result.mask.array == 0
    assert outside.any()
    assert set(np.unique(result.image.array[outside])) == {-1000}
    assert (result.image.array[~outside] != -1000).mean() > 0.2


@BOTH
def test_image_without_a_mask(bundle: Bundle) -> None:
    request = GenerateRequest(mask="none", body_region=["chest"], output_size=(20, 16, 24), spacing=(2, 2, 3))
    result = generate(bundle, request)
    assert result.mask is None
    assert result.quality is not None
    assert (result.quality.verdict, result.quality.hu) == ("not checked", None)
    assert "no mask" in result.quality.summary()
    assert result.image.array.shape == (20, 16, 24)
    assert result.image.spacing == pytest.approx((2, 2, 3))
    assert np.allclose(result.image.grid.center, 0)


@BOTH
def test_upstream_schedule_and_windows_run_and_differ(bundle: Bundle) -> None:
    plain = generate(bundle, GenerateRequest(output_size=(32, 16, 16)))
    upstream = generate(bundle, GenerateRequest(output_size=(32, 16, 16), schedule="upstream"))
    windows = generate(bundle, GenerateRequest(output_size=(32, 16, 16), decode="windows", decode_window=(8, 8, 8)))
    assert np.corrcoef(windows.image.array.ravel(), plain.image.array.ravel())[0, 1] > 0.9
    assert not np.array_equal(windows.image.array, plain.image.array)
    if bundle.manifest.schedule.kind == "rflow":
        assert not np.array_equal(upstream.image.array, plain.image.array)


def test_guidance_compares_with_the_patient_without_the_tumor(rflow: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = pipeline.Guidance

    def watched(scale: float, modality: int, bits: Any) -> Any:
        seen.append((scale, modality, bits))
        return original(scale, modality, bits)

    monkeypatch.setattr(pipeline, "Guidance", watched)
    request = GenerateRequest(anatomy=["lung tumor"], seed=1)
    plain, guided = generate(rflow, request), generate(rflow, request.model_copy(update={"guidance_scale": 3.0}))
    assert not np.array_equal(plain.image.array, guided.image.array)
    assert guided.mask is not None
    assert guided.mask.labels == [LIVER, LUNG_TUMOR, LUNG, BODY]  # the result keeps the tumor
    [(scale, modality, bits)] = seen
    values = (bits[0].numpy().astype(int) * 2 ** np.arange(8)[:, None, None, None]).sum(axis=0)
    assert (scale, modality) == (3.0, 0)
    assert set(np.unique(values)) == {0, LIVER, LUNG, BODY}
    assert (values[guided.mask.array == LUNG_TUMOR] == LUNG).all()


def test_guidance_without_a_mask(rflow: Bundle) -> None:
    images = [generate(rflow, GenerateRequest(mask="none", guidance_scale=s)).image.array for s in (0, 1, 3)]
    assert np.abs(images[0].astype(int) - images[1]).max() <= 1  # scale 1 is no guidance
    assert not np.array_equal(images[0], images[2])


def test_failed_sample_is_made_again_twice_then_kept_and_marked(with_ranges: Callable[..., Bundle]) -> None:
    bundle = with_ranges(IMPOSSIBLE)
    result = generate(bundle, GenerateRequest(steps=1))
    assert result.samples[0].attempts == 3
    assert result.quality is not None
    assert result.quality.verdict == "failed"
    assert "liver is too dark: median" in result.quality.summary()
    assert result.provenance["quality"]["hu"]["passed"] is False
    assert result.provenance["sample"]["attempts"] == 3
    unchecked = generate(bundle, GenerateRequest(steps=1, quality_check=False))
    assert (unchecked.samples[0].attempts, unchecked.quality) == (1, None)
    assert not np.array_equal(unchecked.image.array, result.image.array)  # each attempt has noise of its own


def test_sample_that_passes_the_second_time_is_kept(with_ranges: Callable[..., Bundle]) -> None:
    anything = [OrganRange("liver", (LIVER,), -2000.0, 2000.0)]
    sample = generate(with_ranges(IMPOSSIBLE, anything), GenerateRequest(steps=1)).samples[0]
    assert sample.attempts == 2
    assert sample.quality is not None
    assert sample.quality.hu is not None
    assert sample.quality.hu.passed
    assert sample.quality.hu.organs[0].organ == "liver"


def test_only_failed_samples_are_made_again(with_ranges: Callable[..., Bundle]) -> None:
    anything = [OrganRange("liver", (LIVER,), -2000.0, 2000.0)]
    samples = generate(with_ranges(anything, IMPOSSIBLE, anything), GenerateRequest(steps=1, count=2)).samples
    assert [sample.attempts for sample in samples] == [1, 2]


def test_networks_are_freed_after_their_stage(rflow: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    networks: dict[str, weakref.ref[Any]] = {}
    alive: list[set[str]] = []
    load = Bundle.load

    def watched(self: Bundle, network: str, device: Any = "cpu") -> Any:
        alive.append({name for name, ref in networks.items() if ref() is not None})
        module = load(self, network, device)
        networks[network] = weakref.ref(module)
        return module

    monkeypatch.setattr(Bundle, "load", watched)
    result = generate(rflow, GenerateRequest(steps=1))
    assert alive == [set(), {"diffusion"}, set()]
    assert result.samples
    assert all(ref() is None for ref in networks.values())


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")]
)
def test_memory_that_runs_out_is_told_with_the_plan(
    rflow: Bundle, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: Any, **more: Any) -> None:
        raise error

    monkeypatch.setattr(pipeline, "sample_latent", fail)
    with pytest.raises(OutOfMemory, match=r"in the diffusion.*smaller size.*16×16×16|in the controlnet.*16×16×16"):
        generate(rflow, GenerateRequest())


def test_progress_tells_each_stage_in_order(rflow: Bundle) -> None:
    news: list[maisi.Progress] = []
    generate(rflow, GenerateRequest(steps=3), on_progress=news.append)
    stages = list(dict.fromkeys(progress.stage for progress in news))
    assert stages == ["mask", "load", "diffusion", "decode", "quality", "done"]
    assert [(p.done, p.total) for p in news if p.stage == "diffusion"] == [(1, 3), (2, 3), (3, 3)]


def test_library_without_the_anatomy_says_so_before_loading(rflow: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bundle, "load", lambda *a: pytest.fail("a network was loaded"))
    (rflow.folder / "library").rename(rflow.folder / "elsewhere")
    try:
        with pytest.raises(maisi.FileFormatError, match="missing"):
            generate(rflow, GenerateRequest())
    finally:
        (rflow.folder / "elsewhere").rename(rflow.folder / "library")
    with pytest.raises(MaskError, match=r"reaches over head"):
        generate(rflow, GenerateRequest(body_region=["head"]))
