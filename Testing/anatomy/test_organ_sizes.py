from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from MAISILib.anatomy.labels import default_table
from MAISILib.anatomy.organ_sizes import ABSENT, OrganSize, SizeTable, measure_sizes, read_size_table
from MAISILib.errors import FileFormatError, MaskError
from MAISILib.volumes import LabelMap

LIVER, SPLEEN, BRAIN, BODY = 1, 3, 22, 200


def mask_of(array: np.ndarray, spacing: tuple[float, float, float] = (2.0, 3.0, 4.0)) -> LabelMap:
    return LabelMap(array, np.diag([*spacing, 1.0]), default_table())


def patient() -> np.ndarray:
    """A patient from slice 2 to 13, who reaches the border in x; the scan ends in the brain."""
    array = np.zeros((12, 12, 16), np.uint8)
    array[:, 2:-2, 2:14] = BODY
    array[3:6, 4:7, 4:7] = LIVER
    array[0:3, 4:7, 4:7] = SPLEEN
    array[4:8, 4:8, 10:14] = BRAIN
    return array


def table(count: int = 21) -> SizeTable:
    """Liver of 100, 200, … mm³; every other has a spleen, large where the liver is small; half the brains are cut."""
    masks = [
        [
            OrganSize(100.0 * (i + 1), True),
            OrganSize(100.0 * (count - i), True) if i % 2 else None,
            OrganSize(50.0 * (i + 1), i < count // 2),
        ]
        for i in range(count)
    ]
    return SizeTable.build(["liver", "spleen", "brain"], masks)


def test_volumes_are_in_cubic_millimetres() -> None:
    (liver,) = measure_sizes(mask_of(patient()), [LIVER])
    assert liver == OrganSize(27 * 24.0, True)
    assert measure_sizes(mask_of(patient()), [4]) == [None]


def test_organs_at_the_border_or_at_the_end_of_the_patient_are_not_whole() -> None:
    liver, spleen, brain = measure_sizes(mask_of(patient()), [LIVER, SPLEEN, BRAIN])
    assert [size and size.is_whole for size in (liver, spleen, brain)] == [True, False, False]


def test_the_end_of_the_patient_is_found_in_any_orientation() -> None:
    array = patient().transpose(2, 0, 1)[::-1].copy()
    affine = np.array([[0, 2.0, 0, 0], [0, 0, 3.0, 0], [-4.0, 0, 0, 0], [0, 0, 0, 1]])
    sizes = measure_sizes(LabelMap(array, affine, default_table()), [LIVER, SPLEEN, BRAIN])
    assert [size and size.is_whole for size in sizes] == [True, False, False]


def test_without_a_body_only_the_border_of_the_grid_cuts() -> None:
    array = patient()
    array[array == BODY] = 0
    (brain,) = measure_sizes(mask_of(array), [BRAIN])
    assert brain == OrganSize(64 * 24.0, True)


def test_percentiles_are_those_of_the_whole_organs() -> None:
    sizes = table()
    assert sizes.percentile("liver", 100) == 0
    assert sizes.percentile("liver", 1100) == pytest.approx(0.5)
    assert sizes.percentile("liver", 99999) == 1
    assert sizes.volume("liver", 0.8) == pytest.approx(1700)
    assert sizes.volume("brain", 1.0) == pytest.approx(500)  # the larger ones are cut off
    assert sizes.rows[0] == (0.0, ABSENT, 0.0)
    assert sizes.rows[20] == (1.0, ABSENT, None)


def test_an_organ_that_is_never_whole_cannot_be_ranked() -> None:
    with pytest.raises(MaskError, match="'brain' is whole in 1 of 3 masks"):
        SizeTable.build(["brain"], [[OrganSize(1.0, False)], [None], [OrganSize(1.0, True)]])


def test_the_size_of_a_cut_organ_is_drawn_from_what_it_may_be() -> None:
    sizes, rng = table(), random.Random(0)
    drawn = [sizes.training_vector([None, OrganSize(2100, True), OrganSize(400, False)], rng) for _ in range(50)]
    brain = [vector[2] for vector in drawn]
    assert all(vector[:2] == [ABSENT, 1.0] for vector in drawn)
    assert min(brain) >= 7 / 9 - 1e-6
    assert max(brain) - min(brain) > 0.15


def test_entries_that_were_not_asked_for_come_from_near_masks() -> None:
    sizes = table()
    vectors = [sizes.complete({"liver": 0.9}, seed) for seed in range(40)]
    spleens = {vector[1] for vector in vectors}
    assert all(vector[0] == 0.9 for vector in vectors)
    assert len(spleens) > 2  # another seed, another patient
    assert max(spleens) <= 0.5  # large livers go with small spleens
    assert all(vector[2] is not None for vector in vectors)  # no near mask tells the brain: the next one does
    assert sizes.complete({"liver": 0.9}, 3) == sizes.complete({"liver": 0.9}, 3)


def test_an_anatomy_that_must_be_there_gets_a_size() -> None:
    sizes = table()
    assert all(sizes.complete({"liver": 0.5}, seed, present=["spleen"])[1] >= 0 for seed in range(20))


def test_an_organ_that_a_near_mask_cuts_off_is_not_absent() -> None:
    cut, absent, whole = (0.8, None), (0.81, ABSENT), (0.1, 0.4)
    sizes = SizeTable(("mandible", "brain stem"), (None, None), (*[cut] * 9, absent, whole))
    vectors = [sizes.complete({"mandible": 0.8}, seed) for seed in range(30)]
    assert {vector[1] for vector in vectors} == {0.4, ABSENT}
    assert sum(vector[1] == ABSENT for vector in vectors) < 10  # as rare as among the near masks


def test_absence_can_be_asked_for() -> None:
    assert table().complete({"spleen": ABSENT}, 1)[1] == ABSENT


def test_table_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    path.write_text(table().to_json())
    assert read_size_table(path, ["liver", "spleen", "brain"]) == table()


def test_published_table_knows_percentiles_but_no_volumes(tmp_path: Path) -> None:
    path = tmp_path / "all_anatomy_size_conditions.json"
    path.write_text(json.dumps([{"organ_size": [0.1, -1]}, {"organ_size": [0.7, 0.2]}]))
    sizes = read_size_table(path, ["liver", "lung tumor"])
    assert sizes.rows == ((0.1, -1.0), (0.7, 0.2))
    assert sizes.percentile("liver", 1000) is None
    assert sizes.complete({"lung tumor": 0.3}, 0)[0] in (0.1, 0.7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "lists no masks"),
        ('[{"organ_size": [0.5]}]', "does not hold 3 sizes"),
        ('[{"organ_size": [0.5, 2, 0]}]', "0–1 or −1"),
        ('{"format": "other", "version": 1}', "no table of organ sizes"),
    ],
)
def test_damaged_table_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "sizes.json"
    path.write_text(content)
    with pytest.raises(FileFormatError, match=message):
        read_size_table(path, ["liver", "spleen", "brain"])


def test_table_for_other_anatomies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    path.write_text(table().to_json())
    with pytest.raises(FileFormatError, match="it is for liver, spleen, brain"):
        read_size_table(path, ["liver"])
    with pytest.raises(FileFormatError, match="missing"):
        read_size_table(tmp_path / "none.json", ["liver"])
