"""How fast a device works: measured once by a short probe, kept in the user's cache, and made better by real runs.

The probe times convolutions of three widths, GroupNorm with SiLU on small and large tensors, and the cost of a call:
two seconds on two CPU cores. A real run tells how right the estimate was. The best of the last runs counts, so that a
busy hour is soon forgotten.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from MAISILib.errors import OutputError
from MAISILib.files.atomic import write_text
from MAISILib.generation.workload import Work

_FORMAT = 3
#: Channels of the probe's convolutions, each with the edge of its volume: some ten milliseconds of work on a CPU core.
_PROBED = {16: 40, 64: 20, 256: 10}
#: Each of them is repeated so often at least, and for so many seconds, in each of some rounds; the fastest counts.
_REPETITIONS, _SECONDS, _ROUNDS = 4, 0.15, 2
#: Operations whose calls are timed together.
_CALLS = 200
#: Channels of the tensors that are normalised.
_MOVED_CHANNELS = 64
#: Bytes that an operation reads and writes → edge of the tensor that stands for it. The first fits into a processor's
#: cache, and its memory is used again and again; the second does not, and its memory is new to the process each time,
#: as it is for most operations from so many bytes on.
_MOVED = {1 << 21: 16, 1 << 24: 56}
#: Real runs that are remembered for each task.
_REMEMBERED = 5
#: Shorter stages (seconds) teach nothing: there the start of a network weighs more than its work.
_SHORTEST = 0.2


@dataclass(frozen=True)
class Speed:
    """What a device does in a second.

    Args:
        products: Channels → operations per second in convolutions of that width.
        moved: Bytes that an operation reads and writes → how many of them normalisation and the like take per second.
        call: Seconds that any operation takes, however small.
        measured: Whether it was measured here.
    """

    products: dict[int, float]
    moved: dict[int, float]
    call: float
    measured: bool = True

    def seconds(self, work: Work) -> float:
        """Time of some work."""
        products = sum(flops / _between(self.products, width) for width, flops in work.products.items())
        moved = sum(total / _between(self.moved, size) for size, total in work.moved.items())
        return products + moved + work.calls * self.call


def _between(known: dict[int, float], at: float) -> float:
    """A rate read between those that were measured, both on logarithmic scales; the nearest beyond them."""
    sizes = sorted(known)
    at = min(max(at, sizes[0]), sizes[-1])
    above = next(size for size in sizes if size >= at)
    below = max((size for size in sizes if size <= at), default=above)
    part = 0.0 if above == below else math.log(at / below) / math.log(above / below)
    return known[below] ** (1 - part) * known[above] ** part


#: Where nothing can be measured: two cores of an AMD EPYC (Zen 4), a GPU of the middle class, an Apple M1.
ASSUMED = {
    "cpu": Speed({16: 2e11, 64: 2.3e11, 256: 2.2e11}, {1 << 21: 2e10, 1 << 24: 5e9}, 7e-6, measured=False),
    "cuda": Speed({16: 1e12, 64: 5e12, 256: 1e13}, {1 << 24: 2e11}, 2e-5, measured=False),
    "mps": Speed({16: 2e11, 64: 1e12, 256: 1.5e12}, {1 << 24: 5e10}, 3e-5, measured=False),
}


class Machine:
    """What is known about the speed of one device at one precision.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: Of the arithmetic.
        path: Where it is kept; nothing is kept where the file cannot be written.
    """

    def __init__(self, device: str, precision: torch.dtype, path: Path) -> None:
        self._path, self._key, self._lock = path, _description(device, precision), threading.Lock()
        self._ratios: dict[str, list[float]] = {}
        try:
            known = _read(path)[self._key]
            kept = known["speed"]
            self.speed = Speed(_rates(kept["products"]), _rates(kept["moved"]), _positive(kept["call"]))
            self._ratios = {task: [_positive(r) for r in ratios] for task, ratios in known["ratios"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):  # never measured, or damaged
            self.speed = probe(device, precision)
            if self.speed.measured:
                self._keep()

    def correction(self, task: str) -> float:
        """What the estimate of a task is multiplied by: the best of its last real runs, 1 where there are none.

        Where other tasks alone have run, and took less than was estimated, the probe met a busy machine: then theirs.
        """
        with self._lock:
            if self._ratios.get(task):
                return min(self._ratios[task])
            return min([1.0, *(min(ratios) for ratios in self._ratios.values() if ratios)])

    def learn(self, task: str, estimated: float, measured: float) -> None:
        """Remembers a real run.

        Args:
            task: What was done, for example ``head-neck-mini: diffusion``.
            estimated: Seconds by `Speed.seconds`, without correction.
            measured: Seconds that it took.
        """
        if measured < _SHORTEST or estimated <= 0:
            return
        with self._lock:
            self._ratios[task] = [*self._ratios.get(task, []), measured / estimated][-_REMEMBERED:]
            self._keep()

    def _keep(self) -> None:
        content = _read(self._path)
        content[self._key] = {"speed": asdict(self.speed), "ratios": self._ratios}
        with contextlib.suppress(OutputError):  # the next process measures again
            write_text(self._path, json.dumps({"format": _FORMAT, "devices": content}, indent=1))


def machine(device: str, precision: torch.dtype) -> Machine:
    """What is known about a device; the first call on a computer measures for two seconds."""
    return _machine(device, precision)


@functools.cache
def _machine(device: str, precision: torch.dtype) -> Machine:
    return Machine(device, precision, cache_file())


def forget() -> None:
    """Lets this process read, or measure, anew."""
    _machine.cache_clear()


def cache_file() -> Path:
    """Where speeds are kept: in ``$MAISI_DATA`` if that is set, else in the user's cache of this operating system."""
    override = os.environ.get("MAISI_DATA")
    if override:
        return Path(override).expanduser().resolve() / "speed.json"
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("MAISI", appauthor=False)) / "speed.json"


