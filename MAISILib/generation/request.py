"""What a user asks for: one validated object, JSON in and out, that also reads the published ``config_infer.json``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from MAISILib.diffusion.solver_names import Preset
from MAISILib.errors import RequestError, did_you_mean

Count = Annotated[int, Field(ge=1)]
Millimetres = Annotated[float, Field(gt=0, allow_inf_nan=False)]

#: Keys of the published ``config_infer.json`` → ours. ``None``: read and not needed, for the reason given in the docs.
PUBLISHED_KEYS = {
    "num_output_samples": "count",
    "body_region": "body_region",
    "anatomy_list": "anatomy",
    "modality": "modality",
    "num_inference_steps": "steps",
    "output_size": "output_size",
    "spacing": "spacing",
    "cfg_guidance_scale": "guidance_scale",
    "random_seed": "seed",
    "autoencoder_sliding_window_infer_size": "decode_window",
    "autoencoder_sliding_window_infer_overlap": "decode_overlap",
    "controllable_anatomy_size": "controllable_anatomy_size",
    "mask_generation_num_inference_steps": "mask_steps",
    "image_output_ext": None,
    "label_output_ext": None,
    "autoencoder_tp_num_splits": None,
    "dim": None,
    "diffusion_unet_inference": None,
}


def bytes_of(amount: Any) -> Any:
    """``"8GB"``, ``"7.5 GiB"``, ``"900 MB"`` as bytes; what is no text stays as it is.

    Raises:
        ValueError: It is no amount of memory.
    """
    if not isinstance(amount, str):
        return amount
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([KMGT]?)(i?)B?", amount.strip(), re.IGNORECASE)
    if found is None:
        raise ValueError("write an amount of memory, for example 8GB or 900MB")
    number, prefix, binary = found.groups()
    return round(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " "))


class LesionWish(BaseModel):
    """A lesion to put into the mask of each sample.

    Args:
        lesion: Name or number of a label that has a host.
        diameter: Millimeters, of a sphere of its volume.
        host: Name or number of what it shall lie in; the label table's host by default.
        shape: ``round``, ``ellipsoid``, ``lobulated`` or ``spiculated``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    lesion: str | int
    diameter: Millimetres
    host: str | int | None = None
    shape: str = "lobulated"


