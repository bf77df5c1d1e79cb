"""What the tests of reading and writing files share."""

from __future__ import annotations

import numpy as np
import pytest

from MAISILib.anatomy.labels import LabelTable, default_table


@pytest.fixture
def table() -> LabelTable:
    return default_table()


@pytest.fixture
def oblique() -> np.ndarray:
    """A left-handed affine turned by 0.4 about S, 1.5 × 2 × 3 mm, float32-exact enough for a NIfTI header."""
    affine = np.diag([-1.5, 2.0, 3.0, 1.0])
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]
    affine = turn @ affine
    affine[:3, 3] = (11.0, -42.5, 903.25)
    return affine
