"""Prepared tokens as batches of tensors, and the order in which training visits them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pyro_ltm.data.folder import TokenFolder
from pyro_ltm.data.manifest import SPLITS, damaged, index_name
from pyro_ltm.data.shards import Shards, check_whole, chunks, ids_problem
from pyro_ltm.data.tokenizer import Tokenizer
from pyro_ltm.data.tokenizer.round_trip import NOT_KNOWN, RoundTrip
from pyro_ltm.errors import UserError
from pyro_ltm.types import Batch


class TokenDataset:
    """One split of a prepared folder, memory-mapped: opening it costs nothing, whatever its size."""

    def __init__(self, folder: str | Path | TokenFolder, split: str = "train"):
        """Opens `split`, `train` or `validation`, of a prepared folder.

        Raises:
            UserError: no prepared folder, a damaged one, or one without this split.
        """
        self.folder = folder if isinstance(folder, TokenFolder) else TokenFolder.open(folder)
        if split not in self.folder.splits:
            hint = "prepare it with a validation share or source" if split in SPLITS else "choose from it"
            raise UserError(f"{self.folder.path}: no split '{split}', it has {', '.join(self.folder.splits)}; {hint}")
        self.split = split
        self._parts = [_Part(part, split) for part in self.folder.parts(split)]
        self._ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64)  # where the sequences of each end
        self._counts = self.folder.meta["splits"][split]
        # Validation ids follow those of training: a sequence's noise is keyed by its id, and no two share one.
        before = SPLITS[: SPLITS.index(split)]
        self._first_id = sum(self.folder.meta["splits"][name]["sequences"] for name in before)

    def __len__(self) -> int:
        return int(self._counts["sequences"])

    def batch(self, indices: Sequence[int] | npt.NDArray[np.integer] | Tensor) -> Batch:
        """The sequences at `indices` (whole numbers [B] below `len(self)`), on the CPU.

        A sequence shorter than T is padded with end-of-text and masked. Raises IndexError for an index out of range.
        """
        rows = np.asarray(indices, dtype=np.int64)
        if rows.ndim != 1 or (rows.size and (rows.min() < 0 or rows.max() >= len(self))):
            raise IndexError(f"indices must be a list of numbers from 0 to {len(self) - 1}")
        tokens = np.empty((len(rows), self.sequence_length + 1), dtype=np.int64)
        real = np.empty(tokens.shape, dtype=bool)
        for number, inside, part_rows in self._by_part(rows):
            tokens[inside], real[inside] = self._parts[number].read(part_rows)
        return Batch(
            inputs=torch.from_numpy(tokens[:, :-1].copy()),
            targets=torch.from_numpy(tokens[:, 1:].copy()),
            mask=torch.from_numpy(real[:, 1:].copy()),
            ids=torch.from_numpy(self._first_id + rows),
            padding_is_end=self.meta["packing"] == "document",
        )

    @property
    def sequence_length(self) -> int:
        """T, targets in a full sequence."""
        return self.folder.sequence_length

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.folder.vocab_size

    @property
    def tokens(self) -> int:
        """Targets that count."""
        return int(self._counts["tokens"])

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Targets of each sequence that count, int64 [S]."""
        return np.concatenate([part.spans(np.arange(len(part)))[1] for part in self._parts])

    def documents(self, count: int | None = None) -> npt.NDArray[np.int64]:
        """The document in which each of the first `count` sequences begins, numbers from 0, int64 [count]; None: all.

        Reads the text of these sequences.
        """
        left, before, found = len(self) if count is None else min(count, len(self)), 0, [np.empty(0, dtype=np.int64)]
        for part in self._parts:
            found.append(before + part.documents(min(left, len(part))))
            left -= len(found[-1])
            before += part.counts["documents"]
        return np.concatenate(found)

    @property
    def bytes(self) -> int:
        """UTF-8 bytes that the targets stand for, as `count_bytes` counts them."""
        return int(self._counts["bytes"])

    @property
    def bytes_are_exact(self) -> bool:
        """Whether the tokens stand for the text to the byte, so that bits a byte mean something."""
        return not self.why_no_bytes

    @functools.cached_property
    def why_no_bytes(self) -> str:
        """Why there is no figure by the byte or the word, in half a sentence; empty where there may be one.

        There is none where a tokenizer folds case, normalizes, or has no tokens for some of the text: then texts that
        differ have the same tokens, and their nats are those of neither.
        """
        counts = self._counts
        if "changed_documents" in counts:
            if why := RoundTrip.of_counts(counts).why_no_bytes:
                return why
        elif not self.tokenizer.pipeline.is_lossless:
            return NOT_KNOWN
        return (
            "" if self.bytes == counts["text_bytes"] else "the bytes of the tokens do not add up to those of the text"
        )

    def count_bytes(self, batch: Batch) -> int:
        """UTF-8 bytes of text that the targets of a batch stand for."""
        return count_bytes(self.tokenizer, batch)

    @property
    def meta(self) -> Mapping[str, Any]:
        """The contents of the folder's meta.json."""
        return self.folder.meta

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens."""
        return self.folder.tokenizer()

    @property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of each token, int64 [V]."""
        return self.tokenizer.token_bytes

    def target_chunks(self) -> Iterator[npt.NDArray[np.int64]]:
        """All targets that count, each once, in chunks (int64 [n]) that fit in memory."""
        return itertools.chain.from_iterable(part.target_chunks() for part in self._parts)

    def _by_part(self, rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, npt.NDArray[np.bool_], Any]]:
        """The parts in which sequences lie: the number of each, which sequences, and these numbered inside it."""
        numbers = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(numbers):
            inside = numbers == number
            yield int(number), inside, rows[inside] - (self._ends[number] - len(self._parts[number]))


