"""Several processes at one comparison or study: each calls it alike, the first writes, and all end together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import ParamSpec, TypeVar

from pyro_ltm.distributed import current, failing_together, joined, sharing, team
from pyro_ltm.interruption import first_signal, leave_if_asked, left_at, on_end_signal
from pyro_ltm.locks import locks_out

P = ParamSpec("P")
R = TypeVar("R")


def by_all(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: several processes (`torchrun`) call `function` with the same arguments, and each has its result."""

    @functools.wraps(function)
    def calling(*arguments: P.args, **named: P.kwargs) -> R:
        with joined() as world, _heeding_signals():
            result = function(*arguments, **named)
            world.any(False)  # what the first told may lie in a store that ends with it
        return result

    return calling


def first_locks_out(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: `locks_out` in the first of several processes."""
    locking = locks_out(function)

    @functools.wraps(function)
    def calling(*arguments: P.args, **named: P.kwargs) -> R:
        return (locking if current().leads else function)(*arguments, **named)

    return calling


def _heeding_signals() -> AbstractContextManager[None]:
    """In several processes, signals to end are heeded where all can end (`sharing_a_score`); in one, as ever."""
    return on_end_signal(lambda number: True) if current().size > 1 else nullcontext()


@contextmanager
def sharing_a_score() -> Iterator[None]:
    """Of several processes each scores its part, and all have the figures of all, which they send by `gather` alone.

    An error of one, or its end at a signal (`Stopped`), is that of all.
    """
    with sharing(), failing_together(), left_at(first_signal):
        yield


def end_together() -> None:
    """Raises Stopped in all processes where one of them was sent a signal to end."""
    with sharing_a_score():
        leave_if_asked()
        team().gather(())


__all__ = ["by_all", "end_together", "first_locks_out", "sharing_a_score"]
