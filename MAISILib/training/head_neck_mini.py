"""Makes the embedded bundle ``head-neck-mini`` from the OpenKBP CTs, stage after stage; each resumes where it stopped.

``python -m MAISILib.training.head_neck_mini --data OPENKBP --out RUN`` where OPENKBP holds ``train/`` and
``validation/``. The trainings are those of ``maisi train`` with the recipes in ``Resources/recipes/head-neck-mini``.
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
from MAISILib.anatomy.library import build_library
from MAISILib.bundles.networks import build_network
from MAISILib.bundles.weights import read_state_dict, sha256_of
from MAISILib.codec.codec import Codec, IntensityScale
from MAISILib.jobs.folder import Event
from MAISILib.resources import resource
from MAISILib.training.bundle_writer import write_bundle, write_network, write_statistics
from MAISILib.training.checkpoint import read_checkpoint
from MAISILib.training.datalist import read_datalist
from MAISILib.training.encoding import encode_items
from MAISILib.training.head_neck_data import centred_masks, prepare_patients
from MAISILib.training.start import start_training
from MAISILib.training.trainer import CHECKPOINT_NAME
from MAISILib.volumes import Grid, LabelMap

NAME = "head-neck-mini"
STAGES = ("data", "autoencoder", "latents", "diffusion", "bundle")
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


def recipe_path(name: str) -> Path:
    """A recipe of this bundle, for example ``autoencoder``."""
    return resource("recipes", NAME, f"{name}.json")


def label_table() -> LabelTable:
    """The bundle's labels."""
    return LabelTable.read(resource("bundles", NAME, "labels.csv"), base=default_table())


def train(data: Path, out: Path, stages: tuple[str, ...] = STAGES) -> None:
    """Runs the given stages in order.

    Args:
        data: Folder with ``train`` and ``validation``.
        out: Run folder; the bundle is written to ``out/bundle``.
        stages: Which.
    """
    settings = _json("patients")
    pairs = prepare_patients(
        data,
        out / "pairs",
        label_table(),
        tuple(settings["shape"]),
        [tuple(spacing) for spacing in settings["spacings"]],
        seed=settings["seed"],
        on_progress=_say,
    )
    if "autoencoder" in stages:
        _train("autoencoder", pairs, out)
    if "latents" in stages:
        encode_patients(pairs, out)
    if "diffusion" in stages:
        _train("diffusion", out / "latents" / "latents.json", out)
    if "bundle" in stages:
        make_bundle(pairs, out)


def _train(kind: str, data: Path, out: Path) -> None:
    """Trains, or goes on, or does nothing where the run has reached its last step."""
    outcome = start_training(kind, recipe_path(kind), data, out / kind, resume=True, on_event=_tell)
    _say(f"{kind}: {outcome.steps} steps in {outcome.seconds / 60:.0f} min, {outcome.figures}")


def encode_patients(pairs: Path, out: Path) -> None:
    """Posterior of every crop and of its mirror image, by the autoencoder as the bundle stores it (fp16)."""
    weights = out / "autoencoder" / "weights" / "autoencoder.safetensors"
    codec = Codec(trained_autoencoder(out), 1.0, IntensityScale())
    encode_items(
        codec,
        read_datalist(pairs),
        out / "latents",
        autoencoder_sha256=sha256_of(weights),
        table=label_table(),
        mirrored=True,
        on_progress=lambda p: _say(f"encode {p.done}/{p.total}") if p.done % 100 == 0 else None,
    )


def trained_autoencoder(out: Path) -> torch.nn.Module:
    """The averaged autoencoder, rounded to fp16 as the bundle stores it, so that latents fit the shipped weights."""
    network = build_network(_json("autoencoder")["definition"])
    state = read_state_dict(out / "autoencoder" / "weights" / "autoencoder.safetensors", "safetensors")
    network.load_state_dict({name: value.float() for name, value in state.items()})
    return network


def make_bundle(pairs: Path, out: Path) -> Path:
    """Writes ``out/bundle`` from the runs in ``out``."""
    folder = out / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "labels.csv").write_bytes(resource("bundles", NAME, "labels.csv").read_bytes())
    patients = list(centred_masks(pairs, label_table()))
    largest = sorted(patients, key=lambda patient: -int((patient[2].array > 0).sum()))[:LIBRARY_SIZE]
    build_library(
        ((name.replace("_", "-"), _anonymous(mask)) for name, _, mask in sorted(largest, key=lambda p: p[0])),
        folder / "masks",
        label_table(),
    )
    write_statistics(folder / "quality.csv", ((ct.array, mask.array) for _, ct, mask in patients), ORGANS)
    fields, flow = _json("bundle"), _json("diffusion")
    runs = {"autoencoder": "autoencoder", "diffusion": "diffusion", "controlnet": "diffusion"}
    definitions = {
        "autoencoder": _json("autoencoder")["definition"],
        "diffusion": flow["definition"],
        "controlnet": flow["controlnet"],
    }
    fields["networks"] = {
        name: write_network(folder, name, definitions[name], _weights(out / run, name)).model_dump()
        for name, run in runs.items()
    }
    fields["scale_factor"] = scale_factor(out)
    fields["made_by"]["metrics"] = {f"{run}_steps": _steps(out / run) for run in dict.fromkeys(runs.values())}
    write_bundle(folder, fields)
    _say(f"{folder}: {json.dumps(fields['made_by']['metrics'])}")
    return folder


def scale_factor(out: Path) -> float:
    """What the diffusion run multiplied latents by."""
    from MAISILib.bundles.weights import read_checkpoint as read_weights

    found = read_weights(out / "diffusion" / "weights" / "diffusion.safetensors", "safetensors").scale_factor
    assert found is not None, "start_training writes it"
    return found


def _weights(run: Path, name: str) -> dict[str, torch.Tensor]:
    return read_state_dict(run / "weights" / f"{name}.safetensors", "safetensors")


def _anonymous(mask: LabelMap) -> LabelMap:
    """The mask with its centre at the origin: where the patient lay in the scanner is nobody's business."""
    grid = Grid.axis_aligned(mask.grid.shape, mask.spacing)
    return LabelMap(mask.array, grid.affine, mask.table, mask.source)


def _json(name: str) -> dict[str, Any]:
    return json.loads(recipe_path(name).read_text(encoding="utf-8"))


def _steps(run: Path) -> int:
    return read_checkpoint(run / CHECKPOINT_NAME).step


def _tell(event: Event) -> None:
    if event.message or event.done % 50 == 0:
        figures = "  ".join(f"{name} {np.format_float_positional(v, 4)}" for name, v in event.metrics.items())
        _say(f"{event.stage} {event.done}/{event.total} {event.message or figures}")


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
