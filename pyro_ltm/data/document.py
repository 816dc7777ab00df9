"""A piece of text and where it came from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """A text, or one piece of a long text that is streamed.

    Attributes:
        text: what to learn from; valid Unicode, possibly empty.
        origin: where it came from, for messages: a file, a file with its line or row, a corpus with its entry.
        continues: True where this piece goes on with the document of the piece before it.
        id: what the input calls it, where it has such a column.
    """

    text: str
    origin: str
    continues: bool = False
    id: str | int | None = None
