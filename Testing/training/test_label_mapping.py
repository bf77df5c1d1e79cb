"""How segments find their labels, what is said about those that do not, and new labels."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from MAISILib.anatomy.labels import LabelTable, default_table
from MAISILib.anatomy.synonyms import find_synonym
from MAISILib.errors import FileFormatError, MaskError, RequestError
from MAISILib.files.segmentations import Segment
from MAISILib.resources import resource
from MAISILib.training.cases import Case
from MAISILib.training.label_mapping import LabelMapping, parse_edit, propose_mapping
from MAISILib.training.new_labels import NewLabel, extended_table, parse_new_label, parse_new_labels

PUBLIC = default_table()
MINI = LabelTable.read(resource("bundles", "head-neck-mini", "labels.csv"), PUBLIC)
MANDIBLE = MINI.find("mandible")


def case(name: str, *segments: Segment | str, under: tuple[Segment | str, ...] = ()) -> Case:
    def full(listed: tuple[Segment | str, ...]) -> tuple[Segment, ...]:
        return tuple(s if isinstance(s, Segment) else Segment(s, number) for number, s in enumerate(listed, 1))

    return Case(name, Path("ct.nii"), Path("seg.nrrd"), segments=full(segments), body_segments=full(under))


def number(value: int) -> Segment:
    return Segment(str(value), value, is_named=False, number=value)


def found(segment: Segment | str, table: LabelTable = MINI, *new: str) -> tuple[int | None, str]:
    (decision,) = propose_mapping([case("a", segment)], table, parse_new_labels(new, table)).segments
    return decision.label, decision.found


@pytest.mark.parametrize(
    ("segment", "table", "expected"),
    [
        ("mandible", MINI, (137, "name")),
        ("Left_Parotid  GLAND", MINI, (135, "name")),
        ("Parotid_L", MINI, (135, "synonym")),
        ("RightParotid", MINI, (134, "synonym")),
        ("Brainstem", MINI, (133, "synonym")),
        ("SpinalCord", MINI, (121, "synonym")),
        ("PTV70", MINI, (140, "synonym")),
        ("PTV_63 Gy", MINI, (140, "synonym")),
        ("External", MINI, (200, "synonym")),
        ("kidney_left", PUBLIC, (14, "synonym")),
        ("Kidney, R", PUBLIC, (5, "synonym")),
        ("vertebra L3", PUBLIC, (35, "synonym")),
        ("vertebrae_L3", MINI, (138, "synonym")),  # a table without single vertebrae takes them as bone
        ("liver tumour", PUBLIC, (26, "synonym")),
        (Segment("Unterkiefer", 1, terminology=MANDIBLE.terminology()), MINI, (137, "code")),
        (Segment("Segment_1", 1, tag="137"), MINI, (137, "tag")),
        (Segment("mandible", 1, tag="99"), MINI, (137, "name")),  # the tag of another table
        (number(137), MINI, (137, "number")),
        (number(5), MINI, (None, "unknown")),
        (number(2), PUBLIC, (None, "unknown")),  # a place holder
        ("dummy1", PUBLIC, (None, "unknown")),
        ("Parotid", MINI, (None, "unknown")),  # of which side?
        ("PTV minus Parotid_L", MINI, (None, "unknown")),
        ("kidney_left", MINI, (None, "unknown")),
    ],
)
def test_segment_finds_its_label(segment: Segment | str, table: LabelTable, expected: tuple[int | None, str]) -> None:
    assert found(segment, table) == expected


def test_new_label_is_found_by_its_name_or_its_number() -> None:
    assert found("Lesion", MINI, "lesion=150:target") == (150, "new")
    assert found(number(150), MINI, "lesion=150:target") == (150, "new")
    copied = Segment("lesion", 1, tag="140", terminology=MINI[140].terminology())  # Slicer copies tags with a segment
    assert found(copied, MINI, "lesion=150:target") == (150, "new")


def test_every_structure_of_a_whole_body_segmentation_has_a_label() -> None:
    """Names as TotalSegmentator gives them (task "total")."""
    vertebrae = ["S1", *(f"{p}{n}" for p, count in (("L", 5), ("T", 12), ("C", 7)) for n in range(1, count + 1))]
    sided = (
        "kidney adrenal_gland lung_upper_lobe lung_lower_lobe kidney_cyst subclavian_artery common_carotid_artery "
        "brachiocephalic_vein iliac_artery iliac_vena humerus scapula clavicula femur hip gluteus_maximus "
        "gluteus_medius gluteus_minimus autochthon iliopsoas"
    )
    single = (
        "spleen gallbladder liver stomach pancreas lung_middle_lobe_right esophagus trachea thyroid_gland small_bowel "
        "duodenum colon urinary_bladder prostate sacrum heart aorta pulmonary_vein brachiocephalic_trunk "
        "atrial_appendage_left superior_vena_cava inferior_vena_cava portal_vein_and_splenic_vein spinal_cord brain "
        "skull sternum costal_cartilages"
    )
    names = [f"vertebrae_{v}" for v in vertebrae] + single.split()
    names += [f"{name}_{side}" for name in sided.split() for side in ("left", "right")]
    names += [f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13)]
    assert len(names) == 117
    labels = {name: found(name, PUBLIC)[0] for name in names}
    assert [name for name, label in labels.items() if label is None] == []
    assert len(set(labels.values())) == 117
    for name, label in labels.items():
        assert label is not None
        assert all(side in PUBLIC[label].name for side in ("left", "right") if side in name)


def test_every_synonym_leads_to_a_label_that_exists() -> None:
    with resource("label_synonyms.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = [(row["name"], row["label"]) for row in rows]
    assert len(set(pairs)) == len(pairs)
    for name, label in pairs:
        name = name.replace("*", "l5" if "vertebra" in name else "5").replace("#", "70")
        name = f"left {name}" if "{side}" in label else name
        assert any(find_synonym(name, table) for table in (PUBLIC, MINI)), name


def test_unknown_segments_are_refused_all_by_name_with_what_to_do() -> None:
    cases = [case("anna", "Tumr", "mandible"), case("bert", "Tumr", "Couch", "mandibel"), case("carl", number(7))]
    mapping = propose_mapping(cases, MINI)
    with pytest.raises(MaskError) as caught:
        mapping.check(MINI)
    said = str(caught.value)
    assert "4 segments have no label in 'head-neck-mini'" in said
    assert "'Tumr' (in anna, bert)" in said
    assert "'mandibel' (in bert); nearest labels: mandible" in said
    assert "'7' (in carl)" in said
    assert "--new-label 'Tumr=141:body'" in said
    assert "--map 'Tumr=ignore'" in said
    assert '"names"' in said


def test_organs_that_the_bundle_does_not_know_are_left_out_of_a_body_segmentation() -> None:
    mapping = propose_mapping([case("anna", "mandible", under=("heart", "Esophagus"))], MINI)
    mapping.check(MINI)
    assert [(d.segment, d.label, d.found) for d in mapping.body_segments] == [
        ("heart", None, "ignored"),
        ("Esophagus", 11, "name"),
    ]
    assert mapping.label_of(Segment("heart", 1), body=True) is None
    assert "Segment 'heart' is left out." in mapping.notes()


def test_a_segment_of_both_segmentations_is_told_once() -> None:
    mapping = propose_mapping([case("anna", "PTV70", under=("PTV70", "heart"))], MINI)
    assert [note.split("'")[1] for note in mapping.notes()] == ["PTV70", "heart"]


def test_user_decides_otherwise() -> None:
    mapping = propose_mapping([case("anna", "GTV", "Couch", "Brainstem")], MINI)
    edits = dict(parse_edit(text) for text in ("GTV = target", "Couch=ignore", "Brainstem=spinal cord"))
    edited = mapping.edited(edits, MINI)
    edited.check(MINI)
    assert [(d.label, d.label_name, d.found) for d in edited.segments] == [
        (140, "target", "user"),
        (None, "", "ignored"),
        (121, "spinal cord", "user"),
    ]
    with pytest.raises(RequestError, match=r"no anatomy 'targt'.*Did you mean 'target'"):
        mapping.edited({"GTV": "targt"}, MINI)
    with pytest.raises(RequestError, match=r"No case has a segment 'GTB'\. Did you mean 'GTV'"):
        mapping.edited({"GTB": "target"}, MINI)
    with pytest.raises(RequestError, match=r"'GTV' maps nothing\. Write segment=label"):
        parse_edit("GTV")


def test_mapping_is_saved_edited_as_a_file_and_read_back() -> None:
    mapping = propose_mapping([case("anna", "Läsion", "Brainstem", under=("Heart",))], MINI)
    text = mapping.to_json()
    assert LabelMapping.from_json(text) == mapping
    data = json.loads(text)
    data["segments"][0]["label"] = 140
    edited = LabelMapping.from_json(json.dumps(data))
    edited.check(MINI)
    assert edited.label_of(Segment("Läsion", 3)) == 140
    data["segments"][0]["label"] = 77
    with pytest.raises(MaskError, match="'Läsion' → 77"):
        LabelMapping.from_json(json.dumps(data)).check(MINI)
    with pytest.raises(MaskError, match="says nothing about the segment 'other'"):
        edited.label_of(Segment("other", 1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "mine is not JSON"),
        ('{"segments": [{"segment": "a", "found": "magic"}]}', r"segments\.0\.found"),
        ('{"parts": []}', "parts"),
    ],
)
def test_file_that_is_no_mapping_is_told(text: str, said: str) -> None:
    with pytest.raises(FileFormatError, match=said):
        LabelMapping.from_json(text, "mine")


def test_one_name_with_two_meanings_is_refused() -> None:
    cases = [case(name, Segment("Segment_1", 1, tag=tag)) for name, tag in (("anna", "137"), ("bert", "11"))]
    with pytest.raises(MaskError, match=r"'Segment_1'.*137 \(mandible\) in anna and 11 \(esophagus\) in bert"):
        propose_mapping(cases, MINI)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lesion=150:target", NewLabel("lesion", 150, 140)),
        (" lesion = 150 : left parotid_gland ", NewLabel("lesion", 150, 135)),
        ("lesion:200", NewLabel("lesion", 141, 200)),  # the next free value
        ("Läsion (groß)=1:body", NewLabel("Läsion (groß)", 1, 200)),
    ],
)
def test_new_label_is_read(text: str, expected: NewLabel) -> None:
    assert parse_new_label(text, MINI) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lesion", r"no new label\. Write name=value:host, or name:host for the next free value \(141\).*lesion:body"),
        ("lesion=:body", "no new label"),
        ("=150:body", "no new label"),
        ("lesion=150:", "no new label"),
        ("lesion=x:body", "value 'x' is not a whole number"),
        ("lesion=0:body", r"value 0 is outside 1–255\. The next free one is 141"),
        ("lesion=256:body", "value 256 is outside"),
        ("lesion=137:body", r"value 137 \(mandible\) is taken in 'head-neck-mini'\. The next free one is 141"),
        ("lesion=200:body", "always means the body"),
        ("Mandible=150:body", r"'mandible' is label 137 of 'head-neck-mini' already"),
        ("lesion=150:targt", r"no label 'targt' to be the host\. Did you mean 'target'"),
        ("lesion=150:151", "no label '151' to be the host"),
        ("150:body", "no name for a label"),
        ("a~b:body", "no name for a label"),
    ],
)
def test_new_label_that_cannot_be_is_explained(text: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        parse_new_label(text, MINI)


def test_several_new_labels_know_of_one_another() -> None:
    labels = parse_new_labels(["tumor:body", "core:tumor"], MINI)
    assert [(label.value, label.host) for label in labels] == [(141, 200), (142, 141)]
    with pytest.raises(RequestError, match=r"value 141 \(tumor\) is taken"):
        parse_new_labels(["tumor:body", "core=141:body"], MINI)
    with pytest.raises(RequestError, match="'tumor' is label 141"):
        parse_new_labels(["tumor:body", "Tumor:body"], MINI)


def test_new_label_takes_the_place_of_a_place_holder() -> None:
    label = parse_new_label("lesion=16:liver", PUBLIC)
    table = extended_table(PUBLIC, [label])
    assert table[16].name == "lesion"
    assert len(table) == len(PUBLIC)
    assert parse_new_label("lesion:liver", PUBLIC).value == 133
    with pytest.raises(RequestError, match="host 2 is no label"):
        parse_new_label("lesion=16:dummy1", PUBLIC)


def test_table_with_new_labels_is_written_for_the_new_bundle(tmp_path: Path) -> None:
    labels = parse_new_labels([f"lesion {n}:target" for n in range(8)], MINI)
    table = extended_table(MINI, labels)
    table.write(tmp_path / "labels.csv")
    read = LabelTable.read(tmp_path / "labels.csv", PUBLIC)
    assert read == table
    assert [label for label in read if label in set(MINI)] == list(MINI)
    assert read.find("Lesion 7").host == 140
    for one, other in combinations(read, 2):
        assert math.dist(one.color, other.color) >= 8, f"{one.name} and {other.name} look alike"


def test_full_table_has_no_room() -> None:
    label: Any = PUBLIC[1]
    full = LabelTable("full", [replace(label, value=v, name=f"n {v}") for v in range(1, 256)])
    with pytest.raises(RequestError, match="'full' is full"):
        parse_new_label("lesion:n 1", full)
