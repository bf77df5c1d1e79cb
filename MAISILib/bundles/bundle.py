"""An opened model bundle: its manifest, and its networks one at a time, when they are needed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from MAISILib.bundles import networks, weights
from MAISILib.bundles.catalogue import downloadable, find_bundle, installed_folder, resources_folder
from MAISILib.bundles.manifest import (
    MANIFEST_NAME,
    NETWORK_NAMES,
    Manifest,
    NetworkEntry,
    NetworkName,
    check_relative_path,
    read_manifest,
)
from MAISILib.errors import BundleError, MaisiError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import nn

    from MAISILib.anatomy.labels import LabelTable


def open_bundle(name_or_folder: str | Path) -> Bundle:
    """Opens a bundle by its name in the catalogue, or a bundle folder. Reads the manifest only.

    Example:
        >>> open_bundle("head-neck-mini").manifest.modality  # doctest: +SKIP
        {'ct': 1}

    Raises:
        BundleError: Unknown name (with the nearest ones), not downloaded yet, or a manifest that does not fit.
    """
    return Bundle(find_bundle(name_or_folder))


def describe_bundle(name_or_folder: str | Path) -> Bundle:
    """Opens a bundle for its labels and limits, which are known before its weights are downloaded.

    Raises:
        BundleError: As `open_bundle`, but not for bundles of the catalogue that are not downloaded yet.
    """
    if isinstance(name_or_folder, str) and not Path(name_or_folder).is_dir():
        manifest, folder = downloadable().get(name_or_folder), installed_folder(name_or_folder)
        if manifest is not None and not (folder / MANIFEST_NAME).is_file():
            return Bundle(folder, manifest)
    return open_bundle(name_or_folder)


class Bundle:
    """A folder with ``bundle.json`` and weights. Nothing but the manifest is read until it is asked for.

    Args:
        folder: The bundle's folder.
        manifest: What is to be taken for its ``bundle.json``; ``None`` reads it.

    Attributes:
        folder: As given, resolved.
        manifest: What ``bundle.json`` says.
        reports: For each network loaded so far, which allowances its published checkpoint needed.

    Raises:
        BundleError: No manifest, or one that does not fit.
    """

    def __init__(self, folder: str | Path, manifest: Manifest | None = None) -> None:
        self.folder = Path(folder).resolve()
        self.manifest: Manifest = manifest or read_manifest(self.folder)
        self.reports: dict[str, weights.LoadReport] = {}
        self._sha256: dict[Path, tuple[tuple[int, int], str]] = {}

    def __repr__(self) -> str:
        return f"Bundle({self.name!r}, {str(self.folder)!r})"

    @property
    def name(self) -> str:
        """The bundle's name."""
        return self.manifest.name

    @functools.cached_property
    def labels(self) -> LabelTable:
        """Labels that this bundle knows.

        Raises:
            FileFormatError: The bundle's label table does not fit.
        """
        from MAISILib.anatomy.labels import LabelTable, default_table

        if self.manifest.labels is None:
            return default_table()
        return LabelTable.read(self.path(self.manifest.labels), base=default_table())

    @property
    def compression(self) -> int:
        """Image voxels per latent voxel along one axis."""
        return networks.compression_factor(self._definition("autoencoder", "num_channels"))

    @property
    def latent_channels(self) -> int:
        """Number of channels of a latent."""
        return int(self._definition("autoencoder", "latent_channels")["latent_channels"])

    @property
    def size_divisor(self) -> int:
        """What every axis of an image must be divisible by (voxels)."""
        return self.compression * networks.latent_divisor(self._definition("diffusion", "num_channels"))

    def entry(self, network: str) -> NetworkEntry:
        """The manifest's entry of a network.

        Raises:
            BundleError: This bundle has no such network.
        """
        entry = self.manifest.networks.get(cast(NetworkName, network))
        if entry is None:
            known = list(self.manifest.networks)
            raise BundleError(
                f"Bundle '{self.name}' has no {network} network; it has {', '.join(known)}."
                f"{did_you_mean(network, known)}"
            )
        return entry

    def path(self, relative: str) -> Path:
        """A file of the bundle, which may be missing; never one outside its folder, not even through a symbolic link.

        Raises:
            BundleError: The path leaves the bundle.
        """
        try:
            path = self.folder / check_relative_path(relative)
        except ValueError as error:
            raise BundleError(f"Bundle '{self.name}': the path {error}.") from None
        if not path.resolve().is_relative_to(self.folder):
            raise BundleError(f"Bundle '{self.name}': {relative!r} leads out of the bundle's folder through a link.")
        return path

    def quality_path(self) -> Path | None:
        """The table of median intensities: in the bundle, else in ``Resources``; None when the manifest names none.

        Raises:
            BundleError: The manifest names a table that is in neither place.
        """
        if self.manifest.quality is None:
            return None
        for path in (self.path(self.manifest.quality), resources_folder() / self.manifest.quality):
            if path.is_file():
                return path
        raise BundleError(f"Bundle '{self.name}': quality table {self.manifest.quality!r} is missing.")

    def load(self, network: str, device: str | torch.device = "cpu") -> nn.Module:
        """Builds a network and loads its weights, in float32 and evaluation mode, frozen.

        Weights are verified against the manifest's SHA-256, and checked key by key. A published ControlNet takes
        missing keys from the diffusion UNet; ``reports[network]`` says which.

        Args:
            network: ``autoencoder``, ``diffusion``, ``controlnet``, ``mask_autoencoder`` or ``mask_diffusion``.
            device: Where the network goes.

        Raises:
            BundleError: No such network, missing, damaged or tampered weights, or weights that do not fit.
        """
        entry = self.entry(network)
        module = networks.build_network(entry.definition, self._where(network), device="meta")
        state = self._fitted(network, module.state_dict())
        return weights.check_and_load(module, state, str(self.path(entry.weights))).to(device)

    def scale_factor(self) -> float:
        """What latents are multiplied by before diffusion: from the manifest, else from the diffusion checkpoint.

        Raises:
            BundleError: Neither has it.
        """
        if self.manifest.scale_factor is not None:
            return self.manifest.scale_factor
        scale = self._checkpoint("diffusion").scale_factor
        if scale is None:
            raise BundleError(
                f"Bundle '{self.name}': no scale factor, neither in {MANIFEST_NAME} nor in "
                f"{self.entry('diffusion').weights}. Add 'scale_factor' (1/std of the training latents) to it."
            )
        return scale

    def weights_sha256(self) -> dict[str, str]:
        """SHA-256 of each network's weights file as it is on disk now.

        Raises:
            BundleError: A file is missing.
        """
        return {name: self._file_sha256(self.path(entry.weights)) for name, entry in self.manifest.networks.items()}

    def verify(self) -> list[str]:
        """Checks everything: files, checksums, weights key by key, label and quality tables. Empty: all is well."""
        problems: list[str] = []
        for network in (name for name in NETWORK_NAMES if name in self.manifest.networks):
            problems += self.verify_network(network)
        checks: list[Any] = [self.quality_path]
        if not any("diffusion" in problem for problem in problems):
            checks.append(self.scale_factor)
        if self.manifest.labels is not None:
            checks.append(lambda: self.labels)
        for check in checks:
            try:
                check()
            except MaisiError as error:
                problems.append(str(error))
        if self.manifest.masks is not None and not self.path(self.manifest.masks.index).is_file():
            problems.append(
                f"Mask library {self.manifest.masks.index} is missing. Download or import the bundle again."
            )
        return problems

    def verify_network(self, network: str) -> list[str]:
        """What is wrong with one network's definition or weights; empty when it loads."""
        try:
            entry = self.entry(network)
            expected = networks.build_network(entry.definition, self._where(network), device="meta").state_dict()
            weights.check_weights(expected, self._fitted(network, expected), str(self.path(entry.weights)))
        except MaisiError as error:
            return [str(error)]
        return []

    def _fitted(self, network: str, expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        state = self._checkpoint(network).weights
        if self.entry(network).format != "torch":
            return state
        donor = None
        if network == "controlnet" and not expected.keys() <= state.keys():
            donor = self._checkpoint("diffusion").weights
        state, self.reports[network] = weights.fit_published(expected, state, donor)
        return state

    def check_file(self, network: str) -> Path:
        """The weights file of a network, after its SHA-256 was compared with the manifest; nothing is loaded.

        Raises:
            BundleError: The file is missing, or is not the one that the manifest describes.
        """
        entry = self.entry(network)
        path = self.path(entry.weights)
        if not path.is_file():
            raise BundleError(f"{path}: the weights are missing. Download or import the bundle again.")
        if entry.sha256 is not None and (actual := self._file_sha256(path)) != entry.sha256:
            raise BundleError(
                f"{path}: not the file that the manifest describes: SHA-256 is {actual}, expected {entry.sha256}. The "
                "weights were changed or damaged. Download or import the bundle again."
            )
        return path

    def _checkpoint(self, network: str) -> weights.Checkpoint:
        path, entry = self.check_file(network), self.entry(network)
        return weights.read_checkpoint(path, entry.format)

    def _file_sha256(self, path: Path) -> str:
        if not path.is_file():
            raise BundleError(f"{path}: the weights are missing. Download or import the bundle again.")
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns)
        if self._sha256.get(path, (None, ""))[0] != stamp:
            self._sha256[path] = (stamp, weights.sha256_of(path))
        return self._sha256[path][1]

    def _definition(self, network: str, argument: str) -> dict[str, Any]:
        definition = self.entry(network).definition
        if argument not in definition:
            raise BundleError(f"{self._where(network)}: '{argument}' is missing.")
        return definition

    def _where(self, network: str) -> str:
        return f"{self.folder / MANIFEST_NAME}: networks.{network}.definition"
