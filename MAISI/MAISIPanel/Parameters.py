"""What the user has set in the *Generate* section, and where the scene keeps it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

MODULE_NAME = "MAISI"
#: Where the masks come from. ``file`` is a segmentation of the scene, which the engine gets as a file.
MASK_SOURCES = ("library", "generated", "file", "none")

_PARAMETERS = "Parameters"
_SEGMENTATION = "Segmentation"
_REFERENCE = "ReferenceVolume"
_LARGEST_SEED = 2**63 - 1


@dataclass
class GenerateParameters:
    """One setting of the *Generate* section. Nothing here knows a bundle: the engine judges whether it fits one.

    Args:
        bundle: Name in the catalogue, or a folder.
        maskSource: One of `MASK_SOURCES`.
        anatomies: Names that the mask must hold.
        controllableSizes: Anatomy → size 0–1 (percentile) or −1 (absent), for generated masks.
        vary: Whether to make another patient of each mask of the library.
        lesion: Name of a lesion to put into each mask of the library; empty for none.
        lesionDiameter: Of a sphere of its volume, in mm.
        lesionHost: Name of what it lies in; empty for its usual host.
        regions: Body regions that a library mask must reach over.
        modality: Name in the bundle's modality table; empty for the bundle's own.
        size: Voxels along R, A, S; None for the bundle's recommendation.
        spacing: Voxel size in mm along R, A, S; None for the bundle's recommendation.
        steps: Solver steps; None for the bundle's recommendation.
        solver: Name of a solver; empty for the bundle's own.
        guidance: Guidance scale 0–20; 0 is off.
        seed: Of the whole request.
        count: Number of samples.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        segmentationNodeID: Segmentation node to generate an image for, with source ``file``.
        referenceVolumeID: Volume node on whose grid that image shall be; empty for the segmentation's own geometry.
    """

    bundle: str = "head-neck-mini"
    maskSource: str = "library"
    anatomies: list[str] = field(default_factory=list)
    controllableSizes: dict[str, float] = field(default_factory=dict)
    vary: bool = False
    lesion: str = ""
    lesionDiameter: float = 20.0
    lesionHost: str = ""
    regions: list[str] = field(default_factory=list)
    modality: str = ""
    size: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    steps: int | None = None
    solver: str = ""
    guidance: float = 0.0
    seed: int = 0
    count: int = 1
    device: str = "auto"
    segmentationNodeID: str = ""
    referenceVolumeID: str = ""

    def isValid(self) -> tuple[bool, str]:
        """Whether a request can be made of it, and if not, what to change."""
        for isWrong, reason in (
            (not self.bundle, "Choose a model first."),
            (self.maskSource not in MASK_SOURCES, f"The source of the mask is one of {', '.join(MASK_SOURCES)}."),
            (
                self.maskSource == "file" and not self.segmentationNodeID,
                "Choose the segmentation that the image is for.",
            ),
            (not 1 <= self.count <= 100_000, f"The number of samples is 1 to 100000, not {self.count}."),
            (not 0 <= self.seed <= _LARGEST_SEED, f"The seed is a whole number from 0 to 2^63 − 1, not {self.seed}."),
            (not 0 <= self.guidance <= 20, f"The guidance scale is 0 to 20, not {self.guidance:g}."),
            (self.steps is not None and self.steps < 1, f"At least one step is needed, not {self.steps}."),
            (self.size is not None and min(self.size) < 1, f"Each size is at least one voxel; got {self.size}."),
            (
                self.spacing is not None and not all(0 < each < math.inf for each in self.spacing),
                f"Voxels are larger than 0 mm; got {self.spacing}.",
            ),
            (not 0 < self.lesionDiameter < 1000, f"A lesion is larger than 0 mm, not {self.lesionDiameter:g} mm."),
        ):
            if isWrong:
                return False, reason
        for name, percentile in self.controllableSizes.items():
            if percentile != -1 and not 0 <= percentile <= 1:
                return False, f"The size of {name} is 0 to 1, or −1 for absent, not {percentile:g}."
        return True, ""

    def toRequest(self) -> dict[str, Any]:
        """The fields of the engine's ``GenerateRequest``, without those that are left to the bundle.

        For source ``file`` those that say where the segmentation was written are added by `MAISIPanel.MaskFiles`.
        """
        isLibrary, isGenerated = self.maskSource == "library", self.maskSource == "generated"
        lesion = {"lesion": self.lesion, "diameter": self.lesionDiameter, "host": self.lesionHost or None}
        request: dict[str, Any] = {
            "mask": self.maskSource,
            # The seed of the request tells the patients apart.
            "vary": 0 if self.vary and isLibrary else None,
            "insert_lesion": lesion if self.lesion and isLibrary else None,
            "anatomy": self.anatomies if isLibrary or isGenerated else [],
            "controllable_anatomy_size": self.controllableSizes if isGenerated else {},
            "body_region": self.regions,
            "modality": self.modality,
            "output_size": list(self.size) if self.size and self.maskSource != "file" else None,
            "spacing": list(self.spacing) if self.spacing else None,
            "steps": self.steps,
            "solver": self.solver,
        }
        request = {name: value for name, value in request.items() if value not in (None, "", [], {})}
        return {**request, "guidance_scale": self.guidance, "seed": self.seed, "count": self.count}

    def toJson(self) -> str:
        """As JSON text, which `fromJson` reads back."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def fromJson(cls, text: str) -> GenerateParameters:
        """Reads what `toJson` wrote, also in another version: what is unknown or of another type is left out."""
        try:
            stored = json.loads(text)
        except (ValueError, RecursionError):
            stored = None
        parameters = cls()
        if not isinstance(stored, dict):
            return parameters
        for each in fields(cls):
            if each.name in stored and (value := _fitting(each.name, stored[each.name])) is not _MISFIT:
                setattr(parameters, each.name, value)
        return parameters


