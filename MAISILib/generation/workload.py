"""What networks have to do, counted on shapes alone: operations, bytes that are moved, and the largest memory.

Every operation of a forward pass on networks without storage (PyTorch's "meta" device) is seen, with the tensors that
live at that time. A loop over chunks, or a tensor that is freed early, is therefore counted as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ATEN = torch.ops.aten
_PRODUCTS = {_ATEN.mm, _ATEN.addmm, _ATEN.bmm, _ATEN.baddbmm}
#: Matrix products run as fast as a convolution of so many channels.
_PRODUCT_CHANNELS = 256.0


@dataclass(frozen=True)
class Work:
    """The work of a forward pass.

    Args:
        products: Mean number of channels (geometric, of input and output) → operations in layers of that width.
        moved: Bytes that an operation reads and writes → bytes of all operations of that size.
        calls: Number of operations.
        peak_bytes: Largest memory of all tensors at one time, weights and inputs that lived before left out.
    """

    products: dict[float, float] = field(default_factory=dict)
    moved: dict[float, float] = field(default_factory=dict)
    calls: int = 0
    peak_bytes: int = 0

    @property
    def flops(self) -> float:
        """Floating-point operations of all layers."""
        return sum(self.products.values())

    def times(self, count: float) -> Work:
        """This pass ``count`` times over; the memory stays."""
        return Work(
            {width: flops * count for width, flops in self.products.items()},
            {size: total * count for size, total in self.moved.items()},
            round(self.calls * count),
            self.peak_bytes,
        )

    def then(self, other: Work) -> Work:
        """This work and another one after it."""
        products, moved = Counter(self.products), Counter(self.moved)
        products.update(other.products)
        moved.update(other.moved)
        return Work(dict(products), dict(moved), self.calls + other.calls, max(self.peak_bytes, other.peak_bytes))


def count_work(networks: Sequence[nn.Module], run: Callable[[], object]) -> Work:
    """Counts what ``run`` does.

    Args:
        networks: Whose weights are there before and after, and not counted as memory.
        run: Calls the networks with inputs on the meta device. Inputs that it makes itself count as memory.
    """
    watch = _Watch({_place(p) for network in networks for p in network.parameters()})
    with torch.no_grad(), watch, _Attention(watch):
        run()
    return Work(dict(watch.products), dict(watch.moved), watch.calls, watch.peak)


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class _Attention(TorchFunctionMode):
    """Counts attention as CPUs and GPUs compute it: without the table of all pairs that the meta device makes."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
        query, key, value = (named[name] for name in ("query", "key", "value"))
        self._watch.products[_PRODUCT_CHANNELS] += 4.0 * query.numel() * key.shape[-2]
        return query.new_empty((*query.shape[:-1], value.shape[-1]))


class _Watch(TorchDispatchMode):
    """Sees each operation below autograd, where composite ones are already taken apart."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self._weights = weights
        self._living: dict[Any, int] = {}
        self._now = self.calls = self.peak = 0
        self.products: Counter[float] = Counter()
        self.moved: Counter[float] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # inference mode passes composite operations on as they are
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = func(*args, **kwargs)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        before = {_place(t) for t in given}
        scratch = 0
        if func.overloadpacket is _ATEN.convolution:
            scratch = self._convolution(args, result)
        elif func.overloadpacket in _PRODUCTS:
            # (…, n, k) @ (…, k, m): every number of the result is a sum of k products.
            depth = given[-2].shape[-1]
            self.products[_PRODUCT_CHANNELS] += 2.0 * result.numel() * depth
            self._move(sum(map(_bytes, [*given, *made])))
        elif any(_place(t) not in before for t in made) or func._schema.is_mutable:  # no mere view
            self._move(sum(map(_bytes, [*given, *made])))
        self._account([t for t in made if _place(t) not in before], scratch)
        return result

    def _convolution(self, args: Any, result: torch.Tensor) -> int:
        """Counts a convolution and returns the memory that it needs beside its tensors."""
        x, weight, transposed = args[0], args[1], args[6]
        inside, outside = weight.shape[:2] if transposed else (weight.shape[1], weight.shape[0])
        per_voxel = 2.0 * weight[0].numel()
        self.products[(inside * outside) ** 0.5] += per_voxel * (x if transposed else result).numel()
        # The library convolves in a layout of its own: a copy of the input goes there, and the result comes back.
        copies = _bytes(x) + _bytes(result)
        self._move(2 * copies + _bytes(weight))
        return copies + _bytes(weight)

    def _move(self, size: int) -> None:
        self.moved[size] += size
        self.calls += 1

    def _account(self, made: list[torch.Tensor], scratch: int) -> None:
        for reference in [r for r in self._living if r.expired()]:
            self._now -= self._living.pop(reference)
        for tensor in made:
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            if storage._cdata not in self._weights and reference not in self._living:
                self._living[reference] = storage.nbytes()
                self._now += storage.nbytes()
        self.peak = max(self.peak, self._now + scratch)
