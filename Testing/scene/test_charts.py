"""The brightness of organs as a table and a chart that Slicer shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")

from MAISILib.errors import MaskError
from MAISILib.quality.hu_check import OrganCheck, QualityReport
from MAISILib.scene import show
from MAISILib.scene.charts import OrganRow, rows_of_provenance, show_hu_chart
from MAISILib.volumes import LabelMap, Volume

Make = Callable[..., Any]
RAS = np.diag([1.5, 1.5, 2.0, 1.0])
REPORT = QualityReport(
    (
        OrganCheck("liver", (1,), 4000, 61.5, -20.0, 170.0),
        OrganCheck("lung", (28, 29), 9000, -300.0, -980.0, -520.0),
        OrganCheck("bone", (127,), 700, float("nan"), 100.0, 1000.0),
        OrganCheck("aorta", (6,), 300, 10.0, 20.0, 400.0),
    )
)


def cells(table: Any) -> dict[str, list[str]]:
    columns = range(table.GetNumberOfColumns())
    return {
        table.GetColumnName(column): [table.GetCellText(row, column) for row in range(table.GetNumberOfRows())]
        for column in columns
    }


def test_what_was_checked_at_generation_is_shown_with_its_range(scene: Any, make_image: Make, make_mask: Make) -> None:
    provenance = {"quality": REPORT.to_dict()}
    nodes = show(scene, make_image(RAS), make_mask(RAS, [1, 28]), "case", provenance=provenance)
    made = show_hu_chart(scene, *nodes)
    shown = cells(made.table)
    assert shown["organ"] == ["liver", "lung", "aorta"]  # bone has no median
    assert shown["median HU"] == ["61.5", "-300", "10"]
    assert shown["expected to"] == ["170", "-520", "400"]
    assert shown["verdict"] == ["passed", "too bright", "too dark"]
    series = [made.chart.GetNthPlotSeriesNode(number) for number in range(3)]
    assert [each.GetYColumnName() for each in series] == ["median HU", "expected from", "expected to"]
    assert all(each.GetTableNode() is made.table for each in series)
    assert all(each.GetLabelColumnName() == "organ" for each in series)
    assert made.chart.GetYAxisTitle() == "HU"
    hierarchy = scene.GetSubjectHierarchyNode()
    places = {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) for node in (*nodes, *made)}
    assert len(places) == 1


def test_the_chart_is_made_once(scene: Any, make_image: Make) -> None:
    volume, _ = show(scene, make_image(RAS), None, "case", provenance={"quality": REPORT.to_dict()})
    first = show_hu_chart(scene, volume, None)
    before = scene.GetNumberOfNodes()
    assert show_hu_chart(scene, volume, None).chart is first.chart
    assert scene.GetNumberOfNodes() == before
    scene.RemoveNode(first.chart)  # by the user
    assert show_hu_chart(scene, volume, None).chart.GetScene() is scene


def test_an_image_without_a_check_is_measured_label_by_label(scene: Any, table: Any) -> None:
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[:4], labels[5:9], labels[9, 9, 0] = 1, 3, 14
    image = np.where(labels == 1, 60, np.where(labels == 3, 45, -1000)).astype(np.int16)
    image[0, 0, :5] = 3000  # a median does not mind
    nodes = show(scene, Volume(image, RAS), LabelMap(labels, RAS, table), "case")
    shown = cells(show_hu_chart(scene, *nodes).table)
    assert shown["organ"] == ["liver", "spleen"]  # one voxel says nothing
    assert shown["median HU"] == ["60", "45"]
    assert "verdict" not in shown


def test_an_image_that_was_not_checked_is_measured_against_the_table_of_its_bundle(scene: Any, table: Any) -> None:
    labels = np.full((10, 10, 10), 200, np.uint8)
    labels[:4] = 137  # mandible
    image = np.where(labels == 137, 600, 400).astype(np.int16)
    provenance = {"bundle": {"name": "head-neck-mini"}, "quality": None}
    nodes = show(scene, Volume(image, RAS), LabelMap(labels, RAS, table), "case", provenance=provenance)
    shown = cells(show_hu_chart(scene, *nodes).table)
    assert shown["organ"] == ["mandible", "soft tissue"]
    assert shown["verdict"] == ["passed", "too bright"]


def test_where_nothing_can_be_measured_that_is_told(scene: Any, make_image: Make) -> None:
    volume, _ = show(scene, make_image(RAS), None, "alone")
    with pytest.raises(MaskError, match="'alone' has no organs"):
        show_hu_chart(scene, volume, None)


@pytest.mark.parametrize("quality", [None, {}, {"organs": 3}, {"organs": [{}, 1]}])
def test_a_strange_provenance_gives_no_rows(quality: Any) -> None:
    assert rows_of_provenance({"quality": quality}) == []
    assert rows_of_provenance({}) == []


def test_the_ends_of_a_range_belong_to_it() -> None:
    assert OrganRow("liver", 50, -20.0, -20.0, 170.0).verdict == "passed"
    assert OrganRow("liver", 50, 170.0, -20.0, 170.0).verdict == "passed"
    assert OrganRow("liver", 50, 170.0).verdict == ""
