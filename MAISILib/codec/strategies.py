"""Ways through the layers: what is kept, what is computed again, in which tiles; and what each way costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from MAISILib.codec.layers import Box, Layer, Span, channels, last_uses, sizes, spans_needed
from MAISILib.errors import RequestError

#: Bytes of a float32.
_FLOAT = 4
#: An attention block holds its input, normalised tokens, queries, keys, values and the result.
_ATTENTION_COPIES = 8
#: Tiles along the first axis, in voxels, that are weighed against one another.
_THICKNESSES = (64, 32, 16, 8)
#: Keeping more of the finest layers than this, but not all, is not weighed.
_MOST_KEPT = 3


@dataclass(frozen=True)
class Strategy:
    """One way through an autoencoder. All give the same result but for float rounding.

    Args:
        name: ``whole`` computes each layer at once; ``layers`` computes each tile by tile and keeps its output;
            ``recompute`` keeps, on the finest grid, only what ``kept`` names, and computes the rest again: once for the
            statistics of each GroupNorm, and once for the output.
        tile: Voxels ``(x, y, z)`` in one tile, on every grid.
        kept: Layers on the finest grid, counted from the first one there, whose outputs ``recompute`` keeps.
        storage: Where kept values lie: ``device`` is the memory of the device that computes, ``host`` the computer's
            own, ``file`` a temporary file.
        recomputes_upsampled: ``recompute`` does so with the outputs of coarser upsampling layers, too, and with what
            the residual blocks after them hold inside: they have the most channels of their grids.
    """

    name: Literal["whole", "layers", "recompute"] = "whole"
    tile: tuple[int, int, int] | None = None
    kept: tuple[int, ...] = ()
    storage: Literal["device", "host", "file"] = "device"
    recomputes_upsampled: bool = False

    def __post_init__(self) -> None:
        if self.name != "whole" and (self.tile is None or min(self.tile) < 1):
            raise RequestError(f"Strategy {self.name!r} needs a tile of at least 1 voxel per axis (got {self.tile}).")

    def __str__(self) -> str:
        if self.name == "whole":
            return "whole"
        where = {"device": "", "host": ", kept in host memory", "file": ", kept in a file"}[self.storage]
        kept = f", keeping {len(self.kept)} of the finest layers" if self.kept else ""
        kept = ", coarser ones too" if self.recomputes_upsampled else kept
        assert self.tile is not None
        return f"{self.name} in tiles of {'×'.join(map(str, self.tile))}{kept}{where}"


@dataclass(frozen=True)
class Segment:
    """Layers ``first`` up to ``last`` (exclusive) that are computed from one kept value to the next."""

    first: int
    last: int


@dataclass(frozen=True)
class Cost:
    """What a strategy needs.

    Args:
        products: Mean number of channels (geometric, of input and output) → operations of the layers of that width,
            those done twice counted twice.
        elements: Numbers that pass through normalisation, interpolation, padding or statistics.
        bytes: Largest memory of the computing device at one time, without weights.
        stored_bytes: Largest storage of kept values elsewhere (``host``, ``file``).
    """

    products: dict[float, float]
    elements: float
    bytes: int
    stored_bytes: int

    @property
    def flops(self) -> float:
        """Operations of all layers."""
        return sum(self.products.values())


def finest_layers(layers: Sequence[Layer], shape: Sequence[int]) -> range:
    """The layers on the finest grid: those whose output lies on it, and one that leaves it for a coarser one."""
    grids = sizes(layers, shape)
    finest = max(map(math.prod, grids))
    voxels = [max(math.prod(grids[i + 1]), math.prod(grids[layer.source])) for i, layer in enumerate(layers)]
    touching = [i for i, n in enumerate(voxels) if n == finest]
    return range(touching[0], touching[-1] + 1)


def segments(layers: Sequence[Layer], shape: Sequence[int], strategy: Strategy) -> list[Segment]:
    """How a strategy divides the layers. An attention block is always alone.

    Raises:
        RequestError: `Strategy.kept` leaves a residual block's input out but keeps its inside.
    """
    count = len(layers)
    cuts = set(range(count + 1))
    if strategy.name == "recompute":
        finest = finest_layers(layers, shape)
        cuts -= {i + 1 for n, i in enumerate(finest) if n not in strategy.kept and i + 1 < finest.stop}
        if strategy.recomputes_upsampled:
            cuts -= {value for block in _upsampled(layers, finest) for value in block}
        for index in finest:
            if layers[index].kind == "global":
                cuts |= {index, index + 1}
    found = [Segment(a, b) for a, b in itertools.pairwise(sorted(cuts))]
    for segment in found:
        for layer in layers[segment.first : segment.last]:
            if layer.residual is not None and layer.residual < segment.first and layer.residual not in cuts:
                raise RequestError(
                    f"Strategy keeps the inside of a residual block but not its input: kept={strategy.kept}."
                )
    return found


def _upsampled(layers: Sequence[Layer], finest: range) -> Iterator[range]:
    """For each upsampling layer off the finest grid: its output, and the values inside the residual block after it."""
    for index, layer in enumerate(layers):
        if layer.kind in ("up", "transposed") and index not in finest:
            ends = (last for last, other in enumerate(layers) if other.residual == index + 1)
            yield range(index + 1, next(ends, index) + 1)


def recompute_cuts(layers: Sequence[Layer], shape: Sequence[int]) -> list[tuple[int, ...]]:
    """All sensible values of `Strategy.kept`, fewest first."""
    finest = finest_layers(layers, shape)
    found = []
    for count in range(min(len(finest), _MOST_KEPT + 1)):
        for kept in itertools.combinations(range(len(finest) - 1), count):
            try:
                segments(layers, shape, Strategy("recompute", (1, 1, 1), kept))
            except RequestError:
                continue
            found.append(kept)
    return found


def tiles_along(size: int, tile: int | None) -> list[Span]:
    """Spans of ``tile`` voxels that cover an axis of ``size`` voxels."""
    step = tile or size
    return [(start, min(start + step, size)) for start in range(0, size, step)]


class Walk:
    """The geometry of one strategy on one volume: segments, tiles, and what each tile needs."""

    def __init__(self, layers: Sequence[Layer], shape: Sequence[int], strategy: Strategy) -> None:
        self.layers, self.strategy = layers, strategy
        self.sizes, self.channels = sizes(layers, shape), channels(layers)
        self.segments = segments(layers, shape, strategy)
        self.last_use = last_uses(layers)
        tile = strategy.tile if strategy.name != "whole" else None
        self._tile: Sequence[int | None] = tile or (None, None, None)

    def passes(self, segment: Segment) -> list[int]:
        """The values that are walked to: those whose statistics are not known yet, then the segment's output."""
        inside = self.layers[segment.first : segment.last]
        return [x.source for x in inside if x.norm is not None and x.source > segment.first] + [segment.last]

    def spans(self, value: int, axis: int) -> list[Span]:
        """The tiles of a value along one axis."""
        if self.layers[value - 1].kind == "global":
            return [(0, self.sizes[value][axis])]
        return tiles_along(self.sizes[value][axis], self._tile[axis])

    def boxes(self, value: int) -> Iterator[Box]:
        """The tiles of a value."""
        return itertools.product(*(self.spans(value, axis) for axis in range(3)))  # type: ignore[return-value]

    def tile_count(self) -> int:
        """How many tiles the walk computes, all passes included."""
        values = [value for segment in self.segments for value in self.passes(segment)]
        return sum(math.prod(len(self.spans(value, axis)) for axis in range(3)) for value in values)

    def needs(self, segment: Segment, value: int, box: Box) -> dict[int, Box]:
        """The part of every value that a tile of ``value`` depends on."""
        axes = [
            spans_needed(self.layers, segment.first, value, box[axis], [size[axis] for size in self.sizes])
            for axis in range(3)
        ]
        return {v: tuple(spans[v] for spans in axes) for v in axes[0]}  # type: ignore[misc]

    def writes_in_place(self, segment: Segment) -> bool:
        """Whether the output may lie where the residual does: nobody else reads that, and each tile its own part."""
        layer = self.layers[segment.first]
        return (
            segment.last == segment.first + 1
            and layer.residual is not None
            and self.last_use[layer.residual] == segment.first
            and layer.out_channels <= self.channels[layer.residual]
        )

    def is_one_tile(self, value: int) -> bool:
        """Whether a value is computed at once."""
        return all(len(self.spans(value, axis)) == 1 for axis in range(3))

    def cost(self) -> Cost:
        """Counts the whole walk."""
        products: dict[float, float] = {}
        elements = 0.0
        peak = stored_peak = 0
        stored = {0: self._bytes(0)}
        places = {0: 0}  # value → the value whose memory it lies in
        for segment in self.segments:
            *statistics, output = self.passes(segment)
            for value in statistics:
                numbers, workspace = self._tile_costs(segment, value, products)
                elements += numbers
                peak = max(peak, self._at_device(stored) + workspace)
            numbers, workspace = self._tile_costs(segment, output, products)
            elements += numbers
            one = self.is_one_tile(output) and self.strategy.storage == "device"
            if self.writes_in_place(segment) and not one:
                residual = self.layers[segment.first].residual
                assert residual is not None
                places[output] = places[residual]
            else:
                places[output] = output
                stored[output] = self._bytes(output)
            inside = self._bytes(output) if one else 0  # the tile itself is kept
            peak = max(peak, self._at_device(stored) + workspace - inside)
            stored_peak = max(stored_peak, sum(stored.values()))
            used = {places[v] for v in places if v == output or self.last_use[v] >= output}
            stored = {v: size for v, size in stored.items() if v in used}
        return Cost(products, elements, peak, 0 if self.strategy.storage == "device" else stored_peak)

    def _at_device(self, stored: dict[int, int]) -> int:
        return sum(stored.values()) if self.strategy.storage == "device" else 0

    def _bytes(self, value: int) -> int:
        return _FLOAT * self.channels[value] * math.prod(self.sizes[value])

    def _tile_costs(self, segment: Segment, value: int, products: dict[float, float]) -> tuple[float, int]:
        """Elements of all tiles of a value, and the memory of the largest tile; adds operations to ``products``."""
        totals, largest = self._extents(segment, value)
        elements = float(totals[value] * self.channels[value])
        elsewhere = self.strategy.storage != "device"
        live: dict[int, int] = {}
        if elsewhere:
            live[segment.first] = _FLOAT * largest[segment.first] * self.channels[segment.first]
        peak = 0
        for index in range(segment.first, value):
            layer = self.layers[index]
            if index + 1 not in totals:
                continue
            read = totals[layer.source] * layer.in_channels
            work = layer.operations(totals[layer.source], totals[index + 1])
            products[layer.width] = products.get(layer.width, 0.0) + work
            elements += read * (layer.norm is not None) + 8 * read * (layer.kind == "up")
            peak = max(peak, sum(live.values()) + self._scratch(layer, index, largest))
            live[index + 1] = _FLOAT * largest[index + 1] * layer.out_channels
            live = {v: n for v, n in live.items() if v == value or self.last_use[v] > index}
        return elements, peak

    def _scratch(self, layer: Layer, index: int, largest: dict[int, int]) -> int:
        read, made = largest[layer.source] * layer.in_channels, largest[index + 1] * layer.out_channels
        if layer.kind == "global":
            return _FLOAT * read * _ATTENTION_COPIES
        if layer.kind == "up":  # the doubled source, with that of its last doubling, then with the result
            return _FLOAT * (8 * read + max(4 * read, made))
        return _FLOAT * (made + read)  # normalised, or with zeros around it

    def _extents(self, segment: Segment, value: int) -> tuple[dict[int, int], dict[int, int]]:
        """Voxels of each value in all tiles together, and in the largest."""
        totals: dict[int, int] = {}
        largest: dict[int, int] = {}
        for axis in range(3):
            axis_sizes = [size[axis] for size in self.sizes]
            spans = [
                spans_needed(self.layers, segment.first, value, span, axis_sizes) for span in self.spans(value, axis)
            ]
            for v in spans[0]:
                lengths = [s[v][1] - s[v][0] for s in spans]
                totals[v] = totals.get(v, 1) * sum(lengths)
                largest[v] = largest.get(v, 1) * max(lengths)
        return totals, largest


