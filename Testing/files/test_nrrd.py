"""NRRD files, as Slicer and others write them, and bad ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest

from MAISILib.anatomy.labels import LabelTable
from MAISILib.errors import FileFormatError, MaskError
from MAISILib.files.images import read_image, read_mask
from MAISILib.files.nrrd import read_grid

SHAPE = (7, 6, 5)
ARRAY = np.random.default_rng(0).integers(-1024, 3072, SHAPE).astype(np.int16)
LPS: dict[str, Any] = {
    "space": "left-posterior-superior",
    "space directions": np.diag([1.5, 2.0, 3.0]),
    "space origin": [10.0, -20.0, 30.0],
}


def write(path: Path, array: np.ndarray = ARRAY, **fields: Any) -> Path:
    nrrd.write(str(path), array, {**LPS, **{key.replace("_", " "): value for key, value in fields.items()}})
    return path


@pytest.mark.parametrize("encoding", ["raw", "gzip", "bzip2"])
def test_lps_becomes_ras(tmp_path: Path, encoding: str) -> None:
    read = read_image(write(tmp_path / "image.nrrd", encoding=encoding))
    np.testing.assert_array_equal(read.array, ARRAY)
    assert read.array.flags.writeable
    expected = np.diag([-1.5, -2.0, 3.0, 1.0])
    expected[:3, 3] = (-10, 20, 30)
    np.testing.assert_allclose(read.affine, expected)


@pytest.mark.parametrize(
    ("space", "signs"),
    [("right-anterior-superior", (1, 1, 1)), ("LAS", (-1, 1, 1)), ("LPS", (-1, -1, 1))],
)
def test_every_space_that_names_the_patient_is_read(tmp_path: Path, space: str, signs: tuple[int, int, int]) -> None:
    read = read_image(write(tmp_path / "image.nrrd", space=space))
    np.testing.assert_allclose(np.diag(read.affine)[:3], np.multiply(signs, (1.5, 2, 3)))


def test_slicer_and_this_reader_agree(tmp_path: Path, oblique: np.ndarray) -> None:
    pytest.importorskip("slicer", reason="slicer-core is not installed")
    from MAISILib.scene import new_scene, show
    from MAISILib.volumes import Volume

    for number, affine in enumerate((oblique, oblique @ np.diag([-1.0, 1, 1, 1]), np.diag([1.0, 2, 3, 1]))):
        scene = new_scene()
        node, _ = show(scene, Volume(ARRAY, affine), None, "case")
        node.AddDefaultStorageNode()
        path = tmp_path / f"{number}.nrrd"
        node.GetStorageNode().SetFileName(str(path))
        assert node.GetStorageNode().WriteData(node)
        read = read_image(path)
        np.testing.assert_array_equal(read.array, ARRAY)
        np.testing.assert_allclose(read.affine, affine, atol=1e-9)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">i2", "<i4", ">f4", "<f8", "<i8"])
def test_types_and_byte_orders(tmp_path: Path, dtype: str) -> None:
    array = np.abs(ARRAY // 64).astype(dtype)
    read = read_image(write(tmp_path / "image.nrrd", array))
    np.testing.assert_array_equal(read.array, array)
    assert read.array.dtype.isnative


def test_a_header_with_its_data_beside_it(tmp_path: Path) -> None:
    nrrd.write(str(tmp_path / "image.nhdr"), ARRAY, LPS, detached_header=True)
    np.testing.assert_array_equal(read_image(tmp_path / "image.nhdr").array, ARRAY)


@pytest.mark.parametrize(
    "place", ["../secret.raw", "/proc/self/environ", "link/secret.raw", "LIST", "data%d.raw 1 5 1"]
)
def test_data_elsewhere_is_not_followed(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret.raw").write_bytes(ARRAY.tobytes(order="F"))
    if place.startswith("link"):
        os.symlink(tmp_path, folder / "link")
    header = (
        f"NRRD0004\ntype: int16\ndimension: 3\nspace: left-posterior-superior\nsizes: 7 6 5\n"
        f"space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nendian: little\nencoding: raw\n"
        f"data file: {place}\n\n"
    )
    (folder / "image.nhdr").write_text(header)
    with pytest.raises(FileFormatError, match=r"outside its folder|is not there"):
        read_image(folder / "image.nhdr")


def test_images_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "image.nrrd"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"array": ARRAY[0], "space_directions": np.eye(2), "space": None, "space_origin": None}, "single slice"),
        (
            {"array": np.stack([ARRAY] * 3), "space_directions": np.vstack([np.full(3, np.nan), np.eye(3)])},
            "vector image",
        ),
        ({"space_directions": np.array([[1, 0.5, 0], [0, 1, 0], [0, 0, 1.0]])}, "sheared"),
        ({"space_directions": np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1.0]])}, "singular"),
        ({"space": "scanner-xyz"}, "left and right"),
        ({"space_units": ["m", "m", "m"]}, "millimetres"),
        ({"array": np.full(SHAPE, np.nan, np.float32)}, "NaN"),
        ({"encoding": "ascii"}, "encoding 'ascii'"),
    ]
    for case, match in cases:
        array = case.pop("array", ARRAY)
        header = {**LPS, **{key.replace("_", " "): value for key, value in case.items()}}
        nrrd.write(str(path), array, {key: value for key, value in header.items() if value is not None})
        with pytest.raises(FileFormatError, match=match):
            read_image(path)


def test_damaged_files(tmp_path: Path) -> None:
    path = write(tmp_path / "image.nrrd")
    content = path.read_bytes()
    for bad in (
        content[:3],
        content[:60],
        content[:-40],
        b"NRRD0005\n\n",
        b"JPEG" + content,
        content[:-60] + b"\0" * 60,
    ):
        path.write_bytes(bad)
        with pytest.raises(FileFormatError):
            read_image(path)


def test_claims_beyond_the_file_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "image.nrrd")
    content = path.read_bytes()
    for sizes in (b"30000 30000 30000", b"2000 1000 500", b"-7 6 5", b"0 6 5"):
        path.write_bytes(content.replace(b"sizes: 7 6 5", b"sizes: " + sizes))
        with pytest.raises(FileFormatError, match=r"claims|no voxels"):
            read_image(path)


def segmentation(path: Path, array: np.ndarray, segments: list[dict[str, Any]]) -> Path:
    """A segmentation file as Slicer writes it, with a list axis first where ``array`` has layers ``(L, X, Y, Z)``."""
    header: dict[str, Any] = dict(LPS)
    if array.ndim == 4:
        header["space directions"] = np.vstack([np.full(3, np.nan), LPS["space directions"]])
        header["kinds"] = ["list", "domain", "domain", "domain"]
    for number, segment in enumerate(segments):
        header[f"Segment{number}_ID"] = f"S{number}"
        header |= {f"Segment{number}_{key}": str(value) for key, value in segment.items()}
    nrrd.write(str(path), array, header)
    return path


def test_a_segmentation_is_read_by_tag_terminology_and_name(tmp_path: Path, table: LabelTable) -> None:
    layers = np.zeros((2, *SHAPE), np.uint8)
    layers[0, 0], layers[0, 1], layers[1, 1:3] = 1, 2, 1
    kidney = table.find("left kidney")
    segments = [
        {"Name": "Leber", "LabelValue": 1, "Layer": 0, "Tags": "MAISI.Label:1|Segmentation.Status:inprogress|"},
        {"Name": "Milz", "LabelValue": 2, "Layer": 0, "Tags": f"TerminologyEntry:{table[3].terminology()}|"},
        {"Name": "Left Kidney", "LabelValue": 1, "Layer": 1},
    ]
    read = read_mask(segmentation(tmp_path / "mask.seg.nrrd", layers, segments), table)
    assert read.array[:4, 0, 0].tolist() == [1, kidney.value, kidney.value, 0]
    segments[2]["Name"] = "Ding"
    with pytest.raises(MaskError, match="'Ding'"):
        read_mask(segmentation(tmp_path / "mask.seg.nrrd", layers, segments), table)


def test_a_segmentation_saved_by_slicer_is_read(tmp_path: Path, table: LabelTable, oblique: np.ndarray) -> None:
    pytest.importorskip("slicer", reason="slicer-core is not installed")
    from MAISILib.scene import new_scene, show_mask
    from MAISILib.volumes import LabelMap

    array = np.random.default_rng(2).choice([0, 1, 3, 126, 200], SHAPE).astype(np.uint8)
    scene = new_scene()
    node = show_mask(scene, LabelMap(array, oblique, table), "mask")
    node.AddDefaultStorageNode()
    path = tmp_path / "mask.seg.nrrd"
    node.GetStorageNode().SetFileName(str(path))
    assert node.GetStorageNode().WriteData(node)
    read = read_mask(path, table)
    index = np.argwhere(read.array)  # Slicer stores the part that is not empty: compare in space
    world = np.linalg.solve(oblique, read.affine) @ np.c_[index, np.ones(len(index))].T
    found = np.zeros(SHAPE, np.uint8)
    found[tuple(np.rint(world[:3]).astype(int))] = read.array[tuple(index.T)]
    np.testing.assert_array_equal(found, array)


def test_unknown_formats_say_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "image.mha").write_bytes(b"x")
    with pytest.raises(FileFormatError, match=r"Give \.nii, \.nii\.gz, \.nrrd, \.nhdr"):
        read_image(tmp_path / "image.mha")


def test_the_suffix_decides(tmp_path: Path, table: LabelTable) -> None:
    from MAISILib.files.nifti import write_labels, write_volume
    from MAISILib.volumes import LabelMap, Volume

    write_volume(Volume(ARRAY, np.eye(4)), tmp_path / "image.nii.gz")
    np.testing.assert_array_equal(read_image(tmp_path / "image.nii.gz").array, ARRAY)
    labels = (ARRAY > 0).astype(np.uint8)
    write_labels(LabelMap(labels, np.eye(4), table), tmp_path / "mask.nii")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nii", table).array, labels)
    write(tmp_path / "mask.nrrd", labels.astype(np.int16))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.nrrd", table).array, labels)


@pytest.mark.parametrize(
    ("line", "bad", "said"),
    [
        ("Segment0_LabelValue:=1", "Segment0_LabelValue:=1.0", r"Segment0_LabelValue of segment 'mandible' is '1\.0'"),
        ("Segment0_LabelValue:=1", "Segment0_LabelValue:=", "Segment0_LabelValue of segment 'mandible' is ''"),
        ("Segment0_Layer:=0", "Segment0_Layer:=x", "Segment0_Layer of segment 'mandible' is 'x'"),
        ("Segment0_Layer:=0", "Segment0_Layer:=", "Segment0_Layer of segment 'mandible' is ''"),
        ("space directions: (3,0,0) (0,3,0) (0,0,3)", "space directions: none", "'space directions' do not fit"),
        ("space directions: (3,0,0) (0,3,0) (0,0,3)\n", "", "'space directions' do not fit"),
        ("space directions: (3,0,0) (0,3,0) (0,0,3)", "space directions:", "'space directions:'"),
        ("space origin: (1,2,3)", "space origin:", "'space origin:'"),
        ("space origin: (1,2,3)", "space origin: (1,2)", "'space origin' has 2 numbers"),
        ("sizes: 2 2 2", "a line without a colon", "'a line without a colon'"),
    ],
)
def test_a_bad_header_is_told_with_its_file_and_field(
    tmp_path: Path, table: LabelTable, line: str, bad: str, said: str
) -> None:
    header = (
        "NRRD0004\ntype: unsigned char\ndimension: 3\nspace: left-posterior-superior\nsizes: 2 2 2\n"
        "space directions: (3,0,0) (0,3,0) (0,0,3)\nencoding: raw\nspace origin: (1,2,3)\n"
        "Segment0_ID:=a\nSegment0_Name:=mandible\nSegment0_LabelValue:=1\nSegment0_Layer:=0\n\n"
    )
    assert line in header
    path = tmp_path / "bad.seg.nrrd"
    path.write_bytes(header.replace(line, bad).encode() + b"\1" * 8)
    readings = [lambda: read_mask(path, table)]
    if "Segment0" not in line:
        readings += [lambda: read_image(path), lambda: read_grid(path)]
    for read in readings:
        with pytest.raises(FileFormatError, match=rf"bad\.seg\.nrrd.*{said}"):
            read()


@pytest.mark.parametrize("tag", ["²", "9" * 5000, "1.0", ""])
def test_a_tag_that_is_no_label_leaves_the_segment_to_its_name(tmp_path: Path, table: LabelTable, tag: str) -> None:
    segments = [{"Name": "Liver", "LabelValue": 1, "Layer": 0, "Tags": "MAISI.Label:TAG|"}]
    path = segmentation(tmp_path / "mask.seg.nrrd", np.ones(SHAPE, np.uint8), segments)
    path.write_bytes(path.read_bytes().replace(b"TAG", tag.encode()))  # nrrd.write knows no UTF-8
    assert read_mask(path, table).labels == [table.find("liver").value]
