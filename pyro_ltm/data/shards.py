"""Token ids in files: read as one array, and looked through for faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_ltm.data.manifest import damaged
from pyro_ltm.errors import UserError, one_line

CHUNK = 1 << 22
"""Tokens or rows of an index that are looked at in one go."""


class Shards:
    """Token ids [n] that lie in one file after the other: memory-mapped at single places, read where a slice is asked.

    What a process maps counts as its memory once it was looked at, so whoever goes through all of it asks for slices.

    Args:
        check: called with the name of each file before the first look at what it holds.
    """

    def __init__(self, paths: Sequence[Path], dtype: np.dtype[Any], check: Callable[[str], None] | None = None):
        self._paths, self._dtype, self._check = paths, dtype, check
        self._unchecked = set(range(len(paths))) if check else set[int]()
        self._mapped: list[npt.NDArray[Any]] = [np.memmap(path, dtype=dtype, mode="r") for path in paths]
        self._ends = np.cumsum([len(part) for part in self._mapped], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, places: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The ids at `places`, whole numbers of any shape, or a slice of them without steps.

        Raises:
            UserError: a file of them is not what was written, or was cut short or taken away after it had been opened.
        """
        if isinstance(places, slice):
            return self._read(*places.indices(len(self))[:2])
        if len(self._mapped) == 1:
            check_whole(self._mapped[0], self._paths[0])
            self._check_first(0)
            return np.asarray(self._mapped[0][places])
        found = np.empty(places.shape, dtype=self._dtype)
        shards = np.searchsorted(self._ends, places, side="right")
        for shard in np.unique(shards):
            inside = shards == shard
            check_whole(self._mapped[shard], self._paths[shard])
            self._check_first(int(shard))
            found[inside] = self._mapped[shard][places[inside] - self._start(shard)]
        return found

    def whole(self) -> npt.NDArray[Any]:
        """All of it as one array, which cannot be written to: mapped where it is one file, else a copy."""
        if len(self._mapped) == 1:
            self._check_first(0)
            return self._mapped[0]
        copy = self[:]
        copy.flags.writeable = False
        return copy

    def _check_first(self, shard: int) -> None:
        if shard in self._unchecked and self._check is not None:
            self._check(self._paths[shard].name)
            self._unchecked.discard(shard)

    def _start(self, shard: int) -> int:
        return int(self._ends[shard]) - len(self._mapped[shard])

    def _read(self, start: int, end: int) -> npt.NDArray[Any]:
        parts = [np.empty(0, dtype=self._dtype)]
        for shard, path in enumerate(self._paths):
            first = self._start(shard)
            low, high = max(start, first), min(end, int(self._ends[shard]))
            if low < high:
                self._check_first(shard)
                try:
                    part = np.fromfile(path, self._dtype, high - low, offset=(low - first) * self._dtype.itemsize)
                except OSError as error:
                    raise damaged(path.parent, f"{path.name} cannot be read: {one_line(error)}") from None
                if len(part) < high - low:
                    raise _cut_short(path)
                parts.append(part)
        return np.concatenate(parts)


def check_whole(mapped: npt.NDArray[Any], path: Path) -> None:
    """Raises UserError where the file at `path` is shorter now than its memory-mapped array.

    A look at what is gone would end the process by SIGBUS, without a word.
    """
    memory: Any = mapped.base
    if memory.size() < len(memory):
        raise _cut_short(path)


def _cut_short(path: Path) -> UserError:
    return damaged(path.parent, f"{path.name} was cut short while it was read")


def chunks(start: int, end: int) -> Iterator[slice]:
    """The places from `start` to `end` in slices of at most `CHUNK`."""
    return (slice(at, min(at + CHUNK, end)) for at in range(start, end, CHUNK))


def ids_problem(ids: npt.NDArray[Any] | Shards, vocab_size: int) -> str:
    """The fault of token ids [n], in half a sentence; empty where all are below `vocab_size`."""
    for part in chunks(0, len(ids)):
        largest = int(ids[part].max())
        if largest >= vocab_size:
            return f"has the token id {largest}, and the vocabulary {vocab_size} tokens"
    return ""


def index_problem(index: npt.NDArray[np.int64], tokens: int, length: int) -> str:
    """The fault of an index [S, 2] of first tokens and numbers of targets, in half a sentence; empty if nothing.

    Every target stands in one sequence, of at most `length` targets, and the sequences in the order of the stream.
    """
    expected = 0  # where the next sequence has to start
    for part in chunks(0, len(index)):
        starts, counts = np.asarray(index[part]).T
        if counts.min() < 1 or counts.max() > length:
            return f"has a sequence of {counts.min()} or of {counts.max()} targets, where 1 to {length} are possible"
        ends = expected + counts.cumsum()  # counts are small: no sum overflows
        if starts[0] != expected or (starts[1:] != ends[:-1]).any():
            return f"does not go through its {tokens} tokens one sequence after another"
        expected = int(ends[-1])
    return "" if expected == tokens else f"covers {expected} of its {tokens} tokens"
