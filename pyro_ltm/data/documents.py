"""A piece of text and where it came from; and how such pieces are read from sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pyro_ltm.errors import UserError
from pyro_ltm.reading import MEBIBYTE

TEXT = "text"
"""The column that holds the text where none is named."""
ID = "id"
"""The column that names documents where none is named; it may be absent."""


@dataclass(frozen=True)
class Document:
    """A text, or one piece of a long text that is streamed.

    Attributes:
        text: what to learn from; valid Unicode, possibly empty.
        origin: where it came from, for messages: a file, a file with its line or row, a corpus with its entry.
        continues: True where this piece goes on with the document of the piece before it.
        id: what the input calls it, where it has such a column.
        columns: what else its record holds, of what was asked for: words, numbers, truth values, or nothing (None).
    """

    text: str
    origin: str
    continues: bool = False
    id: str | int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How text is read from sources.

    Attributes:
        text_column: column or JSON field that holds the text, `a.b` for one inside another. None: `text`. Plain text
            has no columns: with a column named, it is refused.
        id_column: column or field that names each document. None: `id`, where there is one.
        columns: others to carry along with each document; `a.b` for one inside another.
        delimiter: the character between fields. None: found in a .csv, a tab in a .tsv.
        skip_empty: take a null, or a record without the column, for an empty text, which is counted and left out,
            instead of refusing it.
        record_limit: bytes of the longest record, and of the longest line of plain text without a space.
        split: of a Hugging Face data set.
        streaming: fetch a Hugging Face data set as it is read, instead of downloading it first.
    """

    text_column: str | None = None
    id_column: str | None = None
    columns: tuple[str, ...] = ()
    delimiter: str | None = None
    skip_empty: bool = False
    record_limit: int = 16 * MEBIBYTE
    split: str = "train"
    streaming: bool = True

    def __post_init__(self) -> None:
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n\0'):
            raise UserError(f"delimiter = {self.delimiter!r}: expected one character, such as ; or a tab")
        if self.record_limit < 1:
            raise UserError(f"record_limit = {self.record_limit}: must be at least 1 byte")

    @property
    def column(self) -> str:
        """The column that holds the text."""
        return TEXT if self.text_column is None else self.text_column

    @property
    def first_named(self) -> str | None:
        """A column that was asked for by its name; None where plain text will do."""
        return next((name for name in (self.text_column, *self.columns) if name is not None), None)
