"""The folder of prepared tokens: what is in it, and how damage is noticed.

    meta.json           everything about the other files, and their sizes and SHA-256
    tokenizer.json      the tokenizer
    train.bin           token ids, little endian, uint16 where V <= 65536, else uint32
    train.index.npy     document packing only: int64 [sequences, 2], first token and number of targets of each sequence
    validation.*        the same for the validation split, where there is one

A stream of tokens is an end-of-text, then each document with an end-of-text after it. Every token but the first is a
target exactly once, in both packings.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from pyro_ltm.data.tokenizer import Tokenizer
from pyro_ltm.errors import UserError, one_line
from pyro_ltm.locks import recover
from pyro_ltm.reading import Count, fitted, read_json, read_npy

FORMAT = "pyro-ltm tokens"
VERSION = 1
META = "meta.json"
TOKENIZER = "tokenizer.json"
CHECKED = 1 << 26
"""Files of up to so many bytes are read in full when a folder is opened (milliseconds), larger ones only sized."""

CHUNK = 1 << 22
"""Tokens or rows of an index that are looked at in one go."""

SPLITS = ("train", "validation")
PACKINGS = ("contiguous", "document")


class SplitCounts(msgspec.Struct):
    """Counts of a split. Folders of earlier releases lack the last two."""

    documents: Count
    tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    sequences: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    bytes: Count
    text_bytes: Count
    changed_documents: Count | None = None
    unknown_tokens: Count | None = None


class FileEntry(msgspec.Struct):
    """A file as it was written."""

    bytes: Count
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Listed(msgspec.Struct):
    """The files that meta.json names, of whatever version."""

    files: dict[str, Any]


class Contents(msgspec.Struct):
    """The entries of meta.json that are read."""

    packing: Literal["contiguous", "document"]
    sequence_length: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
    vocab_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 32)]
    end_of_text: Count
    tokenizer: str
    sources: list[str]
    validation_sources: list[str]
    splits: dict[Literal["train", "validation"], SplitCounts]
    files: dict[Annotated[str, msgspec.Meta(pattern=r"^\w[\w.-]*$")], FileEntry]
    split_rule: str = ""


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
        meta: the contents of meta.json; `meta["splits"][split]` counts documents, tokens (targets), sequences,
            bytes (UTF-8, that the targets stand for), text_bytes (UTF-8, of the text itself), changed_documents (those
            that their tokens do not give back) and unknown_tokens; folders of earlier releases lack the last two.
    """

    path: Path
    meta: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> TokenFolder:
        """The prepared folder at `path`, its sizes checked, and the contents of files of up to `CHECKED` bytes.

        Raises:
            UserError: it is missing, not a prepared folder, of a newer version, or damaged.
        """
        path = Path(path)
        recover(path)
        folder = cls(path, _read_meta(path))
        for name, entry in folder.meta["files"].items():
            try:
                size = (path / name).stat().st_size
            except OSError:
                raise damaged(path, f"{name} is missing") from None
            if size != entry["bytes"]:
                raise damaged(path, f"{name} has {size} bytes, {META} says {entry['bytes']}")
        folder.verify(limit=CHECKED)
        folder.check_contents(limit=CHECKED)
        return folder

    def verify(self, limit: int | None = None) -> None:
        """Reads the files, or those of up to `limit` bytes. Raises UserError when one is not what was written."""
        for name, entry in self.meta["files"].items():
            if self._is_small(name, limit) and sha256(self.path / name) != entry["sha256"]:
                raise damaged(self.path, f"{name} is not what was written")

    def check_contents(self, limit: int | None = None) -> None:
        """Goes through every token id and sequence, or through those in files of up to `limit` bytes.

        Raises:
            UserError: an id beyond the vocabulary, or an index that does not go through its split.
        """
        for split in self.splits:
            stream, index = stream_name(split), index_name(split)
            rows = self.index(split)
            if self._is_small(stream, limit) and (problem := ids_problem(self.stream(split), self.vocab_size)):
                raise damaged(self.path, f"{stream} {problem}")
            if rows is None or not self._is_small(index, limit):
                continue
            if problem := index_problem(rows, self.meta["splits"][split]["tokens"], self.sequence_length):
                raise damaged(self.path, f"{index} {problem}")

    def _is_small(self, name: str, limit: int | None) -> bool:
        return limit is None or self.meta["files"][name]["bytes"] <= limit

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what is in the files and of how it is cut: equal for equal sequences, wherever the folder lies."""
        hashes = {name: entry["sha256"] for name, entry in self.meta["files"].items()}
        content = [hashes, self.meta["packing"], self.meta["sequence_length"]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it has, `train` first."""
        return tuple(split for split in SPLITS if split in self.meta["splits"])

    @property
    def sequence_length(self) -> int:
        """T, targets in a full sequence."""
        return int(self.meta["sequence_length"])

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.meta["vocab_size"])

    @property
    def end_of_text(self) -> int:
        """Id of the token between documents."""
        return int(self.meta["end_of_text"])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored ids."""
        return token_dtype(self.vocab_size)

    def tokenizer(self) -> Tokenizer:
        """Loads the tokenizer. Raises UserError when it is not the one that made the tokens."""
        tokenizer = Tokenizer.load(self.path / TOKENIZER)
        if tokenizer.fingerprint != self.meta["tokenizer"]:
            raise damaged(self.path, f"{TOKENIZER} did not make these tokens")
        return tokenizer

    def stream(self, split: str) -> npt.NDArray[Any]:
        """The token ids of a split, memory-mapped, read-only."""
        return np.memmap(self.path / stream_name(split), dtype=self.dtype, mode="r")

    def index(self, split: str) -> npt.NDArray[np.int64] | None:
        """int64 [sequences, 2], first token and targets of each sequence, memory-mapped; None in contiguous packing."""
        if self.meta["packing"] == "contiguous":
            return None
        try:
            rows: npt.NDArray[np.int64] = read_npy(self.path / index_name(split), mapped=True)
        except UserError:
            rows = np.empty((0, 0), dtype=np.int64)
        if rows.shape != (self.meta["splits"][split]["sequences"], 2) or rows.dtype != np.int64:
            raise damaged(self.path, f"{index_name(split)} is no index")
        return rows


def damaged(path: Path, problem: str) -> UserError:
    """The error of a prepared folder that is not as it was written; `problem` in half a sentence."""
    return UserError(f"{path}: damaged: {problem}; prepare the data again")


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest stored type for ids below `vocab_size`."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def stream_name(split: str) -> str:
    """File name of a split's tokens."""
    return f"{split}.bin"


