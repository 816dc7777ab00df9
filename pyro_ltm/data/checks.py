"""Whether the files of a prepared folder hold what meta.json says: ids of the vocabulary, an index of the stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_CHUNK = 1 << 22
"""Tokens or rows looked at in one go."""


def ids_problem(stream: npt.NDArray[Any], vocab_size: int) -> str:
    """What is wrong with the token ids `stream` [n], in half a sentence; empty where all are below `vocab_size`."""
    if vocab_size > np.iinfo(stream.dtype).max:
        return ""
    for start in range(0, len(stream), _CHUNK):
        largest = int(stream[start : start + _CHUNK].max())
        if largest >= vocab_size:
            return f"has the token id {largest}, and the vocabulary {vocab_size} tokens"
    return ""


def index_problem(index: npt.NDArray[np.int64], tokens: int, length: int) -> str:
    """What is wrong with an index [S, 2] of first tokens and numbers of targets, in half a sentence; empty if nothing.

    Every target stands in one sequence, of at most `length` targets, and the sequences in the order of the stream.
    """
    expected = 0  # where the next sequence has to start
    for start in range(0, len(index), _CHUNK):
        starts, counts = np.asarray(index[start : start + _CHUNK]).T
        if counts.min() < 1 or counts.max() > length:
            return f"has a sequence of {counts.min()} or of {counts.max()} targets, where 1 to {length} are possible"
        ends = expected + counts.cumsum()  # counts are small: no sum overflows
        if starts[0] != expected or (starts[1:] != ends[:-1]).any():
            return f"does not go through its {tokens} tokens one sequence after another"
        expected = int(ends[-1])
    return "" if expected == tokens else f"covers {expected} of its {tokens} tokens"
