"""One reader per kind of file, each a stream of documents with errors that say where.

    .txt .md                 plain text: one document, in pieces; so is any other file that is named itself
    .jsonl .ndjson           one JSON record a line
    .json                    an array of records, or one record a line
    .csv .tsv                fields under a header
    .parquet                 rows

Each of them also as .gz, .bz2, .xz or .zst.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pyro_ltm.data.documents import Document, Reading
from pyro_ltm.data.readers.fields import Fields
from pyro_ltm.data.readers.parquet import read_parquet
from pyro_ltm.data.readers.plain import read_plain
from pyro_ltm.data.readers.records import read_json, read_lines
from pyro_ltm.data.readers.separated import read_separated
from pyro_ltm.data.readers.streams import kind_of, readable
from pyro_ltm.errors import UserError

_WITH_COLUMNS: dict[str, Callable[[Path, Fields], Iterator[Document]]] = {
    ".jsonl": read_lines,
    ".ndjson": read_lines,
    ".json": read_json,
    ".csv": read_separated,
    ".tsv": read_separated,
    ".parquet": read_parquet,
}

SUFFIXES = (".txt", ".md", *_WITH_COLUMNS)
"""Suffixes that are read in a folder, also compressed. A file that is named itself may have any suffix."""


def has_columns(path: Path) -> bool:
    """Whether a file holds records with named columns, by its suffix; if not, it is one document, whole."""
    return kind_of(path) in _WITH_COLUMNS


def read_file(path: Path, reading: Reading | None = None, fields: Fields | None = None) -> Iterator[Document]:
    """The documents of one file; its suffix says how to read it.

    Args:
        reading: how to read it; None: `Reading()`.
        fields: makes documents of records; None: `Fields(reading)`.

    Raises:
        UserError: bad input, with the file, its line, record or row, and what would be right.
    """
    reading = reading or Reading()
    reader = _WITH_COLUMNS.get(kind_of(path))
    with readable(path):
        if not path.is_file():
            raise UserError(f"{path}: not a regular file; text is read more than once, so a pipe will not do")
        if reader is None:
            yield from read_plain(path, reading.record_limit)
        else:
            fields = fields or Fields(reading)
            yield from reader(path, fields)
            fields.check_column_seen()


__all__ = ["SUFFIXES", "Fields", "has_columns", "read_file"]
