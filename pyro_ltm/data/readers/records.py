"""JSON: one record a line, or an array of records, read as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyro_ltm.data.documents import Document
from pyro_ltm.data.readers import streams
from pyro_ltm.data.readers.fields import Fields
from pyro_ltm.errors import UserError, one_line

_SPACE = " \t\n\r"
CHUNK = 1 << 16
_OF_A_NUMBER = "+-.0123456789Ee"
_LONGEST_ESCAPE = 16
"""Characters at the end of a buffer in which an error may mean no more than that the rest is yet to come."""


def read_lines(path: Path, fields: Fields) -> Iterator[Document]:
    """One JSON object a line; blank lines are skipped."""
    for number, line in streams.lines(path, fields.reading.record_limit):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not valid JSON: {one_line(error)}; expected one JSON object a line") from None
        yield fields.document(_object(record, where, fields), where)


def read_json(path: Path, fields: Fields) -> Iterator[Document]:
    """An array of records, or one record a line."""
    limit = fields.reading.record_limit
    begins = first_character(path)
    if begins == "[":
        for number, record in enumerate(elements(path, limit), 1):
            where = f"{path}: record {number}"
            yield fields.document(_object(record, where, fields), where)
        return
    first = next((line for _, line in streams.lines(path, limit) if line.strip()), "")
    if first and not is_object(first):
        hint = "; it seems to be one JSON object: write out the array that it holds" if begins == "{" else ""
        shape = f'[{{"{fields.column}": ...}}, ...]'
        raise UserError(f"{path}: neither an array of records, {shape}, nor one record a line{hint}")
    yield from read_lines(path, fields)


def first_character(path: Path) -> str:
    """The first character of a file that is no white space; empty where there is none. Raises UserError: no text."""
    return next((text[0] for _, piece, _ in streams.pieces(path) if (text := piece.lstrip(_SPACE))), "")


def is_object(text: str) -> bool:
    """Whether `text` is a JSON object, whole."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _object(record: Any, where: str, fields: Fields) -> dict[str, Any]:
    if record is None and fields.reading.skip_empty:
        return {fields.column: None}
    if not isinstance(record, dict):
        kind = "null" if record is None else type(record).__name__
        raise UserError(f'{where}: a JSON {kind}; expected an object such as {{"{fields.column}": ...}}')
    return record


class _Buffer:
    """The part of a file's text that is not yet read."""

    def __init__(self, path: Path, limit: int):
        self._pieces = streams.pieces(path, CHUNK)
        self._path, self._limit = path, limit
        self.text, self.at, self.ended, self.line = "", 0, False, 1

    def more(self) -> None:
        """Doubles the text in memory, so that the work for a long record stays in proportion to it."""
        self.text, self.at = self.text[self.at :], 0
        if len(self.text) > self._limit:
            raise streams.too_long(f"{self._path}:{self.line}", self._limit, "record")
        parts = [self.text]
        wanted = 2 * len(self.text)
        while not self.ended and sum(map(len, parts)) <= wanted:
            self.line, text, self.ended = next(self._pieces)
            parts.append(text)
        self.text = "".join(parts)

    def next(self) -> str:
        """The next character that is no white space, without going past it; empty at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more()


def elements(path: Path, limit: int) -> Iterator[Any]:
    """The values in a JSON array that is the whole file, none longer than `limit`."""
    buffer, decoder, number = _Buffer(path, limit), json.JSONDecoder(), 0

    def wrong(what: object) -> UserError:
        return UserError(f"{path}: record {number}: not valid JSON: {one_line(what)}; expected an array of records")

    def decoded() -> Any:
        while True:
            try:
                value, end = decoder.raw_decode(buffer.text, buffer.at)
            except (ValueError, RecursionError) as error:
                if buffer.ended or not _may_go_on(error, len(buffer.text)):
                    raise wrong(error) from None
            else:
                if buffer.ended or buffer.text[end:].strip(_OF_A_NUMBER):  # else a number may go on
                    buffer.at = end
                    return value
            buffer.more()

    buffer.next()
    buffer.at += 1  # the bracket
    mark = buffer.next()
    while mark != "]":
        number += 1
        yield decoded()
        mark = buffer.next()
        if mark == ",":
            buffer.at += 1
            buffer.next()
        elif mark != "]":
            raise wrong(f"{mark!r} where a comma or ] has to stand" if mark else "the file ends inside the array")
    buffer.at += 1
    if rest := buffer.next():
        raise wrong(f"{rest!r} after the end of the array")


def _may_go_on(error: Exception, length: int) -> bool:
    """Whether an error in a text of `length` characters may come of its being cut short."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= length - _LONGEST_ESCAPE
