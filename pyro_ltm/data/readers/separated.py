"""Fields under a header: comma-separated values, and those with another delimiter."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from pyro_ltm.data.documents import Document, Reading
from pyro_ltm.data.readers import streams
from pyro_ltm.data.readers.fields import Fields, no_column
from pyro_ltm.errors import UserError, one_line

DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar"}
"""Those that are looked for, the likelier first."""

_SAMPLE = 1 << 16
"""Characters in which the delimiter is looked for."""


def read_separated(path: Path, fields: Fields) -> Iterator[Document]:
    """Rows under a header; a quoted field may hold line breaks."""
    limit, delimiter = fields.reading.record_limit, delimiter_of(path, fields.reading)
    reader = _Rows((line for _, line in streams.lines(path, limit)), delimiter, limit)
    header: list[str] = []
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise _bad(where, error, limit) from None
        if row is None:
            return
        if not row:
            continue
        if not header:
            header = row
            if fields.column not in header:
                what = f" (the delimiter is {DELIMITERS.get(delimiter, repr(delimiter))}; --delimiter names another)"
                raise no_column(where, fields.column, header, also=what)
            for name in (fields.column, *fields.reading.columns):
                if header.count(name) > 1:
                    raise UserError(f"{where}: {header.count(name)} columns '{name}'; name one otherwise")
        elif len(row) != len(header):
            raise UserError(f"{where}: {len(row)} fields; the header has {len(header)} ({one_line(', '.join(header))})")
        else:
            yield fields.document(dict(zip(header, row, strict=True)), where)


def is_separated(path: Path) -> bool:
    """Whether a file holds separated fields, by its suffix."""
    return streams.kind_of(path) in (".csv", ".tsv")


def delimiter_of(path: Path, reading: Reading) -> str:
    """The delimiter of a file: as given, else a tab in a .tsv, else the likeliest by how the file begins."""
    if reading.delimiter is not None:
        return reading.delimiter
    if streams.kind_of(path) == ".tsv":
        return "\t"
    return find_delimiter(_sample(path, reading.record_limit), reading.column)


def find_delimiter(lines: list[str], column: str) -> str:
    """The delimiter of lines that begin a file: one that cuts each into as many fields as the header, if there is one.

    Of several, that which makes `column` a field of the header, then that which makes the most of them.
    """

    def fitness(delimiter: str) -> tuple[bool, bool, int]:
        rows = list(_rows(lines, delimiter))
        header = rows[0] if rows else []
        agree = len(header) > 1 and all(len(row) == len(header) for row in rows)
        return agree, column in header, len(header)

    return max(DELIMITERS, key=fitness)  # the first of equals


def _rows(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """The rows up to the first that cannot be read, such as one cut off at the end of a sample."""
    try:
        yield from (row for row in _Rows(lines, delimiter, csv.field_size_limit()) if row)
    except csv.Error:
        return


class _Rows:
    """The rows of lines, with fields of at most `limit` characters where csv's default refuses those over 128 kB.

    Its limit is one for the whole process, so it holds while a row is read and no longer: others read CSV, too.
    """

    def __init__(self, lines: Iterable[str], delimiter: str, limit: int):
        self._reader, self._limit = csv.reader(lines, strict=True, delimiter=delimiter), limit

    @property
    def line_num(self) -> int:
        """Lines read so far."""
        return self._reader.line_num

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        before = csv.field_size_limit(self._limit)
        try:
            return next(self._reader)
        finally:
            csv.field_size_limit(before)


def _sample(path: Path, limit: int) -> list[str]:
    taken = 0

    def within(line: str) -> bool:
        nonlocal taken
        taken += len(line)
        return taken <= _SAMPLE

    numbered = streams.lines(path, limit)
    first = [line for _, line in itertools.islice(numbered, 2)]
    return first + list(itertools.takewhile(within, (line for _, line in numbered)))


def _bad(where: str, error: csv.Error, limit: int) -> UserError:
    if "field limit" in str(error):
        return streams.too_long(where, limit, "field, perhaps for a quote that is left open,")
    return UserError(f'{where}: not valid CSV: {one_line(error)}; quote fields with " and double it inside')
