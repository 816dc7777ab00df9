"""Documents that are there twice, found by eight bytes of each."""

from __future__ import annotations

import hashlib
from array import array

import numpy as np
import numpy.typing as npt

_BYTES = 8
"""Bytes of a document's digest: two of a million differing ones share them once in some 37 million corpora."""


class Digests:
    """A digest of each document of a split, made while its pieces pass by."""

    def __init__(self) -> None:
        self._closed = array("Q")
        self._open: hashlib.blake2b | None = None

    def add(self, text: str, *, continues: bool) -> None:
        """Takes in a document, or more of the last one."""
        if not continues:
            self._close()
        self._open = self._open or hashlib.blake2b(digest_size=_BYTES)
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
