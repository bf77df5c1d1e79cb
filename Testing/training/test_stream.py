from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from MAISILib.errors import TrainingError
from MAISILib.training.stream import ItemStream
from Testing.training.tiny_task import TinyTask


def taken(items: int, positions: int, batch: int, accumulate: int, processes: int) -> list[list[str]]:
    """Names of the items of each forward pass of all processes together, in the order of the run."""
    streams = [ItemStream(TinyTask(items), 7, batch, accumulate, p, processes) for p in range(processes)]
    passes = []
    for position in range(0, positions, streams[0].positions_per_step):
        shares = [stream.load(position) for stream in streams]
        passes += [[name for share in shares for name in share[a].names] for a in range(accumulate)]
    return passes


@pytest.mark.parametrize(
    ("batch", "accumulate", "processes"), [(1, 1, 1), (1, 1, 2), (2, 1, 1), (2, 3, 2), (1, 2, 3), (3, 1, 4)]
)
def test_every_item_comes_once_an_epoch_however_many_processes_there_are(
    batch: int, accumulate: int, processes: int
) -> None:
    names = [name for one in taken(6, 36, batch, accumulate, processes) for name in one]
    epochs = [names[start : start + 6] for start in range(0, 36, 6)]
    assert all(Counter(epoch) == Counter(f"pt_{i}" for i in range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3  # each in an order of its own
    assert names == [name for one in taken(6, 36, 1, 1, 1) for name in one]  # the same for all


def test_an_epoch_need_not_end_with_a_step() -> None:
    names = [name for one in taken(5, 20, 2, 2, 1) for name in one]
    assert all(len(set(names[start : start + 5])) == 5 for start in range(0, 20, 5))


def test_an_item_has_its_own_random_numbers_at_each_place_of_the_run() -> None:
    one, two = ItemStream(TinyTask(), 7, 4), ItemStream(TinyTask(), 7, 2, 1, 1, 2)
    whole, second_half = one.load(8)[0], two.load(8)[0]
    assert torch.equal(whole.tensors["noisy"][2:], second_half.tensors["noisy"])  # whichever process has it
    later = {name: noisy for p in range(0, 20, 4) for b in one.load(p) for name, noisy in [(b.names[0], b.tensors)]}
    again = ItemStream(TinyTask(), 8, 4).load(8)[0]
    assert later
    assert not torch.equal(whole.tensors["noisy"], again.tensors["noisy"])  # another seed, other numbers
    first, second = (ItemStream(TinyTask(1), 7, 1).load(p)[0].tensors["noisy"] for p in (0, 1))
    assert not torch.equal(first, second)  # another epoch, other noise


def test_the_stream_goes_on_from_any_place() -> None:
    whole = ItemStream(TinyTask(), 7, 2).batches(0)
    steps = [next(whole)[0] for _ in range(4)]
    whole.close()
    late = ItemStream(TinyTask(), 7, 2).batches(4)
    for step in steps[2:]:
        batch = next(late)[0]
        assert batch.names == step.names
        assert torch.equal(batch.tensors["noisy"], step.tensors["noisy"])
    late.close()


def test_items_that_do_not_fit_together_are_named() -> None:
    class Mixed(TinyTask):
        def load_item(self, index: int, rng: Any) -> dict[str, torch.Tensor]:
            return {"clean": torch.zeros(4 + index)}

    with pytest.raises(TrainingError, match=r"pt_\d and pt_\d cannot share a batch: clean is \(\d,\) and \(\d,\)"):
        ItemStream(Mixed(2), 7, 2).load(0)


def test_an_error_of_an_item_reaches_the_trainer() -> None:
    class Broken(TinyTask):
        def load_item(self, index: int, rng: Any) -> dict[str, torch.Tensor]:
            raise TrainingError("pt_0 cannot be read")

    with pytest.raises(TrainingError, match="pt_0 cannot be read"):
        next(ItemStream(Broken(), 7, 1).batches(0))
