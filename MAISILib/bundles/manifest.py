"""``bundle.json``: what a model bundle says about itself, validated.

A manifest is plain data. Sizes are in voxels ``(X, Y, Z)``, spacings and fields of view in mm. Every path in it is
relative to the bundle's folder and stays inside it.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from MAISILib.bundles.limits import Limits
from MAISILib.errors import BundleError, did_you_mean
from MAISILib.files.atomic import write_text

MANIFEST_NAME = "bundle.json"
MANIFEST_VERSION = 1

NetworkName = Literal["autoencoder", "diffusion", "controlnet", "mask_autoencoder", "mask_diffusion"]
NETWORK_NAMES: tuple[NetworkName, ...] = (
    "autoencoder",
    "diffusion",
    "controlnet",
    "mask_autoencoder",
    "mask_diffusion",
)


def check_relative_path(value: str) -> str:
    """Returns ``value`` if it names something inside a folder on every operating system.

    Raises:
        ValueError: Absolute, with a drive or a backslash, with ``..``, or empty.
    """
    path, windows = PurePosixPath(value), PureWindowsPath(value)
    if not value or not path.parts or "\0" in value:
        raise ValueError("is empty; give a path relative to the bundle's folder")
    if path.is_absolute() or windows.drive or windows.root or "\\" in value:
        raise ValueError(f"is {value!r}; paths are relative to the bundle's folder and use '/'")
    if ".." in path.parts:
        raise ValueError(f"is {value!r}, which leaves the bundle's folder; remove the '..'")
    return value


RelativePath = Annotated[str, AfterValidator(check_relative_path)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Size = tuple[Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)], Annotated[int, Field(gt=0)]]
Spacing = tuple[Positive, Positive, Positive]
LabelValue = Annotated[int, Field(ge=1, le=255)]
#: What a DDPM predicts: the noise, or α·ε − σ·x₀ (Salimans and Ho 2022, arXiv:2202.00512); as MONAI names them.
PredictionType = Literal["epsilon", "v_prediction"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Licence(_Record):
    """The terms of the weights. ``must_accept``: nothing is downloaded before the user has accepted them."""

    name: str
    url: str = ""
    must_accept: bool = False


class NetworkEntry(_Record):
    """One network: how it is built, and where its weights lie (``sha256`` and ``bytes`` of that file, when known)."""

    definition: dict[str, Any]
    weights: RelativePath
    format: Literal["safetensors", "torch"] = "safetensors"
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    bytes: Annotated[int, Field(ge=0)] | None = None


class ScheduleEntry(_Record):
    """Which noise schedule the diffusion network was trained with, and in how many steps it samples by default.

    ``use_timestep_transform`` and ``base_latent_voxels`` belong to rectified flow, the betas and ``prediction_type``
    to DDPM; their names and values are MONAI's.
    """

    kind: Literal["rflow", "ddpm"]
    train_timesteps: Annotated[int, Field(gt=0)] = 1000
    steps: Annotated[int, Field(gt=0)] = 30
    use_timestep_transform: bool = True
    base_latent_voxels: Annotated[int, Field(gt=0)] = 32**3
    beta_start: Positive = 0.0015
    beta_end: Positive = 0.0195
    beta_schedule: str = "scaled_linear_beta"
    prediction_type: PredictionType = "epsilon"

    @model_validator(mode="before")
    @classmethod
    def _ddpm_takes_every_step(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("kind") == "ddpm" and "steps" not in data:
            return {**data, "steps": data.get("train_timesteps", 1000)}
        return data


class Recommendation(_Record):
    """An output size (voxels) and spacing (mm) that the model was trained near, for some body regions or a modality."""

    regions: list[str] = []
    size: Size
    spacing: Spacing
    modality: str | None = None


class Intensity(_Record):
    """How network output becomes an image. CT: ``[0, 1]`` is ``[low, high]`` HU. MR: output times 1000."""

    kind: Literal["ct", "mr"]
    low: float = -1000.0
    high: float = 1000.0

    @model_validator(mode="after")
    def _is_a_range(self) -> Intensity:
        if not -1e6 < self.low < self.high < 1e6:
            raise ValueError("low must be below high")
        return self


class MaskLibraryEntry(_Record):
    """Where the bundle's example masks are listed."""

    index: RelativePath
    format: Literal["maisi", "published"] = "maisi"


class MaskGeneratorEntry(_Record):
    """How label maps come out of the networks ``mask_autoencoder`` and ``mask_diffusion``.

    Attributes:
        size: Voxels of a generated mask.
        spacing: Its voxel size in mm.
        classes: The label of each output channel of the autoencoder, background first; or a table with the columns
            ``generator_index`` and ``label``, in the bundle or in ``Resources``. A body (200) that is not among them is
            put around the organs afterwards.
        schedule: Noise schedule, and how many steps are taken by default.
        solver: How they are taken; None for the usual one of the schedule.
        scale_factor: Latents of masks are multiplied by it before diffusion.
        guidance_scale: Classifier-free guidance towards the sizes; 1 or less is off. Needs a network that was trained
            with dropout of its conditions.
        sizes: Table of the organ sizes in the training masks; None when every size has to be given.
        one_piece: Labels of organs that consist of one connected piece.
        merged: Labels that are drawn and become another one: label → label.
        one_lesion: Whether a mask has one lesion at most, as in the published generator.
    """

    size: Size
    spacing: Spacing
    classes: list[Annotated[int, Field(ge=0, le=255)]] | RelativePath
    schedule: ScheduleEntry
    solver: str | None = None
    scale_factor: Positive
    guidance_scale: Annotated[float, Field(ge=0, le=20)] = 0.0
    sizes: RelativePath | None = None
    one_piece: list[LabelValue] = []
    merged: dict[LabelValue, LabelValue] = {}
    one_lesion: bool = True


