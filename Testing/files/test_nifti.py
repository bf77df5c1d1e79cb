"""NIfTI files come in as they are, go out as they should, and bad ones are refused with a reason."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from MAISILib.anatomy.labels import LabelTable
from MAISILib.errors import FileFormatError, MaskError, OutputError
from MAISILib.files.checks import check_size
from MAISILib.files.nifti import read_labels, read_volume, write_labels, write_volume
from MAISILib.volumes import LabelMap, Volume

SHAPE = (7, 6, 5)


def image_array(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1024, 3072, SHAPE).astype(np.int16)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **header: Any) -> Path:
    image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)  # type: ignore[attr-defined]
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)  # type: ignore[attr-defined]
    return path


def patch_header(path: Path, **fields: Any) -> Path:
    """Changes header fields of an uncompressed file behind nibabel's back."""
    content = bytearray(path.read_bytes())
    header = np.frombuffer(content[:348], nib.Nifti1Header.template_dtype).copy()  # type: ignore[attr-defined]
    for key, value in fields.items():
        header[key] = value
    content[:348] = header.tobytes()
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz", "Bild 1.2 ä.NII.GZ"])
def test_an_image_comes_back_exactly(tmp_path: Path, oblique: np.ndarray, name: str) -> None:
    image = Volume(image_array(), oblique)
    write_volume(image, tmp_path / name)
    read = read_volume(tmp_path / name)
    np.testing.assert_array_equal(read.array, image.array)
    assert read.array.dtype == np.int16
    np.testing.assert_allclose(read.affine, oblique, atol=1e-4)
    assert read.units == "HU"


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "SRP", "PIL"])
def test_voxels_keep_the_order_of_the_file(tmp_path: Path, codes: str) -> None:
    from nibabel.orientations import axcodes2ornt, inv_ornt_aff

    affine = inv_ornt_aff(axcodes2ornt(codes), SHAPE)
    image = Volume(image_array(), affine)
    write_volume(image, tmp_path / "image.nii.gz")
    read = read_volume(tmp_path / "image.nii.gz")
    np.testing.assert_array_equal(read.array, image.array)
    np.testing.assert_allclose(read.affine, affine, atol=1e-6)


def test_the_header_says_synthetic_and_where(tmp_path: Path, oblique: np.ndarray) -> None:
    write_volume(Volume(image_array(), oblique), tmp_path / "image.nii.gz", "Größe " + "x" * 200)
    header: Any = nib.load(tmp_path / "image.nii.gz").header  # type: ignore[attr-defined]
    assert header["descrip"].item().startswith(b"MAISI synthetic, not a patient; Gr??e xx")
    assert header.get_xyzt_units()[0] == "mm"
    stored = np.frombuffer(gzip.decompress((tmp_path / "image.nii.gz").read_bytes())[:348], header.template_dtype)[0]
    assert (stored["scl_slope"], stored["scl_inter"]) == (1, 0)
    for matrix, code in (header.get_sform(coded=True), header.get_qform(coded=True)):
        assert code == 1
        np.testing.assert_allclose(matrix, oblique, atol=1e-3)


def test_hu_are_rounded_and_clipped_to_int16(tmp_path: Path) -> None:
    values = np.array([-1e9, -1000.4, 0.5, 1.5, 40.6, 1e9]).reshape(1, 2, 3)
    write_volume(Volume(values, np.eye(4)), tmp_path / "image.nii")
    read = read_volume(tmp_path / "image.nii").array
    assert read.ravel().tolist() == [-32768, -1000, 0, 2, 41, 32767]


