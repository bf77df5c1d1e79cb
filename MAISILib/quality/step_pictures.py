"""Images of one mask side by side: a real one, and those that were made in several ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from MAISILib.files.preview import SOFT_TISSUE, shortened
from MAISILib.resampling import resample_volume, to_canonical
from MAISILib.volumes import Volume

_COLUMN, _GAP, _HEADER, _PER_ROW = 300, 8, 26, 4
#: Of a title.
_LETTERS = 36
_BACKGROUND, _TEXT = (17, 19, 22), (232, 234, 237)
#: Outside of an image, as air.
_AIR = -1000.0


def compare_images(images: Mapping[str, Volume]) -> Any:
    """A PIL image: for each image an axial and a coronal plane in the soft-tissue window, under its title.

    Args:
        images: Title → CT, at one place in space. The first one's grid is the grid of all; planes go through the middle
            of what is brighter than −300 HU in it. The patient's right is on the left.
    """
    from PIL import Image, ImageDraw, ImageFont

    first = next(iter(images.values()))
    first = Volume(*to_canonical(first.array, first.affine), first.units)
    body = first.array > -300
    counts = [body.sum(axis=tuple({0, 1, 2} - {axis}), dtype=np.int64) for axis in range(3)]
    middle = [round(float(count @ np.arange(count.size)) / max(1, int(count.sum()))) for count in counts]
    extent = first.grid.field_of_view
    scale = _COLUMN / extent[0]
    heights = {2: round(extent[1] * scale), 1: round(extent[2] * scale)}  # axis that is cut → pixels
    tile = _HEADER + sum(heights.values()) + 2 * _GAP
    columns = min(len(images), _PER_ROW)
    rows = -(-len(images) // columns)
    picture = Image.new("RGB", (columns * (_COLUMN + _GAP) + _GAP, rows * tile + _GAP), _BACKGROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=16)
    low, high = SOFT_TISSUE
    for number, (title, image) in enumerate(images.items()):
        x, y = _GAP + number % columns * (_COLUMN + _GAP), _GAP + number // columns * tile
        draw.text((x, y), shortened(title, _LETTERS), fill=_TEXT, font=font)
        y += _HEADER
        values = resample_volume(image, first.grid, fill=_AIR).array
        for cut, height in heights.items():
            plane = np.take(values, middle[cut], axis=cut).T[::-1, ::-1]
            grey = ((plane - low) / (high - low)).clip(0, 1) * 255
            shown = Image.fromarray(np.ascontiguousarray(grey.astype(np.uint8))).resize(
                (_COLUMN, height), Image.Resampling.BILINEAR
            )
            picture.paste(shown, (x, y))
            y += height + _GAP
    return picture
