"""Documents that are there twice, or in both splits, found by their digests."""

from __future__ import annotations

import hashlib
from array import array

import numpy as np
import numpy.typing as npt

from pyro_ltm.data.shards import Shards, chunks

_DIGEST = 8
"""Bytes of a document's digest: two of a million differing ones share them once in some 37 million corpora."""


class Digests:
    """A digest of each document of a split, by which those that are there twice are found."""

    def __init__(self) -> None:
        self._closed = array("Q")
        self._open: hashlib.blake2b | None = None

    @classmethod
    def of_tokens(cls, stream: Shards, end_of_text: int) -> Digests:
        """Of documents as they are written: their tokens, each with an end-of-text after it, and one before them."""
        digests, continues = cls(), False
        for part in chunks(1, len(stream)):
            ids = stream[part]
            start = 0
            for end in np.flatnonzero(ids == end_of_text):
                digests.add(ids[start:end].tobytes(), continues=continues)
                start, continues = int(end) + 1, False
            if start < len(ids):
                digests.add(ids[start:].tobytes(), continues=continues)
                continues = True
        return digests

    def add(self, text: str | bytes, *, continues: bool) -> None:
        """Takes in a document, or more of the last one."""
        if not continues:
            self._close()
        self._open = self._open or hashlib.blake2b(digest_size=_DIGEST)
        self._open.update(text.encode("utf-8") if isinstance(text, str) else text)

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
