"""Lists of other programs' labels, and lists that users write."""

from __future__ import annotations

from pathlib import Path

import pytest

from MAISILib.anatomy.label_sets import LABEL_SETS, code_values, label_set, read_label_set
from MAISILib.anatomy.labels import default_table
from MAISILib.errors import FileFormatError, RequestError


@pytest.mark.parametrize(
    ("name", "structures", "without_label"),
    [
        ("totalsegmentator", 117, 0),
        ("totalsegmentator-mr", 50, 4),
        ("totalsegmentator-v1", 104, 2),
        ("vista3d", 150, 22),
    ],
)
def test_lists_are_complete_and_name_labels_that_exist(name: str, structures: int, without_label: int):
    found = label_set(name)
    assert sorted(found.by_number) == list(range(1, structures + 1))
    assert len(found.by_name) == structures
    for structure in found.structures:
        if structure.label:
            label = default_table().find(structure.label)
            assert not label.is_unused
            assert structure.label_in(default_table()) == label.value
    assert sum(s.label_in(default_table()) is None for s in found.structures) == without_label


@pytest.mark.parametrize("name", LABEL_SETS)
def test_left_stays_left_and_every_rib_and_vertebra_keeps_its_number(name: str):
    for structure in label_set(name).structures:
        theirs, ours = structure.name.replace("_", " ").split(), structure.label.split()
        for word in (*map(str, range(1, 13)), *["left", "right", "upper", "middle", "lower"]):
            assert structure.label in ("", "heart") or (word in theirs) == (word in ours), structure
        assert not structure.label.startswith("vertebrae") or theirs == ours


@pytest.mark.parametrize(
    ("list_name", "number", "label"),
    [
        ("totalsegmentator", 1, "spleen"),
        ("totalsegmentator", 5, "liver"),
        ("totalsegmentator", 50, "vertebrae C1"),
        ("totalsegmentator", 117, "costal cartilages"),
        ("totalsegmentator-mr", 19, None),
        ("totalsegmentator-mr", 50, "brain"),
        ("totalsegmentator-v1", 49, None),
        ("totalsegmentator-v1", 44, "heart"),
        ("totalsegmentator-v1", 104, "bladder"),
        ("vista3d", 1, "liver"),
        ("vista3d", 2, None),
        ("vista3d", 130, "hepatic tumor"),
        ("vista3d", 132, "airway"),
    ],
)
def test_known_numbers(list_name: str, number: int, label: str | None):
    value = label_set(list_name).by_number[number].label_in(default_table())
    assert (None if value is None else default_table()[value].name) == label


def test_structures_are_found_by_the_codes_of_either_program():
    found = label_set("totalsegmentator")
    assert found.by_codes["123037004", "181674001", "7771000", "", ""].label == "left gluteus maximus"
    ours = default_table().find("spleen").terminology()
    assert found.by_codes[code_values(ours)].label == "spleen"


def test_codes_of_an_unnamed_segment_say_nothing():
    assert code_values("a~SCT^85756007^Tissue~SCT^85756007^Tissue~^^~b~^^~^^") == ()
    assert code_values("not a terminology") == ()


def test_unknown_list_is_refused_with_the_nearest():
    with pytest.raises(RequestError, match="Did you mean 'totalsegmentator'"):
        label_set("totalsegmentater")


def written(folder: Path, text: str) -> Path:
    path = folder / "names.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_users_list_takes_numbers_names_and_labels_in_any_order_beside_other_columns(tmp_path: Path):
    found = read_label_set(
        written(tmp_path, "color,Label,Value,structure\nred,liver,7,Leber\n\nblue,ignore,8,Bett\n,14,9,\n"),
        default_table(),
    )
    assert found.by_number[7].label == "liver"
    assert found.named("LEBER") is found.by_number[7]
    assert found.by_number[8].label == "ignore"
    assert found.by_number[9].label == "left kidney"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("number,name\n1,liver\n1,spleen\n", r"row 3: the number 1 is in row 2 already"),
        ("number,name\n1,Liver\n2,liver\n", r"row 3: the name 'liver' is in row 2 already"),
        ("number,label\n1,livver\n", r"row 2: .*Did you mean 'liver'"),
        ("number,name\nx,liver\n", r"row 2: 'x' is no number"),
        ("number,name\n-1,liver\n", r"row 2: '-1' is no number"),
        ("number,label\n,liver\n", r"row 2 has neither a number nor a name"),
        ("1,spleen\n2,liver\n", r"the first row must name the columns"),
        ("number,id,name\n1,1,liver\n", r"several columns are the number"),
        ("number,name\n", r"holds no structures"),
        ("", r"the first row must name the columns"),
    ],
)
def test_users_list_with_a_mistake_is_refused_by_its_row(tmp_path: Path, text: str, message: str):
    with pytest.raises(FileFormatError, match=message):
        read_label_set(written(tmp_path, text), default_table())


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_users_list_may_come_from_any_spreadsheet(tmp_path: Path, separator: str):
    rows = [
        ["Nummer", "value", "structure", "label"],
        ["a", "2", "Leber, ganz" if separator == ";" else "Leber", "liver"],
    ]
    found = read_label_set(written(tmp_path, "\n".join(separator.join(row) for row in rows)), default_table())
    assert found.by_number[2].label == "liver"
    assert found.named(rows[1][2]) is not None


def test_users_list_that_is_missing_or_no_text(tmp_path: Path):
    with pytest.raises(FileFormatError, match="does not exist"):
        read_label_set(tmp_path / "none.csv", default_table())
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(FileFormatError, match=r"cannot be read as csv in UTF-8.*Save it as CSV UTF-8"):
        read_label_set(tmp_path / "binary.csv", default_table())
