"""The label tables: complete, readable, and coded so that Slicer understands them."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from MAISILib.anatomy.labels import COLUMNS, Code, Label, LabelTable, default_table
from MAISILib.errors import FileFormatError, RequestError

HEADER = ",".join(COLUMNS)
MINI = Path(__file__).parents[2] / "Resources" / "bundles" / "head-neck-mini" / "labels.csv"
DUMMIES = {2, 16, 18, 20, 21, 129, 130, 131}
RIGHT_KIDNEY = (
    "Segmentation category and type - 3D Slicer General Anatomy list~SCT^123037004^Anatomical Structure"
    "~SCT^64033007^Kidney~SCT^24028007^Right~Anatomic codes - DICOM master list~^^~^^"
)


def write(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "labels.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_table_holds_every_published_label():
    table = default_table()
    assert [label.value for label in table] == [*range(1, 133), 200]
    few = {1: "liver", 14: "left kidney", 23: "lung tumor", 62: "colon", 115: "heart", 132: "airway", 200: "body"}
    assert {value: table[value].name for value in few} == few


@pytest.mark.parametrize("table", [default_table(), LabelTable.read(MINI, default_table())], ids=["public", "mini"])
def test_colors_can_be_told_apart(table: LabelTable):
    for one, other in combinations(table, 2):
        assert math.dist(one.color, other.color) >= 8, f"{one.name} and {other.name} look alike"


def test_tumors_lie_in_their_host_organs():
    assert default_table().hosts() == {23: 28, 24: 4, 26: 1, 27: 62, 128: 200}
    assert {label.value for label in default_table() if label.is_tumor} == {23, 24, 26, 27, 128}


def test_place_holders_are_the_only_labels_without_codes():
    assert {label.value for label in default_table() if not label.terminology()} == DUMMIES
    assert {label.value for label in default_table() if label.is_unused} == DUMMIES


def test_terminology_is_what_slicer_writes_for_a_right_kidney():
    assert default_table().find("right kidney").terminology() == RIGHT_KIDNEY


def test_terminology_of_a_tumor_names_the_organ_as_region():
    fields = default_table().find("hepatic tumor").terminology().split("~")
    assert fields[1] == "SCT^49755003^Morphologically Altered Structure"
    assert fields[2] == "SCT^108369006^Neoplasm"
    assert fields[5] == "SCT^10200004^Liver"


@pytest.mark.parametrize("table", [default_table(), LabelTable.read(MINI, default_table())], ids=["public", "mini"])
def test_every_terminology_string_has_seven_fields_of_three_parts(table: LabelTable):
    for label in table:
        if text := label.terminology():
            fields = text.split("~")
            assert len(fields) == 7
            assert all(field.count("^") == 2 for field in fields[1:4] + fields[5:]), label.name


def test_side_in_the_name_is_the_side_in_the_codes():
    for label in default_table():
        side = {"left": "7771000", "right": "24028007"}.get(label.name.split()[0])
        if side and label.name not in ("right lung middle lobe", "left atrial appendage"):  # codes that say the side
            codes = {code.value for code in (label.type_modifier, label.region_modifier) if code}
            assert codes == {side}, label.name


def test_every_snomed_code_has_a_correct_check_digit():
    # Verhoeff's dihedral check (SNOMED CT release file specification, appendix "Check-digit computation")
    times = [[(a + b) % 5 if a < 5 > b else 0 for b in range(10)] for a in range(10)]
    for a in range(10):
        for b in range(10):
            if a < 5 <= b:
                times[a][b] = (a + b - 5) % 5 + 5
            elif b < 5 <= a:
                times[a][b] = (a - b - 5) % 5 + 5
            elif a >= 5:
                times[a][b] = (a - b) % 5
    move, moves = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4], [list(range(10))]
    for _ in range(7):
        moves.append([moves[-1][move[n]] for n in range(10)])
    for table in (default_table(), LabelTable.read(MINI, default_table())):
        for label in table:
            for code in (label.category, label.type, label.type_modifier, label.region, label.region_modifier):
                if code and code.scheme == "SCT":
                    check = 0
                    for position, digit in enumerate(reversed(code.value)):
                        check = times[check][moves[position % 8][int(digit)]]
                    assert check == 0, f"{label.name}: {code}"


def test_bundle_table_knows_only_its_own_rows_and_borrows_the_rest():
    table = LabelTable.read(MINI, default_table())
    assert sorted(label.value for label in table) == [11, 121, *range(133, 141), 200]
    assert table[11] == default_table()[11]
    assert 1 not in table
    assert table.find("Left Parotid Gland").value == 135
    assert table.hosts() == {140: 200}


def test_name_is_found_whatever_its_case_and_underscores():
    table = default_table()
    assert table.find("Right_Kidney").value == table.find(" right  kidney ").value == table.find("5").value == 5
    assert table.find(5).name == "right kidney"


def test_misspelled_name_is_answered_with_the_nearest_ones():
    with pytest.raises(RequestError, match=r"pancras.*Did you mean 'pancreas'"):
        default_table().find("pancras")
    with pytest.raises(RequestError, match="no anatomy 199"):
        default_table().find(199)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("0,a,b,1,2,3,,,,,,", "row 2, column label: '0' is not a whole number from 1 to 255"),
        ("x,a,b,1,2,3,,,,,,", "column label: 'x'"),
        ("1,a,b,1,2,256,,,,,,", "column blue: '256' is not a whole number from 0 to 255"),
        ("1,,b,1,2,3,,,,,,", "label 1 has no name"),
        ("1,a,b,1,2,3,,SCT:1,,,,", "column category: 'SCT:1' is not a code"),
        ("1,a,b,1,2,3,,SCT:1:A~B,,,,", "column category"),
        ("1,a,b,1,2,3,,SCT:1:A,,,,", "category and type go together"),
        ("1,a,b,1,2,3,9,,,,,", "host 9, which is not in the table"),
        ("1,a,b,1,2,3,2,,,,,\n2,b,b,1,2,4,1,,,,,", "in a circle: 1 in 2 in 1"),
        ("1,a,b,1,2,3", "row 2: 6 cells where the header has 12"),
        ("77,,,,,,,,,,,", "no table to take it from"),
        ("1,a,b,1,2,3,,,,,,\n1,b,b,1,2,4,,,,,,", "row 3: label 1 occurs twice"),
        ("1,a,b,1,2,3,,,,,,\n2,A,b,1,2,4,,,,,,", "the name 'A' occurs twice"),
        ("", "holds no labels"),
    ],
)
def test_wrong_row_is_named(tmp_path: Path, row: str, said: str):
    with pytest.raises(FileFormatError) as caught:
        LabelTable.read(write(tmp_path, row))
    assert said in str(caught.value)
    assert "labels.csv" in str(caught.value)


def test_table_that_was_written_is_read_without_a_base(tmp_path: Path):
    for table in (default_table(), LabelTable.read(MINI, default_table())):
        table.write(tmp_path / "new folder" / "labels.csv")
        assert LabelTable.read(tmp_path / "new folder" / "labels.csv") == table


def test_lesion_may_lie_in_a_lesion(tmp_path: Path):
    table = LabelTable.read(write(tmp_path, "1,core,b,1,2,3,2,,,,,", "2,tumor,b,1,2,4,3,,,,,", "3,organ,b,1,2,5,,,,,,"))
    assert table.hosts() == {1: 2, 2: 3}


def test_missing_file_misspelled_column_and_other_encodings_are_told(tmp_path: Path):
    with pytest.raises(FileFormatError, match="is missing"):
        LabelTable.read(tmp_path / "none.csv")
    with pytest.raises(FileFormatError, match="unknown column 'catgory'\\. Did you mean 'category'"):
        LabelTable.read(write(tmp_path, "1,x", header="label,catgory"))
    (tmp_path / "labels.csv").write_bytes("label,name\n1,Stra\xdfe".encode("latin-1"))
    with pytest.raises(FileFormatError, match="UTF-8"):
        LabelTable.read(tmp_path / "labels.csv")


def test_code_keeps_colons_in_its_meaning():
    assert Code.parse("DCM:1:a: b") == Code("DCM", "1", "a: b")
    assert Label(1, "a", "b", (1, 2, 3)).terminology() == ""


def test_table_travels_to_another_process():
    assert pickle.loads(pickle.dumps(default_table())) == default_table()


def test_tables_load_without_numpy_and_torch():
    script = (
        "import sys; from MAISILib.anatomy.labels import default_table; default_table(); "
        "print([m for m in ('numpy', 'torch', 'monai', 'scipy', 'nibabel') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=MINI.parents[3])
    assert run.stdout.strip() == "[]", run.stderr
