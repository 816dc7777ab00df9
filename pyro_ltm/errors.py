"""Errors that a user can act on."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: says in one line what is wrong, where, and what would be right.

    The command line prints the message alone and exits with code 2; in Python it is an ordinary `ValueError`.
    """


def one_line(error: object, limit: int = 200) -> str:
    """A message of some other library, or a user's input, on one line of at most `limit` characters."""
    if isinstance(error, OSError) and error.strerror:
        error = error.strerror[:1].lower() + error.strerror[1:]
    text = " ".join((str(error) or type(error).__name__).split()).replace("\0", "\\0")
    return text if len(text) <= limit else text[: limit - 3] + "..."
