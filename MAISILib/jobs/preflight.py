"""What the engine needs and what this computer has, as a list that says what to do about each.

Starts with nothing but the standard library: what is missing is what it tells.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

#: Python versions that the engine runs on: from, and below.
PYTHON = ((3, 10), (3, 14))
#: What the engine needs, each with its lowest version; a test compares it with ``pyproject.toml``.
PACKAGES = {
    "connected-components-3d": "3.12",
    "einops": "0.7",
    "huggingface_hub": "0.30",
    "pillow": "10.1",
    "monai": "1.6",
    "nibabel": "5.2",
    "numpy": "1.26",
    "platformdirs": "4",
    "psutil": "5.9",
    "pydantic": "2.7",
    "pydicom": "3.0",
    "pynrrd": "1.0",
    "rich": "13",
    "safetensors": "0.4",
    "scipy": "1.11",
    "torch": "2.8",
    "typer": "0.15",
}
#: Also needed for fine-tuning.
TRAINING_PACKAGES = {"accelerate": "1.0"}
#: Bytes: less than the first is a problem, less than the second a warning. A run of the embedded model takes 0.7 GB, a
#: published bundle 8 GB of disk with its masks.
_MEMORY, _DISK = (1.5e9, 6e9), (1e9, 15e9)
_INSTALL = "Install the engine's packages: in 3D Slicer under Setup, elsewhere with 'pip install slicer-maisi'."

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Check:
    """One line of the list.

    Args:
        name: What was looked at.
        state: ``problem``: the engine cannot work like this. ``warning``: it can, but slowly or not everything.
        found: What there is.
        advice: What to do; empty where nothing is to be done.
    """

    name: str
    state: State
    found: str
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain data for JSON."""
        return asdict(self)


def preflight() -> list[Check]:
    """Looks at everything. A look that fails is a problem of its own; nothing is raised."""
    looks: dict[str, Callable[[], Check]] = {
        "Python": _python,
        "packages": _packages,
        "PyTorch": _torch,
        "device": _device,
        "memory": _memory,
        "disk": _disk,
        "models": _bundles,
        "fine-tuning": _training,
    }
    return list(_looked_at(looks))


def _looked_at(looks: dict[str, Callable[[], Check]]) -> Iterator[Check]:
    for name, look in looks.items():
        try:
            yield look()
        except ModuleNotFoundError as error:
            yield Check(name, "problem", f"cannot be looked at without {error.name}", "Install the packages first.")
        except (ImportError, OSError) as error:  # a library that does not fit this computer
            yield Check(name, "problem", str(error), "Install the package again that is named here.")
        except Exception as error:
            yield Check(name, "problem", f"{type(error).__name__}: {error}", "Copy this report and ask for help.")


def _python() -> Check:
    found = f"{platform.python_version()} ({platform.system()} {platform.machine()}): {sys.executable}"
    low, below = PYTHON
    if not low <= sys.version_info[:2] < below:
        advice = f"Choose a Python from {low[0]}.{low[1]} to {below[0]}.{below[1] - 1}."
        return Check("Python", "problem", found, advice)
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        advice = (
            "PyTorch 2.8 does not exist for this Python, which runs as on an Intel Mac. Choose an external Python for "
            "arm64."
        )
        return Check("Python", "problem", found, advice)
    return Check("Python", "ok", found)


def _packages() -> Check:
    lacking = lacking_packages(PACKAGES)
    if lacking:
        return Check("packages", "problem", "; ".join(lacking), _INSTALL)
    return Check("packages", "ok", f"all {len(PACKAGES)} are there")


def lacking_packages(wanted: dict[str, str]) -> list[str]:
    """Which packages are missing or too old, in words.

    Args:
        wanted: Package → lowest version.
    """
    lacking = []
    for name, lowest in wanted.items():
        found = installed_version(name)
        if found is None:
            lacking.append(f"{name} is missing")
        elif not reaches(found, lowest):
            lacking.append(f"{name} {found} is older than {lowest}")
    return lacking


