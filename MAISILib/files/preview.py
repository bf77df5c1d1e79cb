"""A picture of a sample: three planes through its anatomy, without and with the mask, and a legend.

Planes are drawn as radiologists look at them: the patient's right on the left of axial and coronal planes, anterior at
the top of the axial plane and on the left of the sagittal one, superior at the top.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MAISILib.files.atomic import atomic_path
from MAISILib.resampling import resample_labels, to_canonical
from MAISILib.volumes import Grid, LabelMap, Volume

if TYPE_CHECKING:
    from MAISILib.anatomy.labels import Label, LabelTable

#: Soft tissue, in HU; the whole range with bone and air is (−500, 900) or so.
SOFT_TISSUE = (-160.0, 240.0)
NOTICE = "SYNTHETIC – not a patient"

_WIDTH, _MARGIN, _GAP = 1200, 20, 12
_MAX_PANEL_HEIGHT = 520
_BACKGROUND, _TEXT, _FAINT, _AMBER = (17, 19, 22), (232, 234, 237), (140, 146, 154), (255, 179, 64)
#: Plane → the axis that it cuts, the axes across and down the picture, the letters at its left, right, top and bottom.
#: Voxels run along R+, A+, S+ here; every picture axis runs against its voxel axis.
_PLANES = {"Axial": (2, 0, 1, "RLAP"), "Coronal": (1, 0, 2, "RLSI"), "Sagittal": (0, 1, 2, "APSI")}
_FILL = 0.42
#: Signs that Pillow's own font lacks.
_PLAIN_SIGNS = str.maketrans({"–": "-", "—": "-", "−": "-", "×": "x", "…": "..."})


def write_preview(
    path: Path | str,
    image: Volume | None,
    mask: LabelMap | None = None,
    title: str = "",
    window: tuple[float, float] | None = None,
    focus: Collection[int] = (),
    notice: str = NOTICE,
) -> None:
    """Writes the preview of a sample as PNG, 1200 pixels wide.

    Args:
        path: ``.png``; missing folders are made.
        image: The image, on any grid; oblique grids are shown along their own axes. ``None`` shows the mask alone.
        mask: Its label map, on the same or another grid; without one there is one row and no legend.
        title: First line of the picture.
        window: Lowest and highest value shown; None for soft tissue (CT) or the 1st–99.5th percentile (MR).
        focus: Labels that the planes go through, where the mask has them; else they go through the organs' middle.
        notice: Stands at the top right; empty for what is not synthetic.

    Raises:
        OutputError: The file cannot be written.
    """
    picture = draw_preview(image, mask, title, window, focus, notice)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def draw_preview(
    image: Volume | None,
    mask: LabelMap | None = None,
    title: str = "",
    window: tuple[float, float] | None = None,
    focus: Collection[int] = (),
    notice: str = NOTICE,
) -> Any:
    """The preview as a PIL image; see `write_preview`."""
    from PIL import Image, ImageDraw

    alone = image is None
    if image is None:
        if mask is None:
            raise ValueError("a preview needs an image or a mask")
        image = Volume(mask.array, mask.affine, "label numbers")
        window = (0.0, 1e4)  # dark: only the labels shall be seen
    values, affine = to_canonical(image.array, image.affine)
    labels = None
    if mask is not None:
        grid = Grid(values.shape, affine)  # type: ignore[arg-type]
        labels = resample_labels(LabelMap(*to_canonical(mask.array, mask.affine), mask.table), grid).array
    values, labels, grid = _cropped(values, labels, affine)
    low, high = window or _automatic_window(image)
    center = _center_of(labels, focus) or _center(values, labels, mask)
    sizes = _panel_sizes(grid)
    row_height = max(height for _, height in sizes.values())
    legend = _Legend(mask.table, mask.labels) if mask is not None else None
    rows = 1 if mask is None or alone else 2
    top = _MARGIN + 56
    height = top + rows * (row_height + _GAP) + (legend.height if legend else 0) + _MARGIN

    picture = Image.new("RGB", (_WIDTH, height), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, _MARGIN), shortened(title, 80), fill=_TEXT, font=_font(22))
    draw.text((_WIDTH - _MARGIN, _MARGIN), shortened(notice, 80), fill=_AMBER, font=_font(22), anchor="ra")
    left = (_WIDTH - sum(width for width, _ in sizes.values()) - 2 * _GAP) // 2
    for name, (cut, *_) in _PLANES.items():
        size = sizes[name]
        grey = _grey(_plane(values, name, center[cut]), low, high, size)
        position = f"{'RAS'[cut]} {_millimetres(grid, cut, center[cut]):+.0f} mm"
        panels = [Image.fromarray(grey).convert("RGB")]
        if mask is not None and labels is not None:
            panels.append(Image.fromarray(_overlay(grey, _plane(labels, name, center[cut]), mask.table, size)))
        for row, panel in enumerate(panels[-rows:]):
            corner = (left, top + row * (row_height + _GAP) + (row_height - size[1]) // 2)
            picture.paste(panel, corner)
            _annotate(draw, corner, size, (name, position) if row == 0 else ("", ""), _PLANES[name][3])
        left += size[0] + _GAP
    if legend:
        legend.draw(draw, top + rows * (row_height + _GAP))
    unit = " HU" if image.units == "HU" else ""
    facts = f"{' x '.join(map(str, image.array.shape))} voxels · {' x '.join(f'{s:.3g}' for s in image.spacing)} mm"
    shown = "" if alone else f" · window {low:.0f} to {high:.0f}{unit}"
    draw.text((_MARGIN, _MARGIN + 29), f"{facts}{shown}", fill=_FAINT, font=_font(13))
    return picture


class _Legend:
    """Names and colours of the labels present, in as many columns as fit."""

    _LINE, _COLUMN = 22, 232

    def __init__(self, table: LabelTable, values: list[int]) -> None:
        self._labels = [_label(value, table) for value in values]
        self._columns = (_WIDTH - 2 * _MARGIN) // self._COLUMN
        self._lines = -(-len(self._labels) // self._columns)
        self.height = self._lines * self._LINE + 6 if self._labels else 0

    def draw(self, draw: Any, top: int) -> None:
        for number, (name, color) in enumerate(self._labels):
            column, line = divmod(number, self._lines)
            x, y = _MARGIN + column * self._COLUMN, top + 6 + line * self._LINE
            draw.rounded_rectangle((x, y + 2, x + 13, y + 15), 3, fill=color)
            draw.text((x + 21, y + 9), shortened(name, 30), fill=_TEXT, font=_font(14), anchor="lm")


def _label(value: int, table: LabelTable) -> tuple[str, tuple[int, int, int]]:
    if value in table:
        label: Label = table[value]
        return label.name, label.color
    return f"label {value}", (160, 160, 160)


def _automatic_window(image: Volume) -> tuple[float, float]:
    if image.units == "HU":
        return SOFT_TISSUE
    low, high = np.percentile(image.array, (1, 99.5))
    return float(low), float(max(high, low + 1e-6))


def _center_of(labels: np.ndarray | None, focus: Collection[int]) -> tuple[int, ...] | None:
    """Voxel on the planes that show most of these labels; None where there are none of them."""
    shown = np.isin(labels, [*focus]) if labels is not None else np.zeros(0, bool)
    if not shown.any():
        return None
    return tuple(int(shown.sum(axis=tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3))


def _center(values: np.ndarray, labels: np.ndarray | None, mask: LabelMap | None) -> tuple[int, ...]:
    """Voxel that the planes go through: the organs' centre of gravity, else that of what is bright, else the middle."""
    shown = np.zeros(0, bool)
    if labels is not None and mask is not None:
        shown = (labels > 0) & (labels != mask.table.BODY)
        shown = shown if shown.any() else labels > 0
    if not shown.any():
        shown = values > (values.min() / 2 + values.max() / 2)
    if not shown.any():
        return tuple(n // 2 for n in values.shape)
    # Of each axis on its own: no list of all voxels, which a large mask would make huge.
    counts = [shown.sum(axis=tuple({0, 1, 2} - {axis}), dtype=np.int64) for axis in range(3)]
    return tuple(round(float(count @ np.arange(count.size)) / int(count.sum())) for count in counts)


def _cropped(
    values: np.ndarray, labels: np.ndarray | None, affine: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, Grid]:
    """Image and labels without the empty surroundings, but for a margin of a twentieth on each side, and their grid."""
    shown = labels > 0 if labels is not None else values > values.min() + 0.15 * (float(values.max()) - values.min())
    box, start = [], np.eye(4)
    for axis, n in enumerate(values.shape):
        filled = np.flatnonzero(shown.any(axis=tuple({0, 1, 2} - {axis})))
        first, last = (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, n)
        margin = max(1, (last - first) // 20)
        box.append(slice(max(0, first - margin), min(n, last + margin)))
        start[axis, 3] = box[axis].start
    cropped = values[tuple(box)]
    return cropped, None if labels is None else labels[tuple(box)], Grid(cropped.shape, affine @ start)


def _panel_sizes(grid: Grid) -> dict[str, tuple[int, int]]:
    """Width and height of each panel in pixels, with one scale for all of them."""
    extent = grid.field_of_view
    across = sum(extent[x] for _, x, _, _ in _PLANES.values())
    tallest = max(extent[y] for _, _, y, _ in _PLANES.values())
    scale = min((_WIDTH - 2 * _MARGIN - 2 * _GAP) / across, _MAX_PANEL_HEIGHT / tallest)
    return {
        name: (max(1, int(extent[x] * scale)), max(1, int(extent[y] * scale))) for name, (_, x, y, _) in _PLANES.items()
    }


def _plane(array: np.ndarray, name: str, index: int) -> np.ndarray:
    """One plane, ``(rows, columns)``, as seen: every axis runs against its voxels (L, P and I at the far end)."""
    return np.ascontiguousarray(np.take(array, index, axis=_PLANES[name][0]).T[::-1, ::-1])


def _millimetres(grid: Grid, axis: int, index: int) -> float:
    """Where a plane lies along R, A or S."""
    middle = (np.asarray(grid.shape) - 1) / 2
    middle[axis] = index
    return float((grid.affine @ np.append(middle, 1.0))[axis])


def _grey(plane: np.ndarray, low: float, high: float, size: tuple[int, int]) -> np.ndarray:
    """The plane through the window, resized, uint8."""
    from PIL import Image

    resized = Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    return ((np.asarray(resized) - low) / (high - low) * 255).clip(0, 255).astype(np.uint8)


def _overlay(grey: np.ndarray, plane: np.ndarray, table: LabelTable, size: tuple[int, int]) -> np.ndarray:
    """The plane with its labels in colour: a tint, and a full line at each border. The body has a line only."""
    labels = _enlarged(plane, size)
    colors, strengths = np.zeros((256, 3), np.float32), np.zeros(256, np.float32)
    for value in np.unique(labels[labels > 0]):
        colors[value] = _label(int(value), table)[1]
        strengths[value] = 0.0 if value == table.BODY else _FILL
    strength = np.where(_borders(labels), np.where(labels > 0, 0.95, 0.0), strengths[labels])[..., None]
    return (grey[..., None] * (1 - strength) + colors[labels] * strength).round().astype(np.uint8)


def _enlarged(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels at picture size with smooth outlines: at each pixel the label that weighs most after linear resizing."""
    from PIL import Image

    best, result = np.zeros(size[::-1], np.float32), np.zeros(size[::-1], np.uint8)
    for value in np.unique(plane):
        single = Image.fromarray((plane == value).astype(np.float32))
        weight = np.asarray(single.resize(size, Image.Resampling.BILINEAR))
        result[weight > best] = value
        best = np.maximum(best, weight)
    return result


def _borders(labels: np.ndarray) -> np.ndarray:
    """Pixels whose label differs from that of a neighbour and is not background."""
    padded = np.pad(labels, 1, mode="edge")
    middle = padded[1:-1, 1:-1]
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.any([middle != other for other in around], axis=0) & (middle > 0)


def _annotate(
    draw: Any, corner: tuple[int, int], size: tuple[int, int], caption: tuple[str, str], letters: str
) -> None:
    """Writes the plane's name and place, and the patient's directions, on a panel."""
    (x, y), (width, height) = corner, size
    edge = {"fill": _TEXT, "font": _font(14), "stroke_width": 2, "stroke_fill": (0, 0, 0)}
    left, right, top, bottom = letters
    draw.text((x + 7, y + height / 2), left, anchor="lm", **edge)
    draw.text((x + width - 7, y + height / 2), right, anchor="rm", **edge)
    draw.text((x + width / 2, y + 6), top, anchor="mt", **edge)
    draw.text((x + width / 2, y + height - 6), bottom, anchor="mb", **edge)
    draw.text((x + 7, y + 6), caption[0], anchor="lt", **edge)
    draw.text((x + width - 7, y + 6), caption[1], anchor="rt", **{**edge, "fill": _FAINT, "font": _font(13)})


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def shortened(text: str, length: int) -> str:
    """The text, or its beginning with dots where it has more letters."""
    text = text.translate(_PLAIN_SIGNS)
    return text if len(text) <= length else text[: length - 3] + "..."
