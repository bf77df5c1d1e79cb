"""Counting on shapes alone: equal to what the operations really are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from MAISILib.generation.workload import Work, count_work

META = torch.device("meta")


def test_convolutions_and_products_are_counted_by_their_formulas() -> None:
    convolution = nn.Conv3d(4, 9, 3, padding=1, device=META)
    transposed = nn.ConvTranspose3d(9, 4, 3, stride=2, device=META)
    linear = nn.Linear(10, 20, device=META)
    x = torch.empty(1, 4, 5, 6, 7, device=META)
    assert count_work([convolution], lambda: convolution(x)).products == {6.0: 2 * 9 * 210 * 4 * 27}
    y = torch.empty(1, 9, 5, 6, 7, device=META)
    assert count_work([transposed], lambda: transposed(y)).products == {6.0: 2 * 9 * 210 * 4 * 27}
    assert count_work([linear], lambda: linear(torch.empty(3, 10, device=META))).flops == 2 * 3 * 10 * 20


def test_memory_is_that_of_the_tensors_that_live_at_the_same_time() -> None:
    def chain() -> torch.Tensor:
        a = torch.empty(1000, device=META)
        b = a + 1
        del a
        c = b * 2
        return c.view(10, 100).t()

    assert count_work([], chain).peak_bytes == 2 * 4000


def test_attention_does_not_hold_all_pairs() -> None:
    def attend(tokens: int) -> Work:
        q = torch.empty(1, 2, tokens, 8, device=META)
        return count_work([], lambda: F.scaled_dot_product_attention(q, q, q))

    assert attend(4096).peak_bytes == attend(2048).peak_bytes * 2
    assert attend(4096).flops == attend(2048).flops * 4 == 4 * 2 * 4096 * 4096 * 8


def test_views_cost_nothing_and_changes_in_place_do() -> None:
    x = torch.empty(4, 100, device=META)
    assert count_work([], lambda: x.view(10, 40).t()[2:].unsqueeze(0)).calls == 0
    changed = count_work([], lambda: x.add_(1))
    assert (changed.calls, changed.peak_bytes) == (1, 0)
    assert changed.moved == {3200: 3200}, "two tensors of 400 numbers in four bytes"


def test_work_adds_up() -> None:
    first, second = Work({16.0: 10.0}, {8: 5.0}, 1, 100), Work({16.0: 1.0, 64.0: 2.0}, {8: 1.0, 9: 3.0}, 2, 50)
    both = first.times(3).then(second)
    assert both == Work({16.0: 31.0, 64.0: 2.0}, {8: 16.0, 9: 3.0}, 5, 100)
    assert both.flops == pytest.approx(33)
