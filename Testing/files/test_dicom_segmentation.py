"""DICOM Segmentation objects become segments with geometry, names and codes; bad ones are refused in words."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from MAISILib.anatomy.labels import LabelTable
from MAISILib.errors import FileFormatError, MaskError
from MAISILib.files.dicom_geometry import read_dicom_series
from MAISILib.files.images import read_image, read_mask, read_segments
from MAISILib.files.segment_placing import place_on_ct
from MAISILib.files.segmentations import find_label
from MAISILib.resampling import nearest
from MAISILib.volumes import Grid
from Testing.anatomy.phantoms import label_map, tilted, turned
from Testing.files.dicom_files import dataset_of, segment, write_dicom_segmentation, write_dicom_series
from Testing.training.users_cases import write_image

STRUCTURE = ("SCT", "123037004", "Anatomical Structure")
LIVER = ("SCT", "10200004", "Liver")
KIDNEY, LEFT = ("SCT", "64033007", "Kidney"), ("SCT", "7771000", "Left")


def liver_and_kidney(shape: tuple[int, int, int] = (7, 6, 5)) -> list[tuple[Any, np.ndarray]]:
    liver, kidney = np.zeros((2, *shape), bool)
    liver[1:4, 1:3, 1:4], kidney[5:6, 2:5, 3:5] = True, True
    return [(segment("Leber", STRUCTURE, LIVER), liver), (segment("Niere li", STRUCTURE, KIDNEY, LEFT), kidney)]


def test_segments_come_with_names_codes_and_place(tmp_path: Path, oblique: np.ndarray, table: LabelTable) -> None:
    parts = liver_and_kidney()
    oblique[:3, 2] *= -1  # slices are numbered along the normal of rows and columns
    path = write_dicom_segmentation(tmp_path / "scan.dcm", oblique, parts)
    found = read_segments(path)
    assert [segment.name for segment in found.segments] == ["Leber", "Niere li"]
    assert [find_label(segment, table) for segment in found.segments] == [(1, "code"), (14, "code")]
    assert found.frame_of_reference == "1.2.3"
    first = oblique @ [0, 0, 1, 1]  # the first slice with a frame
    assert np.allclose(found.affine[:3, 3], first[:3], atol=1e-4)
    assert np.allclose(found.affine[:3, :3], oblique[:3, :3], atol=1e-4)
    for item, (_, inside) in zip(found.segments, parts, strict=True):
        assert (found.layers[..., item.layer] == item.value).tolist() == inside[:, :, 1:].tolist()


@given(
    seed=st.integers(0, 10_000),
    order=st.permutations([0, 1, 2]),
    flips=st.tuples(*[st.integers(0, 1)] * 3),
    angle=st.sampled_from([0.0, 17.0]),
    spacing=st.tuples(*[st.floats(0.3, 6.0)] * 3),
    syntax=st.sampled_from([ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, "1.2.840.10008.1.2.1"]),
)
@settings(max_examples=25, deadline=None)
def test_any_segments_in_any_orientation_come_back_voxel_for_voxel(
    seed, order, flips, angle, spacing, syntax, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    inside = rng.random((3, 7, 5, 4)) < 0.3  # overlapping, with frames of 35 bits
    inside[:, 0, 0, 0] = inside[:, 6, 4, 3] = True
    frame = tilted(turned(label_map(np.zeros((7, 5, 4)), np.diag([*spacing, 1.0])), tuple(order), flips), angle)
    grid = Grid((7, 5, 4), frame.affine)
    handed = grid.affine.copy()
    if np.linalg.det(handed[:3, :3]) < 0:  # slices are numbered along the normal of rows and columns
        handed[:3, 2] *= -1
    parts = [(segment(f"part {n}", STRUCTURE, LIVER), one) for n, one in enumerate(inside)]
    path = write_dicom_segmentation(tmp_path_factory.mktemp("seg") / "x", handed, parts, syntax=syntax)
    found = read_segments(path)
    assert found.grid.same_as(Grid((7, 5, 4), handed), tolerance=0.01)
    for item, one in zip(found.segments, inside, strict=True):
        assert ((found.layers[..., item.layer] == item.value) == one).all()


def test_codes_of_older_programs_are_known(tmp_path: Path, table: LabelTable) -> None:
    old = segment("A", ("SRT", "T-D000A", "Anatomical Structure"), ("SRT", "T-62000", "Liver"))
    other = segment("B", ("SCT", "91723000", "Anatomical Structure"), KIDNEY, LEFT)
    inside = np.ones((2, 2, 2), bool)
    found = read_segments(write_dicom_segmentation(tmp_path / "a.dcm", np.eye(4), [(old, inside), (other, inside)]))
    assert [find_label(segment, table) for segment in found.segments] == [(1, "code"), (14, "code")]


def test_slices_between_frames_are_empty(tmp_path: Path) -> None:
    inside = np.zeros((4, 4, 9), bool)
    inside[1:3, 1:3, [0, 1, 8]] = True
    path = write_dicom_segmentation(
        tmp_path / "a.dcm", np.diag([-1.0, -1.0, 2.5, 1.0]), [(segment("a", STRUCTURE, LIVER), inside)]
    )
    assert (read_segments(path).layers[..., 0] > 0).tolist() == inside.tolist()


@pytest.mark.parametrize("numbers", [(5, 7), (2, 1)])
def test_segments_keep_the_numbers_of_the_file(numbers: tuple[int, int], tmp_path: Path) -> None:
    parts = liver_and_kidney()
    for item, _ in parts:
        del item.SegmentLabel

    def as_label_map(dataset: Any) -> None:
        places = {group.PlanePositionSequence[0].ImagePositionPatient[2]: group
                  for group in dataset.PerFrameFunctionalGroupsSequence}  # fmt: skip
        labels = np.zeros((7, 6, 5), np.uint8)
        for number, (_, inside) in zip(numbers, parts, strict=True):
            labels[inside] = number
        dataset.PerFrameFunctionalGroupsSequence = [places[z] for z in sorted(places)]
        dataset.NumberOfFrames, dataset.BitsAllocated = len(places), 8
        dataset.PixelData = labels[:, :, labels.any(axis=(0, 1))].T.tobytes()

    for kind, changed in (("BINARY", lambda _: None), ("LABELMAP", as_label_map)):
        path = write_dicom_segmentation(
            tmp_path / "a.dcm", np.diag([-1.0, -1.0, 2.5, 1.0]), parts, kind=kind, numbers=numbers, changed=changed
        )
        found = read_segments(path)
        assert [(s.number, s.name) for s in found.segments] == [(n, f"segment {n}") for n in numbers]
        assert list(found.voxels().values()) == [inside.sum() for _, inside in parts]


def damaged(change: Any, tmp_path: Path) -> Path:
    return write_dicom_segmentation(
        tmp_path / "bad.dcm", np.diag([-1.0, -1.0, 2.5, 1.0]), liver_and_kidney(), changed=change
    )


def frames_far_apart(dataset: Any) -> None:
    group = dataset.PerFrameFunctionalGroupsSequence[0]
    group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, -1e7]


def frames_uneven(dataset: Any) -> None:
    del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient = [0, 0, 1.7]


def frames_tilted(dataset: Any) -> None:
    for group in dataset.PerFrameFunctionalGroupsSequence:
        place = group.PlanePositionSequence[0].ImagePositionPatient
        group.PlanePositionSequence[0].ImagePositionPatient = [place[0], place[1] + 1.3 * place[2], place[2]]


def frames_bent(dataset: Any) -> None:
    for group in dataset.PerFrameFunctionalGroupsSequence:
        place = group.PlanePositionSequence[0].ImagePositionPatient
        group.PlanePositionSequence[0].ImagePositionPatient = [place[0], place[1] + 0.1 * place[2] ** 2, place[2]]


def without_places(dataset: Any) -> None:
    for group in dataset.PerFrameFunctionalGroupsSequence:
        del group.PlanePositionSequence


def two_directions(dataset: Any) -> None:
    group = dataset.PerFrameFunctionalGroupsSequence[0]
    group.PlaneOrientationSequence = [dataset_of(ImageOrientationPatient=[0, 1, 0, 0, 0, 1])]


def strange_segment(number: int) -> Any:
    def changed(dataset: Any) -> None:
        group = dataset.PerFrameFunctionalGroupsSequence[0]
        group.SegmentIdentificationSequence[0].ReferencedSegmentNumber = number

    return changed


def same_number(dataset: Any) -> None:
    dataset.SegmentSequence[1].SegmentNumber = 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: setattr(d, "SegmentationType", "FRACTIONAL"), "fractions.*Threshold"),
        (lambda d: setattr(d, "Rows", 60000), "claims 5 frames of 7 × 60000 pixels"),
        (lambda d: setattr(d, "NumberOfFrames", 70000), "claims 70000 frames but places 5"),
        (lambda d: setattr(d, "PixelData", b"\0\0"), "holds 2 bytes"),
        (lambda d: delattr(d, "PixelData"), "has no PixelData"),
        (lambda d: delattr(d, "SegmentSequence"), "has no SegmentSequence"),
        (lambda d: setattr(d, "BitsAllocated", 8), "pixels of 8 bits"),
        (frames_far_apart, "slices lie 1000.* mm apart"),
        (frames_uneven, "not evenly spaced"),
        (frames_tilted, r"sheared \(axes meet at 37\.6°"),
        (frames_bent, "not evenly spaced in one direction"),
        (without_places, "does not say ImagePositionPatient"),
        (two_directions, "several directions"),
        (strange_segment(9), r"does not describe: \[9\]"),
        (strange_segment(0), r"does not describe: \[0\]"),
        (same_number, r"several segments with the number 1 \('Leber' and 'Niere li'\)"),
    ],
)
def test_what_cannot_be_is_told(change: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=said) as told:
        read_segments(damaged(change, tmp_path))
    assert "bad.dcm" in str(told.value)


def test_files_cut_anywhere_are_refused(tmp_path: Path) -> None:
    whole = damaged(lambda d: None, tmp_path).read_bytes()
    for length in range(140, len(whole) - 1, 97):
        (tmp_path / "cut.dcm").write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match=r"cut\.dcm"):
            read_segments(tmp_path / "cut.dcm")


def test_deflated_file_that_unpacks_without_end_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dicom_segmentation(
        tmp_path / "a.dcm", np.eye(4), liver_and_kidney(), syntax=DeflatedExplicitVRLittleEndian
    )
    monkeypatch.setattr("MAISILib.files.dicom_segmentation._MOST_INFLATED", 2**20)
    head = path.read_bytes()
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = packer.compress(b"\0" * 2**22) + packer.flush()
    start = 144 + int.from_bytes(head[140:144], "little")
    path.write_bytes(head[:start] + bomb)
    with pytest.raises(FileFormatError, match="unpacks to more than"):
        read_segments(path)


def test_other_dicom_files_are_named(tmp_path: Path, table: LabelTable) -> None:
    ct = write_dicom_series(tmp_path / "ct", np.diag([-1.0, -1.0, 2.0, 1.0]), (4, 4, 2)) / "IM0001"
    with pytest.raises(FileFormatError, match="no segmentation \\(CT Image Storage\\)"):
        read_segments(ct)
    with pytest.raises(FileFormatError, match="maisi mask convert"):
        read_mask(damaged(lambda d: None, tmp_path), table)
    with pytest.raises(FileFormatError, match="is a DICOM file"):
        read_image(ct)
    packed = damaged(lambda d: None, tmp_path)
    packed.write_bytes(packed.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0", 1))
    with pytest.raises(FileFormatError, match="compressed in a way that is not read \\(RLE Lossless\\)"):
        read_segments(packed)


def test_too_many_overlapping_segments_take_no_memory_without_end(tmp_path: Path) -> None:
    inside = np.ones((3, 3, 3), bool)
    parts = [(segment(f"s{n}", STRUCTURE, LIVER), inside) for n in range(20)]
    path = write_dicom_segmentation(tmp_path / "many.dcm", np.eye(4), parts)
    with pytest.raises(FileFormatError, match="more than 16 structures overlap"):
        read_segments(path)


# With the CT that it was made from

AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])


def test_segmentation_gets_the_grid_of_its_ct(tmp_path: Path) -> None:
    parts = liver_and_kidney((8, 6, 9))
    found = read_segments(write_dicom_segmentation(tmp_path / "a.dcm", AFFINE, parts))
    assert found.layers.shape[2] == 4, "slices without voxels are not in the file"
    ct = write_dicom_series(tmp_path / "ct", AFFINE, (8, 6, 9))
    assert read_dicom_series(ct).grid.same_as(Grid((8, 6, 9), AFFINE))
    placed = place_on_ct(found, ct, "a.dcm")
    assert placed.grid.same_as(Grid((8, 6, 9), AFFINE))
    assert (placed.layers[..., 0] == 1).tolist() == parts[0][1].tolist()
    same = write_image(tmp_path / "ct.nii.gz", np.zeros((8, 6, 9), np.int16), AFFINE)
    again = place_on_ct(found, same, "a.dcm")
    assert (again.layers == placed.layers).all()
    assert any("was not checked" in note for note in again.notes)


@pytest.mark.parametrize("along_the_table", [False, True])
@pytest.mark.parametrize("lean", [(0.0, 1.2), (0.4, -0.7)])
def test_segmentation_and_ct_of_a_tilted_gantry_come_onto_one_straight_grid(
    tmp_path: Path, lean: tuple[float, float], along_the_table: bool
) -> None:
    tilt = AFFINE.copy()
    tilt[:, 3] = 31.4, -15.9, 26.5, 1.0
    tilt[:2, 2] = lean
    parts = liver_and_kidney((8, 6, 9))

    def changed(dataset: Any) -> None:  # standing beside the tilt, this is the distance along the table
        if not along_the_table:
            dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 3.0

    found = read_segments(write_dicom_segmentation(tmp_path / "a.dcm", tilt, parts, changed=changed))
    assert "a.dcm is sheared" in found.notes[0]
    assert list(found.voxels().values()) == [inside.sum() for _, inside in parts]
    placed = place_on_ct(found, write_dicom_series(tmp_path / "ct", tilt, (8, 6, 9)), "a.dcm")
    own = Grid((8, 6, 9), tilt)
    for segment_, (_, inside) in zip(found.segments, parts, strict=True):
        for one in (found, placed):
            back = nearest(one.layers[..., segment_.layer], one.grid, own)
            assert np.array_equal(back == segment_.value, inside), "voxel for voxel on the scanner's grid"


def test_segmentation_of_another_frame_of_reference_is_refused(tmp_path: Path) -> None:
    found = read_segments(
        write_dicom_segmentation(tmp_path / "a.dcm", AFFINE, liver_and_kidney(), frame_of_reference="1.9")
    )
    ct = write_dicom_series(tmp_path / "ct", AFFINE, (8, 6, 9))
    with pytest.raises(MaskError, match=r"belongs to another scan .*is 1\.9, that of the CT 1\.2\.3"):
        place_on_ct(found, ct, "a.dcm")


def test_what_lies_outside_of_the_ct_is_told(tmp_path: Path) -> None:
    found = read_segments(write_dicom_segmentation(tmp_path / "a.dcm", AFFINE, liver_and_kidney()))
    small = write_dicom_series(tmp_path / "ct", AFFINE, (4, 6, 3))
    notes = place_on_ct(found, small, "a.dcm").notes
    assert "Lost, outside of the CT or smaller than its voxels: Niere li." in notes
    assert "Cut off by more than a tenth: Leber." in notes
    away = AFFINE.copy()
    away[0, 3] = 500
    with pytest.raises(MaskError, match="lies outside of"):
        place_on_ct(found, write_dicom_series(tmp_path / "away", away, (8, 6, 9)), "a.dcm")


def test_folder_that_is_no_series_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no DICOM series"):
        read_dicom_series(tmp_path)
    write_dicom_series(tmp_path, AFFINE, (4, 4, 2))
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_suffix(".first"))
    write_dicom_series(tmp_path, AFFINE, (4, 4, 2))
    with pytest.raises(FileFormatError, match="several DICOM series"):
        read_dicom_series(tmp_path)
