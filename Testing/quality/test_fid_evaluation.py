"""FID of files: distances, their spread, and what a second run or a second process changes (nothing)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from MAISILib.errors import FileFormatError, RequestError
from MAISILib.files.nifti import write_volume
from MAISILib.quality.bootstrap import Confidence, bootstrap
from MAISILib.quality.feature_store import FeatureSet, FeatureStore
from MAISILib.quality.fid import PLANES
from MAISILib.quality.fid_evaluation import FidReport, evaluate_fid
from MAISILib.quality.image_sets import ImageFile, find_images
from MAISILib.quality.kernel_distance import kernel_distance
from MAISILib.volumes import Volume
from Testing.imports import ROOT
from Testing.quality.image_folders import patient, write_ct, write_patients


class SliceMeans:
    """Two features of each slice, without a network; counts the volumes that it has seen."""

    name = "means and deviations"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, volume: Volume) -> dict[str, np.ndarray]:
        self.seen += 1
        array = volume.array.astype(float)
        if array.max() < -300:
            raise RequestError("The image is blank.")
        axes = {plane: tuple({0, 1, 2} - {axis}) for plane, axis in PLANES.items()}
        return {plane: np.stack([array.mean(a), array.std(a)], axis=1) / 100 for plane, a in axes.items()}


class KnownSet(FeatureSet):
    """Volumes of slices that are drawn from a normal distribution, the same in every plane."""

    def __init__(self, seed: int, volumes: int, shift: float = 0.0, slices: int = 8) -> None:
        rng = np.random.default_rng(seed)
        self.arrays = rng.normal(size=(volumes, slices, 3)) + shift
        self.names = tuple(f"{seed}-{number}" for number in range(volumes))

    @property
    def features_name(self) -> str:
        return "known"

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return ({plane: array for plane in PLANES} for array in self.arrays)  # noqa: C420 - pyright knows the type


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_patients(tmp_path_factory.mktemp("real"), range(4))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `maisi generate` leaves them: a folder for each sample."""
    folder = tmp_path_factory.mktemp("made")
    for seed in range(10, 13):
        write_ct(folder / f"sample-{seed:04d}" / "image.nii.gz", patient(seed) + 30)
    return folder


def measure(*arguments: Path, features: SliceMeans | None = None, **options: object) -> FidReport:
    found = evaluate_fid(*arguments, lambda: features or SliceMeans(), **options)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_a_second_run_computes_nothing_anew_and_gives_the_same(real: Path, made: Path, tmp_path: Path) -> None:
    first, second, third = SliceMeans(), SliceMeans(), SliceMeans()
    found = measure(real, made, features=first, folder=tmp_path)
    assert (found.volumes, first.seen) == ((4, 3), 7)
    again = measure(real, made, features=second, folder=tmp_path)
    assert second.seen == 0
    assert again == found
    measure(real, made, features=third, folder=tmp_path, anew=True)
    assert third.seen == 7


