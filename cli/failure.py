"""How a command ends when it cannot do what was asked."""

from __future__ import annotations

import click

DONE = 0
BAD_INPUT = 2
INTERRUPTED = 130


class Failure(click.ClickException):
    """The end of a command: one line on stderr, and an exit code."""

    def __init__(self, message: str, code: int = BAD_INPUT):
        super().__init__(message)
        self.code = code


def code_of(stop: KeyboardInterrupt) -> int:
    """Exit code where a user's Ctrl-C, or a signal after which a training has saved, ended a command."""
    return INTERRUPTED if getattr(stop, "by_hand", True) else DONE
