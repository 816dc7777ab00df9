"""The helper by which pairs are selected for the quick run leaves no member out."""

from __future__ import annotations

import itertools
from collections import Counter

from helpers.covering import covered, covering
from hypothesis import given, settings
from hypothesis import strategies as some

ROWS = some.lists(some.tuples(some.sampled_from("abcdef"), some.sampled_from("xyz"), some.integers(0, 4)), max_size=25)


@settings(max_examples=40)
@given(ROWS, some.integers(1, 3))
def test_every_value_is_there_as_often_as_asked_or_as_it_can_be(rows, times):
    rows = list(dict.fromkeys(rows))
    found = covering(rows, times=times)
    assert [row for row in rows if row in found] == found, "in their order, none twice"
    for column in range(3):
        have, had = (Counter(row[column] for row in some_rows) for some_rows in (found, rows))
        assert all(have[value] >= min(times, count) for value, count in had.items())


def test_it_is_small_and_spreads():
    pairs = [*itertools.product(range(20), range(15))]
    found = covering(pairs)
    assert len(found) <= 42
    assert max(Counter(second for _, second in found).values()) <= 4
    assert covering(pairs) == found
    assert covering([]) == []


def test_the_rest_is_long_and_what_is_always_tried_is_not():
    rows = [*itertools.product("abc", range(6))]
    params = covered(rows, times=1, always=[row for row in rows if row[1] == 5])
    assert [param.values for param in params] == rows
    quick = [param.values for param in params if not param.marks]
    assert {row for row in rows if row[1] == 5} <= {*quick}
    assert {row[1] for row in quick} == {*range(6)}
    assert len(quick) == 3 + 5