def test_an_mr_keeps_its_fractions(tmp_path: Path) -> None:
    values = np.linspace(0, 1.37, 24).reshape(2, 3, 4)
    write_volume(Volume(values, np.eye(4), "arbitrary"), tmp_path / "image.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "image.nii", "arbitrary").array, values, rtol=1e-6)


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"\.nii or \.nii\.gz"):
        write_volume(Volume(image_array(), np.eye(4)), tmp_path / "image.mha")


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "dtype"),
    [
        (np.uint16, 1.0, -1024.0, np.int32),
        (np.int16, 2.0, 0.0, np.int16),
        (np.uint8, 70000.0, 0.0, np.int32),
        (np.int16, 0.5, 0.25, np.float32),
    ],
)
def test_scaling_is_applied_and_whole_numbers_stay_whole(
    tmp_path: Path, stored: Any, slope: float, intercept: float, dtype: Any
) -> None:
    array = np.arange(24, dtype=stored).reshape(2, 3, 4)
    path = save(tmp_path / "image.nii", array)
    patch_header(path, scl_slope=slope, scl_inter=intercept)
    read = read_volume(path).array
    np.testing.assert_array_equal(read, array * slope + intercept)
    assert read.dtype.kind == np.dtype(dtype).kind


def test_big_endian_files_and_metres_are_read(tmp_path: Path) -> None:
    header = nib.Nifti1Header(endianness=">")  # type: ignore[attr-defined]
    header.set_data_dtype(np.int16)
    image = nib.Nifti1Image(image_array(), np.diag([0.002, 0.002, 0.003, 1]), header)  # type: ignore[attr-defined]
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "image.nii")  # type: ignore[attr-defined]
    read = read_volume(tmp_path / "image.nii")
    np.testing.assert_array_equal(read.array, image_array())
    assert read.array.dtype.isnative
    np.testing.assert_allclose(read.spacing, (2, 2, 3), rtol=1e-6)


def test_a_single_frame_counts_as_3d(tmp_path: Path) -> None:
    path = save(tmp_path / "image.nii.gz", image_array()[..., None])
    np.testing.assert_array_equal(read_volume(path).array, image_array())


def test_labels_come_back_exactly(tmp_path: Path, oblique: np.ndarray, table: LabelTable) -> None:
    array = np.arange(256, dtype=np.uint8).reshape(8, 8, 4)
    write_labels(LabelMap(array, oblique, table), tmp_path / "mask.nii.gz")
    read = read_labels(tmp_path / "mask.nii.gz", table)
    np.testing.assert_array_equal(read.array, array)
    assert read.source == "mask.nii.gz"
    assert read.notes == ()
    assert read_labels(tmp_path / "mask.nii.gz", table, "drawn by hand").source == "drawn by hand"
    header: Any = nib.load(tmp_path / "mask.nii.gz").header  # type: ignore[attr-defined]
    assert header.get_intent()[0] == "label"
    assert b"synthetic" in header["descrip"].item()


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_labels_of_any_width_are_read(tmp_path: Path, table: LabelTable, dtype: Any) -> None:
    array = np.array([0, 1, 22, 127, 5, 3], dtype=dtype).reshape(1, 2, 3)
    read = read_labels(save(tmp_path / "mask.nii.gz", array), table)
    assert read.array.dtype == np.uint8
    np.testing.assert_array_equal(read.array, array)
    assert bool(read.notes) == (np.dtype(dtype).kind == "f")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([0, 1, 256, 4000], "outside 0–255: 256, 4000"),
        ([0, -1, 1, 2], "outside 0–255: -1"),
        ([0, 1, 2.5, 3], r"no whole numbers \(2.5\)"),
        ([0, 1, np.nan, 3], "NaN"),
    ],
)
def test_values_that_are_no_labels_are_listed(tmp_path: Path, table: LabelTable, values: list, match: str) -> None:
    array = np.asarray(values)
    array = array.astype(np.float32 if array.dtype.kind == "f" else np.int16).reshape(2, 2, 1)
    with pytest.raises(MaskError, match=match):
        read_labels(save(tmp_path / "mask.nii.gz", array), table)


def test_missing_empty_and_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="does not exist"):
        read_volume(tmp_path / "none.nii.gz")
    with pytest.raises(FileFormatError, match="is a folder"):
        read_volume(tmp_path)
    for name, content in {"a.nii": b"", "b.nii.gz": b"\xff\xd8\xff\xe0 a photo", "c.nii": b"text " * 200}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileFormatError, match=r"is empty|cannot be read"):
            read_volume(tmp_path / name)
    (tmp_path / "image.jpg").write_bytes(b"x")
    with pytest.raises(FileFormatError, match=r"\.nii"):
        read_volume(tmp_path / "image.jpg")