class Manifest(_Record):
    """All of ``bundle.json``.

    Attributes:
        manifest_version: Layout of this file; ``MANIFEST_VERSION`` is the newest that this program reads.
        modality: Modality name to the class code that the networks take; the first is the default.
        unconditional_modality: Class code of the unconditional input; None when guidance is not available.
        labels: Label table in the bundle; None for ``Resources/labels.csv``.
        scale_factor: Latents are multiplied by it before diffusion; None when the diffusion checkpoint holds it.
        body_region_input: Whether the networks take the top-most and bottom-most body region.
        controllable: Anatomies whose size the mask generator takes, in the order of its condition vector.
        mask_generator: How masks are made by the two mask networks; None when the bundle has none.
        recommended: Sizes and spacings to start from; the first is the default.
        mask_spacing: Whether a mask from the library keeps its own spacing or takes the recommended one.
        quality: Table of median intensities, in the bundle or in ``Resources``.
        sources: Where the weights come from: ``repository``, ``revision``, ``files`` (network to path).
        made_by: Recipe, data, metrics and parent bundle of weights that were trained here.
    """

    manifest_version: Annotated[int, Field(ge=1, le=MANIFEST_VERSION, strict=True)] = MANIFEST_VERSION
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    title: str
    version: str = "1"
    licence: Licence
    citation: str = ""
    modality: Annotated[dict[str, Annotated[int, Field(ge=0)]], Field(min_length=1)]
    unconditional_modality: int | None = None
    labels: RelativePath | None = None
    networks: dict[NetworkName, NetworkEntry]
    schedule: ScheduleEntry
    scale_factor: Positive | None = None
    intensity: Intensity
    body_region_input: bool = False
    masks: MaskLibraryEntry | None = None
    controllable: list[str] = []
    mask_generator: MaskGeneratorEntry | None = None
    recommended: Annotated[list[Recommendation], Field(min_length=1)]
    limits: Limits
    mask_spacing: Literal["keep", "recommended"] = "recommended"
    quality: RelativePath | None = None
    sources: dict[str, Any] = {}
    made_by: dict[str, Any] = {}

    @model_validator(mode="after")
    def _has_the_two_networks(self) -> Manifest:
        missing = [name for name in ("autoencoder", "diffusion") if name not in self.networks]
        if missing:
            raise ValueError(f"networks: {' and '.join(missing)} missing; every bundle needs both")
        return self


def read_manifest(folder: str | Path) -> Manifest:
    """Reads and checks ``bundle.json`` of a bundle folder. Nothing else of the bundle is touched.

    Raises:
        BundleError: No such folder or file, not JSON, of a newer version, or a field that does not fit.
    """
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        raise BundleError(f"{folder}: no {MANIFEST_NAME} here, so this is not a model bundle. Check the folder.")
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: not valid JSON ({error}). Download or import the bundle again.") from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error}).") from error
    return parse_manifest(data, str(path))


def parse_manifest(data: Any, where: str) -> Manifest:
    """Checks manifest data that is already in memory.

    Args:
        data: The decoded JSON.
        where: Name of the file, for error messages.

    Raises:
        BundleError: As ``read_manifest``.
    """
    if not isinstance(data, dict):
        raise BundleError(f"{where}: holds a {type(data).__name__}; a JSON object is needed.")
    version = data.get("manifest_version", MANIFEST_VERSION)
    if isinstance(version, int) and version > MANIFEST_VERSION:
        raise BundleError(
            f"{where}: made by a newer version of MAISI for Slicer (manifest version {version}; this program reads "
            f"up to {MANIFEST_VERSION}). Update MAISI for Slicer."
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        raise BundleError(f"{where}: {'; '.join(_in_words(error, Manifest))}.") from None


def write_manifest(manifest: Manifest, folder: str | Path) -> Path:
    """Writes ``bundle.json`` into ``folder``, as a whole or not at all; returns its path.

    Raises:
        OutputError: The folder cannot be written to.
    """
    path = Path(folder) / MANIFEST_NAME
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    write_text(path, text)
    return path


def cannot_write(path: Path, error: OSError) -> BundleError:
    """The error to raise where a file or folder could not be made."""
    return BundleError(f"{path}: cannot be written ({error.strerror or error}). Check space and permissions.")


def _in_words(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One plain sentence for each problem, at most ten."""
    sentences = []
    for problem in error.errors()[:10]:
        field = ".".join(str(part) for part in problem["loc"] if part != "[key]")
        message, value = problem["msg"], problem.get("input")
        if problem["type"] == "missing":
            message = "is missing"
        elif problem["type"] == "extra_forbidden":
            known = model.model_fields if len(problem["loc"]) == 1 else ()
            message = f"is not a field of a manifest{did_you_mean(str(problem['loc'][-1]), known).rstrip('?')}"
        elif problem["type"] == "value_error":
            message = message.removeprefix("Value error, ")
        else:
            message = f"is {_shown(value)}; {message[:1].lower()}{message[1:]}"
        sentences.append(f"field '{field}' {message}" if field else message)
    more = error.error_count() - len(sentences)
    return [*sentences, f"and {more} more problems"] if more > 0 else sentences


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
