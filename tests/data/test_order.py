"""The order of the sequences: a permutation each epoch, and exact when resumed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_ltm.data import DataOrder

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


@pytest.mark.parametrize(("size", "batch_size", "seed"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_refuses(refused, size: int, batch_size: int, seed: int) -> None:
    assert "must be at least" in refused(DataOrder, size, batch_size, seed)


def test_refuses_a_negative_position(refused) -> None:
    assert refused(DataOrder(3, 2, 0).indices, -1) == "position = -1: must be at least 0"
