"""Signals that end a command: a training saves and then stops, other work is left where it is."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

DELIBERATE = (signal.SIGINT, signal.SIGTERM)
WARNINGS = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
ENDING = (*DELIBERATE, *(getattr(signal, name) for name in WARNINGS if hasattr(signal, name)))
"""Signals after which a run saves and ends: a closed terminal and the warnings of batch systems are among them."""


class Stopped(KeyboardInterrupt):
    """Work was interrupted by Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and the like.

    Of a training that has saved, the message says where it stands; otherwise it is empty.

    Attributes:
        number: the signal.
    """

    def __init__(self, message: str = "", *, number: int = signal.SIGINT):
        super().__init__(message)
        self.number = number


@contextmanager
def on_end_signal(end: Callable[[int], bool]) -> Iterator[None]:
    """Calls `end` with the number of the signal at Ctrl-C or another signal to end.

    Where it gives False, the end was asked for before: then Ctrl-C ends at once, as `KeyboardInterrupt`. A block within
    another is told at its beginning of what came before; what comes to it stays in `first_signal`.
    """
    before = first_signal()

    def interrupt(number: int, frame: Any) -> None:
        _came.append(number)
        # Of the others several may come: a closed terminal sends two.
        if not end(number) and number == signal.SIGINT:
            raise KeyboardInterrupt

    _blocks.append(end)
    try:
        with _handled(ENDING, interrupt):
            if before:
                end(before)
            yield
    finally:
        _blocks.pop()
        if not _blocks:
            _came.clear()


_blocks: list[Callable[[int], bool]] = []
_came: list[int] = []


def first_signal() -> int:
    """The first signal to end since the outermost `on_end_signal` began; 0: none."""
    return _came[0] if _came else 0


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raises `Stopped` in the block at a signal to end; at Ctrl-C Python raises `KeyboardInterrupt` by itself.

    One more signal, while either of them is on its way out of the block, changes nothing.
    """

    def stop(number: int, frame: Any) -> None:
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            raise Stopped(number=number)

    with _handled(ENDING[1:], stop):
        yield


def _nobody() -> int:
    return 0


_asked: Callable[[], int] = _nobody


@contextmanager
def left_at(asked: Callable[[], int]) -> Iterator[None]:
    """Within it `leave_if_asked` raises `Stopped`, once `asked()` is the number of a signal and not 0."""
    global _asked
    before, _asked = _asked, asked
    try:
        yield
    finally:
        _asked = before


def leave_if_asked() -> None:
    """Called where long work can be left, such as between two fast steps: see `left_at`."""
    if number := _asked():
        raise Stopped(number=number)


@contextmanager
def _handled(numbers: Iterable[int], handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Within it `handler` is called at these signals."""
    # `nohup` has hang-ups ignored: they stay so.
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN or number in DELIBERATE]
    try:
        previous = {number: signal.signal(number, handler) for number in heard}
    except ValueError:  # not the main thread: its owner handles signals
        previous = {}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