@pytest.mark.parametrize("kept", [20, 200, -50, -4])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_file_cut_short_is_refused(tmp_path: Path, suffix: str, kept: int) -> None:
    noise = np.random.default_rng(0).integers(-1000, 1000, (20, 20, 20)).astype(np.int16)
    path = save(tmp_path / f"image{suffix}", noise)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FileFormatError, match="damaged or cut short"):
        read_volume(path)


def test_a_corrupted_gz_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "image.nii.gz", np.random.default_rng(0).integers(0, 99, (20, 20, 20)).astype(np.int16))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = b"\x00" * 40
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="damaged"):
        read_volume(path)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6, 3), (4, 5, 6, 1, 3)])
def test_images_that_are_not_3d_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(FileFormatError, match=f"has {len(shape)} axes"):
        read_volume(save(tmp_path / "image.nii.gz", np.zeros(shape, np.int16)))


def test_colour_and_complex_images_are_refused(tmp_path: Path) -> None:
    rgb = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    with pytest.raises(FileFormatError, match="colour image"):
        read_volume(save(tmp_path / "rgb.nii.gz", rgb))
    with pytest.raises(FileFormatError, match="complex image"):
        read_volume(save(tmp_path / "complex.nii.gz", np.zeros(SHAPE, np.complex64)))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"srow_x": [1, 0.5, 0, 0]}, "sheared"),
        ({"srow_x": [0, 0, 0, 0]}, "singular"),
        ({"srow_x": [np.nan, 0, 0, 0]}, "NaN"),
        ({"srow_z": [0, 0, np.inf, 0]}, "NaN or infinity"),
    ],
)
def test_unusable_geometry_is_refused(tmp_path: Path, fields: dict[str, Any], match: str) -> None:
    path = save(tmp_path / "image.nii", image_array())
    with pytest.raises(FileFormatError, match=match) as caught:
        read_volume(patch_header(path, **fields))
    assert "image.nii" in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_without_a_value_are_refused(tmp_path: Path, value: float) -> None:
    array = np.zeros(SHAPE, np.float32)
    array[1, 2, 3] = value
    with pytest.raises(FileFormatError, match="in 1 of 210 voxels"):
        read_volume(save(tmp_path / "image.nii.gz", array))


@pytest.mark.parametrize("dim", [[3, 30000, 30000, 30000, 1, 1, 1, 1], [3, 2000, 1000, 500, 1, 1, 1, 1]])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_claims_too_much_is_refused_before_reading(
    tmp_path: Path, suffix: str, dim: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = patch_header(save(tmp_path / "image.nii", image_array()), dim=dim)
    if suffix == ".nii.gz":
        path = tmp_path / "image.nii.gz"
        path.write_bytes(gzip.compress((tmp_path / "image.nii").read_bytes()))
    monkeypatch.setattr("MAISILib.files.nifti._scaled", lambda data: pytest.fail("voxels were read"))
    with pytest.raises(FileFormatError, match="claims"):
        read_volume(path)


def test_an_image_larger_than_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("MAISILib.files.checks._available_memory", lambda: 2**30)
    with pytest.raises(FileFormatError, match=r"2.0 GiB of memory; 1.0 GiB are free"):
        check_size((1024, 1024, 512), 2, tmp_path / "image.nii.gz", stored=2**30, compressed=True)


def test_negative_and_zero_sizes_are_refused(tmp_path: Path) -> None:
    for dim in ([3, 0, 6, 5, 1, 1, 1, 1], [3, -7, 6, 5, 1, 1, 1, 1], [9, 7, 6, 5, 1, 1, 1, 1]):
        path = patch_header(save(tmp_path / "image.nii", image_array()), dim=dim)
        with pytest.raises(FileFormatError):
            read_volume(path)
