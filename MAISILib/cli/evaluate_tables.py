"""``maisi evaluate tables``: the published comparisons at the scale of a bundle, into one page of results."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from MAISILib.cli import options

if TYPE_CHECKING:
    from MAISILib.bundles.bundle import Bundle
    from MAISILib.generation.progress import CancelToken
    from MAISILib.quality.image_sets import ImageFile
    from MAISILib.quality.step_tables import Sampling
    from MAISILib.volumes import LabelMap, Volume


def run(
    data: Annotated[Path, typer.Argument(help="Real CTs that were not trained on, with masks in the bundle's labels.")],
    bundle: options.BundleOption = "head-neck-mini",
    ddpm: Annotated[
        str | None, typer.Option("--ddpm", help="Bundle of the DDPM variant, to compare in all its steps.")
    ] = None,
    steps: Annotated[
        list[int] | None,
        typer.Option("--steps", min=1, help="Steps of the solvers; repeat. Default 5 10 20 30 50 100."),
    ] = None,
    solver: Annotated[list[str] | None, typer.Option("--solver", help="Solvers; repeat. Default: all.")] = None,
    other: Annotated[
        list[Path] | None, typer.Option("--other", help="Other people's CTs, for the autoencoder; repeat.")
    ] = None,
    spacing: options.Spacing = None,
    images: Annotated[int | None, typer.Option("--images", help="At most so many cases; default all.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the noise; each case has its own.")] = 7,
    work: Annotated[
        Path, typer.Option("--work", help="Keep images and features here; a run goes on from them.")
    ] = Path("tables"),
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write (.md); figures lie beside it.")] = Path(
        "results.md"
    ),
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Measure FID against steps and solvers, rectified flow against DDPM, and the autoencoder; can be stopped."""
    from MAISILib.anatomy.masks import check_mask
    from MAISILib.bundles.bundle import open_bundle
    from MAISILib.cli.evaluate_codec import codec_of
    from MAISILib.cli.running import cancel_on_interrupt, measuring_line, progress_on_stderr
    from MAISILib.diffusion.solver_names import SOLVER_NAMES, choose_sampling
    from MAISILib.errors import RequestError
    from MAISILib.files.atomic import atomic_path, check_writable, write_text
    from MAISILib.files.images import read_image, read_mask
    from MAISILib.generation.progress import Progress
    from MAISILib.quality.image_sets import find_images
    from MAISILib.quality.step_pictures import compare_images
    from MAISILib.quality.step_tables import STEPS, Sampling, chart_of, image_file, measure, table_of

    opened = [open_bundle(name) for name in (bundle, ddpm) if name is not None]
    kinds = [one.manifest.schedule.kind for one in opened]
    if ddpm is not None and kinds[1] != "ddpm":
        raise RequestError(f"--ddpm {ddpm!r} is of kind {kinds[1]!r}. Give the bundle of a DDPM variant.")
    solvers = list(dict.fromkeys(solver or SOLVER_NAMES[kinds[0]]))
    counts = list(dict.fromkeys(steps or STEPS))
    for name, count in itertools.product(solvers, counts):
        choose_sampling(opened[0].manifest.schedule, solver=name, steps=count)
    if out.is_dir():
        raise RequestError(f"--out {out} is a folder. Give a file, for example {out / 'results.md'}.")
    model = {one.folder: f"{one.name}-{one.weights_sha256()['diffusion'][:8]}" for one in opened}
    first = [Sampling(model[opened[0].folder], kinds[0], s, n) for s in solvers for n in counts]
    second = [
        Sampling(model[one.folder], "ddpm", SOLVER_NAMES["ddpm"][0], one.manifest.schedule.train_timesteps)
        for one in opened[1:]
    ]
    by_model = {model[one.folder]: one for one in opened}
    cases = find_images(data, limit=images)
    others = {path: find_images(path) for path in other or ()}
    short = [path.resolve().name for path in (data, *others)]
    names = {
        path: name if short.count(name) == 1 else str(path) for path, name in zip((data, *others), short, strict=True)
    }
    check_writable(work)
    check_writable(out.parent)
    with cancel_on_interrupt() as cancel, progress_on_stderr(measuring_line, measuring_line) as on_progress:
        from MAISILib.quality.codec_evaluation import evaluate_codec
        from MAISILib.quality.slice_features import features_of_bundle
        from MAISILib.quality.slice_geometry import SliceGeometry

        def on_done(stage: str, done: int, total: int, what: str) -> None:
            cancel.check()
            on_progress(Progress(stage, done, total, what))

        def make(case: ImageFile, way: Sampling, number: int) -> tuple[Volume, float]:
            return _image(by_model[way.model], case, way, seed, number, device, cancel)

        def read_checked(path: Path) -> LabelMap:
            mask = read_mask(path, opened[0].labels)
            check_mask(mask, opened[0].labels)
            return mask

        codec, intensity = codec_of(opened[0], device), opened[0].manifest.intensity
        fidelity = {
            path: evaluate_codec(
                found,
                lambda image: codec.decode(codec.encode(image)),
                opened[0].labels,
                compression=opened[0].compression,
                bounds=(intensity.low, intensity.high),
                spacing=spacing or opened[0].manifest.recommended[0].spacing,
                on_case=lambda done, total, name: on_done("codec", done, total, name),
            )
            for path, found in {data: cases, **others}.items()
        }
        rows = measure(
            [*first, *second],
            cases,
            make,
            data,
            lambda: features_of_bundle(opened[0], SliceGeometry(spacing=spacing), "cpu"),
            work,
            read_mask=read_checked,
            seed=seed,
            resampled=spacing is not None,
            on_done=on_done,
        )
    chart, picture = out.with_name(f"{out.stem}-steps.svg"), out.with_name(f"{out.stem}-images.png")
    write_text(chart, chart_of(rows[: len(first)]))
    shown = [way for way in first if way.solver == solvers[0]] + second
    images_of_first = {f"real: {cases[0].name}": read_image(cases[0].path)}
    for way in shown:
        title = f"synthetic: {way.kind}, {way.solver} {way.steps}"
        images_of_first[title] = read_image(image_file(work, way, cases[0]))
    with atomic_path(picture) as temporary:
        compare_images(images_of_first).save(temporary, format="PNG", optimize=True)
    parts = [
        "# Results",
        f"Made by `maisi evaluate tables`; {len(cases)} real CTs and their masks, seed {seed}; "
        f"{rows[0].report.features}. Time is that of the fastest image, as a multiple of the first row's.",
        f"## Steps and solvers\n\n{table_of(rows[: len(first)])}\n\n![FID against steps]({quote(chart.name)})",
    ]
    if second:
        like = min(first, key=lambda way: (way.solver != solvers[0], abs(way.steps - 30)))
        pair = [row for row in rows if row.sampling == like or row.sampling in second]
        parts.append(f"## Rectified flow and DDPM\n\n{table_of(pair)}")
    parts.append(f"## Images of one mask\n\n![A real CT, and images that were made of its mask]({quote(picture.name)})")
    parts += [f"## The autoencoder on {names[path]}\n\n{report.table()}" for path, report in fidelity.items()]
    write_text(out, "\n\n".join(parts) + "\n")
    if as_json:
        told = {
            "rows": [row.to_dict() for row in rows],
            "codec": {names[path]: report.to_dict() for path, report in fidelity.items()},
        }
        typer.echo(json.dumps({**told, "files": [str(out), str(chart), str(picture)]}, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{out}\n{chart}\n{picture}")


def _image(
    bundle: Bundle, case: ImageFile, way: Sampling, seed: int, number: int, device: str, cancel: CancelToken
) -> tuple[Volume, float]:
    """One image of a case's mask, and the seconds of its diffusion and decoding."""
    from MAISILib.generation.pipeline import generate
    from MAISILib.generation.request import GenerateRequest

    request = GenerateRequest(
        mask="file",
        mask_file=case.mask,
        solver=way.solver,
        steps=way.steps,
        seed=seed,
        first_index=number,
        quality_check=False,
    )
    sample = generate(bundle, request, device=device, cancel=cancel).samples[0]
    return sample.image, sum(sample.provenance["seconds"].values())
