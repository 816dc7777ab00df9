"""What of the text that is prepared is no text, or is there twice."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pyro_ltm.data.documents import Document

_DIGEST = 8
"""Bytes kept of each document: two of a million differing ones share them once in some 37 million corpora."""


class DocumentCounter:
    """Counts while documents pass by, in eight bytes a document.

    Attributes:
        without_text: documents that hold none, not even white space.
    """

    def __init__(self, splits: Sequence[str]):
        """`splits` are those that documents go to."""
        self.without_text = 0
        self._digests = {split: array("Q") for split in splits}
        self._open: dict[str, hashlib.blake2b] = {}

    def read(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents, unchanged, as they are read."""
        for document in documents:
            self.without_text += not document.text and not document.continues
            yield document

    def assigned(self, pieces: Iterable[tuple[str, Document]]) -> Iterator[tuple[str, Document]]:
        """The pieces of documents, unchanged, with the split that each goes to."""
        for split, document in pieces:
            if not document.continues:
                self._close(split)
                self._open[split] = hashlib.blake2b(digest_size=_DIGEST)
            self._open[split].update(document.text.encode("utf-8"))
            yield split, document
        for split in tuple(self._open):
            self._close(split)

    def duplicates(self, split: str) -> int:
        """Documents of a split whose text an earlier one of it has, to the letter."""
        digests = self._of(split)
        return len(digests) - len(np.unique(digests))

    def also_in(self, split: str, other: str) -> int:
        """Documents of a split whose text is a document of the other one, to the letter."""
        return int(np.isin(self._of(split), self._of(other)).sum())

    def _close(self, split: str) -> None:
        if split in self._open:
            self._digests[split].append(int.from_bytes(self._open.pop(split).digest(), "big"))

    def _of(self, split: str) -> npt.NDArray[np.uint64]:
        return np.frombuffer(self._digests[split], dtype=np.uint64)
