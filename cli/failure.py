"""How a command ends when it cannot do what was asked."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from .several import are_several

DONE = 0
BAD_INPUT = 2
INTERRUPTED = 130
"""By Ctrl-C; of another signal that ends a command it is 128 + its number as well."""


class Failure(click.ClickException):
    """The end of a command: one line on stderr, and an exit code."""

    def __init__(self, message: str, code: int = BAD_INPUT):
        super().__init__(message)
        self.code = code


def code_of(stop: KeyboardInterrupt, *, goes_on: bool = True) -> int:
    """Exit code where Ctrl-C or another signal ended a command.

    Args:
        goes_on: it goes on where it was when it is started again, as whoever sends another signal than Ctrl-C will:
            then that end is a good one. So is that of several processes which have saved, whatever the signal: for
            `torchrun` another is a fault.
    """
    number: int = getattr(stop, "number", signal.SIGINT)
    saved = are_several() and hasattr(stop, "number")
    return DONE if goes_on and (saved or number != signal.SIGINT) else 128 + number


def before_training(stop: KeyboardInterrupt, place: Path) -> Failure:
    """The end of a command that was stopped before it trained anything, as while it prepared text to `place`."""
    from pyro_ltm.data.preparation import kept

    done = "nothing half-written was left behind: the same command begins anew"
    if found := kept(place):
        done = f"what is done of the text is kept in {found}: the same command goes on from there"
    return Failure(f"interrupted before training; {done}", code_of(stop))
