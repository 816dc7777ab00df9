"""A file that is written from its beginning to its end, with its digest, and gone on with after a kill."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from pyro_ltm.data.manifest import FileEntry


class Unusable(Exception):
    """Raised where an interrupted writer left something that cannot be gone on with: why, in half a sentence."""


class HashedFile:
    """A file that is being written. Use as a context manager."""

    def __init__(self, path: Path, saved: FileEntry | None = None):
        """A new file; or with `saved` one that is there, from the end of what was saved on.

        Raises:
            Unusable: what was saved is not there any more.
        """
        self.path = path
        self._digest = hashlib.sha256()
        self._bytes = saved.bytes if saved else 0
        if saved is None:
            self._file: BinaryIO = open(path, "wb")  # noqa: SIM115
            return
        try:
            self._file = open(path, "r+b")  # noqa: SIM115
        except FileNotFoundError:
            raise Unusable(f"{path.name} is missing") from None
        left = saved.bytes
        while block := self._file.read(min(left, 1 << 20)):
            self._digest.update(block)
            left -= len(block)
        if left or self._digest.hexdigest() != saved.sha256:
            self._file.close()
            raise Unusable(f"{path.name} is not what was written")
        self._file.truncate()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Writes at its end."""
        self._file.write(data)
        self._digest.update(data)
        self._bytes += len(data)

    def rewrite(self, data: bytes) -> None:
        """Writes over its beginning, once all else is written; its digest is that of before."""
        self._file.seek(0)
        self._file.write(data)

    def save(self) -> FileEntry:
        """Makes all that was written last beyond a power cut; its size and digest."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return FileEntry(self._bytes, self._digest.hexdigest())

    def close(self) -> None:
        """Closes it; once more does nothing."""
        self._file.close()