def candidates(layers: Sequence[Layer], shape: Sequence[int], storage: str) -> Iterator[Strategy]:
    """Strategies worth weighing for a volume that keep values in one kind of storage."""
    tiles = tile_choices(max(sizes(layers, shape), key=math.prod))
    if storage == "device":
        yield Strategy()
    for tile in tiles:
        yield Strategy("layers", tile, storage=storage)  # type: ignore[arg-type]
    for kept, tile in itertools.product(recompute_cuts(layers, shape), tiles):
        yield Strategy("recompute", tile, kept, storage)  # type: ignore[arg-type]
    if any(_upsampled(layers, finest_layers(layers, shape))):
        for tile in tiles:
            yield Strategy("recompute", tile, (), storage, recomputes_upsampled=True)  # type: ignore[arg-type]


def tile_choices(finest: Sequence[int]) -> list[tuple[int, int, int]]:
    """Slabs along x of several thicknesses, then cubes: a cube has less halo where memory allows thin slabs only."""
    slabs = [(min(t, finest[0]), finest[1], finest[2]) for t in _THICKNESSES]
    cubes = [tuple(min(edge, n) for n in finest) for edge in (128, 64, 32)]
    return list(dict.fromkeys([*slabs, *cubes]))  # type: ignore[arg-type]
