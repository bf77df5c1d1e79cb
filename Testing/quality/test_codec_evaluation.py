from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from MAISILib.anatomy.labels import default_table
from MAISILib.errors import BundleError, FileFormatError
from MAISILib.quality.codec_evaluation import CodecReport, evaluate_codec
from MAISILib.quality.flat_networks import SqueezeNet
from MAISILib.quality.image_sets import find_images
from MAISILib.quality.perceptual_distance import PerceptualDistance
from Testing.quality.image_folders import SHAPE, patient, patient_and_mask, write_case, write_ct


def ten_brighter(image: np.ndarray) -> np.ndarray:
    """An autoencoder that adds 10 HU to everything."""
    assert all(n % 4 == 0 for n in image.shape)
    return image + 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One case with a mask, of 30 voxels to the right, and one image without."""
    image, mask = patient_and_mask(0)
    write_case(tmp_path / "masked", image, mask)
    write_ct(tmp_path / "plain_ct.nii.gz", patient(1)[:-1])
    return tmp_path


def measure(folder: Path, **options: object) -> CodecReport:
    return evaluate_codec(find_images(folder), ten_brighter, default_table(), compression=4, **options)  # type: ignore[arg-type]


def test_known_error_is_found_whole_in_the_body_and_per_label(folder: Path) -> None:
    report = measure(folder)
    assert {case.name for case in report.cases} == {"masked", "plain"}
    for case in report.cases:
        assert case.fidelity.mae_body_hu == pytest.approx(10, abs=0.5)
        assert case.fidelity.psnr_db == pytest.approx(20 * np.log10(2000 / 10), abs=0.2)
    summary, labels = report.summary(), report.labels_mae()
    assert summary["mae_hu"] == pytest.approx({"mean": 10, "deviation": 0}, abs=0.3)
    assert summary["lpips"] is None
    assert {"liver", "hepatic tumor", "body"} <= labels.keys()
    assert labels["liver"] == pytest.approx({"mean": 10, "deviation": 0}, abs=0.1)
    json.dumps(report.to_dict(), allow_nan=False)
    assert "| MAE HU, label liver | 10 |" in report.table()


def test_resampling_takes_the_mask_along(folder: Path) -> None:
    seen = []

    def keep(image: np.ndarray) -> np.ndarray:
        seen.append(image.shape)
        return image + 10

    report = evaluate_codec(find_images(folder), keep, default_table(), compression=4, spacing=(5.0, 5.0, 4.0))
    x, y, z = SHAPE
    assert seen[-1] == (-(-x * 6 // 5 // 4) * 4, -(-y * 6 // 5 // 4) * 4, z)
    assert report.labels_mae()["liver"] is not None


def test_images_that_cannot_be_used_are_all_named(folder: Path) -> None:
    write_ct(folder / "small_ct.nii.gz", np.zeros((8, 20, 20)))
    (folder / "broken_ct.nii.gz").write_bytes(b"?")
    with pytest.raises(FileFormatError, match=r"2 of 4 images.*broken_ct.*small_ct.*11 voxels.*--skip-bad"):
        measure(folder)
    report = measure(folder, skip_bad=True)
    assert (len(report.cases), len(report.left_out)) == (2, 2)


@pytest.fixture(scope="module")
def lpips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    torch.manual_seed(0)
    folder, network = tmp_path_factory.mktemp("lpips"), SqueezeNet()
    channels = (64, 128, 256, 384, 384, 512, 512)
    layers = {f"lin{n}.model.1.weight": torch.rand(1, c, 1, 1) for n, c in enumerate(channels)}
    torch.save(network.state_dict(), folder / "backbone.pth")
    torch.save(layers, folder / "squeeze.pth")
    return folder / "backbone.pth", folder / "squeeze.pth"


def test_perceptual_distance_is_nothing_for_the_same_and_grows_with_noise(lpips: tuple[Path, Path]) -> None:
    distance = PerceptualDistance(*lpips, at_once=9)
    rng = np.random.default_rng(0)
    image = rng.random((20, 18, 19))
    values = [distance(image + amount * rng.normal(size=image.shape), image) for amount in (0.0, 0.1, 0.3)]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values == sorted(values)
    assert values[1] > 1e-4


def test_perceptual_distance_is_measured_where_weights_are_given(folder: Path, lpips: tuple[Path, Path]) -> None:
    write_ct(folder / "plain_ct.nii.gz", np.pad(patient(1), 4))
    (folder / "masked" / "image.nii.gz").unlink()
    (folder / "masked" / "mask.nii.gz").unlink()
    report = measure(folder, perceptual=PerceptualDistance(*lpips))
    found = report.summary()["lpips"]
    assert found is not None
    assert found["mean"] > 0
    assert "| LPIPS |" in report.table()


def test_other_weights_are_no_lpips(lpips: tuple[Path, Path]) -> None:
    with pytest.raises(BundleError, match=r"lin0\.model\.1\.weight.*squeeze\.pth of LPIPS"):
        PerceptualDistance(lpips[0], lpips[0])
