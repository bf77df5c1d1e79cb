"""Installs what the engine needs into Slicer's Python: on a click, after asking, in the way that Slicer wants it.

PyTorch comes from Slicer's PyTorch extension, which chooses the build for the graphics card; the rest is floors, never
pins, and leaves the packages that Slicer brings as they are.
"""

from __future__ import annotations

import importlib
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from MAISILib.jobs.preflight import installed_version, reaches

#: MONAI 1.6 needs it.
TORCH_FLOOR = "2.8"
REQUIREMENTS = Path(__file__).resolve().parents[1] / "Resources" / "MAISIRequirements.txt"


@dataclass(frozen=True)
class Requirement:
    """One package and the lowest version that will do."""

    name: str
    floor: str

    def __str__(self) -> str:
        return f"{self.name}>={self.floor}"


class InstallError(Exception):
    """Packages that could not be installed; the message says what to do."""


class Installer:
    """Knows what is missing in this Python and installs it.

    Args:
        requirementsFile: Lines ``name>=version``.
        versionOf: Installed version of a package; ``None`` where it is missing.
        machine: ``(system, architecture)`` of this Python.
    """

    def __init__(
        self,
        requirementsFile: Path = REQUIREMENTS,
        versionOf: Callable[[str], str | None] | None = None,
        machine: tuple[str, str] | None = None,
    ) -> None:
        self._file = requirementsFile
        self._versionOf = versionOf or installed_version
        self._machine = machine or (sys.platform, platform.machine())

    def requirements(self) -> list[Requirement]:
        """PyTorch, then the packages of the requirements file."""
        return [Requirement("torch", TORCH_FLOOR), *self._listed()]

    def missing(self) -> list[Requirement]:
        """What is not installed or too old. Reads metadata only: nothing is imported."""
        found = ((each, self._versionOf(each.name)) for each in self.requirements())
        return [each for each, version in found if version is None or not reaches(version, each.floor)]

    def obstacle(self) -> str:
        """Why the engine can never be installed into this Slicer; empty where it can."""
        if self._machine == ("darwin", "x86_64"):
            return _(
                "Slicer for macOS is an Intel (x86-64) program, and PyTorch for it ends at 2.2; the engine needs {0} "
                "or later. Install the engine in a Python of your own (pip install slicer-maisi) and choose it below."
            ).format(TORCH_FLOOR)
        return ""

    def install(self) -> None:
        """Installs what is missing, PyTorch first. Blocks; call it on the main thread and after a click only.

        Raises:
            InstallError: Declined, no PyTorch extension, or pip failed.
        """
        if self.obstacle():
            raise InstallError(self.obstacle())
        missing = self.missing()
        if any(r.name == "torch" for r in missing):
            self._installTorch()
        if any(r.name != "torch" for r in missing):
            self._installListed()
        importlib.invalidate_caches()
        left = self.missing()
        if left:
            names = ", ".join(map(str, left))
            raise InstallError(
                _("Still missing after the installation: {0}. Restart Slicer and press Check again.").format(names)
            )

    def _installTorch(self) -> None:
        try:
            import PyTorchUtils  # type: ignore[import-not-found]
        except ImportError:
            raise InstallError(
                _(
                    "PyTorch is installed by Slicer's PyTorch extension. Install it in the Extensions Manager, restart "
                    "Slicer, then try again."
                )
            ) from None
        try:
            torch = PyTorchUtils.PyTorchUtilsLogic().installTorch(
                askConfirmation=True, torchVersionRequirement=f">={TORCH_FLOOR}"
            )
        except Exception as error:  # the extension raises whatever a broken installation raises
            raise InstallError(
                _(
                    "PyTorch could not be installed: {0}. Open the module 'PyTorch Util', uninstall PyTorch there, "
                    "restart Slicer and try again."
                ).format(error)
            ) from error
        if torch is None:
            raise InstallError(_("PyTorch was not installed. Nothing was changed."))

    def _installListed(self) -> None:
        import slicer

        try:
            from slicer import packaging  # type: ignore[import-not-found]
        except ImportError:
            packaging: Any = None
        try:
            if packaging is None:  # Slicer 5.10
                slicer.util.pip_install([str(r) for r in self._listed()])  # type: ignore[attr-defined]
            else:
                packaging.pip_ensure(packaging.load_requirements(str(self._file)), requester="MAISI")
        except RuntimeError:
            raise InstallError(_("The packages were not installed. Nothing was changed.")) from None
        except subprocess.CalledProcessError as error:
            raise InstallError(
                _(
                    "pip could not install the packages (exit code {0}). The Python console shows why; behind a proxy, "
                    "set HTTPS_PROXY before Slicer starts."
                ).format(error.returncode)
            ) from error

    def _listed(self) -> Iterator[Requirement]:
        for line in self._file.read_text(encoding="utf-8").splitlines():
            text = line.partition("#")[0].strip()
            if text:
                name, _sign, floor = text.partition(">=")
                yield Requirement(name.strip(), floor.strip())
