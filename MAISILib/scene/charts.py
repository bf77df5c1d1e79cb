"""How bright each organ of an image is, against what is expected: a table node and a plot chart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from MAISILib.errors import BundleError, FileFormatError, MaskError
from MAISILib.quality.case_check import hu_of
from MAISILib.quality.hu_check import OrganRange, check_hu, read_ranges
from MAISILib.resources import resources_folder
from MAISILib.scene.geometry import array_of
from MAISILib.scene.label_tables import bundle_folders, read_manifest
from MAISILib.scene.mrml import slicer, vtk
from MAISILib.scene.nodes import CHART_REFERENCE, PROVENANCE_ATTRIBUTE, folder_of, put_into, table_of_segmentation
from MAISILib.scene.segments import read_mask
from MAISILib.volumes import LabelMap

#: A median of fewer voxels says little.
_MINIMUM_VOXELS = 10
_MEDIAN, _LOW, _HIGH = "median HU", "expected from", "expected to"
_BLUE, _GREY = (0.12, 0.47, 0.71), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class OrganRow:
    """One row: an organ or a group of them, its voxels, its median, and the expected range where one is known (HU)."""

    organ: str
    voxels: int
    median: float
    low: float | None = None
    high: float | None = None

    @property
    def verdict(self) -> str:
        """``passed``, ``too dark``, ``too bright``, or empty where nothing is expected."""
        if self.low is None or self.high is None:
            return ""
        return "too dark" if self.median < self.low else "too bright" if self.median > self.high else "passed"


class HuChart(NamedTuple):
    """The vtkMRMLTableNode and the vtkMRMLPlotChartNode."""

    table: Any
    chart: Any


def show_hu_chart(scene: Any, volume: Any, segmentation: Any) -> HuChart:
    """Adds the brightness of each organ to a scene, as a table and as a chart; once for each image.

    What was checked when the image was made stands in its provenance, with the expected ranges. Another image is
    measured by its segmentation: against the quality table of its bundle where that is known, else label by label.

    Args:
        scene: A vtkMRMLScene.
        volume: Volume node of an image.
        segmentation: Its segmentation node; may be None where the provenance has the figures.

    Raises:
        MaskError: There is nothing to measure.
    """
    made = [volume.GetNthNodeReference(CHART_REFERENCE, number) for number in range(2)]
    if all(node is not None for node in made):
        return HuChart(*made)
    provenance = json.loads(volume.GetAttribute(PROVENANCE_ATTRIBUTE) or "{}")
    rows = rows_of_provenance(provenance)
    if not rows and segmentation is not None:
        mask = read_mask(segmentation, table_of_segmentation(segmentation, provenance), volume)
        rows = measured_rows(volume, mask, expected_ranges(provenance))
    if not rows:
        raise MaskError(f"'{volume.GetName()}' has no organs to measure.")
    table = _table(scene, rows, f"{volume.GetName()} HU table")
    chart, series = _chart(scene, rows, table, f"{volume.GetName()} HU")
    folder = folder_of(scene, volume)
    for node in (table, chart, *series):
        volume.AddNodeReferenceID(CHART_REFERENCE, node.GetID())
        put_into(scene, folder, node)
    return HuChart(table, chart)


def rows_of_provenance(provenance: Mapping[str, Any]) -> list[OrganRow]:
    """The organs that were checked when a sample was made; empty where none were."""
    rows = []
    for organ in hu_of(provenance.get("quality")):
        try:
            if organ["median_hu"] is not None:
                figures = (float(organ[name]) for name in ("median_hu", "low", "high"))
                rows.append(OrganRow(str(organ["organ"]), int(organ["voxels"]), *figures))
        except (KeyError, TypeError, ValueError):
            continue
    return rows


def expected_ranges(provenance: Mapping[str, Any]) -> list[OrganRange]:
    """The quality table of the bundle that made an image; empty where it is not there, or the images are not in HU."""
    for folder in bundle_folders(provenance):
        with suppress(BundleError, FileFormatError, OSError):
            name = read_manifest(folder).get("quality")
            places = [place / str(name) for place in (folder, resources_folder())] if name else []
            return next((read_ranges(path) for path in places if path.is_file()), [])
    return []


def measured_rows(volume: Any, mask: LabelMap, ranges: Sequence[OrganRange] = ()) -> list[OrganRow]:
    """The medians of the organs of a quality table, or of each label where there is none.

    Args:
        volume: Volume node.
        mask: What it shows, on its grid.
        ranges: The quality table.
    """
    image = array_of(volume.GetImageData())
    if ranges:
        checked = check_hu(image, mask.array, ranges).organs
        return [OrganRow(each.organ, each.voxels, each.median_hu, each.low, each.high) for each in checked]
    rows = []
    for value in mask.labels:
        inside = image[mask.array == value]
        if inside.size >= _MINIMUM_VOXELS:
            name = mask.table[value].name if value in mask.table else f"label {value}"
            rows.append(OrganRow(name, int(inside.size), float(np.median(inside))))
    return rows


def _table(scene: Any, rows: Sequence[OrganRow], name: str) -> Any:
    columns: list[tuple[str, Any, list[Any]]] = [
        ("organ", vtk.vtkStringArray, [row.organ for row in rows]),
        ("number", vtk.vtkDoubleArray, list(range(1, len(rows) + 1))),
        ("voxels", vtk.vtkDoubleArray, [row.voxels for row in rows]),
        (_MEDIAN, vtk.vtkDoubleArray, [row.median for row in rows]),
    ]
    if any(row.low is not None for row in rows):
        columns += [
            (_LOW, vtk.vtkDoubleArray, [row.low for row in rows]),
            (_HIGH, vtk.vtkDoubleArray, [row.high for row in rows]),
            ("verdict", vtk.vtkStringArray, [row.verdict for row in rows]),
        ]
    node = slicer.vtkMRMLTableNode()
    node.SetName(name)
    for title, kind, values in columns:
        array = kind()
        array.SetName(title)
        for value in values:
            array.InsertNextValue(float("nan") if value is None else value)
        node.AddColumn(array)
    return scene.AddNode(node)


def _chart(scene: Any, rows: Sequence[OrganRow], table: Any, name: str) -> tuple[Any, list[Any]]:
    """The chart and its series: markers above one another for each organ, in the order of the table."""
    wanted = [(_MEDIAN, _BLUE, slicer.vtkMRMLPlotSeriesNode.MarkerStyleCircle)]
    if any(row.low is not None for row in rows):
        dash = slicer.vtkMRMLPlotSeriesNode.MarkerStyleCross
        wanted += [(_LOW, _GREY, dash), (_HIGH, _GREY, dash)]
    chart = slicer.vtkMRMLPlotChartNode()
    chart.SetName(name)
    chart.SetTitle(name)
    chart.SetXAxisTitle("organ (number in the table)")
    chart.SetYAxisTitle("HU")
    chart = scene.AddNode(chart)
    series = []
    for column, color, marker in wanted:
        node = slicer.vtkMRMLPlotSeriesNode()
        node.SetName(column)
        node.SetAndObserveTableNodeID(table.GetID())
        node.SetXColumnName("number")
        node.SetYColumnName(column)
        node.SetLabelColumnName("organ")
        node.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
        node.SetLineStyle(slicer.vtkMRMLPlotSeriesNode.LineStyleNone)
        node.SetMarkerStyle(marker)
        node.SetMarkerSize(9)
        node.SetColor(*color)
        node = scene.AddNode(node)
        chart.AddAndObservePlotSeriesNodeID(node.GetID())
        series.append(node)
    return chart, series
