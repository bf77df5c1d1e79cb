"""Keeps the networks of the bundle in use loaded, so that the next run of it starts at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from MAISILib.bundles.bundle import Bundle

if TYPE_CHECKING:
    import torch
    from torch import nn

    from MAISILib.generation.plan import Plan
    from MAISILib.generation.request import GenerateRequest


class WarmBundle(Bundle):
    """A bundle whose networks stay loaded, on one device, from one run to the next.

    Args:
        folder: The bundle's folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.files = _files_of(self)
        self._kept: dict[str, nn.Module] = {}
        self._device = ""
        self._keeps = True

    def load(self, network: str, device: str | torch.device = "cpu") -> nn.Module:
        """As :meth:`Bundle.load`; the same network again where it is loaded already."""
        if str(device) != self._device:
            self.release()
            self._device = str(device)
        if network in self._kept:
            return self._kept[network]
        module = super().load(network, device)
        if self._keeps:
            self._kept[network] = module
        return module

    def prepare_for(self, plan: Plan, request: GenerateRequest) -> None:
        """Lets go of networks, and keeps none, where all of them at once would not leave the memory that a run needs.

        Args:
            plan: Of the run; it counts on one network after the other.
            request: Of the run.
        """
        from MAISILib.generation.plan import weight_bytes

        self._keeps = plan.peak_bytes + weight_bytes(self, request) <= plan.available_bytes
        if not self._keeps:
            self.release()

    def release(self) -> None:
        """Frees all networks; a run that uses one goes on with it."""
        self._kept = {}


def _files_of(bundle: Bundle) -> dict[str, Any]:
    """What tells that a bundle is still the same: its manifest, and size and time of each file of weights."""
    files: dict[str, Any] = {"manifest": bundle.manifest}
    for network, entry in bundle.manifest.networks.items():
        path = bundle.path(entry.weights)
        files[network] = (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None
    return files
