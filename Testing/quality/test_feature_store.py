"""Features that are kept: they spare nobody's files, and count only for what they were made of."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from MAISILib.errors import FileFormatError, RequestError
from MAISILib.quality.feature_store import HEADER
from Testing.quality.image_folders import write_patients
from Testing.quality.test_fid_evaluation import SliceMeans, measure


@pytest.fixture
def real(tmp_path: Path) -> Path:
    return write_patients(tmp_path / "data" / "real", range(3))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return write_patients(tmp_path / "data" / "generated", range(10, 12))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("place", ["data", "data/real", "."])
def test_features_among_images_are_refused_and_nothing_is_touched(
    real: Path, made: Path, tmp_path: Path, place: str, anew: bool
) -> None:
    if place == ".":  # its part for real features holds the images
        (tmp_path / "data").rename(tmp_path / "real")
        real, made = tmp_path / "real" / "real", tmp_path / "real" / "generated"
    (real / "latents").mkdir()
    np.savez(real / "latents" / "mine.npz", latent=np.zeros(3))
    before = files_below(tmp_path)
    features = SliceMeans()
    with pytest.raises(RequestError, match=r"What is computed would be kept in .*Give another folder"):
        measure(real, made, features=features, folder=tmp_path / place, anew=anew)
    with pytest.raises(RequestError, match=r"kept in .* among the files of the real set"):
        measure(real, made, features=features, real_folder=real, anew=anew)
    assert files_below(tmp_path) == before
    assert features.seen == 0


def test_features_are_not_kept_over_those_that_stand_for_the_other_set(real: Path, made: Path, kept: Path) -> None:
    measure(real, made, folder=kept)
    with pytest.raises(RequestError, match=r"kept in .*real, among the files of the generated set"):
        measure(made, kept / "real", folder=kept)


def test_computing_anew_deletes_only_features_of_this_folder(real: Path, made: Path, kept: Path) -> None:
    measure(real, made, folder=kept)
    measure(real, made, folder=kept / "real" / "inner")
    np.savez(kept / "real" / "mine.npz", latent=np.zeros(3))
    (kept / "real" / "broken.npz").write_bytes(b"?")
    np.save(kept / "real" / "flat", np.zeros(3))
    (kept / "real" / "flat.npy").rename(kept / "real" / "flat.npz")
    others = write_patients(real.parent / "others", range(5, 7))
    measure(others, made, folder=kept, anew=True)
    left = {path.relative_to(kept / "real").as_posix() for path in files_below(kept / "real")}
    inner = {f"inner/real/{name}" for name in (HEADER, "p0.npz", "p1.npz", "p2.npz")}
    inner |= {f"inner/generated/{name}" for name in (HEADER, "p10.npz", "p11.npz")}
    assert left == {HEADER, "p5.npz", "p6.npz", "mine.npz", "broken.npz", "flat.npz"} | inner


@pytest.mark.parametrize("anew", [False, True])
def test_archives_of_others_are_not_taken_for_features_nor_overwritten(
    real: Path, made: Path, kept: Path, anew: bool
) -> None:
    (kept / "real").mkdir(parents=True)
    np.savez(kept / "real" / "p0.npz", latent=np.zeros(3))
    with pytest.raises(RequestError, match=r"p0\.npz was not written here.*Give another folder"):
        measure(real, made, folder=kept, anew=anew)
    assert list(np.load(kept / "real" / "p0.npz")) == ["latent"]


def test_a_folder_of_images_never_passes_for_stored_features(real: Path, made: Path, kept: Path) -> None:
    (real / HEADER).write_text('{"columns": ["age"]}')
    features = SliceMeans()
    assert measure(real, made, features=features, folder=kept).volumes == (3, 2)
    assert features.seen == 5
    for path in (kept / "real").iterdir():
        shutil.copy(path, real)
    with pytest.raises(RequestError, match=r"features\.json\) as well as images \(.*p0_ct\.nii\.gz\)"):
        measure(real, made)


class Others(SliceMeans):
    """The same under another name."""

    name = "others"


def test_stored_sets_must_be_what_is_asked_for(real: Path, made: Path, kept: Path) -> None:
    found = measure(real, made, folder=kept)
    sides = kept / "real", kept / "generated"
    assert measure(*sides) == found
    assert measure(*sides, features_name=SliceMeans.name) == found
    with pytest.raises(RequestError, match=r"real holds 'means and deviations'; .*generated .*; the options ask"):
        measure(*sides, features_name=Others.name)


def test_sets_that_differ_are_refused_before_anything_is_computed(real: Path, made: Path, kept: Path) -> None:
    measure(real, made, folder=kept)
    other = Others()
    measure(real, made, features=other, folder=kept.with_name("other"))
    assert other.seen == 5
    with pytest.raises(RequestError, match=r"kept.real holds 'means and deviations'; .*generated holds 'others'"):
        measure(kept / "real", kept.with_name("other") / "generated")
    with pytest.raises(RequestError, match="the options ask for 'others'"):
        measure(kept / "real", made, features=other)
    shutil.rmtree(kept / "real")
    with pytest.raises(RequestError, match=r"generated holds .*'others' wanted"):
        measure(real, made, features=other, folder=kept)
    assert other.seen == 5


def test_stored_features_stand_for_the_volumes_of_the_last_run(real: Path, made: Path, kept: Path) -> None:
    three = measure(real, made, folder=kept)
    (real / "p1_ct.nii.gz").unlink()
    features = SliceMeans()
    two = measure(real, made, features=features, folder=kept)
    assert (three.volumes, two.volumes, features.seen) == ((3, 2), (2, 2), 0)
    assert measure(kept / "real", kept / "generated") == two


def test_features_that_cannot_be_had_are_no_part_of_a_stored_set(real: Path, made: Path, kept: Path) -> None:
    measure(real, made, folder=kept)
    (real / "p1_ct.nii.gz").write_bytes(b"cut off")
    found = measure(real, made, folder=kept, skip_bad=True)
    assert measure(kept / "real", made).fid == found.fid


def test_a_set_that_was_stopped_is_no_stored_set_until_it_is_whole(real: Path, made: Path, kept: Path) -> None:
    def stop(stage: str, done: int, total: int, what: str) -> None:
        if (stage, done) == ("features, real", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(real, made, folder=kept, on_done=stop)
    with pytest.raises(FileFormatError, match=r"a run that did not finish.*Give the images"):
        measure(kept / "real", made)
    found = measure(real, made, folder=kept)
    assert measure(kept / "real", made).fid == found.fid


def test_stored_features_of_another_voxel_size_are_refused(real: Path, made: Path, kept: Path) -> None:
    measure(real, made, folder=kept)
    fine = write_patients(real.parent / "fine", range(2), spacing=(3.0, 3.0, 2.0))
    with pytest.raises(RequestError, match=r"kept.real 6 × 6 × 4 mm, .*p0_ct\.nii\.gz 3 × 3 × 2 mm.*--spacing"):
        measure(kept / "real", fine)
    measure(fine, fine, folder=kept.with_name("fine"))
    with pytest.raises(RequestError, match=r"kept.real 6 × 6 × 4 mm, .*fine.real 3 × 3 × 2 mm"):
        measure(kept / "real", kept.with_name("fine") / "real")
    measure(real, made, folder=kept, resampled=True)
    assert measure(kept / "real", fine, resampled=True).volumes == (3, 2)
