"""The manifest of a folder of prepared tokens, meta.json: its entries, and the names and digests of the other files."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from pyro_ltm.errors import UserError, one_line
from pyro_ltm.reading import Count, fitted, read_json

FORMAT = "pyro-ltm tokens"
ONE_SHARD, MANY_SHARDS = VERSIONS = (1, 2)
"""Versions of the format: earlier releases read a split of one file alone."""

META = "meta.json"
TOKENIZER = "tokenizer.json"
SPLITS = ("train", "validation")
PACKINGS = ("contiguous", "document")

_APPENDED = re.compile(r"appended-\d{4,}")


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
    sequence_length: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
    vocab_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 32)]
    end_of_text: Count
    tokenizer: str
    sources: list[str]
    validation_sources: list[str]
    splits: dict[Literal["train", "validation"], SplitCounts]
    files: dict[Annotated[str, msgspec.Meta(pattern=r"^\w[\w.-]*$")], FileEntry]
    split_rule: str = ""


def damaged(path: Path, problem: str) -> UserError:
    """The error of a prepared folder that is not as it was written; `problem` in half a sentence."""
    return UserError(f"{path}: damaged: {problem}; prepare the data again")


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest stored type for ids below `vocab_size`."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def stream_name(split: str, shard: int = 0) -> str:
    """File name of a split's tokens, of the first shard or of a later one."""
    return f"{split}.{shard:04}.bin" if shard else f"{split}.bin"


def stream_names(split: str, files: Iterable[str]) -> list[str]:
    """Names of a split's shards among those of all files, in their order."""
    names = itertools.takewhile(set(files).__contains__, (stream_name(split, shard) for shard in itertools.count()))
    return list(names)


def index_name(split: str) -> str:
    """File name of a split's index."""
    return f"{split}.index.npy"


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


def appended_name(number: int) -> str:
    """Name, in a prepared folder, of the folder of what was appended to it; numbers begin at 1."""
    return f"appended-{number:04}"


def count_appended(path: Path) -> int:
    """How often a prepared folder was appended to. Raises UserError when one of these folders is missing."""
    found = {entry.name for entry in path.iterdir() if _APPENDED.fullmatch(entry.name) and entry.is_dir()}
    for number in range(1, len(found) + 1):
        if appended_name(number) not in found:
            raise damaged(path, f"{appended_name(number)} is missing")
    return len(found)


def strangers(path: Path) -> list[str]:
    """Names in a prepared folder of what `prepare` did not write there."""
    own = {META, TOKENIZER, *map(stream_name, SPLITS), *map(index_name, SPLITS)}
    with contextlib.suppress(FileNotFoundError, UserError):
        own |= set(read_json(path / META, Listed).files)
    own |= {entry.name for entry in path.iterdir() if _APPENDED.fullmatch(entry.name)}
    return sorted({entry.name for entry in path.iterdir()} - own)


def read_meta(path: Path) -> dict[str, Any]:
    """The contents of a folder's meta.json. Raises UserError: missing, of something else, a newer one, or damaged."""
    file = path / META
    try:
        meta = read_json(file, dict[str, Any])
    except FileNotFoundError:
        what = f"has no {META}, so it is no prepared folder" if os.path.exists(path) else "no such folder"
        raise UserError(f"{path}: {what}; expected what `prepare` wrote") from None
    if meta.get("format") != FORMAT:
        raise UserError(f"{file}: does not describe prepared tokens; expected what `prepare` wrote")
    if meta.get("version") not in VERSIONS:
        version, known = one_line(repr(meta.get("version")), 40), " and ".join(map(str, VERSIONS))
        raise UserError(f"{file}: format version {version}, this release reads {known}; prepare the data again")
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
        sizes = [meta.files[name].bytes for name in stream_names(split, meta.files)]
        if any(size % item for size in sizes[:-1]):
            return f"a file of {split} ends within a token"
        if (size := sum(sizes)) != (counts.tokens + 1) * item:
            return f"{counts.tokens} tokens in {split} do not take {size} bytes"
        if meta.packing == "contiguous" and counts.sequences != -(-counts.tokens // meta.sequence_length):
            return f"{counts.tokens} tokens in {split} do not make {counts.sequences} sequences"
        if (counts.changed_documents is None) != (counts.unknown_tokens is None):
            return f"splits.{split}: only one of changed_documents and unknown_tokens"
    return ""
