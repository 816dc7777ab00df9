"""Files as streams of bytes, decompressed, and of text in UTF-8, none of them in memory whole."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from pyro_ltm.errors import UserError, one_line
from pyro_ltm.reading import MEBIBYTE

PIECE = 1 << 14
"""Bytes read at a time: small enough that a tokenizer spreads one file evenly over its threads."""


def kind_of(path: Path) -> str:
    """The suffix that says what a file holds, in lower case: that before the one of its compression."""
    return Path(path.stem if _compression(path) else path.name).suffix.lower()


def _compression(path: Path) -> str:
    """The suffix of a file's compression, in lower case; empty where it has none."""
    suffix = path.suffix.lower()
    return suffix if suffix in _OPENERS else ""


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed as they are read. Its errors are those that `readable` puts into words."""
    with _OPENERS.get(_compression(path), _open_plain)(path) as file:
        yield file


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns the system's and the decompressors' errors into a UserError of one line."""
    try:
        yield
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number is None and _compression(path):
            raise UserError(f"{path}: damaged, or not {_compression(path)} at all: {one_line(error)}") from None
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from None


def lines(path: Path, limit: int) -> Iterator[tuple[int, str]]:
    """Numbered lines with their line ends, none longer than `limit` bytes."""
    offset = 0
    with open_bytes(path) as file:
        for number in itertools.count(1):
            raw = file.readline(limit + 1)
            if not raw:
                return
            _refuse_binary(raw, path, number)
            if len(raw) > limit:
                raise too_long(f"{path}:{number}", limit)
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset + error.start, number) from None
            offset += len(raw)
            yield number, line.removeprefix("\ufeff") if number == 1 else line


def pieces(path: Path, size: int = 0, *, translate: bool = False) -> Iterator[tuple[int, str, bool]]:
    """Text of `size` bytes at a time (0: `PIECE`): the line that it ends in, the text, and whether it is the last.

    Args:
        translate: read line ends as Python reads text.
    """
    decoder: Any = codecs.getincrementaldecoder("utf-8-sig")()
    decoder = io.IncrementalNewlineDecoder(decoder, translate=True) if translate else decoder
    size, offset, line = size or PIECE, 0, 1
    with open_bytes(path) as file:
        while True:
            chunk = file.read(size)
            last = len(chunk) < size
            _refuse_binary(chunk, path, line)
            offset += len(chunk)
            try:
                text = decoder.decode(chunk, final=last)
            except UnicodeDecodeError as error:
                before = error.object[: error.start]
                raise _not_utf8(path, offset - len(error.object) + error.start, line + before.count(b"\n")) from None
            line += chunk.count(b"\n")
            yield line, text, last
            if last:
                return


def too_long(where: str, limit: int, what: str = "line") -> UserError:
    """The error of a line, record or field that is longer than `limit` bytes."""
    size = f"{limit / MEBIBYTE:.4g} MiB"
    return UserError(f"{where}: a {what} of over {size}; --record-limit allows longer ones")


def _refuse_binary(data: bytes, path: Path, line: int) -> None:
    if b"\0" in data:
        line += data.count(b"\n", 0, data.index(b"\0"))
        raise UserError(f"{path}:{line}: a NUL byte, so this is a binary file or UTF-16; expected text in UTF-8")


def _not_utf8(path: Path, offset: int, line: int) -> UserError:
    return UserError(f"{path}:{line}: byte {offset} is not UTF-8; expected text in UTF-8 (iconv converts it)")


def _open_plain(path: Path) -> BinaryIO:
    return open(path, "rb")


@contextlib.contextmanager
def _open_zstd(path: Path) -> Iterator[io.BufferedReader]:
    import pyarrow  # type: ignore[import-untyped]  # here, because it takes a quarter of a second

    with open(path, "rb") as file, pyarrow.CompressedInputStream(pyarrow.PythonFile(file), "zstd") as stream:
        yield io.BufferedReader(stream)


class _Parts(io.RawIOBase):
    """The bytes of one or several compressed parts of a file, one after the other.

    Python's own readers take a part whose beginning is damaged for the end of the file. Here its error is raised.
    """

    def __init__(self, file: BinaryIO, part: Callable[[], Any]):
        self._file, self._new, self._part = file, part, part()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = b""
        while not found:
            data = b""
            if self._part.eof:
                if not (data := self._behind()):
                    return 0
                self._part = self._new()
            elif self._part.needs_input and not (data := self._file.read(PIECE)):
                raise EOFError("the file ends before its end-of-stream marker")
            found = self._part.decompress(data, len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def _behind(self) -> bytes:
        """Some bytes from behind a part, without the zeros that fill it up; empty at the end."""
        data = self._part.unused_data.lstrip(b"\0")
        while not data and (more := self._file.read(PIECE)):
            data = more.lstrip(b"\0")
        return data


@contextlib.contextmanager
def _open_parts(path: Path, part: Callable[[], Any]) -> Iterator[io.BufferedReader]:
    with open(path, "rb") as file:
        yield io.BufferedReader(_Parts(file, part))


_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": partial(_open_parts, part=bz2.BZ2Decompressor),
    ".xz": partial(_open_parts, part=lzma.LZMADecompressor),
    ".zst": _open_zstd,
}

COMPRESSIONS = tuple(_OPENERS)
"""Suffixes that may stand after those of the kinds."""
