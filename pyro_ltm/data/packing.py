"""Writing one split: its tokens cut into sequences, and what meta.json counts of its documents."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from pyro_ltm.data.documents import Document
from pyro_ltm.data.duplicates import Digests
from pyro_ltm.data.encoding import Encoded
from pyro_ltm.data.hashed_file import HashedFile, Unusable
from pyro_ltm.data.manifest import FileEntry, index_name, stream_name, stream_names, token_dtype
from pyro_ltm.data.tokenizer import Tokenizer
from pyro_ltm.data.tokenizer.round_trip import RoundTrip
from pyro_ltm.errors import UserError
from pyro_ltm.reading import Count

SHARD = 1 << 26
"""Tokens of a file, of which a long split has several: 128 MiB, or 256 of a vocabulary of over 65,536."""

_HEADER = 128
"""Bytes of a .npy header for a table of two columns, whatever its number of rows."""


class Written(msgspec.Struct):
    """How far a split has been written.

    Attributes:
        files: what is in its files so far.
        position: tokens written. document_start: the place of the end-of-text before the document being written.
        rows: sequences in the index.
        documents, bytes, text_bytes: as in meta.json.
        round_trip: counts of texts that their tokens give back.
    """

    files: dict[str, FileEntry] = {}
    position: Count = 0
    document_start: Count = 0
    rows: Count = 0
    documents: Count = 0
    bytes: Count = 0
    text_bytes: Count = 0
    round_trip: RoundTrip = msgspec.field(default_factory=RoundTrip)


class SplitWriter:
    """Writes the token stream of one split, and in document packing its index. Use as a context manager.

    Contiguous packing: sequence i reads tokens [iT, iT + T) of the stream and predicts [iT + 1, iT + T + 1).
    Document packing: the same for one document at a time, its first input being the end-of-text before it and its
    last target the one after it; a document of over T targets goes on in the next sequence.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        tokenizer: Tokenizer,
        *,
        length: int,
        packing: str,
        written: Written | None = None,
    ):
        """`tokenizer` made the tokens; `length` is T; `written` is `save` of an earlier writer, to go on after it.

        Raises:
            Unusable: the files do not begin with what was written.
        """
        self._folder, self._split, self._length = folder, split, length
        self._end, self._dtype = tokenizer.end_of_text, token_dtype(tokenizer.vocab_size)
        self.written, self.digests = written or Written(), Digests()
        with contextlib.ExitStack() as files:
            self._index: HashedFile | None = None
            if packing == "document":
                self._index = files.enter_context(self._open(index_name(split)))
            shards = stream_names(split, self.written.files) or [stream_name(split)]
            if written is not None:
                self._check(written, shards)
            for full in shards[:-1]:
                self._open(full).close()
            self._shard, self._stream = len(shards) - 1, files.enter_context(self._open(shards[-1]))
            if written is None:
                if self._index:
                    self._index.write(_index_header(0))
                self._write(np.array([self._end]))
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
                    self._index.rewrite(_index_header(self.written.rows))

    def add(self, document: Document, encoded: Encoded) -> None:
        """Writes the tokens of a document, or more of the last one. Raises UserError for an end-of-text in them."""
        if (encoded.ids == self._end).any():
            what = "a text may become the token that ends documents, as this one does"
            raise UserError(f"{document.origin}: {what}; --end-of-text names another token of the tokenizer")
        if not document.continues:
            self._end_document()
        written = self.written
        at_start = encoded.at_start if written.position == written.document_start + 1 else 0
        self._write(encoded.ids)
        written.bytes += encoded.bytes + at_start
        written.text_bytes += len(document.text.encode("utf-8"))
        written.round_trip.count(
            len(encoded.ids), encoded.unknown, gives_back=encoded.gives_back, continues=document.continues
        )
        self.pass_over(document)

    def pass_over(self, document: Document) -> None:
        """Takes in a document, or more of the last one, that an earlier writer has written."""
        self.digests.add(document.text, continues=document.continues)

    def save(self) -> Written:
        """How far it is, of what will not be lost any more."""
        self.written.files[self._stream.path.name] = self._stream.save()
        if self._index:
            self.written.files[self._index.path.name] = self._index.save()
        return self.written

    def counts(self) -> dict[str, int]:
        """The split's entry in meta.json, once all is written."""
        return {
            "documents": self.written.documents,
            "tokens": self.tokens,
            "sequences": self.sequences,
            "bytes": self.written.bytes,
            "text_bytes": self.written.text_bytes,
            "changed_documents": self.written.round_trip.changed,
            "unknown_tokens": self.written.round_trip.unknown,
        }

    @property
    def tokens(self) -> int:
        """Targets so far: every token but the first."""
        return self.written.position - 1

    @property
    def text_tokens(self) -> int:
        """Tokens of text so far, those between documents left out."""
        return self.tokens - self.written.documents

    @property
    def sequences(self) -> int:
        """Sequences so far."""
        return self.written.rows if self._index else -(-self.tokens // self._length)

    @property
    def has_shards(self) -> bool:
        """Whether it took more than one file."""
        return self._shard > 0

    def _check(self, written: Written, shards: list[str]) -> None:
        """Raises Unusable where what was written does not agree with itself."""
        size = self._dtype.itemsize
        sizes = [written.files[name].bytes for name in shards if name in written.files]
        full = all(shard == SHARD * size for shard in sizes[:-1]) and max(sizes, default=0) <= SHARD * size
        rows = written.files.get(index_name(self._split))
        fits = self._index is None or (rows is not None and rows.bytes == _HEADER + 16 * written.rows)
        if not (full and fits and sum(sizes) == written.position * size and written.document_start < written.position):
            raise Unusable(f"what is noted of {self._split} does not fit its files")

    def _end_document(self) -> None:
        written = self.written
        if written.position - written.document_start == 1:
            return  # nothing since the last end-of-text: the first document, or text that gave no token
        self._write(np.array([self._end]))
        written.documents += 1
        if self._index:
            starts = np.arange(written.document_start, written.position - 1, self._length, dtype="<i8")
            rows = np.stack([starts, np.minimum(self._length, written.position - 1 - starts)], axis=1)
            self._index.write(rows.tobytes())
            written.rows += len(rows)
        written.document_start = written.position - 1

    def _write(self, ids: npt.NDArray[Any]) -> None:
        while len(ids):
            if self.written.position == (self._shard + 1) * SHARD:
                self._next_shard()
            here, ids = np.split(ids, [(self._shard + 1) * SHARD - self.written.position])
            self._stream.write(here.astype(self._dtype, copy=False).tobytes())
            self.written.position += len(here)

    def _next_shard(self) -> None:
        self.written.files[self._stream.path.name] = self._stream.save()
        self._stream.close()
        self._shard += 1
        self._stream = self._files.enter_context(self._open(stream_name(self._split, self._shard)))

    def _open(self, name: str) -> HashedFile:
        return HashedFile(self._folder / name, self.written.files.get(name))


def _index_header(rows: int) -> bytes:
    """The header of a .npy file of int64 [rows, 2], always `_HEADER` bytes so that it can be written last."""
    text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({rows}, 2), }}"
    magic = b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little")
    return magic + text.ljust(_HEADER - 11).encode("ascii") + b"\n"
