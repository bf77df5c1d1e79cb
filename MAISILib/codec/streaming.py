"""Computes layers tile by tile, with the GroupNorm statistics of the whole volume."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from MAISILib.codec.activations import Activation
from MAISILib.codec.convolutions import Moments, add_residual, convolved
from MAISILib.codec.layers import Box, Layer
from MAISILib.codec.strategies import Segment, Strategy, Walk


def stream(
    layers: Sequence[Layer],
    volume: torch.Tensor,
    strategy: Strategy,
    *,
    on_tile: Callable[[int, int], None] = lambda done, total: None,
) -> torch.Tensor:
    """The output of ``layers`` for a volume, equal for every strategy but for float rounding.

    Args:
        layers: Of an encoder or a decoder.
        volume: ``(1, C, X, Y, Z)`` float32, on the device that computes.
        strategy: The way.
        on_tile: Called with (tiles done, tiles in all); may raise to stop.

    Returns:
        ``(1, C, X, Y, Z)`` float32 on the same device.
    """
    with tempfile.TemporaryDirectory(prefix="maisi-", ignore_cleanup_errors=True) as folder:
        return _Stream(Walk(layers, volume.shape[2:], strategy), volume, Path(folder), on_tile).result()


class _Stream:
    def __init__(self, walk: Walk, volume: torch.Tensor, folder: Path, on_tile: Callable[[int, int], None]) -> None:
        self._walk, self._layers, self._device = walk, walk.layers, volume.device
        self._folder, self._on_tile = folder, on_tile
        self._done, self._total = 0, walk.tile_count()
        self._normalised = {layer.source for layer in walk.layers if layer.norm is not None}
        self._moments = {value: Moments(walk.channels[value]) for value in self._normalised}
        self._kept = {0: Activation(volume[0].permute(1, 2, 3, 0).contiguous())}
        if 0 in self._normalised:
            self._moments[0].add(self._kept[0].everything())

    def result(self) -> torch.Tensor:
        for segment in self._walk.segments:
            *statistics, output = self._walk.passes(segment)
            for value in statistics:
                for box in self._walk.boxes(value):
                    self._moments[value].add(self._tile(segment, value, box))
                    self._tick()
            self._keep(segment, output)
            for value in [v for v in self._kept if v != output and self._walk.last_use[v] < output]:
                self._kept.pop(value).close()
        return self._kept.pop(len(self._layers)).everything().to(self._device).permute(3, 0, 1, 2)[None]

    def _keep(self, segment: Segment, output: int) -> None:
        """Computes a segment's output into its place."""
        adopts = self._walk.strategy.storage == "device" and self._walk.is_one_tile(output)
        place = None if adopts else self._place(segment, output)
        for box in self._walk.boxes(output):
            tile = self._tile(segment, output, box)
            if output in self._normalised:
                self._moments[output].add(tile)
            if place is None:
                place = Activation(tile)  # the only one
            else:
                place.write(box, tile)
            del tile  # before the next one is there
            self._tick()
        assert place is not None
        self._kept[output] = place

    def _place(self, segment: Segment, output: int) -> Activation:
        """Where a segment's output goes."""
        count = self._walk.channels[output]
        residual = self._layers[segment.first].residual
        if residual is not None and self._walk.writes_in_place(segment):
            return self._kept[residual].first_channels(count)
        shape = (*self._walk.sizes[output], count)
        return Activation.empty(shape, self._walk.strategy.storage, self._device, self._folder)

    def _tick(self) -> None:
        self._done += 1
        self._on_tile(self._done, self._total)

    def _tile(self, segment: Segment, value: int, box: Box) -> torch.Tensor:
        """A part of a value, from what is kept."""
        needs = self._walk.needs(segment, value, box)
        tiles: dict[int, torch.Tensor] = {}
        for index in range(segment.first, value):
            if index + 1 not in needs:
                continue
            layer, want = self._layers[index], needs[index + 1]
            tiles[index + 1] = self._layer(layer, tiles, needs, want)
            for v in [v for v in tiles if v != value and self._walk.last_use[v] <= index]:
                del tiles[v]
        return tiles[value]

    def _layer(self, layer: Layer, tiles: dict[int, torch.Tensor], needs: dict[int, Box], want: Box) -> torch.Tensor:
        source = self._walk.sizes[layer.source]
        have: Box = tuple(layer.needs(w, n) for w, n in zip(want, source, strict=True))  # type: ignore[assignment]
        part = self._part(layer.source, have, tiles, needs)
        if layer.kind == "global":
            return layer.module(part.permute(3, 0, 1, 2)[None])[0].permute(1, 2, 3, 0)
        affine = None if layer.norm is None else self._moments[layer.source].affine(layer.norm, self._device)
        result = convolved(layer, part, have, want, source, affine)
        del part  # where it came from elsewhere, it is a copy
        if layer.residual is not None:
            result = add_residual(layer, result, self._part(layer.residual, want, tiles, needs))
        return result

    def _part(self, value: int, box: Box, tiles: dict[int, torch.Tensor], needs: dict[int, Box]) -> torch.Tensor:
        if value not in tiles:
            return self._kept[value].read(box, self._device)
        origin = needs[value]
        cut = tuple(slice(b[0] - o[0], b[1] - o[0]) for b, o in zip(box, origin, strict=True))
        return tiles[value][cut]