def installed_version(name: str) -> str | None:
    """The version of an installed package, ``None`` where it is missing. Reads metadata only: nothing is imported."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def reaches(found: str, lowest: str) -> bool:
    """Whether a version is a lowest one or later, by the numbers of their releases: ``2.13.0+cpu`` reaches ``2.8``."""
    return _numbers(found) >= _numbers(lowest)


def _numbers(version: str) -> tuple[int, ...]:
    """``"2.8.0+cpu"`` as ``(2, 8)``: the release, without zeros at its end."""
    release = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in release.group().split(".")] if release else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _torch() -> Check:
    import torch

    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    found = f"{torch.__version__} ({built_for})"
    if torch.version.cuda is None and _nvidia_card():
        advice = "This build does not use the NVIDIA card. Install a CUDA build (in Slicer: extension PyTorch)."
        return Check("PyTorch", "warning", f"{found}, with {_nvidia_card()} in this computer", advice)
    if torch.version.cuda is not None and not torch.cuda.is_available():
        advice = "It finds no NVIDIA card. Update the card's driver; without a card this is as it should be."
        return Check("PyTorch", "warning" if _nvidia_card() else "ok", found, advice if _nvidia_card() else "")
    return Check("PyTorch", "ok", found)


def _nvidia_card() -> str:
    """Name of the NVIDIA card that the driver knows; empty without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.stdout.strip().splitlines()[0] if told.returncode == 0 and told.stdout.strip() else ""


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found = f"{torch.cuda.get_device_name()}: {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        advice = "Close programs that use the card, or make small volumes." if free < 4e9 else ""
        return Check("device", "warning" if advice else "ok", found, advice)
    if torch.backends.mps.is_available():
        return Check("device", "ok", "Apple GPU (MPS)")
    advice = "The embedded model runs on it in a minute or so; large published models need a GPU."
    return Check("device", "warning", f"CPU, {torch.get_num_threads()} threads; no GPU", advice)


def _memory() -> Check:
    total, free = memory_bytes()
    found = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    return _judged("memory", found, free, _MEMORY, "Close other programs.")


def memory_bytes() -> tuple[float, float]:
    """Main memory in bytes: all, and what is free."""
    try:
        psutil = importlib.import_module("psutil")
    except ImportError:
        page = os.sysconf("SC_PAGE_SIZE")  # not on Windows, where psutil is then what is missing first
        return float(page * os.sysconf("SC_PHYS_PAGES")), float(page * os.sysconf("SC_AVPHYS_PAGES"))
    memory = psutil.virtual_memory()
    return float(memory.total), float(memory.available)


def _disk() -> Check:
    from MAISILib.bundles.catalogue import data_folder

    folder = data_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    found = f"{free / 1e9:.1f} GB free for models in {folder}"
    if not os.access(existing, os.W_OK):
        return Check("disk", "problem", f"{folder} cannot be written", "Set MAISI_DATA to a folder of yours.")
    return _judged("disk", found, free, _DISK, "Make room, or set MAISI_DATA to a folder on another disk.")


def _judged(name: str, found: str, there: float, bounds: tuple[float, float], advice: str) -> Check:
    state: State = "problem" if there < bounds[0] else "warning" if there < bounds[1] else "ok"
    return Check(name, state, found, "" if state == "ok" else advice)


def _bundles() -> Check:
    from MAISILib.bundles.catalogue import list_bundles

    states = list_bundles()
    usable = [state.name for state in states if state.state in ("embedded", "installed")]
    damaged = [f"{state.name}: {state.problem}" for state in states if state.state == "damaged"]
    found = f"ready: {', '.join(usable) or 'none'}"
    if not usable:
        return Check("models", "problem", found, "Download or import a model.")
    if damaged:
        return Check("models", "warning", f"{found}; damaged: {'; '.join(damaged)}", "Remove it and get it again.")
    return Check("models", "ok", found)


def _training() -> Check:
    lacking = lacking_packages(TRAINING_PACKAGES)
    if lacking:
        return Check("fine-tuning", "warning", "; ".join(lacking), "Fine-tuning needs it; install it under Setup.")
    return Check("fine-tuning", "ok", "its packages are there")
