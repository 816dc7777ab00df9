r"""One reader per kind of file, each a stream of documents with errors that say where.

Text is taken as it is, but for two things: a UTF-8 byte order mark is dropped, and in plain text files line ends are
read the way Python reads text, so that `\r\n` and `\r` become `\n` and a file gives the same tokens wherever it was
written. Strings inside JSON, CSV and Parquet are data and keep their line ends.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pyro_ltm.config import suggest
from pyro_ltm.data.document import Document
from pyro_ltm.errors import UserError, one_line

PIECE = 1 << 14
"""Bytes of plain text read at a time: small enough that a tokenizer spreads one file evenly over its threads."""

Check = Callable[[Any, str, str], str]
"""Text made of a value, given where it stands and its column; raises UserError where that cannot be."""

LINE_LIMIT = 16 << 20
"""Longest line, in bytes. A longer one is hardly text, and would have to be held in memory whole."""


def read_file(path: Path, column: str, check: Check | None = None) -> Iterator[Document]:
    """The documents of one file; its suffix says how to read it. Raises UserError for input that is bad.

    Args:
        check: makes text of what a column holds; `check_text` when None.
    """
    reader = _READERS.get(path.suffix.lower())
    with _readable(path):
        if not path.is_file():
            raise UserError(f"{path}: not a regular file; text is read more than once, so a pipe will not do")
        yield from _read_text(path) if reader is None else reader(path, column, check or check_text)


def is_plain_text(path: Path) -> bool:
    """Whether a file is one document, whole, by its suffix."""
    return path.suffix.lower() not in _READERS


def cut_place(text: str, start: int = 0) -> int:
    """Where to cut `text` so that both sides tokenize as the whole does: the last such place, 0 if there is none.

    Looks at newlines from `start` on. Byte-level BPE first splits text into words by a pattern. After a lone newline
    between two words, or before the one space that begins a line, GPT-2's pattern and those that followed it (GPT-4,
    Llama 3) always split, and would at an end of text. Where lines are parted by blank ones only, the cut goes before
    the last newline, which is exact for GPT-2's pattern.
    """
    fallback = 0
    at = text.rfind("\n", start, len(text) - 2) if len(text) > 2 else -1
    while at > 0:
        after, before = text[at + 1], text[at - 1]
        if (after == " " and not text[at + 2].isspace()) or not (after.isspace() or before.isspace()):
            return at + 1
        if not after.isspace():
            fallback = fallback or at
        at = text.rfind("\n", start, at)
    return fallback


def check_text(value: Any, where: str, column: str) -> str:
    """`value` if it is a valid string. Raises UserError naming `where`."""
    if not isinstance(value, str):
        kind = "empty (null)" if value is None else f"{type(value).__name__}"
        raise UserError(f"{where}: '{column}' is {kind}; expected a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: '{column}' holds half a character (surrogate U+{ord(value[error.start]):04X} "
            f"at {error.start}); expected valid Unicode"
        ) from None
    return value


def _read_text(path: Path) -> Iterator[Document]:
    """A plain text file: one document, in pieces cut where the tokens stay those of the whole (`cut_place`)."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    held, offset, line, continues = "", 0, 1, False
    with open(path, "rb") as file:
        while True:
            chunk = file.read(PIECE)
            last = len(chunk) < PIECE
            _refuse_binary(chunk, path, line)
            offset += len(chunk)
            try:
                text = held + decoder.decode(chunk, final=last)
            except UnicodeDecodeError as error:
                before = error.object[: error.start]
                raise _not_utf8(path, offset - len(error.object) + error.start, line + before.count(b"\n")) from None
            if last:
                break
            line += chunk.count(b"\n")
            cut = cut_place(text, max(len(held) - 2, 0))
            held = text[cut:]
            if cut:
                yield Document(text[:cut], str(path), continues)
                continues = True
            elif len(held) > LINE_LIMIT:
                raise _too_long(path, line - held.count("\n"))
    if text:
        yield Document(text, str(path), continues)


def _read_jsonl(path: Path, column: str, check: Check) -> Iterator[Document]:
    """One JSON object a line; blank lines are skipped."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not valid JSON: {one_line(error)}; expected one JSON object a line") from None
        if not isinstance(record, dict):
            raise UserError(f'{where}: a JSON {type(record).__name__}; expected an object such as {{"{column}": ...}}')
        if column not in record:
            raise _no_column(where, column, list(record))
        yield Document(check(record[column], where, column), where)


def _read_csv(path: Path, column: str, check: Check) -> Iterator[Document]:
    """Comma-separated values with a header; a quoted field may hold line breaks."""
    csv.field_size_limit(max(csv.field_size_limit(), LINE_LIMIT))  # the default refuses fields over 128 kB
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    header: list[str] = []
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f'{where}: not valid CSV: {one_line(error)}; quote fields with " and double it inside'
            ) from None
        if row is None:
            return
        if not row:
            continue
        if not header:
            header = row
            if column not in header:
                raise _no_column(where, column, header)
        elif len(row) != len(header):
            raise UserError(f"{where}: {len(row)} fields; the header has {len(header)} ({one_line(', '.join(header))})")
        else:
            yield Document(check(row[header.index(column)], where, column), where)


def _read_parquet(path: Path, column: str, check: Check) -> Iterator[Document]:
    """The rows of one column."""
    if path.stat().st_size == 0:
        return
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if column not in names:
                raise _no_column(str(path), column, names)
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=[column]):
                for value in batch.column(0):
                    row += 1
                    where = f"{path}: row {row}"
                    yield Document(check(value.as_py(), where, column), where)
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        raise UserError(f"{path}: not a readable Parquet file: {one_line(error)}") from None


_READERS: dict[str, Callable[[Path, str, Check], Iterator[Document]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}

FOLDER_SUFFIXES = (".txt", ".md", *_READERS)
"""What is read in a folder. A file that is named itself may have any suffix."""


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their line ends, none held in memory beyond `LINE_LIMIT`."""
    offset = 0
    with open(path, "rb") as file:
        for number in itertools.count(1):
            raw = _next_line(file)
            if not raw:
                return
            _refuse_binary(raw, path, number)
            if len(raw) > LINE_LIMIT:
                raise _too_long(path, number)
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset + error.start, number) from None
            offset += len(raw)
            yield number, line.removeprefix("\ufeff") if number == 1 else line


def _next_line(file: BinaryIO) -> bytes:
    return file.readline(LINE_LIMIT + 1)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from None


def _refuse_binary(data: bytes, path: Path, line: int) -> None:
    if b"\0" in data:
        line += data.count(b"\n", 0, data.index(b"\0"))
        raise UserError(f"{path}:{line}: a NUL byte, so this is a binary file or UTF-16; expected text in UTF-8")


def _not_utf8(path: Path, offset: int, line: int) -> UserError:
    return UserError(f"{path}:{line}: byte {offset} is not UTF-8; expected text in UTF-8 (iconv converts it)")


def _too_long(path: Path, line: int) -> UserError:
    return UserError(f"{path}:{line}: a line of over {LINE_LIMIT >> 20} MiB; expected text with line breaks")


def _no_column(where: str, column: str, names: list[str]) -> UserError:
    known = one_line(", ".join(names)) if names else "none"
    return UserError(f"{where}: no column '{column}'{suggest(column, names)}: its columns are {known}")
