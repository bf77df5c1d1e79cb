"""Options that ``generate`` and ``plan`` share, and the request that they describe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from MAISILib.generation.request import GenerateRequest

# typer reads these at run time: Optional and tuples are spelt so that Python 3.10 understands them.
BundleOption = Annotated[str, typer.Option("--bundle", "-b", help="Name of a bundle, or its folder.")]
Anatomy = Annotated[
    list[str] | None, typer.Option("--anatomy", "-a", help="Anatomy the mask must hold. Repeat for several.")
]
Region = Annotated[list[str] | None, typer.Option("--body-region", help="head, chest, abdomen or lower. Repeatable.")]
MaskFile = Annotated[
    Path | None, typer.Option("--mask", help="Your own label map (NIfTI, NRRD) in the bundle's labels.")
]
MaskCt = Annotated[Path | None, typer.Option("--mask-ct", help="CT of the same patient, to find the body outline.")]
SizeOf = Annotated[
    list[str] | None,
    typer.Option(
        "--size-of",
        help="Size of an organ in a generated mask: NAME=0 to 1 (percentile), or NAME=absent. Repeat for several.",
    ),
]
GenerateMask = Annotated[bool, typer.Option("--generate-mask", help="Make a new mask, too (as --size-of does).")]
Vary = Annotated[
    int | None,
    typer.Option("--vary", min=0, help="Make another patient of each mask; the number says which."),
]
Insert = Annotated[
    str | None,
    typer.Option("--insert", help="Put a lesion into each mask: NAME=DIAMETER, for example 'hepatic tumor=12mm'."),
]
InsertHost = Annotated[str | None, typer.Option("--insert-host", help="What it lies in; default: its host.")]
InsertShape = Annotated[
    str | None, typer.Option("--insert-shape", help="round, ellipsoid, lobulated (default) or spiculated.")
]
NoMask = Annotated[bool, typer.Option("--no-mask", help="Make an image without a mask.")]
Modality = Annotated[str | None, typer.Option("--modality", help="Name or code; see maisi bundles list --json.")]
Size = Annotated[tuple[int, int, int] | None, typer.Option("--size", help="Voxels x y z.")]
Spacing = Annotated[tuple[float, float, float] | None, typer.Option("--spacing", help="Voxel size x y z in mm.")]
Steps = Annotated[int | None, typer.Option("--steps", help="Solver steps; default is the bundle's.")]
Solver = Annotated[
    str | None,
    typer.Option("--solver", help="euler, heun, ab2, ab3, dpm++ (rectified flow); ancestral, ddim, dpm++ (DDPM)."),
]
Preset = Annotated[
    str | None, typer.Option("--preset", help="standard (default), or draft: six evaluations of the networks.")
]
MaskSteps = Annotated[int | None, typer.Option("--mask-steps", help="Solver steps of the mask generator.")]
MaskSolver = Annotated[str | None, typer.Option("--mask-solver", help="Its solver.")]
Schedule = Annotated[str | None, typer.Option("--schedule", help="exact (default), or upstream for MONAI's rounding.")]
Guidance = Annotated[
    float | None, typer.Option("--guidance", help="Guidance scale; 0 (default) is off, 1–5 is useful.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Same seed, same result.")]
Count = Annotated[int | None, typer.Option("--count", "-n", help="Number of samples; default is 1.")]
FirstIndex = Annotated[
    int | None,
    typer.Option("--first-index", help="Index of the first sample, to make one sample of a set alone."),
]
Windows = Annotated[
    bool, typer.Option("--windows", help="Decode in the published overlapping windows (slow, seams), to compare.")
]
Memory = Annotated[
    str | None, typer.Option("--memory", help="What the run may fill, for example 8GB; default is all that is free.")
]
Precision = Annotated[
    str | None, typer.Option("--precision", help="auto (default), float32, or bfloat16 (faster where the CPU has it).")
]
Accelerate = Annotated[
    str | None, typer.Option("--accelerate", help="compile or tensorrt: compile the networks, on NVIDIA GPUs.")
]
RequestFile = Annotated[
    Path | None,
    typer.Option("--request", help="A request as JSON, or a published config_infer.json. Other options win."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Go on without what cannot be read or used.")]
Json = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")]


def refuse_beside_replay(asked: dict[str, Any]) -> None:
    """Raises RequestError if, beside --replay, something else was asked for: a replay makes the recorded sample."""
    from MAISILib.errors import RequestError

    given = [name for name, value in asked.items() if value is not None and value is not False and value != []]
    if given:
        raise RequestError(
            f"--replay makes exactly the recorded sample; leave out what else describes one ({', '.join(given)})."
        )


def build_request(
    *,
    request_file: Path | None = None,
    mask: Path | None = None,
    no_mask: bool = False,
    generate_mask: bool = False,
    size_of: list[str] | None = None,
    insert: str | None = None,
    insert_host: str | None = None,
    insert_shape: str | None = None,
    windows: bool = False,
    **fields: Any,
) -> GenerateRequest:
    """A request from a file and options; options that were not given keep the file's value.

    Raises:
        RequestError: The file or an option does not fit, or the options name two sources of masks.
    """
    from MAISILib.errors import FileFormatError, RequestError
    from MAISILib.generation.request import GenerateRequest

    given = {name: value for name, value in fields.items() if value is not None and value != []}
    sources = {
        "--mask": mask is not None,
        "--no-mask": no_mask,
        "--size-of" if size_of else "--generate-mask": generate_mask or bool(size_of),
    }
    named = [name for name, is_there in sources.items() if is_there]
    if len(named) > 1:
        raise RequestError(f"{' and '.join(named)} contradict each other. Give one of them.")
    if size_of:
        given["controllable_anatomy_size"] = dict(map(_organ_size, size_of))
    if generate_mask or size_of:
        given = {"mask": "generated", "mask_file": None, "mask_ct": None, **given}
    elif mask is not None:
        given |= {"mask": "file", "mask_file": mask}
    elif no_mask:
        given = {"mask": "none", "mask_file": None, "mask_ct": None, **given}
    if insert:
        name, _, diameter = insert.rpartition("=")
        if not name.strip():
            raise RequestError(f"--insert {insert!r}: write NAME=DIAMETER, for example 'hepatic tumor=12mm'.")
        more = {"host": insert_host, "shape": insert_shape}
        given["insert_lesion"] = {"lesion": name.strip(), "diameter": millimeters(diameter)} | {
            key: value for key, value in more.items() if value is not None
        }
    elif insert_host or insert_shape:
        raise RequestError("--insert-host and --insert-shape describe a lesion; give it with --insert.")
    if windows:
        given["decode"] = "windows"
    if request_file is None:
        return GenerateRequest(**given)
    try:
        text = request_file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{request_file} cannot be read: {error}.") from None
    base = GenerateRequest.from_json(text, str(request_file))
    return GenerateRequest(**{**base.model_dump(exclude_unset=True), **given})


def memory_bytes(amount: str | None) -> int | None:
    """``8GB`` as bytes.

    Raises:
        RequestError: It is no amount of memory.
    """
    from MAISILib.errors import RequestError
    from MAISILib.generation.request import bytes_of

    try:
        count = bytes_of(amount)
    except ValueError as error:
        raise RequestError(f"--memory {amount}: {error}.") from None
    if count == 0:
        raise RequestError(f"--memory {amount}: give more than nothing, for example 8GB.")
    return count


def _organ_size(option: str) -> tuple[str, float]:
    """``mandible=0.8`` or ``larynx=absent`` as name and size.

    Raises:
        RequestError: It is neither.
    """
    from MAISILib.errors import RequestError

    name, _, text = (part.strip() for part in option.rpartition("="))
    size = {"absent": -1.0}.get(text) or _number(text)
    if not name or size is None:
        raise RequestError(f"--size-of {option!r}: write NAME=SIZE, for example mandible=0.8 or larynx=absent.")
    return name, size


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def millimeters(text: str) -> float:
    """``12mm``, ``1.2 cm`` or ``12`` in mm.

    Raises:
        RequestError: It is no length.
    """
    from MAISILib.errors import RequestError

    found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(mm|cm)?", text.strip().lower())
    if found is None:
        raise RequestError(f"{text!r} is no length; write it like 12mm or 1.2cm.")
    return float(found[1]) * (10 if found[2] == "cm" else 1)
