"""The folder of prepared tokens: what is in it, and how damage is noticed.

    meta.json           everything about the other files, and their sizes and SHA-256
    tokenizer.json      the tokenizer
    train.bin           token ids, little endian, uint16 where V <= 65536, else uint32; of many, the first shard
    train.0001.bin      the next shard, and so on: each but the last of `packing.SHARD` tokens
    train.index.npy     document packing only: int64 [sequences, 2], first token and number of targets of each sequence
    validation.*        the same for the validation split, where there is one
    appended-0001/      what was appended: a prepared folder of its own with a training split, and the same tokenizer

A stream of tokens is an end-of-text, then each document with an end-of-text after it. Every token but the first is a
target exactly once, in both packings. The sequences of what was appended follow those that were there before, which
stay as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyro_ltm.data.manifest import (
    META,
    SPLITS,
    TOKENIZER,
    appended_name,
    count_appended,
    damaged,
    index_name,
    read_meta,
    sha256,
    stream_names,
    token_dtype,
)
from pyro_ltm.data.shards import Shards, ids_problem, index_problem
from pyro_ltm.data.tokenizer import Tokenizer
from pyro_ltm.errors import UserError, one_line
from pyro_ltm.locks import recover
from pyro_ltm.reading import read_npy

CHECKED = 1 << 26
"""Files of up to so many bytes are read in full when a folder is opened (milliseconds), larger ones before the first
look at what they hold."""

_sound: set[tuple[Path, str, int, int]] = set()
"""Large files that this process has found undamaged: path, SHA-256, size and time of the last change."""

COUNTED = (
    *("sources", "splits", "files_read", "files_skipped"),
    *("documents_without_text", "duplicate_documents", "validation_documents_in_training"),
)
"""Entries of meta.json that grow by what is appended."""


def is_token_folder(path: str | Path) -> bool:
    """Whether `path` looks like a folder that `prepare` wrote; not where it cannot be looked at."""
    try:
        recover(path)
        return (Path(path) / META).is_file()
    except OSError:
        return False


@dataclass(frozen=True)
class TokenFolder:
    """A prepared folder. `open` makes sure that its files are there and undamaged.

    Attributes:
        path: where it is.
        own: the contents of its meta.json, which say nothing of what was appended.
        appended: the folders of what was appended.
    """

    path: Path
    own: Mapping[str, Any]
    appended: tuple[TokenFolder, ...] = ()

    @classmethod
    def open(cls, path: str | Path) -> TokenFolder:
        """The prepared folder at `path`, its sizes checked, and the contents of files of up to `CHECKED` bytes.

        Larger files are checked before the first look at what they hold (`check_large`).

        Raises:
            UserError: it is missing, not a prepared folder, of a newer version, or damaged.
        """
        path = Path(path)
        recover(path)
        folder = cls(path, read_meta(path))
        for name, entry in folder.own["files"].items():
            try:
                size = (path / name).stat().st_size
            except OSError:
                raise damaged(path, f"{name} is missing") from None
            if size != entry["bytes"]:
                raise damaged(path, f"{name} has {size} bytes, {META} says {entry['bytes']}")
        folder.verify(limit=CHECKED)
        folder.check_contents(limit=CHECKED)
        parts = tuple(cls.open(path / appended_name(number)) for number in range(1, count_appended(path) + 1))
        for part in parts:
            for key in ("tokenizer", "packing", "sequence_length", "vocab_size", "end_of_text"):
                if part.own[key] != folder.own[key]:
                    raise damaged(part.path, f"its {key} is another than that of {path}")
        return dataclasses.replace(folder, appended=parts)

    def as_of(self, fingerprint: str) -> TokenFolder | None:
        """The folder as it was when it had this fingerprint, before more was appended; None where it never had."""
        states = (dataclasses.replace(self, appended=self.appended[:n]) for n in range(len(self.appended), -1, -1))
        return next((state for state in states if state.fingerprint == fingerprint), None)

    def verify(
        self, limit: int | None = None, *, above: int = 0, report: Callable[[int, int], None] | None = None
    ) -> None:
        """Reads the files, or those of up to `limit` bytes, or those of more than `above`.

        Of large ones those that this process has read before, and that nobody wrote since, are not read again.

        Args:
            report: called with the files and the bytes read so far.

        Raises:
            UserError: one of them is not what was written.
        """
        files = size = 0
        for part in (self, *self.appended):
            for name, entry in part.own["files"].items():
                if entry["bytes"] <= above or not part._is_small(name, limit):
                    continue
                check = part._check_file if part._is_small(name, CHECKED) else part.check_large
                check(name)
                files, size = files + 1, size + entry["bytes"]
                if report is not None:
                    report(files, size)

    def check_large(self, name: str) -> None:
        """Reads a file in full, if it is large and this process has not. Raises UserError: not what was written."""
        if not self._is_small(name, CHECKED) and (now := self._as_it_is(name)) not in _sound:
            self._check_file(name)
            _sound.add(now)

    def trust(self) -> None:
        """Takes the large files as undamaged: another process of the same command has read them."""
        for part in (self, *self.appended):
            _sound.update(part._as_it_is(name) for name in part.own["files"])

    def _check_file(self, name: str) -> None:
        if sha256(self.path / name) != self.own["files"][name]["sha256"]:
            raise damaged(self.path, f"{name} is not what was written")

    def _as_it_is(self, name: str) -> tuple[Path, str, int, int]:
        """As in `_sound`."""
        try:
            now = (self.path / name).stat()
        except OSError as error:
            raise damaged(self.path, f"{name} cannot be read: {one_line(error)}") from None
        return self.path.absolute() / name, self.own["files"][name]["sha256"], now.st_size, now.st_mtime_ns

    def check_contents(self, limit: int | None = None) -> None:
        """Goes through every token id and sequence, or through those in files of up to `limit` bytes.

        Raises:
            UserError: an id beyond the vocabulary, or an index that does not go through its split.
        """
        for split in self.splits:
            index, rows = index_name(split), self.index(split)
            for name in stream_names(split, self.own["files"]):
                shard = Shards([self.path / name], self.dtype)
                if self._is_small(name, limit) and (problem := ids_problem(shard, self.vocab_size)):
                    raise damaged(self.path, f"{name} {problem}")
            if rows is None or not self._is_small(index, limit):
                continue
            if problem := index_problem(rows, self.own["splits"][split]["tokens"], self.sequence_length):
                raise damaged(self.path, f"{index} {problem}")
        for part in self.appended:
            part.check_contents(limit)

    def _is_small(self, name: str, limit: int | None) -> bool:
        return limit is None or self.own["files"][name]["bytes"] <= limit

    @functools.cached_property
    def meta(self) -> Mapping[str, Any]:
        """The contents of meta.json, and of what was appended.

        `meta["splits"][split]` counts documents, tokens (targets), sequences, bytes (UTF-8, that the targets stand
        for), text_bytes (UTF-8, of the text itself), changed_documents (those that their tokens do not give back) and
        unknown_tokens; folders of earlier releases lack the last two.
        """
        return functools.reduce(_joined, (part.own for part in self.appended), self.own)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what is in the files and of how it is cut: equal for equal sequences, wherever the folder lies."""
        hashes = {name: entry["sha256"] for name, entry in self.own["files"].items()}
        content: list[Any] = [hashes, self.own["packing"], self.own["sequence_length"]]
        content += [part.fingerprint for part in self.appended]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it has, `train` first."""
        return tuple(split for split in SPLITS if split in self.own["splits"])

    def parts(self, split: str) -> tuple[TokenFolder, ...]:
        """Itself and what was appended, as far as they have this split, each to be read by its own files alone."""
        return tuple(part for part in (self, *self.appended) if split in part.splits)

    @property
    def sequence_length(self) -> int:
        """T, targets in a full sequence."""
        return int(self.own["sequence_length"])

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.own["vocab_size"])

    @property
    def end_of_text(self) -> int:
        """Id of the token between documents."""
        return int(self.own["end_of_text"])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored ids."""
        return token_dtype(self.vocab_size)

    def tokenizer(self) -> Tokenizer:
        """Loads the tokenizer. Raises UserError when it is not the one that made the tokens."""
        tokenizer = Tokenizer.load(self.path / TOKENIZER)
        if tokenizer.fingerprint != self.own["tokenizer"]:
            raise damaged(self.path, f"{TOKENIZER} did not make these tokens")
        return tokenizer

    def shards(self, split: str) -> Shards:
        """The token ids of a split in its own files."""
        names = stream_names(split, self.own["files"])
        return Shards([self.path / name for name in names], self.dtype, self.check_large)

    def stream(self, split: str) -> npt.NDArray[Any]:
        """The token ids of a split in its own files as one array, read-only: memory-mapped, or a copy of many files."""
        return self.shards(split).whole()

    def index(self, split: str) -> npt.NDArray[np.int64] | None:
        """int64 [sequences, 2], first token and targets of each sequence, memory-mapped; None in contiguous packing."""
        if self.own["packing"] == "contiguous":
            return None
        try:
            rows: npt.NDArray[np.int64] = read_npy(self.path / index_name(split), mapped=True)
        except UserError:
            rows = np.empty((0, 0), dtype=np.int64)
        if rows.shape != (self.own["splits"][split]["sequences"], 2) or rows.dtype != np.int64:
            raise damaged(self.path, f"{index_name(split)} is no index")
        return rows


def _joined(before: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of a meta.json with what was appended in its counts and lists."""
    return {**before, **_summed({key: before[key] for key in COUNTED if key in before}, part)}


def _summed(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`one` with what `other` has under the same names added: numbers, lists, and tables of them."""
    return {
        key: value
        if key not in other
        else _summed(value, other[key])
        if isinstance(value, dict)
        else value + other[key]
        for key, value in one.items()
    }
