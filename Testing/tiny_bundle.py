"""Tiny bundles for tests: real networks of the real classes, small enough to build and run in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from MAISILib.anatomy.labels import LabelTable, default_table
from MAISILib.anatomy.library import build_library
from MAISILib.bundles.manifest import Manifest, NetworkEntry, write_manifest
from MAISILib.bundles.networks import build_network
from MAISILib.bundles.weights import save_safetensors, sha256_of
from MAISILib.volumes import Grid, LabelMap

LABELS_CSV = """label,name,group,red,green,blue,host,category,type,type_modifier,region,region_modifier
200,,,,,,,,,,,
1,,,,,,,,,,,
23,,,,,,,,,,,
28,,,,,,,,,,,
"""
BODY, LIVER, LUNG_TUMOR, LUNG = 200, 1, 23, 28
SCALE_FACTOR = 1.25


def tiny_definitions(
    kind: Literal["rflow", "ddpm"] = "rflow", with_controlnet: bool = True
) -> dict[str, dict[str, Any]]:
    """Definitions of an autoencoder (compression 2, 4 latent channels), a UNet and a ControlNet, two levels each."""
    trunk: dict[str, Any] = {
        "spatial_dims": 3,
        "in_channels": 4,
        "num_channels": [16, 16],
        "attention_levels": [False, True],
        "num_head_channels": [0, 8],
        "num_res_blocks": 1,
        "norm_num_groups": 8,
        "resblock_updown": kind == "rflow",
        "include_fc": kind == "rflow",
    }
    if kind == "rflow":
        trunk["num_class_embeds"] = 128
    definitions = {
        "autoencoder": {
            "_target_": "AutoencoderKlMaisi",
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 1,
            "latent_channels": 4,
            "num_channels": [8, 16],
            "num_res_blocks": [1, 1],
            "attention_levels": [False, False],
            "norm_num_groups": 8,
            "with_encoder_nonlocal_attn": False,
            "with_decoder_nonlocal_attn": False,
            "use_convtranspose": False,
        },
        "diffusion": {
            "_target_": "DiffusionModelUNetMaisi",
            **trunk,
            "out_channels": 4,
            "include_spacing_input": True,
            "include_top_region_index_input": kind == "ddpm",
            "include_bottom_region_index_input": kind == "ddpm",
        },
        "controlnet": {
            "_target_": "ControlNetMaisi",
            **trunk,
            "conditioning_embedding_in_channels": 8,
            "conditioning_embedding_num_channels": [8, 16],
        },
    }
    if not with_controlnet:
        del definitions["controlnet"]
    return definitions


def tiny_states(definitions: dict[str, dict[str, Any]], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Random weights for each definition, the same for the same seed."""
    import torch

    states = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, definition in definitions.items():
            state = build_network(definition, name).state_dict()
            # MONAI starts output convolutions at zero; noise there makes every weight matter.
            states[name] = {
                k: torch.randn_like(v) * 0.05 if v.is_floating_point() and not v.any() else v for k, v in state.items()
            }
    return states


def tiny_patient(
    table: LabelTable | None = None,
    shape: tuple[int, int, int] = (16, 16, 16),
    spacing: tuple[float, float, float] = (4.0, 4.0, 4.0),
    *,
    shift: int = 0,
    body: bool = True,
    tumor: bool = False,
) -> LabelMap:
    """A mask of a trunk: body, liver below, lung above, at wish with a tumor in it. One voxel of air all around.

    Args:
        table: What the labels mean; the public one by default.
        shape: Voxels.
        spacing: mm.
        shift: Makes one patient unlike another: the border of liver and lung lies 0–3 voxels higher.
        body: Whether label 200 is there.
        tumor: Whether there is a lung tumor.
    """
    x, y, z = shape
    border = z // 2 + shift % 4
    array = np.zeros(shape, np.uint8)
    array[1:-1, 1:-1, 1:-1] = BODY if body else 0
    array[x // 4 : -x // 4, y // 4 : -y // 4, 2:border] = LIVER
    array[x // 4 : -x // 4, y // 4 : -y // 4, border:-2] = LUNG
    if tumor:
        array[x // 2 - 2 : x // 2 + 2, y // 2 - 2 : y // 2 + 2, border + 1 : -3] = LUNG_TUMOR
    return LabelMap(array, Grid.axis_aligned(shape, spacing).affine, table or default_table(), "tiny patient")


def make_tiny_bundle(
    folder: Path,
    kind: Literal["rflow", "ddpm"] = "rflow",
    with_controlnet: bool = True,
    *,
    name: str | None = None,
    seed: int = 0,
    with_masks: int = 0,
    **changes: Any,
) -> Path:
    """Writes a complete bundle with random weights into ``folder`` and returns it.

    Args:
        folder: Made if missing.
        kind: Schedule and conditioning: ``rflow`` takes a modality, ``ddpm`` body regions.
        with_controlnet: Whether the bundle can be conditioned on a mask.
        name: Name of the bundle; the folder's by default.
        seed: Of the random weights.
        with_masks: A mask library with so many healthy patients, and one more with a lung tumor.
        **changes: Fields of the manifest to replace.
    """
    folder = Path(folder)
    definitions = tiny_definitions(kind, with_controlnet)
    entries: dict[str, Any] = {}
    for network, state in tiny_states(definitions, seed).items():
        path = save_safetensors(state, folder / f"{network}.safetensors")
        entries[network] = NetworkEntry(
            definition=definitions[network], weights=path.name, sha256=sha256_of(path), bytes=path.stat().st_size
        )
    (folder / "labels.csv").write_text(LABELS_CSV, encoding="utf-8")
    schedule: dict[str, Any] = {"kind": kind, "steps": 4, "base_latent_voxels": 8**3}
    fields: dict[str, Any] = {
        "name": name or folder.name,
        "title": f"Tiny {kind} bundle for tests",
        "licence": {"name": "MIT"},
        "modality": {"ct": 1},
        "unconditional_modality": 0 if kind == "rflow" else None,
        "labels": "labels.csv",
        "networks": entries,
        "schedule": schedule,
        "scale_factor": SCALE_FACTOR,
        "intensity": {"kind": "ct"},
        "body_region_input": kind == "ddpm",
        "recommended": [{"regions": ["chest"], "size": (16, 16, 16), "spacing": (4.0, 4.0, 4.0)}],
        "limits": {"spacing_min": (0.5, 0.5, 0.5), "spacing_max": (10.0, 10.0, 10.0)},
    }
    if with_masks:
        table = LabelTable.read(folder / "labels.csv", base=default_table())
        patients = [(f"patient-{i}", tiny_patient(table, shift=i)) for i in range(with_masks)]
        build_library([*patients, ("tumor", tiny_patient(table, tumor=True))], folder / "library", table)
        fields["masks"] = {"index": "library/masks.json", "format": "maisi"}
    write_manifest(Manifest.model_validate({**fields, **changes}), folder)
    return folder
