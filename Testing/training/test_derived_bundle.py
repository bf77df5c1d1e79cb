"""A bundle from a bundle: whole, usable at once, and with nothing of the patients but the shapes of their labels."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from MAISILib.anatomy.labels import LabelTable
from MAISILib.bundles.bundle import Bundle, open_bundle
from MAISILib.bundles.manifest import Manifest, read_manifest, write_manifest
from MAISILib.bundles.weights import save_safetensors, sha256_of
from MAISILib.errors import BundleError, OutputError
from MAISILib.files.nifti import read_labels, write_labels
from MAISILib.generation.conditioning import prepare
from MAISILib.generation.request import GenerateRequest
from MAISILib.resources import resource
from MAISILib.training.derived_bundle import write_derived_bundle
from MAISILib.training.new_labels import extended_table, parse_new_labels
from MAISILib.volumes import LabelMap
from Testing.tiny_bundle import LIVER, LUNG, make_tiny_bundle, tiny_definitions, tiny_patient, tiny_states
from Testing.training.users_cases import LESION, patient

MADE_BY = {"recipe": "maisi finetune", "cases": 2, "metrics": {"inside_change": 200.0}}


@pytest.fixture(scope="module")
def controlnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = tiny_states({"controlnet": tiny_definitions()["controlnet"]}, seed=9)["controlnet"]
    return save_safetensors(state, tmp_path_factory.mktemp("weights") / "learned.safetensors")


def derive(parent: Path, out: Path, controlnet: Path, masks: Any = None) -> Bundle:
    bundle = Bundle(parent)
    table = extended_table(bundle.labels, parse_new_labels([f"lesion={LESION}:liver"], bundle.labels))
    masks = [patient()[1], patient(shift=1)[1]] if masks is None else masks
    return Bundle(write_derived_bundle(bundle, out, table, controlnet, masks, (LESION,), MADE_BY))


def chosen_mask(bundle: Bundle, **request: Any) -> LabelMap:
    """The mask that a request at the recommended size would take."""
    found = prepare(bundle, GenerateRequest(**request)).masks.for_sample(1)
    assert found is not None
    return found.model


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_it_is_whole_and_says_where_it_comes_from(tmp_path: Path, controlnet: Path) -> None:
    parent = make_tiny_bundle(tmp_path / "tiny", with_masks=2, version="3")
    before = all_bytes(parent)
    child = derive(parent, tmp_path / "Läsion & mehr", controlnet)
    assert child.verify() == []
    assert child.name == "L-sion-mehr"
    assert child.manifest.title == "Tiny rflow bundle for tests, fine-tuned"
    assert child.labels.find("lesion").host == LIVER
    assert sha256_of(child.path("controlnet.safetensors")) == sha256_of(controlnet)
    parents = Bundle(parent).weights_sha256()
    assert {n: s for n, s in child.weights_sha256().items() if n != "controlnet"}.items() <= parents.items()
    assert child.manifest.made_by == {
        **MADE_BY,
        "parent": {"name": "tiny", "version": "3", "weights_sha256": parents},
    }
    assert all_bytes(parent) == before
    grandchild = derive_again(child, tmp_path / "again", controlnet)
    assert grandchild.manifest.title == child.manifest.title


def derive_again(child: Bundle, out: Path, controlnet: Path) -> Bundle:
    masks = [patient()[1]]
    grandchild = Bundle(write_derived_bundle(child, out, child.labels, controlnet, masks, (LESION,), MADE_BY))
    names = {path.name for path in (out / "masks" / "masks").iterdir()}
    assert names == {"patient-0.nii.gz", "patient-1.nii.gz", "tumor.nii.gz", *(f"case-{n}.nii.gz" for n in (1, 2, 3))}
    return grandchild


def test_the_new_label_can_be_asked_for_and_healthy_patients_stay_healthy(tmp_path: Path, controlnet: Path) -> None:
    child = derive(make_tiny_bundle(tmp_path / "tiny", with_masks=2), tmp_path / "child", controlnet)
    assert LESION in chosen_mask(child, anatomy=["lesion"]).labels
    assert LESION not in chosen_mask(child, anatomy=["liver"]).labels


@pytest.mark.parametrize("end", [0, 1], ids=["feet", "head"])
def test_a_lesion_at_the_end_of_a_tall_patient_is_seen_at_the_recommended_size(
    end: int, tmp_path: Path, controlnet: Path
) -> None:
    mask = tiny_patient(shape=(16, 16, 60))
    array = mask.array.copy()
    array[7:9, 7:9, (2, 56)[end] : (4, 58)[end]] = LESION
    child = derive(make_tiny_bundle(tmp_path / "tiny"), tmp_path / "child", controlnet, [mask.with_array(array)])
    shown = chosen_mask(child, anatomy=["lesion"])
    assert shown.array.shape == (16, 16, 16)
    assert (shown.array == LESION).sum() == 8
    assert (LIVER, LUNG)[end] in shown.labels


def test_a_lesion_in_the_middle_keeps_the_whole_patient(tmp_path: Path, controlnet: Path) -> None:
    mask = tiny_patient(shape=(16, 16, 60))
    array = mask.array.copy()
    array[7:9, 7:9, 29:31] = LESION
    child = derive(make_tiny_bundle(tmp_path / "tiny"), tmp_path / "child", controlnet, [mask.with_array(array)])
    assert read_labels(child.path("masks/masks/case-1.nii.gz"), child.labels).array.shape == (16, 16, 60)


def test_nothing_tells_who_the_patients_are_and_where_they_lay(tmp_path: Path, controlnet: Path) -> None:
    _, mask = patient()
    affine = mask.affine.copy()
    affine[:3, 3] = (-213.5, 77.25, -1411.0)
    named = LabelMap(mask.array, affine, mask.table, "segmentation of Jane Doe", ("Jane Doe lies askew.",))
    child = derive(make_tiny_bundle(tmp_path / "tiny"), tmp_path / "child", controlnet, [named])
    stored = read_labels(child.path("masks/masks/case-1.nii.gz"), child.labels)
    assert np.array_equal(stored.array, mask.array)
    assert np.allclose(stored.grid.center, 0)
    for name, content in all_bytes(child.folder).items():
        plain = gzip.decompress(content) if name.endswith(".gz") else content
        assert b"Jane" not in plain
    assert not [name for name in all_bytes(child.folder) if "image" in name]


def test_a_published_library_stays_with_the_parent(tmp_path: Path, controlnet: Path) -> None:
    parent = make_tiny_bundle(tmp_path / "tiny", masks={"index": "candidates.json", "format": "published"})
    mask = tiny_patient()
    write_labels(mask, parent / "all_masks" / "p.nii.gz")
    row = {"pseudo_label_filename": "all_masks/p.nii.gz", "dim": [16, 16, 16], "spacing": [4.0, 4.0, 4.0]}
    (parent / "candidates.json").write_text(json.dumps([{**row, "label_list": mask.labels}]), encoding="utf-8")
    child = derive(parent, tmp_path / "child", controlnet)
    assert child.verify() == []
    assert [path.name for path in sorted((child.folder / "masks" / "masks").iterdir())] == [
        "case-1.nii.gz",
        "case-2.nii.gz",
    ]
    assert LESION in chosen_mask(child, anatomy=["lesion"]).labels


def test_weights_of_a_published_parent_are_kept_as_they_are(tmp_path: Path, controlnet: Path) -> None:
    parent = make_tiny_bundle(tmp_path / "tiny")
    as_published(parent)
    child = derive(parent, tmp_path / "child", controlnet)
    assert child.verify() == []
    entries = child.manifest.networks
    assert (entries["diffusion"].weights, entries["diffusion"].format) == ("models/diffusion.pt", "torch")
    assert (entries["controlnet"].weights, entries["controlnet"].format) == ("controlnet.safetensors", "safetensors")
    assert child.manifest.scale_factor == 2.5  # which the parent has in its checkpoint only


def as_published(bundle: Path) -> None:
    """Rewrites a bundle's weights as torch files, the scale factor in the UNet's, as the public models have them."""
    manifest = read_manifest(bundle)
    (bundle / "models").mkdir()
    networks: dict[str, Any] = {}
    keys = {"diffusion": "unet_state_dict", "controlnet": "controlnet_state_dict"}
    for name, entry in manifest.networks.items():
        state: Any = Bundle(bundle).load(name).state_dict()
        if name in keys:
            state = {keys[name]: state, "scale_factor": torch.tensor(2.5), "epoch": 3}
        torch.save(state, bundle / "models" / f"{name}.pt")
        changes = {"weights": f"models/{name}.pt", "format": "torch", "sha256": None, "bytes": None}
        networks[name] = entry.model_dump() | changes
    fields = manifest.model_dump() | {"networks": networks, "scale_factor": None}
    write_manifest(Manifest.model_validate(fields), bundle)


def test_tables_of_the_parent_come_along(tmp_path: Path, controlnet: Path) -> None:
    generator = {
        "size": (16, 16, 16), "spacing": (4.0, 4.0, 4.0), "classes": "tables/classes.csv", "sizes": "tables/sizes.json",
        "schedule": {"kind": "ddpm"}, "scale_factor": 1.0,
    }  # fmt: skip
    parent = make_tiny_bundle(tmp_path / "tiny", quality="tables/hu.csv", mask_generator=generator)
    (parent / "tables").mkdir()
    for name in ("classes.csv", "sizes.json", "hu.csv"):
        (parent / "tables" / name).write_text(name, encoding="utf-8")
    child = derive(parent, tmp_path / "child", controlnet)
    assert child.verify() == []
    for name in ("classes.csv", "sizes.json", "hu.csv"):
        assert (child.folder / "tables" / name).read_text(encoding="utf-8") == name


def test_a_table_of_the_program_stays_where_it_is(tmp_path: Path, controlnet: Path) -> None:
    parent = make_tiny_bundle(tmp_path / "tiny", quality="quality/ct_median_statistics.csv", labels=None)
    child = derive(parent, tmp_path / "child", controlnet)
    assert child.verify() == []
    assert child.quality_path() == resource("quality/ct_median_statistics.csv")
    assert LabelTable.read(child.path("labels.csv")) == child.labels  # complete without the public table
    assert len(child.labels) > 100


def test_an_error_leaves_no_half_bundle_and_an_older_one_as_it_was(tmp_path: Path, controlnet: Path) -> None:
    def broken() -> Iterator[LabelMap]:
        yield patient()[1]
        raise OSError(28, "No space left on device")

    parent, out = make_tiny_bundle(tmp_path / "tiny"), tmp_path / "child"
    with pytest.raises(OutputError, match="the disk is full"):
        derive(parent, out, controlnet, broken())
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    derive(parent, out, controlnet)
    before = all_bytes(out)
    with pytest.raises(OutputError):
        derive(parent, out, controlnet, broken())
    assert all_bytes(out) == before
    assert len(derive(parent, out, controlnet, [patient()[1]]).verify()) == 0
    assert "masks/masks/case-2.nii.gz" not in all_bytes(out)  # replaced as a whole


def test_a_damaged_parent_is_not_copied(tmp_path: Path, controlnet: Path) -> None:
    parent = make_tiny_bundle(tmp_path / "tiny")
    weights = parent / "autoencoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="autoencoder"):
        derive(parent, tmp_path / "child", controlnet)
    assert not (tmp_path / "child").exists()


def test_the_child_is_opened_by_its_folder(tmp_path: Path, controlnet: Path) -> None:
    derive(make_tiny_bundle(tmp_path / "tiny"), tmp_path / "child", controlnet)
    assert open_bundle(str(tmp_path / "child")).name == "child"