class _Part:
    """One split of one prepared folder, without what was appended to it."""

    def __init__(self, folder: TokenFolder, split: str):
        self.folder, self._split, self.counts = folder, split, folder.own["splits"][split]
        self._stream: Shards = folder.shards(split)
        self._index, self._index_is_checked = folder.index(split), False

    def __len__(self) -> int:
        return int(self.counts["sequences"])

    def read(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Tokens [B, T + 1] of the sequences `rows` [B], with end-of-text behind shorter ones, and which are real."""
        length, tokens = self.folder.sequence_length, int(self.counts["tokens"])
        starts, counts = self.spans(rows)
        columns = np.arange(length + 1)
        real = columns <= counts[:, None]
        if ((starts < 0) | (counts < 1) | (counts > length) | (starts > tokens - counts)).any():
            # A large index is not looked through when it is opened.
            raise damaged(self.folder.path, "its index points outside the tokens")
        places = np.minimum(starts[:, None] + columns, len(self._stream) - 1)
        found = np.where(real, self._stream[places], self.folder.end_of_text).astype(np.int64)
        self._check_ids(found.reshape(-1))
        return found, real

    def spans(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where in the stream each sequence starts, and how many targets it has; int64 [B] each."""
        if self._index is not None:
            check_whole(self._index, self.folder.path / index_name(self._split))
            if not self._index_is_checked:
                self.folder.check_large(index_name(self._split))
                self._index_is_checked = True
            spans = np.asarray(self._index[rows], dtype=np.int64)
            return spans[:, 0], spans[:, 1]
        starts = rows * self.folder.sequence_length
        return starts, np.minimum(self.folder.sequence_length, self.counts["tokens"] - starts)

    def documents(self, count: int) -> npt.NDArray[np.int64]:
        """The document in which each of the first `count` sequences begins, int64 [count]."""
        starts = self.spans(np.arange(count))[0]
        end = int(starts[-1]) + 1 if len(starts) else 0
        # Every document has an end-of-text before it: the first target of a sequence is that of the last one begun.
        found = [part.start + np.flatnonzero(self._stream[part] == self.folder.end_of_text) for part in chunks(0, end)]
        ends = np.concatenate([np.empty(0, dtype=np.int64), *found])
        return np.searchsorted(ends, starts, side="right").astype(np.int64) - 1

    def target_chunks(self) -> Iterator[npt.NDArray[np.int64]]:
        """All targets, each once, in chunks (int64 [n])."""
        for part in chunks(1, len(self._stream)):  # every token but the first is a target once
            chunk = self._stream[part].astype(np.int64)
            self._check_ids(chunk)
            yield chunk

    def _check_ids(self, tokens: npt.NDArray[np.int64]) -> None:
        """Raises UserError for an id beyond the vocabulary: a large file is not looked through when it is opened."""
        if problem := ids_problem(tokens, self.folder.vocab_size):
            raise damaged(self.folder.path, f"its stream {problem}")


def count_bytes(tokenizer: Tokenizer, batch: Batch) -> int:
    """UTF-8 bytes of text that the targets of a batch stand for, where the tokens determine the text."""
    assert batch.targets is not None  # without targets there is nothing to count
    targets, begins = batch.targets.cpu().numpy(), (batch.inputs == tokenizer.end_of_text).cpu().numpy()
    sizes = np.where(begins, tokenizer.first_token_bytes[targets], tokenizer.token_bytes[targets])
    return int(sizes[batch.mask.cpu().numpy()].sum())


def unigram_nats(train: TokenDataset, validation: TokenDataset, *, sequences: int | None = None) -> float:
    """Nats per token of the validation targets under the frequencies of the train targets, plus one for each token.

    What a model that knows nothing but how common each token is would score on the first `sequences` of `validation`
    (all when None). Raises UserError when the two were made by different tokenizers.
    """
    if train.meta["tokenizer"] != validation.meta["tokenizer"]:
        raise UserError(f"{validation.folder.path} and {train.folder.path} were made by different tokenizers")
    seen = _token_counts(train) + 1
    log_probabilities = np.log(seen) - np.log(seen.sum())
    counts = _token_counts(validation)
    if sequences is not None and sequences < len(validation):
        batch = validation.batch(range(sequences))
        assert batch.targets is not None
        counts = np.bincount(batch.targets[batch.mask].numpy(), minlength=validation.vocab_size)
    return float(-(counts * log_probabilities).sum() / counts.sum())


def _token_counts(dataset: TokenDataset) -> npt.NDArray[np.int64]:
    """How often each token is a target, int64 [V]."""
    counts = np.zeros(dataset.vocab_size, dtype=np.int64)
    for chunk in dataset.target_chunks():
        counts += np.bincount(chunk, minlength=dataset.vocab_size)
    return counts