def test_a_run_goes_on_where_it_was_stopped(real: Path, made: Path, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int, what: str) -> None:
        if (stage, done) == ("features, real", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(real, made, folder=tmp_path, on_done=stop)
    rest = SliceMeans()
    found = measure(real, made, features=rest, folder=tmp_path)
    assert rest.seen == 4
    assert found == measure(real, made)


def test_an_image_that_has_changed_is_measured_anew(made: Path, tmp_path: Path) -> None:
    real = write_patients(tmp_path / "real", range(3))
    before = measure(real, made, folder=tmp_path / "kept")
    write_ct(real / "p1_ct.nii.gz", patient(77))
    features = SliceMeans()
    after = measure(real, made, features=features, folder=tmp_path / "kept")
    assert features.seen == 1
    assert after.fid != before.fid


def test_order_does_not_matter(real: Path, made: Path, tmp_path: Path) -> None:
    paths = sorted(real.glob("*.nii.gz"))
    (tmp_path / "backwards.txt").write_text("\n".join(str(path) for path in reversed(paths)))
    forwards, backwards = measure(real, made, replicates=0), measure(tmp_path / "backwards.txt", made, replicates=0)
    assert backwards.fid == pytest.approx(forwards.fid, rel=1e-9)
    assert backwards.volumes == forwards.volumes


def test_stored_features_stand_for_the_images(real: Path, made: Path, tmp_path: Path) -> None:
    found = measure(real, made, folder=tmp_path)
    features = SliceMeans()
    assert measure(tmp_path / "real", made, features=features).fid == found.fid
    assert features.seen == 3


def test_features_of_another_network_or_preprocessing_are_refused(real: Path, made: Path, tmp_path: Path) -> None:
    measure(real, made, folder=tmp_path)
    other = SliceMeans()
    other.name = "others"
    with pytest.raises(RequestError, match=r"'means and deviations' there, 'others' wanted.*--ignore-existing"):
        measure(real, made, features=other, folder=tmp_path)
    with pytest.raises(RequestError, match=r"Features differ: .*real holds 'means and deviations'; the options ask"):
        measure(tmp_path / "real", made, features=other)
    assert measure(real, made, features=other, folder=tmp_path, anew=True).features == "others"


def test_different_voxel_sizes_are_refused_with_advice(real: Path, tmp_path: Path) -> None:
    other = write_patients(tmp_path, range(2), spacing=(3.0, 3.0, 3.0))
    with pytest.raises(RequestError, match=r"p0_ct.nii.gz 6 × 6 × 4 mm.*p0_ct.nii.gz 3 × 3 × 3 mm.*--spacing"):
        measure(real, other)
    assert measure(real, other, resampled=True).volumes == (4, 2)


def test_voxel_sizes_are_compared_along_the_axes_of_the_patient(real: Path, tmp_path: Path) -> None:
    """Slices of an axial series lie across S, those of a sagittal one across R: planes are other than they seem."""
    sagittal = tmp_path / "sagittal"
    affine = np.array([[0, 0, 4.0, 0], [6, 0, 0, 0], [0, 6, 0, 0], [0, 0, 0, 1]])  # voxel axes along A, S, R
    turned = np.array([[0, 0, -6.0, 0], [0, -6, 0, 0], [4, 0, 0, 0], [0, 0, 0, 1]])  # along S, P, L
    for seed in range(2):
        write_volume(Volume(patient(seed), affine), sagittal / f"p{seed}.nii.gz")
        array = patient(seed).transpose(2, 1, 0)[:, ::-1, ::-1]
        write_volume(Volume(array, turned), tmp_path / "turned" / f"p{seed}.nii.gz")
    with pytest.raises(RequestError, match=r"p0_ct.nii.gz 6 × 6 × 4 mm.*p0.nii.gz 4 × 6 × 6 mm.*--spacing"):
        measure(real, sagittal)
    assert measure(real, sagittal, resampled=True).volumes == (4, 2)
    assert measure(real, tmp_path / "turned").volumes == (4, 2)


def test_files_that_cannot_be_read_are_all_named(real: Path, tmp_path: Path) -> None:
    folder = write_patients(tmp_path, range(4))
    (folder / "p1_ct.nii.gz").write_bytes(b"nothing")
    (folder / "p3_ct.nii.gz").write_bytes(b"")
    with pytest.raises(FileFormatError, match=r"2 of 8 images.*p1_ct.*p3_ct.*--skip-bad"):
        measure(real, folder)
    found = measure(real, folder, skip_bad=True)
    assert found.volumes == (4, 2)
    assert len(found.left_out) == 2


def test_one_image_and_empty_folders_are_refused(real: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_patients(tmp_path / "one", range(1))
    with pytest.raises(RequestError, match=r"generated set has 1 image; .*at least two"):
        measure(real, tmp_path / "one")
    with pytest.raises(FileFormatError, match="empty holds no images"):
        measure(tmp_path / "empty", real)
    with pytest.raises(FileFormatError, match="missing does not exist"):
        measure(real, tmp_path / "missing")
    with pytest.raises(RequestError, match="real set has 1 image"):
        measure(real, real, limit=1)


def test_lists_start_from_their_root_and_name_what_is_missing(real: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("# two of them\np0_ct.nii.gz\n\np2_ct.nii.gz\n")
    assert [image.name for image in find_images(names, real)] == ["p0", "p2"]
    with pytest.raises(FileFormatError, match=r"2 files that cannot be found: .*p0_ct.nii.gz, .*p2_ct.nii.gz"):
        find_images(names)


def test_masks_are_found_beside_their_images_and_are_no_images(tmp_path: Path) -> None:
    for name in ("a/image", "a/mask", "b/image", "p1_ct", "p1_seg", "p10_ct"):
        write_ct(tmp_path / f"{name}.nii.gz", np.zeros((4, 4, 4)))
    found = find_images(tmp_path)
    assert [(image.name, image.mask and image.mask.name) for image in found] == [
        ("p1", "p1_seg.nii.gz"),
        ("p10", None),
        ("a", "mask.nii.gz"),
        ("b", None),
    ]


def test_two_processes_give_what_one_gives(real: Path, made: Path, tmp_path: Path) -> None:
    command = ["-m", "MAISILib", "evaluate", "fid", str(real), str(made), "--json", "--bootstrap", "20"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    found = []
    for start in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]):
        run = subprocess.run(
            [sys.executable, *start, *command], env=environment, capture_output=True, text=True, timeout=400
        )
        assert run.returncode == 0, run.stderr
        found.append(json.loads(run.stdout))
    assert found[0] == found[1]


def test_interval_of_a_known_distance_holds_it_and_narrows_with_more_volumes() -> None:
    """Independent features whose means lie 1 apart in each of 3 directions: the distance is 3."""

    def spread_of(seed: int, volumes: int) -> Confidence:
        first, second = KnownSet(2 * seed, volumes), KnownSet(2 * seed + 1, volumes, shift=1.0)
        distance = first.statistics().distance(second.statistics())
        found = bootstrap(first, second, distance, 100)["xy"]
        assert found.low < distance["xy"] < found.high
        return found

    few = [spread_of(seed, 12) for seed in range(20)]
    assert sum(found.low < 3 < found.high for found in few) >= 16  # 19 of 20, but for chance
    many = spread_of(1, 192)
    assert many.deviation == pytest.approx(np.mean([found.deviation for found in few]) / 4, rel=0.3)
    assert np.mean([found.bias for found in few]) > many.bias > 0


def test_bootstrap_of_one_seed_is_the_same_and_draws_volumes() -> None:
    first, second = KnownSet(1, 6), KnownSet(2, 6)
    distance = first.statistics().distance(second.statistics())
    assert bootstrap(first, second, distance, 20) == bootstrap(first, second, distance, 20)
    alike = KnownSet(3, 6)
    alike.arrays[:] = alike.arrays[0]
    assert bootstrap(alike, alike, dict.fromkeys((*PLANES, "mean"), 0.0), 20)["xy"].high == pytest.approx(0, abs=1e-9)


def test_kernel_distance_is_unbiased_also_where_slices_of_a_volume_are_alike() -> None:
    def one(seed: int, shift: float = 0.0) -> KnownSet:
        found = KnownSet(seed, 6, shift)
        found.arrays += np.random.default_rng(seed + 1000).normal(size=(6, 1, 3))
        return found

    alike = [kernel_distance(one(2 * n), one(2 * n + 1))["mean"] for n in range(60)]
    apart = [kernel_distance(one(2 * n), one(2 * n + 1, 1.0))["mean"] for n in range(60)]
    assert stats.ttest_1samp(alike, 0).pvalue > 0.01  # type: ignore[attr-defined]
    assert stats.ttest_1samp(apart, 0, alternative="greater").pvalue < 1e-6  # type: ignore[attr-defined]


def test_kernel_distance_takes_the_same_slices_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("MAISILib.quality.kernel_distance.SLICES", 20)
    first, second = KnownSet(1, 8), KnownSet(2, 8)
    found = kernel_distance(first, second)
    first.arrays, first.names = first.arrays[::-1], first.names[::-1]
    assert kernel_distance(first, second) == pytest.approx(found)


def test_damaged_stored_features_are_made_anew(real: Path, made: Path, tmp_path: Path) -> None:
    found = measure(real, made, folder=tmp_path)
    (tmp_path / "real" / "p2.npz").write_bytes(b"cut off")
    features = SliceMeans()
    assert measure(real, made, features=features, folder=tmp_path) == found
    assert features.seen == 1
    (tmp_path / "real" / "features.json").write_text("{}")
    with pytest.raises(FileFormatError, match="does not say what the features"):
        FeatureStore(tmp_path / "real", "means and deviations").has(ImageFile("p2", real / "p2_ct.nii.gz"))
