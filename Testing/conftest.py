"""What all tests share: no screen, and a data folder of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before any test module imports these libraries.
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder for each test, so that downloaded bundles of the user are neither seen nor touched."""
    folder = tmp_path / "maisi-data"
    monkeypatch.setenv("MAISI_DATA", str(folder))
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parents[1]
