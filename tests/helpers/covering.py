"""Which of many combinations are tried in the quick run: few, and every member of every axis among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

Row = tuple[Any, ...]


def covering(rows: Iterable[Row], *, times: int = 2) -> list[Row]:
    """Some of `rows`, in their order: each value of each column is in at least `times` of them, or in all that have it.

    Greedy, without a draw: the next row is always the one with the most values that are still wanted; of several, the
    one whose values were taken least often, so that no member is tried with one partner alone.
    """
    rest = [*dict.fromkeys(rows)]
    order = {row: place for place, row in enumerate(rest)}
    had = Counter(value for row in rest for value in enumerate(row))
    taken: list[Row] = []
    found: Counter[tuple[int, Any]] = Counter()

    def worth(row: Row) -> tuple[int, int]:
        wanted = sum(found[value] < min(times, had[value]) for value in enumerate(row))
        return wanted, -sum(found[value] for value in enumerate(row))

    while rest and worth(best := max(rest, key=worth))[0]:
        rest.remove(best)
        taken.append(best)
        found.update(enumerate(best))
    return sorted(taken, key=order.__getitem__)


def covered(rows: Iterable[Row], *, times: int = 2, always: Iterable[Row] = ()) -> list[Any]:
    """`rows` as parameters: of a test that is quick for those of `always` and a covering selection of the others."""
    rows, quick = list(rows), set(always)
    quick.update(covering((row for row in rows if row not in quick), times=times))
    return [pytest.param(*row, marks=() if row in quick else pytest.mark.long) for row in rows]