def probe(device: str, precision: torch.dtype) -> Speed:
    """Measures a device; what is assumed of its kind where that fails, for example because its memory is full."""
    try:
        with torch.inference_mode():
            return _measured(device, precision)
    except (RuntimeError, MemoryError, OSError):
        return ASSUMED[device.partition(":")[0]]


def _measured(device: str, precision: torch.dtype) -> Speed:
    works: dict[tuple[str, int], Callable[[], object]] = {}
    amounts: dict[tuple[str, int], float] = {}
    for width, edge in _PROBED.items():
        x = torch.zeros(1, edge, edge, edge, width, device=device, dtype=precision).permute(0, 4, 1, 2, 3)
        weight = torch.zeros(width, width, 3, 3, 3, device=device, dtype=precision)
        works["products", width] = functools.partial(_convolve, x, weight)
        amounts["products", width] = 2 * 27 * width**2 * edge**3
    for size, edge in _MOVED.items():
        x = torch.zeros(1, _MOVED_CHANNELS, edge, edge, edge, device=device, dtype=precision)
        works["moved", size] = functools.partial(_normalise, x)
        amounts["moved", size] = 4 * x.numel() * x.element_size()
    small = torch.zeros(1, 4, 2, 2, 2, device=device, dtype=precision)
    works["calls", 0] = lambda: [F.group_norm(small, 2) for _ in range(_CALLS)]
    times = dict.fromkeys(works, math.inf)
    for _ in range(_ROUNDS):  # what disturbs one of them for a moment has passed when its turn comes again
        for key, work in works.items():
            times[key] = min(times[key], _best_time(device, work))
    rates = {key: amount / times[key] for key, amount in amounts.items()}
    products, moved = ({n: rate for (what, n), rate in rates.items() if what == kind} for kind in ("products", "moved"))
    return Speed(products, moved, times["calls", 0] / _CALLS)


def _normalise(x: torch.Tensor) -> torch.Tensor:
    return F.silu(F.group_norm(x, 16))


def _convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if x.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return torch.mkldnn_convolution(x, weight, None, (1, 1, 1), (1, 1, 1), (1, 1, 1), 1)
    return F.conv3d(x, weight, padding=1)


def _best_time(device: str, work: Callable[[], object]) -> float:
    """Seconds of the fastest of some repetitions.

    The time of the thread alone would not do on a CPU: it counts what a convolution waits for its other threads, and
    not what the system takes to give memory.
    """
    times: list[float] = []
    while len(times) < _REPETITIONS or sum(times) < _SECONDS:
        started = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        elif device == "mps":
            torch.mps.synchronize()
        times.append(max(time.perf_counter() - started, 1e-9))
    return min(times)


def _description(device: str, precision: torch.dtype) -> str:
    """What a measurement holds for: a home folder may be shared by many computers."""
    kind = device.partition(":")[0]
    if kind == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{platform.machine()} {platform.processor()}, {torch.get_num_threads()} threads"
    return f"{platform.node()}: {kind} {where}, torch {torch.__version__}, {str(precision).removeprefix('torch.')}"


def _rates(kept: dict[str, Any]) -> dict[int, float]:
    if not kept:
        raise ValueError("no rates")
    return {int(size): _positive(rate) for size, rate in kept.items()}


def _positive(kept: Any) -> float:
    if not 0 < float(kept) < math.inf:  # also what is no number
        raise ValueError(f"{kept} is no rate, time or ratio")
    return float(kept)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content["devices"]) if content["format"] == _FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
