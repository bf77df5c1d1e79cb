"""``maisi evaluate fid``: how far generated volumes are from real ones."""

from __future__ import annotations

import json
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from MAISILib.cli import options

if TYPE_CHECKING:
    from MAISILib.generation.progress import Progress


class Network(str, Enum):
    """Where features come from."""

    autoencoder = "autoencoder"
    radimagenet_resnet50 = "radimagenet_resnet50"
    squeezenet1_1 = "squeezenet1_1"


#: Options that decide what features are.
_WHAT = ("network", "weights", "download", "bundle", "spacing", "shape", "padding", "center_cropping")
_WHAT += ("center_slices_ratio",)


def run(
    context: typer.Context,
    real: Annotated[
        Path, typer.Argument(help="Real volumes: a folder, a text file with one path in each line, or stored features.")
    ],
    generated: Annotated[Path, typer.Argument(help="Generated volumes, likewise.")],
    network: Annotated[
        Network,
        typer.Option("--network", help="autoencoder needs no download, but is not comparable with published FIDs."),
    ] = Network.autoencoder,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="File with the weights of radimagenet_resnet50 or squeezenet1_1.")
    ] = None,
    download: Annotated[
        bool,
        typer.Option("--download", help="Fetch them through torch.hub (radimagenet_resnet50 runs its authors' code)."),
    ] = False,
    bundle: options.BundleOption = "head-neck-mini",
    spacing: options.Spacing = None,
    shape: Annotated[
        tuple[int, int, int] | None, typer.Option("--shape", help="Pad and crop all volumes to x y z voxels.")
    ] = None,
    padding: Annotated[bool, typer.Option("--padding/--no-padding", help="Fill up to --shape with air.")] = True,
    center_cropping: Annotated[
        bool, typer.Option("--center-cropping/--no-center-cropping", help="Cut the middle of --shape out.")
    ] = True,
    center_slices_ratio: Annotated[
        float, typer.Option("--center-slices-ratio", help="Part of the slices, in the middle, that counts: 0 to 1.")
    ] = 1.0,
    images: Annotated[int | None, typer.Option("--images", help="At most so many of each set; default all.")] = None,
    real_root: Annotated[
        Path | None, typer.Option("--real-root", help="Folder that the paths of a list of real volumes start from.")
    ] = None,
    generated_root: Annotated[
        Path | None, typer.Option("--generated-root", help="The same for generated ones; default is the list's own.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option("--features", help="Keep features here, so that the next run has them already.")
    ] = None,
    ignore_existing: Annotated[
        bool, typer.Option("--ignore-existing", help="Compute features anew, whatever is in --features.")
    ] = False,
    bootstrap: Annotated[
        int | None,
        typer.Option("--bootstrap", min=0, help="Draws for the 95 % interval; default 200, 0 above 512 features."),
    ] = None,
    skip_bad: options.SkipBad = False,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Measure 2.5D FID and KID between two sets of CTs, for three planes and their mean.

    Several processes: torchrun --nproc_per_node=2 -m MAISILib evaluate fid ... with the same options.
    """
    from MAISILib.bundles.bundle import open_bundle
    from MAISILib.cli.running import cancel_on_interrupt, measuring_line, progress_on_stderr
    from MAISILib.errors import RequestError
    from MAISILib.files.atomic import check_writable
    from MAISILib.generation.progress import Progress
    from MAISILib.quality.fid_evaluation import evaluate_fid
    from MAISILib.quality.slice_geometry import SliceGeometry

    geometry = SliceGeometry(spacing, shape, padding, center_cropping, center_slices_ratio)
    flat = network.value if network.value != "autoencoder" else None
    if flat and (weights is None) is not download:
        raise RequestError(f"{flat} needs its weights: give --weights FILE, or else --download.")
    if not flat and (weights is not None or download):
        raise RequestError("--weights and --download are for --network radimagenet_resnet50 or squeezenet1_1.")
    if not flat:
        open_bundle(bundle)  # a mistyped name is answered in a second
    if features is not None:
        check_writable(features)
    with cancel_on_interrupt() as cancel, progress_on_stderr(measuring_line, _title) as on_progress:
        from MAISILib.generation.plan import choose_device
        from MAISILib.quality.companions import companions

        def on_done(stage: str, done: int, total: int, what: str) -> None:
            cancel.check()
            on_progress(Progress(stage, done, total, what))

        with companions(choose_device(device)) as (company, own_device):
            from MAISILib.quality.flat_features import FlatFeatures, name_for_network
            from MAISILib.quality.slice_features import features_of_bundle, name_for_bundle

            if flat:
                make_features = partial(FlatFeatures, flat, weights, geometry=geometry, device=own_device)
                name = partial(name_for_network, flat, weights, geometry)
            else:
                opened = open_bundle(bundle)
                make_features = partial(features_of_bundle, opened, geometry, own_device)
                name = partial(name_for_bundle, opened, geometry)
            sources = [context.get_parameter_source(option) for option in _WHAT]
            is_chosen = any(source is not None and source.name != "DEFAULT" for source in sources)

            report = evaluate_fid(
                real,
                generated,
                make_features,
                features_name=name() if is_chosen else None,
                roots=(real_root, generated_root),
                limit=images,
                resampled=spacing is not None,
                folder=features,
                anew=ignore_existing,
                replicates=bootstrap,
                skip_bad=skip_bad,
                companions=company,
                on_done=on_done,
            )
    if report is None:  # the first process tells
        return
    typer.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if as_json else str(report))


def _title(progress: Progress) -> str:
    return f"{progress.stage} {progress.message}"
