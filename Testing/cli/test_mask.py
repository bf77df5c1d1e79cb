"""``maisi mask``: check, convert and envelope as a user meets them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from MAISILib.anatomy.envelope import add_body
from MAISILib.anatomy.labels import default_table
from MAISILib.files.images import read_mask
from MAISILib.files.nifti import write_labels
from MAISILib.volumes import LabelMap
from Testing.anatomy.phantoms import many_organs, torso
from Testing.cli.conftest import Maisi
from Testing.files.dicom_files import segment, write_dicom_segmentation, write_dicom_series
from Testing.training.users_cases import write_image, write_segments

CT_BUNDLE = "nv-rflow-ct"


def saved(mask: LabelMap, path: Path) -> Path:
    write_labels(mask, path, synthetic=False)
    return path


def test_check_lists_labels_and_findings(maisi: Maisi, work: Path) -> None:
    saved(add_body(torso()), work / "mask.nii.gz")
    told = maisi("mask", "check", "mask.nii.gz", "--bundle", CT_BUNDLE)
    assert told.code == 0
    assert told.out.startswith(
        "mask.nii.gz: 24 × 20 × 16 voxels of 4 × 4 × 5 mm, axes RAS, field of view 96 × 80 × 80 mm"
    )
    assert "    1  liver " in told.out
    assert "Spacing 4×4×5 mm: x must lie in 0.5–3 mm" in told.out
    assert "The networks will work on 256 × 256 × 256 voxels of 1.5 × 1.5 × 1.5 mm." in told.out
    assert sorted(work.iterdir()) == [work / "mask.nii.gz"]


def test_check_as_json_and_picture(maisi: Maisi, work: Path) -> None:
    mask = torso()
    saved(mask, work / "mask.nii.gz")
    write_image(work / "ct.nii.gz", np.where(mask.array > 0, 40, -1000).astype(np.int16), mask.affine)
    outcome = maisi("mask", "check", "mask.nii.gz", "--bundle", CT_BUNDLE, "--json", "--picture", "alone.png")
    assert outcome.json["is_usable"] is True
    assert {"level": "warning", "topic": "body"}.items() <= outcome.json["findings"][0].items()
    assert {row["name"] for row in outcome.json["labels"]} >= {"liver", "spleen", "brain"}
    assert maisi("mask", "check", "mask.nii.gz", "-b", CT_BUNDLE, "--ct", "ct.nii.gz", "--picture", "ct.png").code == 0
    from PIL import Image

    with Image.open(work / "alone.png") as alone, Image.open(work / "ct.png") as both:
        assert alone.size[0] == both.size[0] == 1200
        assert both.size[1] > alone.size[1] > 100
        liver = np.array(default_table()[1].color)
        shown = np.asarray(alone.convert("RGB")).astype(int)
        assert (np.abs(shown - liver).sum(axis=-1) < 40).sum() > 50, "the liver's color is in the picture"


def test_check_of_a_mask_in_foreign_numbers_reports_and_fails(maisi: Maisi, work: Path) -> None:
    saved(torso(), work / "mask.nii.gz")
    told = maisi("mask", "check", "mask.nii.gz", "--bundle", "head-neck-mini")
    assert told.code == 2
    assert "error    labels: 'head-neck-mini' does not know 1 (" in told.out
    assert len(told.err.splitlines()) == 1
    assert "cannot be used with 'head-neck-mini'" in told.err


def test_check_of_a_mask_that_does_not_fit_says_what_would(maisi: Maisi, work: Path) -> None:
    array = np.zeros((400, 20, 20), np.uint8)
    array[2:-2, 2:-2, 2:-2] = 200
    saved(LabelMap(array, np.diag([4.0, 4.0, 4.0, 1.0]), default_table()), work / "wide.nii.gz")
    told = maisi("mask", "check", "wide.nii.gz", "--bundle", "head-neck-mini")
    assert told.code == 2
    assert "error    size: The labels span 1584 × 64 × 64 mm" in told.out
    assert "or crop the mask" in told.out


def test_check_names_what_is_too_small_for_the_networks(maisi: Maisi, work: Path) -> None:
    array = np.full((100, 100, 60), 200, np.uint8)
    array[40:60, 40:60, 20:40] = 137
    array[10:40, 10:40, 10:50][np.random.default_rng(0).random((30, 30, 40)) < 0.2] = 11
    array[51, 51, 31] = 133
    saved(LabelMap(array, np.diag([1.5, 1.5, 2.0, 1.0]), default_table()), work / "fine.nii.gz")
    told = maisi("mask", "check", "fine.nii.gz", "--bundle", "head-neck-mini")
    assert "up to 4.0 times coarser than the mask." in told.out
    assert "warning  size: Too small for these voxels, and lost: brain stem (0 of 1 voxels kept)." in told.out
    assert "More than half of their voxels change: esophagus (" in told.out


def test_check_tells_where_the_patient_is_cut_off(maisi: Maisi, work: Path) -> None:
    array = np.full((60, 60, 40), 200, np.uint8)
    array[20:40, 20:40, 10:30] = 1
    saved(LabelMap(array, np.diag([2.0, 2.0, 4.0, 1.0]), default_table()), work / "cut.nii.gz")
    told = maisi("mask", "check", "cut.nii.gz", "--bundle", CT_BUNDLE)
    assert "cuts the patient off left–right (120 mm) and front–back (120 mm)" in told.out


def test_check_with_a_bundle_that_takes_no_masks(maisi: Maisi, work: Path) -> None:
    saved(torso(), work / "mask.nii.gz")
    told = maisi("mask", "check", "mask.nii.gz", "--bundle", "nv-rflow-mr")
    assert told.code == 2
    assert "makes images without a mask only" in told.out


@pytest.mark.parametrize("name", ["nv-rflow-tc", "no/such/folder"])
def test_check_with_an_unknown_bundle(refused: Maisi, work: Path, name: str) -> None:
    saved(torso(), work / "mask.nii.gz")
    assert "There is no bundle" in refused("mask", "check", "mask.nii.gz", "--bundle", name).err


def test_check_of_bad_files(maisi: Maisi, refused: Maisi, work: Path) -> None:
    (work / "empty.nii.gz").write_bytes(b"")
    (work / "text.nii").write_text("no image", encoding="utf-8")
    write_image(work / "ct.nii.gz", np.linspace(-1000, 1000, 27, dtype=np.float32).reshape(3, 3, 3), np.eye(4))
    assert "is empty" in refused("mask", "check", "empty.nii.gz").err
    assert "cannot be read" in refused("mask", "check", "text.nii").err
    assert "no whole numbers" in refused("mask", "check", "ct.nii.gz").err
    write_image(work / "whole.nii.gz", np.arange(-1000, 728, dtype=np.int16).reshape(12, 12, 12), np.eye(4))
    for command in (("check", "whole.nii.gz"), ("convert", "whole.nii.gz", "-o", "x.nii.gz")):
        assert "It is an image, not a label map" in refused("mask", *command).err
    patient = torso()
    saved(patient.with_array(patient.array, affine=patient.affine / 1000), work / "meters.nii.gz")
    meters = maisi("mask", "check", "meters.nii.gz", "-b", CT_BUNDLE)
    assert meters.code == 2
    assert "error    size: The mask spans 0.096 × 0.08 × 0.08 mm, smaller than any patient" in meters.out
    assert "does not exist" in refused("mask", "check", "none.nii.gz").err


def totalsegmentator(folder: Path) -> Path:
    """The phantom as TotalSegmentator would number it."""
    from MAISILib.anatomy.label_sets import label_set

    lookup = np.zeros(256, np.uint8)
    for number, structure in label_set("totalsegmentator").by_number.items():
        lookup[default_table().find(structure.label).value] = number
    return write_image(folder / "total.nii.gz", lookup[many_organs().array], many_organs().affine)


@pytest.mark.parametrize("options", [(), ("--from", "totalsegmentator")])
def test_convert_gives_a_mask_that_check_accepts(maisi: Maisi, work: Path, options: tuple[str, ...]) -> None:
    totalsegmentator(work)
    told = maisi("mask", "convert", "total.nii.gz", *options, "--bundle", CT_BUNDLE, "--out", "mask.nii.gz")
    assert told.code == 0, told.err
    assert "read as TotalSegmentator 2, task total" in told.out
    mask = read_mask(work / "mask.nii.gz", default_table())
    assert (mask.array == many_organs().array).all()
    assert mask.grid.same_as(many_organs().grid)
    assert "synthetic" not in str(nib.load(work / "mask.nii.gz").header["descrip"])  # type: ignore[attr-defined]
    assert maisi("mask", "check", "mask.nii.gz", "--bundle", CT_BUNDLE).code == 0


def test_convert_reads_names_in_a_nifti_header(maisi: Maisi, work: Path) -> None:
    image = nib.Nifti1Image(np.repeat(np.array([0, 3, 9], np.uint8), 9).reshape(3, 3, 3), np.eye(4))  # type: ignore[attr-defined]
    rows = '<Label Key="3"><![CDATA[lung_upper_lobe_left]]></Label><Label Key="9"><![CDATA[liver]]></Label>'
    text = f"<CaretExtension><LabelTable>{rows}</LabelTable></CaretExtension>".encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, text))  # type: ignore[attr-defined]
    nib.save(image, work / "named.nii.gz")  # type: ignore[attr-defined]
    outcome = maisi("mask", "convert", "named.nii.gz", "-b", CT_BUNDLE, "-o", "mask.nii.gz", "--json")
    assert {s["name"]: s["label"] for s in outcome.json["structures"]} == {"lung_upper_lobe_left": 28, "liver": 1}
    assert read_mask(work / "mask.nii.gz", default_table()).labels == [1, 28]


def test_convert_reads_slicer_segmentations_and_tells_overlaps(maisi: Maisi, work: Path) -> None:
    layers = np.zeros((2, 6, 5, 4), np.uint8)
    layers[0, 1:5], layers[1, 2:3] = 1, 1
    segments = [
        {"Name": "Kidney, L", "LabelValue": 1, "Layer": 0},
        {"Name": "kidney_cyst_left", "LabelValue": 1, "Layer": 1},
    ]
    write_segments(work / "scene.seg.nrrd", layers, np.eye(4), segments)
    told = maisi("mask", "convert", "scene.seg.nrrd", "-b", CT_BUNDLE, "-o", "mask.nii.gz")
    assert told.code == 0, told.err
    assert "overlap    Kidney, L: 20 of 80 voxels went to left kidney cyst (20)" in told.out
    counts = np.bincount(read_mask(work / "mask.nii.gz", default_table()).array.ravel(), minlength=256)
    assert (counts[14], counts[116]) == (60, 20)


def test_convert_reads_a_folder_of_structures(maisi: Maisi, work: Path) -> None:
    for index, name in enumerate(("spleen", "liver", "quokka")):
        array = np.zeros((6, 5, 4), np.uint8)
        array[2 * index : 2 * index + 2] = 1
        write_image(work / "segmentations" / f"{name}.nii.gz", array, np.eye(4))
    told = maisi("mask", "convert", "segmentations", "-b", CT_BUNDLE, "-o", "out/mask.nii.gz")
    assert told.code == 0, told.err
    assert "2 of 3 structures became 2 labels" in told.out
    assert "left out   quokka (40): 'MAISI' has no label for them" in told.out
    assert read_mask(work / "out/mask.nii.gz", default_table()).array[:, 0, 0].tolist() == [3, 3, 1, 1, 0, 0]


def test_convert_reads_dicom_segmentations_and_refuses_those_of_another_scan(
    maisi: Maisi, refused: Maisi, work: Path
) -> None:
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    liver, tumor = np.zeros((2, 8, 6, 5), bool)
    liver[1:6, 1:5, 1:4], tumor[2:4, 2:4, 2:3] = True, True
    altered = ("SCT", "49755003", "Morphologically Altered Structure")
    parts = [
        (segment("Leber", ("SCT", "123037004", "Anatomical Structure"), ("SCT", "10200004", "Liver")), liver),
        (segment("HCC", altered, ("SCT", "108369006", "Neoplasm"), None, ("SCT", "10200004", "Liver")), tumor),
    ]
    write_dicom_segmentation(work / "seg", affine, parts)
    write_dicom_series(work / "ct", affine, (8, 6, 5))
    write_dicom_series(work / "other", affine, (8, 6, 5), frame_of_reference="1.9")
    told = maisi("mask", "convert", "seg", "--ct", "ct", "-b", CT_BUNDLE, "-o", "mask.nii.gz")
    assert told.code == 0, told.err
    assert "2 of 2 structures became 2 labels" in told.out
    assert "overlap    Leber: 4 of 60 voxels went to hepatic tumor (4)" in told.out
    mask = read_mask(work / "mask.nii.gz", default_table())
    assert mask.array.tolist() == np.where(tumor, 26, np.where(liver, 1, 0)).tolist()
    told = refused("mask", "convert", "seg", "--ct", "other", "-b", CT_BUNDLE, "-o", "no.nii.gz")
    assert "seg belongs to another scan than other: its frame of reference is 1.2.3" in told.err
    assert "If it is a segmentation, make a mask of it" in refused("mask", "check", "seg", "-b", CT_BUNDLE).err


@pytest.mark.parametrize(
    ("numbers", "rows"),
    [
        ((3, 1, 2), "1,liver\n2,spleen"),
        ((3, 5, 7), "5,liver\n7,spleen\n1,heart\n2,bladder"),
        ((1, 2, 3), "3,spleen\n2,liver"),
    ],
)
def test_users_list_knows_a_dicom_segmentation_by_its_own_numbers(
    maisi: Maisi, work: Path, numbers: tuple[int, int, int], rows: str
) -> None:
    empty, liver, spleen = np.zeros((3, 8, 6, 5), bool)
    liver[1:6, 1:5, 1:4], spleen[2:4, 2:4, 2:3] = True, True  # overlapping, so they lie in different layers
    tissue = ("SCT", "85756007", "Tissue")
    parts = [(segment(name, tissue, tissue), inside) for name, inside in (("A", empty), ("B", liver), ("C", spleen))]
    write_dicom_segmentation(work / "seg.dcm", np.diag([-2.0, -2.0, 3.0, 1.0]), parts, numbers=numbers)
    (work / "mine.csv").write_text(f"number,label\n{rows}\n", encoding="utf-8")
    command = ("mask", "convert", "seg.dcm", "--from", "mine.csv", "-b", CT_BUNDLE, "-o", "mask.nii.gz")
    outcome = maisi(*command, "--json")
    assert [(s["name"], s["number"], s["label_name"]) for s in outcome.json["structures"]] == [
        ("B", numbers[1], "liver"), ("C", numbers[2], "spleen"),
    ]  # fmt: skip
    mask = read_mask(work / "mask.nii.gz", default_table())
    assert mask.array.tolist() == np.where(spleen, 3, np.where(liver, 1, 0))[:, :, 1:4].tolist()
    assert ("Rows of mine.csv that match nothing: 1, 2." in outcome.json["notes"]) == ("heart" in rows)


def test_users_list_knows_the_files_of_a_folder_by_name_only(maisi: Maisi, refused: Maisi, work: Path) -> None:
    for index, name in enumerate(("Leber", "Milz")):
        array = np.zeros((4, 5, 4), np.uint8)
        array[2 * index : 2 * index + 2] = 1
        write_image(work / "parts" / f"{name}.nii.gz", array, np.eye(4))
    base = ("mask", "convert", "parts", "-b", CT_BUNDLE, "-o", "mask.nii.gz", "--from")
    (work / "numbers.csv").write_text("number,label\n1,spleen\n2,liver\n", encoding="utf-8")
    told = refused(*base, "numbers.csv").err
    assert "Rows of numbers.csv that match nothing: 1, 2. The structures here have no numbers" in told
    (work / "names.csv").write_text("name,label\nLeber,liver\nMlz,spleen\n", encoding="utf-8")
    outcome = maisi(*base, "names.csv", "--json")
    assert [(s["name"], s["number"], s["label"]) for s in outcome.json["structures"]] == [
        ("Leber", None, 1), ("Milz", None, None),
    ]  # fmt: skip
    assert "  note       Rows of names.csv that match nothing: Mlz." in maisi(*base, "names.csv").out


def test_users_list_takes_label_values_of_slicer_only_where_they_tell_segments_apart(
    maisi: Maisi, refused: Maisi, work: Path
) -> None:
    layers = np.zeros((2, 6, 5, 4), np.uint8)
    layers[0, 1:5], layers[1, 2:3] = 4, 4
    segments = [{"Name": "A", "LabelValue": 4, "Layer": 0}, {"Name": "B", "LabelValue": 4, "Layer": 1}]
    write_segments(work / "two.seg.nrrd", layers, np.eye(4), segments)
    write_segments(work / "one.seg.nrrd", layers[0], np.eye(4), segments[:1])
    (work / "mine.csv").write_text("number,label\n4,liver\n", encoding="utf-8")
    options = ("--from", "mine.csv", "-b", CT_BUNDLE, "-o", "mask.nii.gz")
    assert "have no numbers" in refused("mask", "convert", "two.seg.nrrd", *options).err
    assert maisi("mask", "convert", "one.seg.nrrd", *options).code == 0
    assert read_mask(work / "mask.nii.gz", default_table()).labels == [1]


def test_convert_refuses_what_cannot_be(refused: Maisi, work: Path) -> None:
    totalsegmentator(work)
    (work / "only.csv").write_text("number,name\n1,spleen\n", encoding="utf-8")
    base = ("mask", "convert", "total.nii.gz", "-b", CT_BUNDLE)
    assert "must end in .nii" in refused(*base, "-o", "mask.nrrd").err
    assert "Did you mean 'vista3d'" in refused(*base, "-o", "m.nii.gz", "--from", "vista").err
    assert "does not exist" in refused(*base, "-o", "m.nii.gz", "--from", "none.csv").err
    assert (
        "no structure has a label in 'head-neck-mini'"
        in refused("mask", "convert", "total.nii.gz", "--from", "only.csv", "-o", "m.nii.gz").err
    )


def test_envelope_adds_a_body_and_changes_no_organ(maisi: Maisi, work: Path) -> None:
    mask = torso()
    saved(mask, work / "mask.nii.gz")
    told = maisi("mask", "envelope", "mask.nii.gz", "-b", CT_BUNDLE, "-o", "hull.nii.gz")
    assert told.code == 0, told.err
    assert "a guess" in told.out
    body = np.zeros(mask.array.shape, bool)
    body[2:-2, 3:-3] = True
    write_image(work / "ct.nii.gz", np.where(body, 30, -1000).astype(np.int16), mask.affine)
    told = maisi("mask", "envelope", "mask.nii.gz", "-b", CT_BUNDLE, "-o", "full.nii.gz", "--ct", "ct.nii.gz", "--json")
    assert "from the CT" in told.json["notes"][0]
    for name in ("hull.nii.gz", "full.nii.gz"):
        made = read_mask(work / name, default_table()).array
        assert (made[mask.array > 0] == mask.array[mask.array > 0]).all()
        assert set(np.unique(made[mask.array == 0])) == {0, 200}
    assert (made[body & (mask.array == 0)] == 200).all()


def test_envelope_of_an_empty_mask_is_refused(refused: Maisi, work: Path) -> None:
    write_image(work / "empty.nii.gz", np.zeros((4, 4, 4), np.uint8), np.eye(4))
    assert "is empty" in refused("mask", "envelope", "empty.nii.gz", "-o", "out.nii.gz").err


def test_library_is_built_and_searched_nearest_first(maisi: Maisi, work: Path) -> None:
    for name, spacing in (("near", 4.0), ("far", 8.0)):
        mask = torso(spacing=(spacing, spacing, 5.0))
        saved(mask, work / "masks" / f"{name}.nii.gz")
    built = maisi("mask", "library", "build", "masks", "-o", "lib", "-b", CT_BUNDLE)
    assert built.code == 0, built.err
    assert built.out == "lib/masks.json lists 2 masks.\n"
    search = ("mask", "library", "search", "--library", "lib/masks.json", "-b", CT_BUNDLE, "-a", "liver")
    wanted = ("--size", 24, 20, 16, "--spacing", 7, 7, 5)
    rows = maisi(*search, *wanted, "--json").json["masks"]
    assert [Path(row["file"]).name for row in rows] == ["far.nii.gz", "near.nii.gz"]
    assert rows[0]["distance_mm"] == pytest.approx(np.hypot(24, 20), abs=0.01)
    assert "liver" in rows[0]["anatomies"]
    assert maisi(*search, "--field-of-view", 96, 80, 80, "--limit", 1, "--json").json["masks"][0]["distance_mm"] == 0
    text = maisi(*search, "--size", 24, 20, 16, "--spacing", 4, 4, 5.2, "--tolerance", 0.05, "--limit", 1).out
    assert "near.nii.gz" in text.splitlines()[0]
    assert "size and voxel size are as asked for" in text


def test_library_in_the_published_format_is_searched(maisi: Maisi, refused: Maisi, work: Path) -> None:
    row = {
        "pseudo_label_filename": "./masks/a.nii.gz",
        "dim": [512, 512, 128],
        "spacing": [0.8, 0.8, 2.5],
        "label_list": [0, 1],
    }
    (work / "candidates.json").write_text(json.dumps([row]), encoding="utf-8")
    search = ("mask", "library", "search", "--library", "candidates.json", "-b", CT_BUNDLE, "-a", "liver", "--json")
    found = maisi(*search)
    assert found.json["masks"][0]["size"] == [512, 512, 128]
    assert "1 of the 1 masks listed are not in" in found.err
    with zipfile.ZipFile(work / "masks.zip", "w") as packed:
        packed.writestr("masks/a.nii.gz", b"mask" * 99)
    assert "Unpack masks.zip so that masks/a.nii.gz is there." in maisi(*search).err
    whole = (work / "masks.zip").read_bytes()
    (work / "masks.zip").write_bytes(whole[:200])
    assert "masks.zip cannot be unpacked" in refused(*search).err
    saved(torso(), work / "masks" / "a.nii.gz")
    found = maisi(*search)
    assert (found.code, found.err) == (0, "")
    assert Path(found.json["masks"][0]["file"]).is_file()


def test_library_stays_as_it_was_where_a_later_mask_is_bad(maisi: Maisi, refused: Maisi, work: Path) -> None:
    for folder, spacing in (("good", 4.0), ("bad", 8.0)):
        saved(torso(spacing=(spacing, spacing, 5.0)), work / folder / "a.nii.gz")
    (work / "bad" / "z.nii.gz").write_bytes(b"no mask")
    assert maisi("mask", "library", "build", "good", "-o", "lib", "-b", CT_BUNDLE).code == 0
    before = (work / "lib" / "masks" / "a.nii.gz").read_bytes()
    assert "z.nii.gz" in refused("mask", "library", "build", "bad", "-o", "lib", "-b", CT_BUNDLE).err
    assert (work / "lib" / "masks" / "a.nii.gz").read_bytes() == before
    refused("mask", "library", "build", "bad", "-o", "new", "-b", CT_BUNDLE)  # nothing of it is left, too


def test_library_is_built_from_a_zip_and_a_hostile_one_is_refused(maisi: Maisi, refused: Maisi, work: Path) -> None:
    mask = saved(torso(), work / "torso.nii.gz")
    with zipfile.ZipFile(work / "masks.zip", "w") as good, zipfile.ZipFile(work / "evil.zip", "w") as evil:
        good.write(mask, "masks/torso.nii.gz")
        evil.write(mask, "../torso.nii.gz")
    assert maisi("mask", "library", "build", "masks.zip", "-o", "lib", "-b", CT_BUNDLE).out.endswith("lists 1 masks.\n")
    told = refused("mask", "library", "build", "evil.zip", "-o", "no", "-b", CT_BUNDLE)
    assert "would be written outside of the folder" in told.err


def test_library_says_why_nothing_fits(refused: Maisi, work: Path) -> None:
    assert "prostate" in refused("mask", "library", "search", "-b", "head-neck-mini", "-a", "prostate").err
    told = refused("mask", "library", "search", "-b", "nv-rflow-mr")
    assert "has no mask library" in told.err


def test_library_of_the_embedded_bundle_is_searched(maisi: Maisi, work: Path) -> None:
    rows = maisi("mask", "library", "search", "-a", "mandible", "-a", "larynx", "--limit", 2, "--json").json
    assert 0 < len(rows["masks"]) <= 2 <= rows["searched"]
    assert all({"mandible", "larynx"} <= set(row["anatomies"]) for row in rows["masks"])
