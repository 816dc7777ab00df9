"""Errors that a user can act on, and text from elsewhere made safe to print."""

from __future__ import annotations

import re
import warnings

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls but tab and line feed: a terminal obeys them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029"  # what reorders the characters around it, or ends lines
    "\ud800-\udfff]"  # half a character, which UTF-8 cannot hold
)

LONGEST = 3000
"""Characters of a message."""


class UserError(ValueError):
    """Bad input: says in one line what is wrong, where, and what would be right.

    The command line prints the message alone and exits with code 2; in Python it is an ordinary `ValueError`. What a
    message quotes (paths, keys, values) may hold anything: its line breaks become spaces, its controls visible, and
    of one longer than `LONGEST` characters the middle is left out.
    """

    def __init__(self, message: object = ""):
        line = visible(" ".join(re.split(r"[\n\r]\s*", str(message).strip())))
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST - 500]} ... {line[-495:]}")


class Damaged(UserError):
    """A file that holds something else than what was written into it, or is cut short: an earlier one may do."""


class RanAway(UserError):
    """A training or a fit whose numbers are not finite any more."""


class OutOfMemory(UserError):
    """A training that found no memory, with settings that take less."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch found no memory; for the CPU's torch has no class of its own."""
    said = str(error) if isinstance(error, RuntimeError) else ""
    of_torch = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in said or "bad_alloc" in said
    return isinstance(error, MemoryError) or of_torch


def warn(text: str) -> None:
    """A warning of Python's: how a user hears what a caller had no ear for."""
    warnings.warn(text, stacklevel=3)


def visible(text: str) -> str:
    r"""`text` with the characters that a terminal would obey written out, as `\x1b`; tabs and line feeds stay.

    Those are the C0 and C1 controls, marks that change the direction of writing, Unicode's own line ends, and
    surrogates.
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def one_line(error: object, limit: int = 200) -> str:
    """A message of some other library, or a user's input, on one line of at most `limit` characters."""
    if isinstance(error, OSError) and error.strerror:
        error = error.strerror[:1].lower() + error.strerror[1:]
    said = error if isinstance(error, str) else str(error) or type(error).__name__
    text = visible(" ".join(said.split()))
    return text if len(text) <= limit else text[: limit - 3] + "..."
