"""Writing one split: its tokens cut into sequences, and what meta.json counts of its documents."""

from __future__ import annotations

import contextlib
import hashlib
from array import array
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from pyro_ltm.data.documents import Document
from pyro_ltm.data.folder import index_name, stream_name, token_dtype
from pyro_ltm.data.tokenizer import Tokenizer
from pyro_ltm.data.tokenizer.round_trip import RoundTrip
from pyro_ltm.errors import UserError

_HEADER = 128
"""Bytes of a .npy header for a table of two columns, whatever its number of rows."""

_DIGEST = 8
"""Bytes of a document's digest: two of a million differing ones share them once in some 37 million corpora."""


class SplitWriter:
    """Writes the token stream of one split, and in document packing its index. Use as a context manager.

    Contiguous packing: sequence i reads tokens [iT, iT + T) of the stream and predicts [iT + 1, iT + T + 1).
    Document packing: the same for one document at a time, its first input being the end-of-text before it and its
    last target the one after it; a document of over T targets goes on in the next sequence.
    """

    def __init__(self, folder: Path, split: str, tokenizer: Tokenizer, *, length: int, packing: str):
        """`tokenizer` made the tokens; `length` is T."""
        self._tokenizer, self._end, self._length = tokenizer, tokenizer.end_of_text, length
        self._token_bytes, self._first_token_bytes = tokenizer.token_bytes, tokenizer.first_token_bytes
        self._dtype = token_dtype(len(self._token_bytes))
        self._document_start = 0  # the end-of-text before the document that is being written
        self._position = 0  # tokens written
        self._rows = 0
        self.documents = self.bytes = self.text_bytes = 0
        self.round_trip, self.digests = RoundTrip(), Digests()
        self._index: BinaryIO | None = None
        with contextlib.ExitStack() as files:
            self._stream: BinaryIO = files.enter_context(open(folder / stream_name(split), "wb"))
            if packing == "document":
                self._index = files.enter_context(open(folder / index_name(split), "wb"))
                self._index.write(_index_header(0))
            self._write([self._end])
            self._files = files.pop_all()  # open until __exit__, unless something went wrong up to here

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._files:
            if kind is None:
                self._end_document()
                if self._index:
                    self._index.seek(0)
                    self._index.write(_index_header(self._rows))

    def add(self, document: Document, ids: list[int]) -> None:
        """Writes the token ids of a document, or more of the last one. Raises UserError for an end-of-text in them."""
        if self._end in ids:
            what = "a text may become the token that ends documents, as this one does"
            raise UserError(f"{document.origin}: {what}; --end-of-text names another token of the tokenizer")
        if not document.continues:
            self._end_document()
        self._write(ids)
        self.round_trip.add(self._tokenizer, document.text, ids, continues=document.continues)
        self.digests.add(document.text, continues=document.continues)
        self.text_bytes += len(document.text.encode("utf-8"))

    def counts(self) -> dict[str, int]:
        """The split's entry in meta.json, once all is written."""
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "sequences": self.sequences,
            "bytes": self.bytes,
            "text_bytes": self.text_bytes,
            "changed_documents": self.round_trip.changed,
            "unknown_tokens": self.round_trip.unknown,
        }

    @property
    def tokens(self) -> int:
        """Targets so far: every token but the first."""
        return self._position - 1

    @property
    def text_tokens(self) -> int:
        """Tokens of text so far, those between documents left out."""
        return self.tokens - self.documents

    @property
    def sequences(self) -> int:
        """Sequences so far."""
        return self._rows if self._index else -(-self.tokens // self._length)

    def _end_document(self) -> None:
        if self._position - self._document_start == 1:
            return  # nothing since the last end-of-text: the first document, or text that gave no token
        self._write([self._end])
        self.documents += 1
        if self._index:
            starts = np.arange(self._document_start, self._position - 1, self._length, dtype="<i8")
            rows = np.stack([starts, np.minimum(self._length, self._position - 1 - starts)], axis=1)
            self._index.write(rows.tobytes())
            self._rows += len(rows)
        self._document_start = self._position - 1

    def _write(self, ids: list[int]) -> None:
        tokens = np.asarray(ids, dtype=np.int64)
        self._stream.write(tokens.astype(self._dtype).tobytes())
        self.bytes += int(self._token_bytes[tokens].sum())
        if len(tokens) and self._position == self._document_start + 1:
            self.bytes += int(self._first_token_bytes[tokens[0]] - self._token_bytes[tokens[0]])
        self._position += len(tokens)


def _index_header(rows: int) -> bytes:
    """The header of a .npy file of int64 [rows, 2], always `_HEADER` bytes so that it can be written last."""
    text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({rows}, 2), }}"
    magic = b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little")
    return magic + text.ljust(_HEADER - 11).encode("ascii") + b"\n"


class Digests:
    """A digest of each document of a split, by which those that are there twice are found."""

    def __init__(self) -> None:
        self._closed = array("Q")
        self._open: hashlib.blake2b | None = None

    def add(self, text: str, *, continues: bool) -> None:
        """Takes in a document, or more of the last one."""
        if not continues:
            self._close()
        self._open = self._open or hashlib.blake2b(digest_size=_DIGEST)
        self._open.update(text.encode("utf-8"))

    def duplicates(self) -> int:
        """Documents whose text an earlier one has, to the letter."""
        digests = self._all()
        return len(digests) - len(np.unique(digests))

    def also_in(self, other: Digests) -> int:
        """Documents whose text is a document of the other split, to the letter."""
        return int(np.isin(self._all(), other._all()).sum())

    def _close(self) -> None:
        if self._open:
            self._closed.append(int.from_bytes(self._open.digest(), "big"))
            self._open = None

    def _all(self) -> npt.NDArray[np.uint64]:
        self._close()
        return np.array(self._closed, dtype=np.uint64)
