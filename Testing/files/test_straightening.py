"""Masks of tilted gantries are read onto a straight grid, and every voxel of theirs can be found again."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MAISILib.anatomy.grids import back_to, content_box, model_grid
from MAISILib.anatomy.label_sets import label_set
from MAISILib.anatomy.labels import LabelTable, default_table
from MAISILib.anatomy.mask_conversion import convert
from MAISILib.errors import FileFormatError
from MAISILib.files.images import read_grid, read_image, read_mask, read_segments
from MAISILib.files.segment_folders import read_segment_folder
from MAISILib.files.segment_placing import place_on_ct
from MAISILib.resampling import canonical_grid, nearest, resample_labels
from MAISILib.volumes import Grid, least_angle
from Testing.anatomy.phantoms import label_map, tilted, torso
from Testing.training.users_cases import write_image

#: Tangents of up to 40°: of one axis against another, as a tilted gantry makes them.
LEANS = st.floats(-0.84, 0.84)


def leaning(affine: np.ndarray, leans: tuple[float, float, float]) -> np.ndarray:
    """The affine with its third axis leaning to the first and second, and its second to the first (tangents)."""
    x, y, z = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    shear = np.eye(4)
    shear[0, 2], shear[1, 2], shear[0, 1] = leans[0] * z / x, leans[1] * z / y, leans[2] * y / x
    return affine @ shear


@st.composite
def sheared_grids(draw: st.DrawFn) -> Grid:
    """Of any orientation and voxel size; slices lean in their plane, and in some, rows do, too."""
    shape = draw(st.tuples(*[st.integers(1, 8)] * 3))
    upright = np.diag([*draw(st.tuples(*[st.floats(0.3, 6.0)] * 3)), 1.0])
    affine = tilted(label_map(np.zeros(shape), upright), draw(st.floats(-40, 40))).affine
    leans = (draw(LEANS), 0.0, 0.0) if draw(st.booleans()) else draw(st.tuples(*[st.floats(-0.5, 0.5)] * 3))
    affine = leaning(affine, leans)[:, [*draw(st.permutations(range(3))), 3]]
    return Grid(shape, affine @ np.diag([*draw(st.tuples(*[st.sampled_from([1.0, -1.0])] * 3)), 1.0]))


@given(grid=sheared_grids(), seed=st.integers(0, 10_000), suffix=st.sampled_from(["nii", "nii.gz", "nrrd"]))
@settings(max_examples=50, deadline=None)
def test_every_voxel_is_found_again_at_its_old_place(
    grid: Grid, seed: int, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("sheared") / f"mask.{suffix}"
    array = np.random.default_rng(seed).choice([0, 1, 3, 28, 200], grid.shape).astype(np.uint8)
    write_image(path, array, grid.affine)
    if suffix != "nrrd":  # NIfTI keeps 32 bits of the affine
        grid = Grid(grid.shape, np.asarray(nib.load(path).affine))  # type: ignore[attr-defined]
    mask = read_mask(path, default_table())
    assert least_angle(mask.affine) == pytest.approx(90, abs=0.06)
    assert read_grid(path, may_lean=True).same_as(mask.grid, 1e-6)
    assert np.array_equal(np.bincount(array.ravel(), minlength=256)[1:], mask.counts[1:])
    assert np.array_equal(nearest(mask.array, mask.grid, grid), array)
    if least_angle(grid.affine) < 89.9:
        assert "none is lost" in mask.notes[0]
        assert np.prod(mask.spacing) == pytest.approx(abs(np.linalg.det(grid.affine[:3, :3])), rel=1e-4)


@given(grid=sheared_grids(), seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_convert_and_back_is_the_identity_on_a_sheared_grid(
    grid: Grid, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("sheared") / "total.nrrd"
    numbers = [n for n, s in label_set("totalsegmentator").by_number.items() if s.label_in(default_table())]
    array = np.random.default_rng(seed).choice([0, *numbers], grid.shape).astype(np.uint8)
    array[0, 0, 0] = numbers[0]
    write_image(path, array, grid.affine)
    mask, conversion = convert(read_segments(path), default_table(), path.name, "totalsegmentator")
    back = nearest(mask.array, mask.grid, grid)
    for structure in conversion.structures:
        assert structure.label is not None
        assert structure.kept == structure.voxels == np.count_nonzero(array == structure.number)
        assert (back[array == structure.number] == structure.label).all()
    assert np.count_nonzero(back) == np.count_nonzero(array)
    assert least_angle(grid.affine) > 89.9 or "is sheared" in str(conversion)


@pytest.mark.parametrize(("degrees", "thickness"), [(-30, 5.0), (7, 5.0), (15, 2.0), (26.57, 3.0)])
def test_mask_of_a_tilted_gantry_goes_to_the_networks_and_back(
    tmp_path: Path, degrees: float, thickness: float
) -> None:
    patient = torso((32, 28, 20), (3.0, 3.0, thickness))
    own = Grid(patient.grid.shape, leaning(patient.affine, (0.0, float(np.tan(np.radians(degrees))), 0.0)))
    write_image(tmp_path / "mask.nii.gz", patient.array, own.affine)
    mask = read_mask(tmp_path / "mask.nii.gz", default_table())
    assert mask.spacing == pytest.approx((3, 3, thickness)), "pixels stay as they are"
    assert mask.affine[:3, 2] == pytest.approx((0, 0, thickness))
    grid = model_grid(mask.grid, content_box(mask), canonical_grid(mask.grid).spacing, divisor=16)
    back = nearest(back_to(resample_labels(mask, grid), mask.grid).array, mask.grid, own)
    assert np.array_equal(back, patient.array)


def test_ct_stays_on_its_mask(tmp_path: Path) -> None:
    patient = torso()
    affine = leaning(patient.affine, (0.3, -0.2, 0.0))
    write_image(tmp_path / "mask.nii.gz", patient.array, affine)
    for kind in (np.int16, np.float32, np.uint16):
        write_image(tmp_path / "ct.nrrd", (patient.array + 40).astype(kind), affine)
        mask = read_mask(tmp_path / "mask.nii.gz", default_table())
        ct = read_image(tmp_path / "ct.nrrd", may_lean=True)
        assert ct.grid.same_as(mask.grid, 1e-3)
        assert np.array_equal(ct.array[ct.array > 0] - 40, mask.array[ct.array > 0])
        assert (ct.array > 0).sum() == patient.array.size
        assert ct.array.min() == -1000, "air beyond the old grid"
    placed = place_on_ct(read_segments(tmp_path / "mask.nii.gz"), tmp_path / "ct.nrrd", "mask")
    assert np.array_equal(placed.layers[..., 0], mask.array)


def test_structures_in_files_and_layers_are_straightened_together(tmp_path: Path) -> None:
    patient = torso()
    own = Grid(patient.grid.shape, leaning(patient.affine, (0.0, 0.25, 0.0)))
    folder = tmp_path / "structures"
    for value in (1, 3, 22):
        inside = (patient.array == value).astype(np.uint8)
        write_image(folder / f"{default_table()[value].name}.nii.gz", inside, own.affine)
    found = read_segment_folder(folder)
    write_image(folder / "spleen.nii.gz", patient.array, patient.affine)
    with pytest.raises(FileFormatError, match=r"spleen\.nii\.gz lies on another grid than brain\.nii\.gz"):
        read_segment_folder(folder)
    assert [note.split(" (")[0] for note in found.notes] == ["structures is sheared"], "told once"
    for segment in found.segments:
        layer = nearest(found.layers[..., segment.layer], found.grid, own)
        assert np.array_equal(layer == segment.value, patient.array == default_table().find(segment.name).value)


def test_absurd_shear_is_refused_and_so_are_sheared_images(tmp_path: Path) -> None:
    patient = torso()
    write_image(tmp_path / "mask.nii.gz", patient.array, leaning(patient.affine, (1.1, 0.0, 0.0)))
    refused = r"mask\.nii\.gz: the affine is sheared \(axes meet at 42\.3°"
    with pytest.raises(FileFormatError, match=refused):
        read_mask(tmp_path / "mask.nii.gz", default_table())
    with pytest.raises(FileFormatError, match=refused):
        read_segments(tmp_path / "mask.nii.gz")
    with pytest.raises(FileFormatError, match=refused):
        read_grid(tmp_path / "mask.nii.gz", may_lean=True)
    write_image(tmp_path / "image.nii.gz", patient.array, leaning(patient.affine, (0.2, 0.0, 0.0)))
    with pytest.raises(FileFormatError, match=r"image\.nii\.gz: the affine is sheared \(axes meet at 78\.7°.*Resample"):
        read_image(tmp_path / "image.nii.gz")


def test_straight_grid_that_would_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = torso()
    write_image(tmp_path / "mask.nii.gz", patient.array, leaning(patient.affine, (0.9, 0.0, 0.0)))
    monkeypatch.setattr("MAISILib.files.checks.MAX_VOXELS", patient.array.size + 100)
    with pytest.raises(FileFormatError, match="voxels"):
        read_mask(tmp_path / "mask.nii.gz", LabelTable("empty", []))
