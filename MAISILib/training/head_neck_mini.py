"""Makes the embedded bundle ``head-neck-mini`` from the OpenKBP CTs, stage after stage; each resumes where it stopped.

``python -m MAISILib.training.head_neck_mini --data OPENKBP --out RUN`` where OPENKBP holds ``train/`` and
``validation/``. Stages: ``crops``, ``autoencoder``, ``latents``, ``diffusion``, ``bundle``.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from MAISILib.anatomy.labels import LabelTable, default_table
from MAISILib.bundles.networks import build_network
from MAISILib.resources import resource
from MAISILib.training.autoencoder import normalized, psnr, train_autoencoder
from MAISILib.training.bundle_writer import write_bundle, write_library, write_network, write_statistics
from MAISILib.training.checkpoints import averaged_weights
from MAISILib.training.crops import Crop, prepare_crops
from MAISILib.training.diffusion import LatentSet, encode_crops, train_flow

STAGES = ("crops", "autoencoder", "latents", "diffusion", "bundle")
#: Masks in the library: the patients who fill most of the grid.
LIBRARY_SIZE = 64
#: Groups of the HU check.
ORGANS = {
    "bone": (138,),
    "mandible": (137,),
    "air cavity": (139,),
    "soft tissue": (200,),
    "target": (140,),
    "spinal cord": (121,),
    "brain stem": (133,),
    "parotid glands": (134, 135),
    "larynx": (136,),
    "esophagus": (11,),
}


def recipe(name: str) -> dict[str, Any]:
    """A recipe of this bundle: ``autoencoder``, ``diffusion`` or ``bundle``."""
    return json.loads(resource("recipes", "head-neck-mini", f"{name}.json").read_text(encoding="utf-8"))


def crops_of(data: Path, out: Path, split: str) -> list[Crop]:
    """Crops of one split; validation patients give one centred crop each."""
    settings = recipe("autoencoder")
    spacings = [tuple(s) for s in settings["crop_spacings"]]
    chosen = spacings if split == "train" else spacings[:1]
    return prepare_crops(
        data / split, out / "crops" / split, tuple(settings["crop_shape"]), chosen, seed=settings["seed"]
    )


def trained_autoencoder(out: Path) -> torch.nn.Module:
    """The averaged autoencoder, rounded to fp16 as the bundle stores it, so that latents fit the shipped weights."""
    network = build_network(recipe("autoencoder")["definition"])
    weights = averaged_weights(out / "autoencoder", "autoencoder")
    network.load_state_dict({name: value.half().float() for name, value in weights.items()})
    return network


def train(data: Path, out: Path, stages: tuple[str, ...] = STAGES) -> None:
    """Runs the given stages in order.

    Args:
        data: Folder with ``train`` and ``validation``.
        out: Run folder; the bundle is written to ``out/bundle``.
        stages: Which.
    """
    training, validation = crops_of(data, out, "train"), crops_of(data, out, "validation")
    whole = sorted(validation, key=lambda crop: -crop.body_voxels)
    latents: LatentSet | None = None
    if "autoencoder" in stages:
        train_autoencoder(recipe("autoencoder"), training, whole[::3], out / "autoencoder", _say)
    if {"latents", "diffusion", "bundle"} & set(stages):
        latents = encode_crops(trained_autoencoder(out), training, out / "latents", _say)
    if "diffusion" in stages:
        assert latents is not None
        train_flow(recipe("diffusion"), latents, out / "diffusion", _say)
    if "bundle" in stages:
        assert latents is not None
        make_bundle(out, training, validation, latents.scale_factor)


def make_bundle(out: Path, training: list[Crop], validation: list[Crop], scale_factor: float) -> Path:
    """Writes ``out/bundle`` from the runs in ``out`` and says what it measured."""
    folder = out / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    flow = recipe("diffusion")
    labels = resource("bundles", "head-neck-mini", "labels.csv")
    (folder / "labels.csv").write_bytes(labels.read_bytes())
    centred = [crop for crop in training if crop.path.stem.endswith("-0")]
    library = sorted(centred, key=lambda crop: -crop.body_voxels)[:LIBRARY_SIZE]
    write_library(
        folder / "masks", sorted(library, key=lambda c: c.case), LabelTable.read(labels, base=default_table())
    )
    write_statistics(folder / "quality.csv", centred, ORGANS)
    autoencoder = trained_autoencoder(out)
    networks = {"autoencoder": (recipe("autoencoder")["definition"], autoencoder.state_dict())}
    for name, key in (("diffusion", "unet"), ("controlnet", "controlnet")):
        networks[name] = (flow[key], averaged_weights(out / "diffusion", name))
    fields = recipe("bundle")
    fields["networks"] = {n: write_network(folder, n, *parts).model_dump() for n, parts in networks.items()}
    fields["scale_factor"] = scale_factor
    fields["made_by"]["metrics"] = {
        "autoencoder_psnr_db_body_validation": round(validation_psnr(autoencoder, validation), 2),
        "autoencoder_steps": _steps(out / "autoencoder"),
        "diffusion_steps": _steps(out / "diffusion"),
        "training_crops": len(training),
    }
    write_bundle(folder, fields)
    _say(f"{folder}: {json.dumps(fields['made_by']['metrics'])}")
    return folder


@torch.inference_mode()
def validation_psnr(autoencoder: torch.nn.Module, crops: list[Crop]) -> float:
    """Mean PSNR in dB inside the body over all validation crops, on [−1000, 1000] HU."""
    values = []
    for crop in crops:
        ct, labels = crop.load()
        target, body = torch.from_numpy(normalized(ct))[None, None], torch.from_numpy(labels > 0)[None, None]
        values.append(psnr(autoencoder.reconstruct(target), target, body))  # type: ignore[operator]
    return float(np.mean(values))


def _steps(run: Path) -> int:
    return int(torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)["step"])


def _say(message: str) -> None:
    print(message, flush=True)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and validation/ of OpenKBP")
    parser.add_argument("--out", type=Path, required=True, help="run folder; give the same one to resume")
    parser.add_argument("--stage", choices=STAGES, action="append", help="only these stages; default all")
    given = parser.parse_args()
    train(given.data, given.out, tuple(given.stage or STAGES))


if __name__ == "__main__":
    main()
