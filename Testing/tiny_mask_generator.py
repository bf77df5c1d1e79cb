"""Mask generators for tests: the two mask networks with random weights, and a table of organ sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from MAISILib.anatomy.organ_sizes import OrganSize, SizeTable
from MAISILib.bundles.bundle import Bundle
from MAISILib.bundles.manifest import MaskGeneratorEntry, NetworkEntry, write_manifest
from MAISILib.bundles.weights import save_safetensors
from Testing.tiny_bundle import BODY, LIVER, LUNG, LUNG_TUMOR, make_tiny_bundle, tiny_states

CONTROLLABLE = ["liver", "left lung upper lobe", "lung tumor"]
CLASSES = [0, LIVER, LUNG_TUMOR, LUNG, BODY]


def tiny_mask_definitions(classes: int = len(CLASSES), sizes: int = len(CONTROLLABLE)) -> dict[str, dict[str, Any]]:
    """Definitions of a mask autoencoder (compression 2, 4 latent channels) and a mask UNet of two levels."""
    return {
        "mask_autoencoder": {
            "_target_": "AutoencoderKlMaisi",
            "spatial_dims": 3,
            "in_channels": 8,
            "out_channels": classes,
            "latent_channels": 4,
            "num_channels": [8, 16],
            "num_res_blocks": [1, 1],
            "attention_levels": [False, False],
            "norm_num_groups": 8,
            "with_encoder_nonlocal_attn": False,
            "with_decoder_nonlocal_attn": False,
            "use_convtranspose": True,
        },
        "mask_diffusion": {
            "_target_": "DiffusionModelUNet",
            "spatial_dims": 3,
            "in_channels": 4,
            "out_channels": 4,
            "channels": [16, 16],
            "attention_levels": [False, True],
            "num_head_channels": [0, 8],
            "num_res_blocks": 1,
            "norm_num_groups": 8,
            "with_conditioning": True,
            "cross_attention_dim": sizes,
        },
    }


def tiny_size_table() -> SizeTable:
    """Twelve made-up patients: livers of 1000, 2000, … mm³, lungs large where they are small, four with a tumor."""
    patients = [
        [
            OrganSize(1000.0 * (i + 1), True),
            OrganSize(1000.0 * (12 - i), True),
            OrganSize(100.0 * (i + 1), True) if i % 3 == 0 else None,
        ]
        for i in range(12)
    ]
    return SizeTable.build(CONTROLLABLE, patients)


def add_mask_generator(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Gives a tiny bundle a mask generator of 16³ voxels of 4 mm; ``changes`` replace fields of its entry."""
    manifest = Bundle(folder).manifest
    definitions = tiny_mask_definitions(len(changes.get("classes", CLASSES)))
    networks: dict[Any, NetworkEntry] = dict(manifest.networks)
    for network, state in tiny_states(definitions, seed).items():
        path = save_safetensors(state, folder / f"{network}.safetensors")
        networks[network] = NetworkEntry(definition=definitions[network], weights=path.name)
    (folder / "sizes.json").write_text(tiny_size_table().to_json(), encoding="utf-8")
    fields = {
        "size": (16, 16, 16),
        "spacing": (4.0, 4.0, 4.0),
        "classes": CLASSES,
        "schedule": {"kind": "ddpm", "steps": 3},
        "solver": "ddim",
        "scale_factor": 1.5,
        "sizes": "sizes.json",
        "one_piece": [LIVER],
    }
    generator = MaskGeneratorEntry.model_validate({**fields, **changes})
    update = {"networks": networks, "controllable": CONTROLLABLE, "mask_generator": generator}
    write_manifest(manifest.model_copy(update=update), folder)
    return folder


def make_generating_bundle(folder: Path, **changes: Any) -> Bundle:
    """A tiny bundle with a mask generator and a library."""
    return Bundle(add_mask_generator(make_tiny_bundle(folder, with_masks=2), **changes))
