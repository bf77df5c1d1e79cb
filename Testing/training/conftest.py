"""Made-up patients in the layout of OpenKBP."""

from __future__ import annotations

from pathlib import Path

import pytest

from Testing.random_numbers import own_random_numbers
from Testing.training.patients import write_patient

__all__ = ["own_random_numbers"]  # a fixture: pytest finds it here


@pytest.fixture(scope="session")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients; the tenth is there to be sorted behind the second."""
    folder = tmp_path_factory.mktemp("patients")
    for number in (1, 2, 10):
        write_patient(folder, f"pt_{number}", brightness=10.0 * number)
    return folder
