from __future__ import annotations

import pytest

from MAISILib.anatomy.labels import default_table
from MAISILib.anatomy.synonyms import find_synonym, synonyms_of


@pytest.mark.parametrize(
    ("name", "others"),
    [("esophagus", ["oesophagus"]), ("left adrenal gland", ["left adrenal", "left glnd adrenal"]), ("liver", [])],
)
def test_other_names_of_a_label_are_listed(name: str, others: list[str]) -> None:
    assert synonyms_of(name)[: len(others)] == others
    assert bool(synonyms_of(name)) == bool(others)


def test_every_listed_name_leads_back_to_its_label() -> None:
    table = default_table()
    listed = [(other, label) for label in table if not label.is_unused for other in synonyms_of(label.name)]
    assert len(listed) > 30
    assert [(other, label.name) for other, label in listed if find_synonym(other, table) != label.value] == []
