"""Signals that end a training: it saves after the step under way, and then stops."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

DELIBERATE = (signal.SIGINT, signal.SIGTERM)
WARNINGS = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
ENDING = (*DELIBERATE, *(getattr(signal, name) for name in WARNINGS if hasattr(signal, name)))
"""Signals after which a run saves and ends: a closed terminal and the warnings of batch systems are among them."""


class Stopped(KeyboardInterrupt):
    """Training was interrupted (Ctrl-C, SIGTERM, SIGHUP, SIGUSR1) after it saved; the message says how to go on.

    Attributes:
        by_hand: by Ctrl-C. After any other signal, which a system sends that starts it again, the end is a good one.
    """

    def __init__(self, message: str = "", *, by_hand: bool = True):
        super().__init__(message)
        self.by_hand = by_hand


@contextmanager
def on_end_signal(end: Callable[[int], bool]) -> Iterator[None]:
    """Calls `end` with the number of the signal at Ctrl-C or another signal to end.

    Where it gives False, the end was asked for before: then Ctrl-C ends at once, as `KeyboardInterrupt`.
    """

    def interrupt(number: int, frame: Any) -> None:
        # Of the others several may come: a closed terminal sends two.
        if not end(number) and number == signal.SIGINT:
            raise KeyboardInterrupt

    # `nohup` has hang-ups ignored: they stay so.
    numbers = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN or number in DELIBERATE]
    try:
        previous = {number: signal.signal(number, interrupt) for number in numbers}
    except ValueError:  # not the main thread: its owner handles signals
        previous = {}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
