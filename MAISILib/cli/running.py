"""Runs a request for the command line: progress on stderr, Ctrl-C, samples to disk as they come, the scene last."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MAISILib.generation.progress import CancelToken, OnProgress, Progress
from MAISILib.generation.request import GenerateRequest
from MAISILib.jobs.detached import STOP_VARIABLE

if TYPE_CHECKING:
    from MAISILib.generation.result import Sample


def generate_into(
    out: Path,
    bundle_name: str,
    request: GenerateRequest,
    *,
    device: str = "auto",
    scene: bool = False,
    recorded: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Generates into ``out`` and tells what was written.

    What can be found wrong without PyTorch is found first: a mistyped name is answered in a second.

    Args:
        out: Folder; made where missing.
        bundle_name: Name or folder.
        request: What to make.
        device: As for ``generate``.
        scene: Also write ``scene.mrb`` with all samples.
        recorded: Provenance of the sample that is replayed.

    Returns:
        ``{"samples": [{folder, seed, index, passed, verdict, quality, attempts, seconds, files}],
        "scene": path or None, "seconds"}``.
    """
    from MAISILib.bundles.bundle import open_bundle
    from MAISILib.files.atomic import check_writable
    from MAISILib.generation.conditioning import prepare
    from MAISILib.generation.provenance import check_replay

    started = time.perf_counter()
    bundle = open_bundle(bundle_name)
    if recorded is not None:
        check_replay(bundle, recorded)
    with cancel_on_interrupt() as cancel, progress_on_stderr(_line, _title) as on_progress:
        prepared = prepare(bundle, request)
        check_writable(out)
        scene_writer = _SceneWriter() if scene else None
        from MAISILib.generation.pipeline import generate_samples

        cancel.check()
        samples = generate_samples(
            bundle, request, device=device, on_progress=on_progress, cancel=cancel, prepared=prepared
        )
        written = []
        for sample in samples:
            cancel.check()
            files = sample.save(out / sample.name)
            written.append({**sample.summary(out / sample.name), "files": [str(path) for path in files]})
            if scene_writer:
                scene_writer.add(sample)
        cancel.check()
        scene_path = scene_writer.save(out / "scene.mrb") if scene_writer else None
    seconds = round(time.perf_counter() - started, 1)
    return {"samples": written, "scene": str(scene_path) if scene_path else None, "seconds": seconds}


class _SceneWriter:
    """Collects samples in a MRML scene. Missing parts are reported before the work begins."""

    def __init__(self) -> None:
        from MAISILib import scene

        self._scene, self._rooms = scene.new_scene(), scene

    def add(self, sample: Sample) -> None:
        name = f"{sample.provenance['bundle']['name']} {sample.name}"
        modality = "CT" if sample.image.units == "HU" else "MR"
        self._rooms.show(self._scene, sample.image, sample.mask, name, modality=modality)

    def save(self, path: Path) -> Path:
        self._rooms.save(self._scene, path)
        return path


@contextmanager
def cancel_on_interrupt() -> Iterator[CancelToken]:
    """The first Ctrl-C (or SIGTERM) asks the run to stop; one a second later, or after that, stops at once.

    Within the second it is the same wish: ``torchrun`` passes on a Ctrl-C that the terminal has told all processes. A
    detached job is also asked by a file that appears.
    """
    cancel = CancelToken()
    asked = float("inf")
    previous = {}

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if time.monotonic() - asked > 1:
            raise KeyboardInterrupt
        asked = min(asked, time.monotonic())
        cancel.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, ask)
    ended = threading.Event()
    if stop_file := os.environ.get(STOP_VARIABLE):
        threading.Thread(target=_cancel_at, args=(Path(stop_file), cancel, ended), daemon=True).start()
    try:
        yield cancel
    finally:
        ended.set()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _cancel_at(stop_file: Path, cancel: CancelToken, ended: threading.Event) -> None:
    while not ended.wait(0.3):
        if stop_file.exists():
            cancel.cancel()
            return


@contextmanager
def progress_on_stderr(line: Callable[[Progress], str], title: Callable[[Progress], str]) -> Iterator[OnProgress]:
    """Shows the progress of a run: a bar on a terminal, lines elsewhere.

    Args:
        line: What is printed elsewhere than on a terminal; nothing where it is empty, or the same as before.
        title: What stands before the bar.
    """
    if not sys.stderr.isatty():
        last = ""

        def on_progress(progress: Progress) -> None:
            nonlocal last
            text = line(progress)
            if text and text != last:
                print(text, file=sys.stderr, flush=True)
                last = text

        yield on_progress
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    with Bars(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("starting", total=None)

        def on_progress(progress: Progress) -> None:
            bars.update(task, description=title(progress), completed=progress.done, total=progress.total)

        yield on_progress


def measuring_line(progress: Progress) -> str:
    """A line for each thing that is measured, and for each tenth of what has no names."""
    if progress.message:
        return f"{progress.stage} {progress.done}/{progress.total} {progress.message}"
    return f"{progress.stage} {10 * progress.done // progress.total * 10} %"


def _line(progress: Progress) -> str:
    """A line for each stage of a sample."""
    return "" if progress.stage == "load" else f"sample {progress.sample}: {progress.stage}"


def _title(progress: Progress) -> str:
    return f"sample {progress.sample}  {progress.stage}"