class GenerateRequest(BaseModel):
    """A request. Fields left out take the bundle's recommendation.

    Args:
        anatomy: Names or label numbers that the mask must hold (library masks are chosen by them).
        body_region: Regions that a library mask must reach over: head, chest, abdomen, lower.
        controllable_anatomy_size: Anatomy → size 0–1 (percentile) or −1 (absent), for bundles with a mask generator.
        mask: ``library`` takes a mask of the bundle, ``file`` the one at ``mask_file``, ``generated`` makes a new one
            (as organ sizes do by themselves), ``none`` makes an image only.
        mask_steps: Solver steps of the mask generator; the bundle's by default.
        mask_solver: Name of its solver; the bundle's by default.
        mask_file: NIfTI or NRRD label map in the bundle's labels, any orientation and spacing.
        mask_ct: CT of the same patient, used to find the body if the mask has no body label.
        vary: Makes another patient of each mask from the library or a file: turned, bent, with organs of other sizes
            and lesions at other places. The number chooses which, together with the seed.
        insert_lesion: A lesion to put into each mask from the library or a file.
        modality: Name or class code of the bundle's modality table.
        output_size: Voxels ``(X, Y, Z)``.
        spacing: Voxel size in mm ``(x, y, z)``.
        steps: Solver steps; the preset's by default.
        solver: Name of the solver; see :mod:`MAISILib.diffusion.solvers`.
        preset: ``standard`` takes the bundle's steps, ``draft`` as many as six evaluations of the networks pay for.
        schedule: ``exact``, or ``upstream`` for MONAI's rounding.
        guidance_scale: 0 is off; 1–5 strengthens modality and tumours.
        seed: Every sample derives its own seed from it and from its index.
        count: Number of samples.
        first_index: Index of the first sample, so that sample k can be made alone.
        quality_check: Check median HU per organ and make a failed sample again, at most twice; tell what else is wrong.
        decode: ``exact`` decodes as one volume, whole or in tiles as memory allows: all ways give the same. ``whole``
            allows no tiles, ``windows`` are the published overlapping windows, which do not agree at their borders.
        decode_window: Window edge in latent voxels.
        decode_overlap: Part that neighbouring windows share.
        precision: Arithmetic of the diffusion networks. ``auto`` is float32 on a CPU and half precision on a GPU;
            ``bfloat16`` is refused where the device does not compute it itself.
        accelerate: ``compile`` (PyTorch) or ``tensorrt`` compile the diffusion networks, on NVIDIA GPUs only.
        memory: Bytes that the run may fill, as a number or as ``"8GB"``; all that is free by default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    anatomy: list[str | int] = []
    body_region: list[str] = []
    controllable_anatomy_size: dict[str, float] = {}
    mask: Literal["library", "file", "generated", "none"] = "library"
    mask_steps: Count | None = None
    mask_solver: str | None = None
    mask_file: Path | None = None
    mask_ct: Path | None = None
    vary: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    insert_lesion: LesionWish | None = None
    modality: str | int | None = None
    output_size: tuple[Count, Count, Count] | None = None
    spacing: tuple[Millimetres, Millimetres, Millimetres] | None = None
    steps: Count | None = None
    solver: str | None = None
    preset: Preset = "standard"
    schedule: Literal["exact", "upstream"] = "exact"
    guidance_scale: Annotated[float, Field(ge=0, le=20, allow_inf_nan=False)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    count: Annotated[int, Field(ge=1, le=100_000)] = 1
    first_index: Annotated[int, Field(ge=0)] = 0
    quality_check: bool = True
    decode: Literal["exact", "whole", "windows"] = "exact"
    decode_window: tuple[Count, Count, Count] = (48, 48, 48)
    decode_overlap: Annotated[float, Field(ge=0, lt=1)] = 0.6666
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    accelerate: Literal["none", "compile", "tensorrt"] = "none"
    memory: Annotated[Count, BeforeValidator(bytes_of)] | None = None

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise RequestError(_plainly(error)) from None

    @model_validator(mode="before")
    @classmethod
    def _source_is_implied(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "mask" in data:
            return data
        if data.get("mask_file") is not None:
            return {**data, "mask": "file"}
        return {**data, "mask": "generated"} if data.get("controllable_anatomy_size") else data

    @model_validator(mode="after")
    def _sources_agree(self) -> GenerateRequest:
        if (self.mask == "file") != (self.mask_file is not None):
            raise ValueError("mask and mask_file contradict each other; give mask_file with mask 'file' and only then")
        if self.mask == "none" and (self.anatomy or self.controllable_anatomy_size):
            raise ValueError("Without a mask no anatomy or organ size can be asked for; leave them out")
        if self.mask in ("file", "library") and self.controllable_anatomy_size:
            raise ValueError(
                f"Organ sizes can be chosen for generated masks only, not for one from the {self.mask}; leave one out"
            )
        if self.preset == "draft" and self.steps is not None:
            raise ValueError("The preset 'draft' says how many steps are taken; leave out steps, or the preset")
        if self.mask_ct is not None and self.mask != "file":
            raise ValueError("mask_ct belongs to a mask_file; give both or neither")
        if self.mask in ("none", "generated") and (self.vary is not None or self.insert_lesion is not None):
            raise ValueError(
                f"Masks from the library or a file are varied and take a lesion; with mask '{self.mask}' leave out "
                "vary and insert_lesion"
            )
        wrong = {
            name: size for name, size in self.controllable_anatomy_size.items() if size != -1 and not 0 <= size <= 1
        }
        if wrong:
            raise ValueError(f"controllable_anatomy_size holds 0 to 1 (percentile) or -1 (absent); got {wrong}")
        return self

    def to_json(self) -> str:
        """The request as JSON; :meth:`from_json` reads it back."""
        return self.model_dump_json(indent=2, exclude_defaults=True)

    @classmethod
    def from_json(cls, text: str, where: str = "request") -> GenerateRequest:
        """Reads a request of ours, or a published ``config_infer.json``.

        Raises:
            RequestError: Not JSON, an unknown key (with the nearest known), or a value that does not fit.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{where} is not JSON: {error}.") from None
        if not isinstance(data, dict):
            raise RequestError(f"{where}: a request is a JSON object, not a {type(data).__name__}.")
        try:
            return cls(**_in_our_words(data))
        except RequestError as error:
            raise RequestError(f"{where}: {error}") from None

    def to_published(self) -> dict[str, Any]:
        """The request as the published ``config_infer.json`` has it, with the keys that both know and that are set."""
        ours = self.model_dump(mode="json")
        published = {
            key: ours[name] for key, name in PUBLISHED_KEYS.items() if name and ours[name] not in (None, {}, [])
        }
        sizes = published.get("controllable_anatomy_size")
        if sizes is not None:
            published["controllable_anatomy_size"] = [[name, size] for name, size in sizes.items()]
        return published


def _in_our_words(data: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with published keys renamed, their nulls left out, and a list of pairs made into an object."""
    request: dict[str, Any] = {}
    for key, value in data.items():
        if key not in PUBLISHED_KEYS:
            if key not in GenerateRequest.model_fields:
                raise RequestError(
                    f"Unknown field {key!r}.{did_you_mean(key, {**GenerateRequest.model_fields, **PUBLISHED_KEYS})}"
                )
            request[key] = value
            continue
        ours = PUBLISHED_KEYS[key]
        if ours is not None and value is not None:
            if key != ours and ours in data:
                raise RequestError(f"{key!r} and {ours!r} mean the same; give one of them.")
            request[ours] = value
    sizes = request.get("controllable_anatomy_size")
    if isinstance(sizes, list):
        if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in sizes):
            raise RequestError(f"controllable_anatomy_size: a list of [name, size] pairs is needed (got {sizes!r}).")
        request["controllable_anatomy_size"] = dict(sizes)
    return request


def _plainly(error: ValidationError) -> str:
    """Pydantic's findings as one sentence each, with the value that was given."""
    sentences = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            sentences.append(f"Unknown field {name!r}.{did_you_mean(name, GenerateRequest.model_fields)}")
        elif not name:
            sentences.append(f"{message}.")
        else:
            sentences.append(f"{name}: {message[0].lower()}{message[1:]} (got {item['input']!r}).")
    return " ".join(sentences)
