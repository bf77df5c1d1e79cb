"""Tiny bundles with mask libraries, opened once for all tests of this room, and masks as users have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from MAISILib.bundles.bundle import Bundle
from MAISILib.files.nifti import write_labels
from MAISILib.generation.request import GenerateRequest
from Testing.tiny_bundle import make_tiny_bundle, tiny_patient


@pytest.fixture(scope="session")
def rflow(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny-rflow", with_masks=4))


@pytest.fixture(scope="session")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny-ddpm", "ddpm", with_masks=2))


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Bundle]:
    """Makes a bundle of its own for a test: same arguments as `make_tiny_bundle`."""

    def make(kind: Any = "rflow", **changes: Any) -> Bundle:
        return Bundle(make_tiny_bundle(tmp_path / "bundle", kind, **changes))

    return make


@pytest.fixture
def users_mask(tmp_path: Path) -> Callable[..., GenerateRequest]:
    """Writes a user's mask file and gives a request for it."""

    def make(mask: Any = None, **fields: Any) -> GenerateRequest:
        path = tmp_path / "user" / "mask.nii.gz"
        write_labels(tiny_patient() if mask is None else mask, path, synthetic=False)
        return GenerateRequest(mask_file=path, **fields)

    return make
