"""The embedded model itself: does a generated CT look like one, and does it follow its mask?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import MAISILib as maisi
from MAISILib.anatomy.library import MaskLibrary
from MAISILib.files.nifti import write_labels
from MAISILib.generation.mask_generation import generated_volumes, real_volumes
from MAISILib.quality.agreement import ThresholdStructure, threshold_dice

BODY, BONE, AIR = 200, 138, 139
#: All that both bundles may weigh in the repository.
LARGEST_BYTES = 30_000_000


@pytest.fixture(scope="module")
def bundle() -> maisi.Bundle:
    return maisi.open_bundle("head-neck-mini")


@pytest.fixture(scope="module")
def ddpm() -> maisi.Bundle:
    return maisi.open_bundle("head-neck-mini-ddpm")


@pytest.fixture(scope="module")
def library(bundle: maisi.Bundle) -> MaskLibrary:
    assert bundle.manifest.masks is not None
    return MaskLibrary.open(bundle.path(bundle.manifest.masks.index), "maisi", bundle.labels)


@pytest.fixture(scope="module")
def plain(bundle: maisi.Bundle) -> maisi.Sample:
    """A sample of the recommended size in ten steps, which is enough to see what is where."""
    request = maisi.GenerateRequest(anatomy=["mandible"], seed=7, steps=10)
    return maisi.generate(bundle, request, device="cpu").samples[0]


def median(sample: maisi.Sample, label: int) -> float:
    assert sample.mask is not None
    return float(np.median(sample.image.array[sample.mask.array == label]))


def test_the_bundles_are_whole_and_small(bundle: maisi.Bundle, ddpm: maisi.Bundle) -> None:
    assert bundle.verify() == ddpm.verify() == []
    files = [path for one in (bundle, ddpm) for path in one.folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST_BYTES


def test_the_bundle_says_where_it_comes_from(bundle: maisi.Bundle) -> None:
    manifest = bundle.manifest
    assert "Babier" in manifest.citation
    assert "MIT" in manifest.licence.name
    assert manifest.made_by["metrics"]["diffusion_steps"] > 0
    assert len(manifest.made_by["recipe"]) > 0


def test_the_library_has_sixty_patients_with_every_anatomy_somewhere(
    bundle: maisi.Bundle, library: MaskLibrary
) -> None:
    assert len(library) >= 60
    held = set().union(*(entry.labels for entry in library.entries))
    assert held == {label.value for label in bundle.labels}


def test_a_sample_has_the_hu_of_a_head_and_neck(plain: maisi.Sample) -> None:
    assert plain.mask is not None
    assert set(np.unique(plain.image.array[plain.mask.array == 0])) == {-1000}
    assert median(plain, BONE) > 200
    assert -150 < median(plain, BODY) < 150
    assert median(plain, AIR) < -300


def test_bone_is_where_the_mask_has_it(plain: maisi.Sample) -> None:
    assert plain.mask is not None
    bone = ThresholdStructure(labels=(BONE,), within=(BONE, BODY, AIR), above=180.0)
    assert threshold_dice(plain.image.array, plain.mask.array, bone) > 0.75  # 0.84 in the mean of 33 other patients


@pytest.mark.slow
def test_the_ddpm_variant_follows_a_mask_in_twenty_steps(ddpm: maisi.Bundle) -> None:
    request = maisi.GenerateRequest(anatomy=["mandible"], seed=7, steps=20, solver="dpm++")
    made = maisi.generate(ddpm, request, device="cpu").samples[0]
    assert made.mask is not None
    bone = ThresholdStructure(labels=(BONE,), within=(BONE, BODY, AIR), above=180.0)
    assert threshold_dice(made.image.array, made.mask.array, bone) > 0.75
    assert -100 < median(made, BODY) < 100


@pytest.mark.slow
def test_organs_of_generated_masks_are_as_large_as_asked(bundle: maisi.Bundle) -> None:
    """Two masks of each size; ten are measured in docs/head-neck-mini.md."""
    small, large = (generated_volumes(bundle, "larynx", part, [0, 1]) for part in (0.2, 0.8))
    real = real_volumes(bundle, "larynx", (0.2, 0.8))
    assert None not in (*small, *large)
    assert np.mean(large) - np.mean(small) > 0.3 * (real[1] - real[0])  # type: ignore[arg-type]


@pytest.mark.slow
def test_anatomy_moves_with_its_mask(bundle: maisi.Bundle, library: MaskLibrary, tmp_path: Path) -> None:
    mask = library.load(library.entries[0])
    moved = np.zeros_like(mask.array)
    moved[:, :, 5:] = mask.array[:, :, :-5]  # 20 mm up
    images = []
    for name, array in (("still", mask.array), ("moved", moved)):
        write_labels(mask.with_array(array), tmp_path / f"{name}.nii.gz")
        request = maisi.GenerateRequest(mask_file=tmp_path / f"{name}.nii.gz", seed=3, steps=10, quality_check=False)
        images.append(maisi.generate(bundle, request, device="cpu").image.array.astype(float))
    still, shifted = images[0][:, :, :-5], images[1][:, :, 5:]
    inside = mask.array[:, :, :-5] > 0
    follows = np.corrcoef(still[inside], shifted[inside])[0, 1]
    stays = np.corrcoef(still[inside], images[1][:, :, :-5][inside])[0, 1]
    assert follows > 0.6
    assert follows > stays + 0.3


@pytest.mark.slow
def test_an_image_without_a_mask_has_air_tissue_and_bone(bundle: maisi.Bundle) -> None:
    request = maisi.GenerateRequest(mask="none", output_size=(96, 64, 64), spacing=(6.0, 6.0, 4.0), seed=1, steps=10)
    array = maisi.generate(bundle, request, device="cpu").image.array
    assert array.shape == (96, 64, 64)
    assert 0.03 < (array > -300).mean() < 0.6, "a body with air around it"
    assert (array > 200).mean() > 0.002, "bones"


@pytest.mark.slow
def test_the_demo_leaves_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from MAISILib.cli.app import main

    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    told = capsys.readouterr().out
    folder = tmp_path / "demo" / "sample-0000"
    files = [folder / name for name in ("image.nii.gz", "mask.nii.gz", "preview.png")]
    for path in [*files, tmp_path / "demo" / "scene.mrb"]:
        assert path.is_file()
        assert str(path) in told
    assert json.loads((folder / "provenance.json").read_text())["synthetic"] is True
