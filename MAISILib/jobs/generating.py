"""The commands that ask for images: what they will cost, and making them."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MAISILib.errors import OutOfMemory, RequestError
from MAISILib.jobs.remaining_time import RemainingTime

if TYPE_CHECKING:
    import numpy as np

    from MAISILib.bundles.bundle import Bundle
    from MAISILib.generation.conditioning import Prepared
    from MAISILib.generation.plan import Plan
    from MAISILib.generation.progress import Progress
    from MAISILib.generation.request import GenerateRequest
    from MAISILib.jobs.protocol import Job
    from MAISILib.jobs.warm_bundle import WarmBundle

#: Longest edge of a preview in pixels, and the seconds that lie between two.
_PREVIEW_EDGE, _PREVIEW_INTERVAL = 128, 1.0
#: Held while a plan is made, on whichever thread: the first one loads PyTorch and MONAI, whose modules import one
#: another in circles, and measures the device, which a second one would disturb.
planning = threading.Lock()


class WarmBundles:
    """Opens bundles; the last one stays warm. Another one, or other files in its folder, send it away."""

    def __init__(self) -> None:
        self._bundle: WarmBundle | None = None

    def open(self, name_or_folder: str) -> WarmBundle:
        """A bundle, warm where it is the one of the last time.

        Raises:
            BundleError: As ``open_bundle``.
        """
        from MAISILib.bundles.catalogue import find_bundle
        from MAISILib.jobs.warm_bundle import WarmBundle

        fresh = WarmBundle(find_bundle(name_or_folder))
        if self._bundle is not None and (self._bundle.folder, self._bundle.files) == (fresh.folder, fresh.files):
            return self._bundle
        self._bundle = fresh
        return fresh

    def release(self) -> None:
        """Frees the networks of the last bundle."""
        if self._bundle is not None:
            self._bundle.release()


def plan(job: Job, bundle: str, request: dict[str, Any], device: str = "auto") -> dict[str, Any]:
    """What a request will cost; reads its mask file, loads no network."""
    from MAISILib.bundles.bundle import open_bundle
    from MAISILib.generation.conditioning import prepare

    opened, wanted = open_bundle(bundle), _request(request)
    prepared = prepare(opened, wanted)  # what is wrong is told before PyTorch is loaded
    planned = _planned(opened, wanted, device, prepared)
    return {**planned.to_dict(), "text": in_one_line(planned)}


def generate(
    warm: WarmBundles,
    job: Job,
    out: Path,
    bundle: str | None = None,
    request: dict[str, Any] | None = None,
    device: str = "auto",
    replay: Path | None = None,
) -> dict[str, Any]:
    """Makes the samples of a request, or one sample again, and writes each as it comes.

    Args:
        warm: What is loaded already.
        job: Hears how it goes, and cancels.
        out: Folder; each sample becomes one in it.
        bundle: Name or folder.
        request: Fields of a ``GenerateRequest``.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``.
        replay: ``provenance.json`` of a sample, in place of bundle and request.
    """
    from MAISILib.files.atomic import check_writable
    from MAISILib.generation.conditioning import prepare
    from MAISILib.generation.provenance import check_replay, read_replay

    started = time.perf_counter()
    recorded = None
    if replay is not None:
        if bundle is not None or request is not None:
            raise RequestError("A replay takes bundle and request from the provenance; leave them out.")
        bundle, wanted, recorded = read_replay(replay)
    elif bundle is None or request is None:
        raise RequestError("Give bundle and request, or a provenance.json to replay.")
    else:
        wanted = _request(request)
    opened = warm.open(bundle)
    if recorded is not None:
        check_replay(opened, recorded)
    prepared = prepare(opened, wanted)
    check_writable(out)
    job.cancel.check()
    planned = _planned(opened, wanted, device, prepared)
    opened.prepare_for(planned, wanted)
    from MAISILib.generation.pipeline import generate_samples

    tell = _Teller(job, planned)
    written = []
    try:
        for sample in generate_samples(
            opened, wanted, device=device, on_progress=tell, cancel=job.cancel, prepared=prepared, planned=planned
        ):
            job.cancel.check()
            sample.save(out / sample.name)
            written.append(sample.summary(out / sample.name))
            job.sample(written[-1])
    except (OutOfMemory, MemoryError):
        warm.release()  # so that the next, smaller request finds all there is
        raise
    return {"samples": written, "seconds": round(time.perf_counter() - started, 1)}


def _planned(bundle: Bundle, request: GenerateRequest, device: str, prepared: Prepared) -> Plan:
    with planning:
        from MAISILib.generation.pipeline import plan_request

        return plan_request(bundle, request, device, prepared)


def in_one_line(planned: Plan) -> str:
    """A plan as one line for people."""
    needed, free = planned.peak_bytes / 1e9, planned.available_bytes / 1e9
    if not planned.fits:
        return f"Does not fit: needs {needed:.1f} GB on {planned.device}, {free:.1f} GB are there. {planned.advice}"
    size = "×".join(map(str, planned.size))
    count = f"{planned.samples} volumes" if planned.samples > 1 else "1 volume"
    return f"{count} of {size} voxels on {planned.device}: about {_duration(planned.seconds)} and {needed:.1f} GB."


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _request(fields: dict[str, Any]) -> GenerateRequest:
    from MAISILib.generation.request import GenerateRequest

    return GenerateRequest.from_json(json.dumps(fields), "The request")


class _Teller:
    """Passes on the progress of a run, with the time that is left and now and then a picture."""

    def __init__(self, job: Job, planned: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self._job, self._remaining, self._clock = job, RemainingTime(planned), clock
        self._extent = planned.size[0] * planned.spacing[0], planned.size[2] * planned.spacing[2]
        self._pictured = float("-inf")

    def __call__(self, progress: Progress) -> None:
        remaining, picture = round(self._remaining.after(progress), 1), None
        if progress.preview is not None and self._clock() - self._pictured >= _PREVIEW_INTERVAL:
            self._pictured = self._clock()
            picture = preview_png(progress.preview, self._extent)
        self._job.progress(
            progress.stage,
            progress.done,
            progress.total,
            progress.message,
            progress.sample,
            remaining_seconds=remaining,
            preview=picture,
        )


def preview_png(picture: np.ndarray, extent: tuple[float, float]) -> str:
    """A preview as PNG in base64, seen as radiologists look at a coronal plane: the patient's right on the left.

    Args:
        picture: ``(X, Z)`` uint8, along R+ and S+.
        extent: mm along both.
    """
    import numpy as np
    from PIL import Image

    scale = _PREVIEW_EDGE / max(extent)
    size = max(1, round(extent[0] * scale)), max(1, round(extent[1] * scale))
    seen = Image.fromarray(np.ascontiguousarray(picture.T[::-1, ::-1])).resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    seen.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