_MISFIT = object()


def _fitting(name: str, value: Any) -> Any:
    """A stored value as the field's type, or `_MISFIT`."""
    isNumber = type(value) in (int, float)
    if name in ("size", "spacing"):
        kind: type = int if name == "size" else float
        isTriple = isinstance(value, list) and len(value) == 3 and all(type(v) in (int, float) for v in value)
        return None if value is None else tuple(kind(v) for v in value) if isTriple else _MISFIT
    if name in ("anatomies", "regions"):
        return [str(v) for v in value] if isinstance(value, list) else _MISFIT
    if name == "controllableSizes":
        isTable = isinstance(value, dict) and all(type(v) in (int, float) for v in value.values())
        return {str(k): float(v) for k, v in value.items()} if isTable else _MISFIT
    if name in ("seed", "count"):
        return int(value) if isNumber else _MISFIT
    if name == "steps":
        return None if value is None else int(value) if isNumber else _MISFIT
    if name in ("guidance", "lesionDiameter"):
        return float(value) if isNumber else _MISFIT
    if name == "vary":
        return value if isinstance(value, bool) else _MISFIT
    return value if isinstance(value, str) else _MISFIT


class ParameterNode:
    """Keeps the parameters in the scene, so that they are saved with it and come back with it.

    The node is looked up at each use: closing the scene removes it, and opening another brings another.

    Args:
        scene: A vtkMRMLScene.
    """

    def __init__(self, scene: Any) -> None:
        self._scene = scene

    @property
    def node(self) -> Any:
        """The module's vtkMRMLScriptedModuleNode, made where the scene has none."""
        import slicer

        node = self._scene.GetSingletonNode(MODULE_NAME, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.vtkMRMLScriptedModuleNode()
            node.SetSingletonTag(MODULE_NAME)
            node.SetModuleName(MODULE_NAME)
            node.SetName(MODULE_NAME)
            node.SetHideFromEditors(True)
            node = self._scene.AddNode(node)
        return node

    def get(self) -> GenerateParameters:
        """The parameters that the scene holds; the defaults where it holds none."""
        node = self.node
        parameters = GenerateParameters.fromJson(node.GetParameter(_PARAMETERS) or "{}")
        # References, not ids in text: Slicer renames them when a scene is added to another.
        parameters.segmentationNodeID = _idOf(node, _SEGMENTATION)
        parameters.referenceVolumeID = _idOf(node, _REFERENCE)
        return parameters

    def set(self, parameters: GenerateParameters) -> None:
        """Puts the parameters into the scene."""
        node = self.node
        wasModified = node.StartModify()
        node.SetParameter(_PARAMETERS, parameters.toJson())
        node.SetNodeReferenceID(_SEGMENTATION, parameters.segmentationNodeID or None)
        node.SetNodeReferenceID(_REFERENCE, parameters.referenceVolumeID or None)
        node.EndModify(wasModified)


def _idOf(node: Any, role: str) -> str:
    referenced = node.GetNodeReference(role)
    return referenced.GetID() if referenced is not None else ""
