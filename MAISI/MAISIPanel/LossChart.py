"""The loss of a training as a table and a chart of the scene, brought up to date while it runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from MAISILib.scene.mrml import slicer, vtk

#: Marks the nodes of a chart with the name of its training, so that a saved scene brings them back.
JOB_ATTRIBUTE = "MAISI.Training"
_ROLE_ATTRIBUTE = "MAISI.TrainingRole"
#: Training losses are noisy from step to step: shown is their running mean over so many steps.
_SMOOTHED_OVER = 20
_VALIDATION = "validation"
_COLORS = {"loss": (0.55, 0.70, 0.90), "smoothed": (0.10, 0.35, 0.75), _VALIDATION: (0.85, 0.35, 0.10)}
_TITLES = {"loss": "each step", "smoothed": "mean of 20 steps", _VALIDATION: "held-out cases"}


class LossChart:
    """The chart of one training.

    Args:
        scene: A vtkMRMLScene.
        name: The training's name. Nodes that the scene already has for it are used again.

    Example:
        >>> chart = LossChart(slicer.mrmlScene, "my lesion")  # doctest: +SKIP
        >>> chart.add(events)  # doctest: +SKIP
        >>> chart.show()  # doctest: +SKIP
    """

    def __init__(self, scene: Any, name: str) -> None:
        self._scene, self._name = scene, name
        self._points: dict[str, dict[int, float]] = {"loss": {}, _VALIDATION: {}}

    def add(self, events: Iterable[Any]) -> bool:
        """Takes the losses out of new events; a step that comes again, after resuming, replaces the earlier one.

        Args:
            events: ``Event`` of a job, in their order; those without losses are passed over.

        Returns:
            Whether there was anything new, and the nodes were brought up to date.
        """
        changed = False
        for event in events:
            found = _lossOf(event)
            if found is not None:
                kind, value = found
                points = self._points[kind]
                while points and event.done <= next(reversed(points)):  # steps come in their order
                    points.popitem()
                points[event.done] = value
                changed = True
        if changed:
            self._update()
        return changed

    @property
    def chartNode(self) -> Any:
        """The vtkMRMLPlotChartNode; None before the first loss, or where it was deleted."""
        return self._find("chart")

    def show(self) -> None:
        """Shows the chart in a layout that has one; does nothing before the first loss, or without a main window."""
        chart = self.chartNode
        layouts = slicer.app.layoutManager() if hasattr(slicer, "app") else None
        if chart is None or layouts is None:
            return
        plots = getattr(slicer.modules, "plots", None)
        if plots is not None and plots.logic() is not None:
            plots.logic().ShowChartInLayout(chart)

    def _update(self) -> None:
        for kind in self._points:
            if self._points[kind]:
                self._fill(self._table(kind), kind)
        chart = self.chartNode or self._make("vtkMRMLPlotChartNode", "chart", f"{self._name} loss")
        chart.SetTitle(f"{self._name}: loss")
        chart.SetXAxisTitle("step")
        chart.SetYAxisTitle("loss")
        for kind, role in (("loss", "loss"), ("loss", "smoothed"), (_VALIDATION, _VALIDATION)):
            if self._points[kind]:
                series = self._series(kind, role)
                if not chart.HasPlotSeriesNodeID(series.GetID()):
                    chart.AddAndObservePlotSeriesNodeID(series.GetID())

    def _fill(self, node: Any, kind: str) -> None:
        """Puts the points into the table as a whole: a plot of columns of unequal length would be an error."""
        steps = list(self._points[kind])
        values = [self._points[kind][step] for step in steps]
        columns = {"step": steps, kind: values}
        if kind == "loss":
            columns["smoothed"] = _runningMean(values)
        table = vtk.vtkTable()
        for name, numbers in columns.items():
            array = vtk.vtkDoubleArray()
            array.SetName(name)
            array.SetNumberOfValues(len(numbers))
            for row, number in enumerate(numbers):
                array.SetValue(row, number)
            table.AddColumn(array)
        node.SetAndObserveTable(table)

    def _table(self, kind: str) -> Any:
        role = f"{kind} table"
        return self._find(role) or self._make("vtkMRMLTableNode", role, f"{self._name} {kind}")

    def _series(self, kind: str, role: str) -> Any:
        node = self._find(role)
        if node is None:
            node = self._make("vtkMRMLPlotSeriesNode", role, _TITLES[role])
            node.SetPlotType(node.PlotTypeScatter)
            node.SetXColumnName("step")
            node.SetYColumnName(role)
            node.SetColor(*_COLORS[role])
            isPoints = role == _VALIDATION
            node.SetMarkerStyle(node.MarkerStyleCircle if isPoints else node.MarkerStyleNone)
            node.SetLineWidth(1 if role == "loss" else 2)
        node.SetAndObserveTableNodeID(self._table(kind).GetID())
        return node

    def _find(self, role: str) -> Any:
        for className in ("vtkMRMLTableNode", "vtkMRMLPlotSeriesNode", "vtkMRMLPlotChartNode"):
            nodes = self._scene.GetNodesByClass(className)
            nodes.UnRegister(None)
            for number in range(nodes.GetNumberOfItems()):
                node = nodes.GetItemAsObject(number)
                if (node.GetAttribute(JOB_ATTRIBUTE), node.GetAttribute(_ROLE_ATTRIBUTE)) == (self._name, role):
                    return node
        return None

    def _make(self, className: str, role: str, name: str) -> Any:
        node = self._scene.CreateNodeByClass(className)
        node.UnRegister(None)
        node.SetName(name)
        node.SetAttribute(JOB_ATTRIBUTE, self._name)
        node.SetAttribute(_ROLE_ATTRIBUTE, role)
        return self._scene.AddNode(node)


def _lossOf(event: Any) -> tuple[str, float] | None:
    """Which curve an event belongs to, and its value; None where it tells no finite loss."""
    for name, value in event.metrics.items():
        if name.endswith("loss") and isinstance(value, (int, float)) and math.isfinite(value):
            return (_VALIDATION if event.stage == _VALIDATION else "loss"), float(value)
    return None


def _runningMean(values: list[float]) -> list[float]:
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [
        (sums[end] - sums[start]) / (end - start)
        for end in range(1, len(sums))
        for start in [max(0, end - _SMOOTHED_OVER)]
    ]
