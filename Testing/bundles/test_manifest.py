from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from MAISILib.bundles.bundle import Bundle, open_bundle
from MAISILib.bundles.limits import Limits
from MAISILib.bundles.manifest import Manifest, read_manifest, write_manifest
from MAISILib.errors import BundleError, RequestError


def test_written_manifest_reads_back_the_same(tiny: Bundle, tmp_path: Path) -> None:
    write_manifest(tiny.manifest, tmp_path / "copy")
    assert read_manifest(tmp_path / "copy") == tiny.manifest
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["bundle.json"]


def test_manifest_of_a_newer_program_says_so(tiny: Bundle, edit: Callable[..., None]) -> None:
    edit(tiny.folder, manifest_version=2, something_new=True)
    with pytest.raises(BundleError, match=r"bundle\.json: made by a newer version of MAISI for Slicer.*Update"):
        open_bundle(tiny.folder)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"titel": "x"}, r"field 'titel' is not a field of a manifest.*'title'"),
        ({"modality": {}}, r"field 'modality' is \{\}"),
        ({"labels": "../outside.csv"}, r"field 'labels' is '../outside.csv', which leaves the bundle's folder"),
        ({"labels": "/etc/passwd"}, r"field 'labels' is '/etc/passwd'; paths are relative"),
        ({"labels": "C:\\labels.csv"}, r"field 'labels' .* paths are relative"),
        ({"labels": "a\\..\\..\\b.csv"}, r"field 'labels' .* paths are relative"),
        ({"networks": {}}, r"autoencoder and diffusion missing"),
        ({"scale_factor": 0}, r"field 'scale_factor' is 0;"),
        ({"name": "../evil"}, r"field 'name'"),
        ({"manifest_version": "2"}, r"field 'manifest_version' is '2'"),
        ({"intensity": {"kind": "ct", "low": 5, "high": 5}}, r"field 'intensity' low must be below high"),
        ({"recommended": []}, r"field 'recommended'"),
        ({"limits": {"size_x": [0]}}, r"field 'limits' sizes must be positive"),
    ],
)
def test_wrong_field_is_named_in_plain_words(
    tiny: Bundle, edit: Callable[..., None], fields: dict[str, object], said: str
) -> None:
    edit(tiny.folder, **fields)
    with pytest.raises(BundleError, match=said) as caught:
        read_manifest(tiny.folder)
    assert str(tiny.folder) in str(caught.value)
    assert "validation error" not in str(caught.value)


def test_missing_fields_are_named(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(BundleError, match="field 'name' is missing"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff\xfe", "[" * 100_000])
def test_text_that_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bundle.json").write_text(text, encoding="latin-1")
    with pytest.raises(BundleError, match=r"bundle\.json"):
        read_manifest(tmp_path)


def test_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a model bundle"):
        open_bundle(tmp_path)


def test_ddpm_takes_every_step_by_default(tiny: Bundle) -> None:
    data = json.loads(tiny.manifest.model_dump_json())
    data["schedule"] = {"kind": "ddpm"}
    assert Manifest.model_validate(data).schedule.steps == 1000
    data["schedule"] = {"kind": "rflow"}
    assert Manifest.model_validate(data).schedule.steps == 30


CT = Limits(
    size_x=[256, 384, 512],
    size_y=[256, 384, 512],
    size_z=[128, 256],
    equal_xy=True,
    spacing_min=(0.5, 0.5, 0.5),
    spacing_max=(3.0, 3.0, 5.0),
    equal_spacing_xy=True,
    min_field_of_view_xy={"head": 256.0, "": 384.0},
)


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((300, 300, 128), (256, 256, 128)), ((512, 384, 128), (384, 384, 128)), ((1, 1, 9999), (256, 256, 256))],
)
def test_illegal_size_names_the_nearest_legal_one(size: tuple[int, int, int], nearest: tuple[int, int, int]) -> None:
    assert CT.nearest_size(size) == nearest
    with pytest.raises(RequestError, match="Nearest: " + "×".join(map(str, nearest))):
        CT.check_size(size, 32)
    CT.check_size(nearest, 32)


def test_size_without_a_list_only_needs_the_divisor() -> None:
    limits = Limits()
    limits.check_size((20, 24, 28), 4)
    with pytest.raises(RequestError, match=r"y must be divisible by 4.*20×24×28"):
        limits.check_size((20, 23, 28), 4)
    with pytest.raises(RequestError, match="0 voxels along x"):
        limits.check_size((0, 24, 28), 4)


def test_only_listed_triples_are_legal() -> None:
    limits = Limits(size_triples=[(128, 128, 128), (128, 256, 256)])
    limits.check_size((128, 256, 256), 32)
    with pytest.raises(RequestError, match="Nearest: 128×256×256"):
        limits.check_size((256, 256, 256), 32)


def test_illegal_spacing_names_the_nearest_legal_one() -> None:
    CT.check_spacing((0.7, 0.7, 5.0))
    CT.check_spacing((0.7, 0.7000001, 0.4999999))  # as files have them
    with pytest.raises(RequestError, match=r"x must lie in 0\.5–3 mm.*Nearest: 0\.5×0\.5×1 mm"):
        CT.check_spacing((0.1, 0.5, 1.0))
    with pytest.raises(RequestError, match="x and y must be equal"):
        CT.check_spacing((1.0, 2.0, 1.0))
    with pytest.raises(RequestError):
        CT.check_spacing((float("nan"), 1.0, 1.0))


def test_field_of_view_depends_on_the_region() -> None:
    CT.check_field_of_view((256, 256, 128), (1.0, 1.0, 1.0), ["head"])
    CT.check_field_of_view((256, 256, 128), (1.5, 1.5, 1.0), ["thorax"])
    with pytest.raises(RequestError, match=r"chest needs at least 384 mm.*spacing 1\.5×1\.5×1 mm"):
        CT.check_field_of_view((256, 256, 128), (1.0, 1.0, 1.0), ["head", "chest"])
    with pytest.raises(RequestError, match="384"):
        CT.check_field_of_view((256, 256, 128), (1.0, 1.0, 1.0))
