"""How a command ends when it cannot do what was asked."""

from __future__ import annotations

import click

BAD_INPUT = 2
INTERRUPTED = 130


class Failure(click.ClickException):
    """The end of a command: one line on stderr, and an exit code."""

    def __init__(self, message: str, code: int = BAD_INPUT):
        super().__init__(message)
        self.code = code
