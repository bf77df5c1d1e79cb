"""Volumes and segmentations as a user has them in the scene, and an engine that knows their labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from MAISILib.volumes import LabelMap
from Testing.MAISI.scripted_client import ScriptedClient
from Testing.training.users_cases import LESION, patient


def draw_case(scene: Any, name: str = "Anna", *, segment: str = "Segment_1", organs: bool = True) -> tuple[Any, Any]:
    """A CT, and a segmentation with its organs in which a lesion was painted as one more segment."""
    from MAISILib.scene import show

    ct, mask = patient()
    labels = np.where(mask.array == LESION, 1, mask.array) if organs else np.zeros_like(mask.array)
    volume, segmentation = show(scene, ct, LabelMap(labels, mask.affine, mask.table), name)
    paint(segmentation, segment, mask.array == LESION, mask.affine)
    return volume, segmentation


def paint(node: Any, name: str, voxels: np.ndarray, affine: np.ndarray) -> str:
    """Adds a segment with its own voxels, as the Segment Editor does where segments may overlap."""
    import slicer

    from MAISILib.scene.geometry import fill_image, matrix_of

    image = slicer.vtkOrientedImageData()  # pyright: ignore[reportAttributeAccessIssue]
    fill_image(image, voxels.astype(np.uint8))
    image.SetImageToWorldMatrix(matrix_of(affine))
    segment = slicer.vtkSegment()  # pyright: ignore[reportAttributeAccessIssue]
    segment.SetName(name)
    binary = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()  # pyright: ignore
    segment.AddRepresentation(binary, image)
    segment.SetLabelValue(1)
    segmentId = f"painted_{name}"
    node.GetSegmentation().AddSegment(segment, segmentId)
    return segmentId


def engine(labels: tuple[str, ...] = ("body", "liver", "left lung upper lobe")) -> ScriptedClient:
    """An engine whose model knows some labels."""

    def describe(fields: dict[str, Any]) -> dict[str, Any]:
        return {"name": fields["bundle"], "labels": [{"value": v, "name": n} for v, n in enumerate(labels, 1)]}

    def map_segments(fields: dict[str, Any]) -> dict[str, Any]:
        from MAISILib.errors import RequestError

        new = [text.partition(":")[0].partition("=")[0] for text in fields["new_labels"]]
        rows = []
        for segment in (segment["name"] for segment in fields["segments"]):
            wish = fields["edits"].get(segment)
            known = next((name for name in (*new, *labels) if name == (wish or segment)), None)
            how = "ignored" if wish == "ignore" else "unknown" if known is None else "new" if known in new else "exact"
            if wish not in (None, "ignore", known):
                raise RequestError(f"no label {wish}")
            rows.append({"segment": segment, "label": known, "value": 1, "how": how, "advice": "", "file": None})
        return {"mapping": rows, "notes": []}

    def estimate(fields: dict[str, Any]) -> dict[str, Any]:
        steps = {"quick": 40, "normal": 150, "long": 600}[fields["duration"]]
        return {"steps": steps, "seconds": 2.0 * steps}

    def failing(work: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], Any]:
        def answer(fields: dict[str, Any]) -> Any:
            try:
                return work(fields)
            except Exception as error:
                return error

        return answer

    client = ScriptedClient()
    client.answers.update(describe=describe, map_segments=failing(map_segments), finetune_estimate=estimate)
    return client
