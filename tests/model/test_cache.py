"""The cache against a twin made of lists and dictionaries, over random sequences of operations."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyorder.errors import UserError
from anyorder.model.cache import Cache
from tests.visibility.rules import flags


@dataclass
class Entry:
    """A key: its labels, and the number that stands for its keys and values."""

    position: int
    rank: int
    number: float


@dataclass
class Twin:
    """For each sample a list of slots, each with a key or without."""

    slots: list[list[Entry | None]]
    written: float = field(default=1.0)

    def put(self, entries: list[list[Entry]], valid: Tensor, slots: Tensor | None) -> None:
        for b, row in enumerate(entries):
            next_slot = self.next_slot(b)
            for n, entry in enumerate(row):
                if not valid[b, n]:
                    continue
                if slots is None:
                    self.slots[b][next_slot] = entry
                    next_slot += 1
                else:
                    self.slots[b][int(slots[b, n])] = entry

    def next_slot(self, b: int) -> int:
        return max((slot + 1 for slot, entry in enumerate(self.slots[b]) if entry is not None), default=0)


def empty(batch: int, capacity: int, layers: int = 2) -> Cache:
    return Cache.empty(layers, batch, capacity, 1, 1, dtype=torch.float64, device=torch.device("cpu"))


def write(cache: Cache, twin: Twin, valid: Tensor, slots: Tensor | None, data: st.DataObject) -> None:
    """Put the same new keys into both; layer 1 holds ten times what layer 0 holds, values are negative."""
    batch, n = valid.shape
    position = torch.tensor(data.draw(st.lists(st.integers(0, 9), min_size=batch * n, max_size=batch * n)))
    position = position.long().view(batch, n)
    labels = {"position": position, "rank": position * 2 + 1}
    number = torch.arange(batch * n, dtype=torch.float64).view(batch, n) + twin.written
    twin.written += batch * n
    where = cache.put(labels, None if bool(valid.all()) and data.draw(st.booleans()) else valid, slots)
    extent = cache.extent
    for index, layer in enumerate(cache.layers):
        k = (number * 10**index).view(batch, n, 1, 1)
        keys, values = layer.update(k, -k, where, extent)
        assert keys.shape == values.shape == (batch, extent, 1, 1)
    entries = [
        [Entry(p, 2 * p + 1, x) for p, x in zip(*rows, strict=True)]
        for rows in zip(position.tolist(), number.tolist(), strict=True)
    ]
    twin.put(entries, valid, slots)


def check(cache: Cache, twin: Twin) -> None:
    assert (cache.batch, cache.capacity) == (len(twin.slots), len(twin.slots[0]))
    assert cache.present.tolist() == [[entry is not None for entry in row] for row in twin.slots]
    assert cache.next_slot.tolist() == [twin.next_slot(b) for b in range(cache.batch)]
    assert cache.extent == max(twin.next_slot(b) for b in range(cache.batch))
    for b, row in enumerate(twin.slots):
        for slot, entry in enumerate(row):
            if entry is None:
                continue
            assert int(cache.labels["position"][b, slot]) == entry.position
            assert int(cache.labels["rank"][b, slot]) == entry.rank
            for index, layer in enumerate(cache.layers):
                assert float(layer.keys[b, slot]) == entry.number * 10**index
                assert float(layer.values[b, slot]) == -entry.number * 10**index
    for layer in cache.layers:
        assert layer.keys.shape == layer.values.shape == (cache.batch, cache.capacity + 1, 1, 1)
        assert bool(layer.keys.isfinite().all() & layer.values.isfinite().all())


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_sequence_of_operations(data: st.DataObject) -> None:
    batch, capacity = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    cache, twin = empty(batch, capacity), Twin([[None] * capacity for _ in range(batch)])
    for _ in range(data.draw(st.integers(1, 6))):
        batch, capacity = cache.batch, cache.capacity
        match data.draw(st.sampled_from(["append", "append", "overwrite", "drop", "gather", "join"])):
            case "append":
                valid = data.draw(flags(batch, data.draw(st.integers(0, 3))))
                room = [capacity - twin.next_slot(b) for b in range(batch)]
                if all(int(count) <= free for count, free in zip(valid.sum(1), room, strict=True)):
                    write(cache, twin, valid, None, data)
            case "overwrite":
                n = data.draw(st.integers(0, capacity))
                slots = torch.tensor([data.draw(st.permutations(range(capacity)))[:n] for _ in range(batch)])
                write(cache, twin, data.draw(flags(batch, n)), slots.long().view(batch, n), data)
            case "drop":
                where = data.draw(flags(batch, capacity))
                cache.drop(where)
                for b, slot in where.nonzero().tolist():
                    twin.slots[b][slot] = None
            case "gather":  # reorder, repeat, grow
                source = data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=3))
                larger = capacity + data.draw(st.integers(0, 2))
                cache = cache.gather(torch.tensor(source), capacity=larger)
                twin.slots = [[*twin.slots[b], *[None] * (larger - capacity)] for b in source]
            case "join":  # each new slot from any sample and slot
                samples, n = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
                place = st.tuples(st.integers(0, batch - 1), st.integers(0, capacity - 1))
                places = [data.draw(st.lists(place, min_size=n, max_size=n)) for _ in range(samples)]
                keep = data.draw(st.none() | flags(samples, n))
                b_n, s_n = (torch.tensor([[one[part] for one in row] for row in places]) for part in (0, 1))
                old = cache
                cache = cache.gather(b_n, s_n, keep)
                kept = keep if keep is not None else torch.ones(samples, n, dtype=torch.bool)
                twin.slots = [
                    [twin.slots[b][s] if kept[row, i] else None for i, (b, s) in enumerate(chosen)]
                    for row, chosen in enumerate(places)
                ]
                old.present.fill_(False)  # the new cache stands by itself
        if cache.labels:
            check(cache, twin)


def labels(*rows: list[int]) -> dict[str, Tensor]:
    return {"position": torch.tensor(rows)}


def test_padding_goes_to_the_waste_slot() -> None:
    cache = empty(2, 3, layers=1)
    valid = torch.tensor([[True, True], [False, True]])
    slots = cache.put(labels([0, 1], [7, 0]), valid)
    assert slots.tolist() == [[0, 1], [3, 0]]
    keys, _ = cache.layers[0].update(torch.ones(2, 2, 1, 1).double(), torch.ones(2, 2, 1, 1).double(), slots, 2)
    assert keys[:, :, 0, 0].tolist() == [[1, 1], [1, 0]]
    assert cache.labels["position"].tolist() == [[0, 1, 0], [0, 0, 0]]


def test_a_full_cache_says_how_much_it_lacks_and_stays_as_it_was() -> None:
    cache = empty(2, 3)
    cache.put(labels([0, 1], [0, 1]))
    before = cache.present.clone()
    with pytest.raises(UserError) as error:
        cache.put(labels([2, 3], [2, 3]), torch.tensor([[True, False], [True, True]]))
    assert str(error.value) == "the cache has 3 slots and 4 are needed: make a larger one."
    assert torch.equal(cache.present, before)
    with pytest.raises(UserError, match=r"^the cache has 3 slots and 6 are needed"):
        cache.put(labels([2], [2]), slots=torch.tensor([[1], [5]]))
    cache.put(labels([2], [2]), torch.tensor([[True], [False]]))
    cache.put(labels([9], [2]), torch.tensor([[False], [True]]))
    assert bool(cache.present.all())


def test_other_labels_are_refused() -> None:
    cache = empty(1, 3)
    cache.put(labels([0]))
    with pytest.raises(UserError) as error:
        cache.put({"position": torch.tensor([[1]]), "rank": torch.tensor([[1]])})
    assert str(error.value) == "the cache holds the labels ['position'], not ['position', 'rank']: give those."


def test_gather_into_too_few_slots_is_refused() -> None:
    with pytest.raises(UserError) as error:
        empty(1, 3).gather(torch.tensor([0]), capacity=2)
    assert str(error.value) == "capacity is 2 and 3 slots are kept: give at least that many."


def test_gather_of_nothing_makes_room_for_something() -> None:
    """An empty prefix is expanded like any other."""
    cache = empty(2, 3)
    cache.put(labels([0, 1], [0, 1]))
    new = cache.gather(torch.tensor([0, 1, 1]), torch.zeros(3, 0, dtype=torch.int64), capacity=2)
    assert (new.batch, new.capacity, new.extent) == (3, 2, 0)
    assert new.put(labels([5], [6], [7])).tolist() == [[0], [0], [0]]
    assert empty(1, 0).gather(torch.tensor([0, 0]), capacity=2).extent == 0


def test_dropped_slots_at_the_end_are_used_again() -> None:
    cache = empty(1, 4)
    cache.put(labels([0, 1, 2]))
    cache.drop(torch.tensor([[False, False, True, False]]))
    assert cache.put(labels([5])).tolist() == [[2]]
    cache.drop(torch.tensor([[True, False, False, False]]))
    assert cache.put(labels([6])).tolist() == [[3]]  # not the hole at 0, whose neighbours are present


def test_reordering_from_a_slot_on_leaves_what_stands_before() -> None:
    """Beams of a question share its prompt; each goes on from the text of the one named."""
    cache = empty(3, 4)
    number = torch.arange(12.0, dtype=torch.float64).view(3, 4, 1, 1)
    position = torch.arange(12).view(3, 4)
    valid = torch.tensor([[True] * 4, [True, True, True, False], [True, True, False, False]])
    slots = cache.put({"position": position}, valid)
    for layer in cache.layers:
        layer.update(number, -number, slots, 4)
    cache.reorder(torch.tensor([2, 0, 0]), 2)
    assert cache.present.tolist() == [[True, True, False, False], [True] * 4, [True] * 4]
    assert cache.labels["position"][1].tolist() == [4, 5, 2, 3]
    for layer in cache.layers:
        assert layer.keys[1, :4].flatten().tolist() == [4.0, 5.0, 2.0, 3.0]
        assert layer.values[2, :4].flatten().tolist() == [-8.0, -9.0, -2.0, -3.0]
        assert layer.keys[0, :2].flatten().tolist() == [0.0, 1.0]


def test_a_view_of_samples_is_part_of_the_cache() -> None:
    """What is put into the view is in the cache, and in no other sample."""
    cache = empty(3, 4)
    with pytest.raises(UserError, match="a cache without labels has no view"):
        cache.samples(0, 1)
    cache.put({"position": torch.zeros((3, 0), dtype=torch.long)})
    view = cache.samples(1, 3)
    slots = view.put({"position": torch.tensor([[5, 6], [7, 0]])}, torch.tensor([[True, True], [True, False]]))
    for layer in view.layers:
        layer.update(torch.full((2, 2, 1, 1), 3.0, dtype=torch.float64), torch.ones((2, 2, 1, 1)), slots, 2)
    assert (view.batch, view.capacity, view.extent) == (2, 4, 2)
    assert cache.present.tolist() == [[False] * 4, [True, True, False, False], [True, False, False, False]]
    assert cache.labels["position"][:, :2].tolist() == [[0, 0], [5, 6], [7, 0]]
    assert cache.layers[0].keys[:, 0].flatten().tolist() == [0.0, 3.0, 3.0]
    view.drop(torch.tensor([[True] * 4, [False] * 4]))
    assert cache.present.any(1).tolist() == [False, False, True]


def test_a_sample_moves_over_another_one() -> None:
    cache = empty(2, 3)
    slots = cache.put(
        {"position": torch.tensor([[1, 2, 3], [4, 0, 0]])}, torch.tensor([[True] * 3, [True, False, False]])
    )
    number = torch.arange(6, dtype=torch.float64).view(2, 3, 1, 1)
    for layer in cache.layers:
        layer.update(number, -number, slots, 3)
    cache.move(1, 0)
    assert cache.present.tolist() == [[True, False, False]] * 2
    assert cache.labels["position"][:, 0].tolist() == [4, 4]
    assert [layer.keys[0, 0].item() for layer in cache.layers] == [3.0, 3.0]
    assert [layer.values[0, 0].item() for layer in cache.layers] == [-3.0, -3.0]
