"""The order of the sequences: a permutation each epoch, and exact when resumed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_ltm.data import DataOrder, order

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**63)


def visits(order: DataOrder, positions: range) -> list[int]:
    return [int(index) for position in positions for index in order.indices(position)]


@given(sizes, sizes, seeds)
def test_every_epoch_is_a_permutation(size: int, batch_size: int, seed: int) -> None:
    epochs = 3
    visited = visits(DataOrder(size, batch_size, seed), range(0, epochs * size, batch_size))[: epochs * size]
    for epoch in range(epochs):
        assert sorted(visited[epoch * size : (epoch + 1) * size]) == list(range(size))


@given(sizes, sizes, seeds, st.integers(0, 200))
def test_a_batch_depends_on_nothing_but_seed_and_position(size: int, batch_size: int, seed: int, position: int) -> None:
    fresh = DataOrder(size, batch_size, seed).indices(position)
    used = DataOrder(size, batch_size, seed)
    used.indices(position + 7 * size)
    used.indices(0)
    assert np.array_equal(used.indices(position), fresh)
    singly = DataOrder(size, 1, seed)
    assert visits(singly, range(position, position + batch_size)) == fresh.tolist()
    assert fresh.dtype == np.int64
    assert fresh.shape == (batch_size,)


def test_epochs_and_seeds_differ() -> None:
    first = DataOrder(100, 100, 0)
    assert not np.array_equal(first.indices(0), first.indices(100))
    assert not np.array_equal(first.indices(0), DataOrder(100, 100, 1).indices(0))
    assert not np.array_equal(first.indices(0), np.arange(100))


def test_the_order_never_changes_between_releases() -> None:
    assert DataOrder(8, 8, 0).indices(0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]


@pytest.mark.parametrize("window", [1, 3, 8, 1000])
@pytest.mark.parametrize("size", [1, 2, 37, 64])
def test_windows_of_many_sequences_are_those_of_the_whole_permutation(size, window, monkeypatch) -> None:
    """Sorted at once, as every release has done."""
    monkeypatch.setattr(order, "WINDOW", window)
    whole = [np.argsort(np.random.PCG64([5, epoch]).random_raw(size), kind="stable") for epoch in range(8)]
    for batch_size in (1, 5, 2 * size):
        windowed, positions = DataOrder(size, batch_size, 5), range(0, size, batch_size)
        assert visits(windowed, positions) == np.concatenate(whole)[: len(positions) * batch_size].tolist()
        for position in (2 * size, size - 1, 0):  # in any direction
            assert windowed.indices(position)[0] == whole[position // size][position % size]


def test_only_a_window_of_many_sequences_is_in_memory() -> None:
    many = DataOrder(5 * order.WINDOW, 4, 0)
    first = many.indices(2 * order.WINDOW)
    assert len(many._order) < 1.01 * order.WINDOW
    numbers = np.random.PCG64([0, 0]).random_raw(many.size)
    assert (np.diff(numbers[first].astype(float)) > 0).all()
    assert int((numbers < numbers[first[0]]).sum()) == 2 * order.WINDOW


@pytest.mark.parametrize(("size", "batch_size", "seed"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_refuses(refused, size: int, batch_size: int, seed: int) -> None:
    assert "must be at least" in refused(DataOrder, size, batch_size, seed)


def test_refuses_a_negative_position(refused) -> None:
    assert refused(DataOrder(3, 2, 0).indices, -1) == "position = -1: must be at least 0"