def index_name(split: str) -> str:
    """File name of a split's index."""
    return f"{split}.index.npy"


def chunks(start: int, end: int) -> Iterator[slice]:
    """The places from `start` to `end` in slices of at most `CHUNK`."""
    return (slice(at, min(at + CHUNK, end)) for at in range(start, end, CHUNK))


def ids_problem(stream: npt.NDArray[Any], vocab_size: int) -> str:
    """The fault of token ids `stream` [n], in half a sentence; empty where all are below `vocab_size`."""
    if vocab_size > np.iinfo(stream.dtype).max:
        return ""
    for part in chunks(0, len(stream)):
        largest = int(stream[part].max())
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


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def is_prepared(path: Path) -> bool:
    """Whether the folder was written by `prepare`, in whatever state it is now."""
    try:
        return read_json(path / META, dict[str, Any]).get("format") == FORMAT
    except (FileNotFoundError, UserError):
        return False


def strangers(path: Path) -> list[str]:
    """Names in a prepared folder of what `prepare` did not write there."""
    own = {META, TOKENIZER, *map(stream_name, SPLITS), *map(index_name, SPLITS)}
    with contextlib.suppress(FileNotFoundError, UserError):
        own |= set(read_json(path / META, Listed).files)
    return sorted({entry.name for entry in path.iterdir()} - own)


def _read_meta(path: Path) -> dict[str, Any]:
    file = path / META
    try:
        meta = read_json(file, dict[str, Any])
    except FileNotFoundError:
        what = f"has no {META}, so it is no prepared folder" if os.path.exists(path) else "no such folder"
        raise UserError(f"{path}: {what}; expected what `prepare` wrote") from None
    if meta.get("format") != FORMAT:
        raise UserError(f"{file}: does not describe prepared tokens; expected what `prepare` wrote")
    if meta.get("version") != VERSION:
        version = one_line(repr(meta.get("version")), 40)
        raise UserError(f"{file}: format version {version}, this release reads {VERSION}; prepare the data again")
    try:
        problem = _disagreement(fitted(meta, Contents))
    except UserError as error:
        problem = str(error)
    if problem:
        raise damaged(file, problem)
    return meta


def _disagreement(meta: Contents) -> str:
    """In what the entries of meta.json disagree with each other; empty where they do not."""
    if "train" not in meta.splits:
        return "splits: train is missing"
    if meta.end_of_text >= meta.vocab_size:
        return f"end_of_text {meta.end_of_text} is no token of a vocabulary of {meta.vocab_size}"
    item = token_dtype(meta.vocab_size).itemsize
    needed = [TOKENIZER]
    for split, counts in meta.splits.items():
        needed += [stream_name(split)] + ([index_name(split)] if meta.packing == "document" else [])
        if missing := [name for name in needed if name not in meta.files]:
            return f"files: {missing[0]} is missing"
        if (size := meta.files[stream_name(split)].bytes) != (counts.tokens + 1) * item:
            return f"{counts.tokens} tokens in {split} do not take {size} bytes"
        if meta.packing == "contiguous" and counts.sequences != -(-counts.tokens // meta.sequence_length):
            return f"{counts.tokens} tokens in {split} do not make {counts.sequences} sequences"
        if (counts.changed_documents is None) != (counts.unknown_tokens is None):
            return f"splits.{split}: only one of changed_documents and unknown_tokens"
    return ""
