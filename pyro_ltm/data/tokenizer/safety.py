"""Reading a tokenizer.json from anyone: what could take endless time or memory is refused before it is used.

The library that runs tokenizers does what their files say. So the file's size, the number of its steps, how much a
step may lengthen a text, how long a word may be, and its regular expressions (`expressions`) are bounded here.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from pyro_ltm.data.tokenizer.expressions import refusal
from pyro_ltm.data.tokenizer.pipeline import Pipeline
from pyro_ltm.errors import UserError, one_line
from pyro_ltm.reading import read_bytes

SIZE = 1 << 28
"""Bytes of a file; the largest that are published have an eighth of it."""

STEPS = 64
"""Steps before the model, and after it."""

GROWTH = 128
"""How many times longer the steps before the model, or those after it, may make a text.

SentencePiece's usual table puts 18 letters for an Arabic sign; with spaces joined and one put before, that is 72.
"""

TOKEN = 1 << 14
"""Characters of a token, or of what a step puts into a text."""

WORD = 1024
"""Characters of a word of WordPiece, whose time grows with their square; longer ones are unknown to it."""

AFFIX = 64
"""Characters that a model puts before or after the parts of a word."""

SPARE = 1 << 16
"""Ids that may be unused, beyond as many again as there are tokens: tables have a row for each id."""


def open_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """The library's tokenizer in a tokenizer.json that was looked through.

    Raises:
        UserError: it could take endless time or memory, or cannot be read.
        FileNotFoundError: there is none.
        ValueError: it is no tokenizer.
    """
    if path.exists() and not path.is_file():  # a pipe may never end
        raise UserError(f"{path}: not a regular file; expected a tokenizer.json")
    text = read_bytes(path, SIZE).decode("utf-8")
    try:
        reason = next(_reasons(json.loads(text, object_pairs_hook=_once)), "")
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None
    except (AttributeError, TypeError, KeyError, IndexError):
        raise ValueError("its entries are not those of a tokenizer") from None
    if reason:
        raise _refused(path, reason)
    try:
        with clear_failure("the library cannot use it"):
            tokenizer = tokenizers.Tokenizer.from_str(text)
    except UserError as error:
        raise ValueError(str(error)) from None
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    name, last = max(vocab.items(), key=lambda entry: entry[1], default=("", -1))
    if last >= 2 * len(vocab) + SPARE:
        raise _refused(path, f"token '{one_line(name, 40)}' has the id {last:,} among {len(vocab):,} tokens")
    return tokenizer


@contextlib.contextmanager
def clear_failure(what: str) -> Iterator[None]:
    """Turns what the library raises in the block, a panic of its code included, into a UserError."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":  # a class without a module
            raise UserError(f"{what}: {one_line(error)}") from None
        raise


def _reasons(content: Any) -> Iterator[str]:
    """Why the contents are refused."""
    pipeline = Pipeline(content)
    for steps in (pipeline.normalizers, pipeline.pre_tokenizers, pipeline.decoders):
        if len(steps) > STEPS:
            yield f"it has {len(steps):,} steps, {STEPS} at most are read"
        if (growth := math.prod(map(_growth, steps))) > GROWTH:
            yield f"its steps can make a text {growth:,} times as long, {GROWTH} at most are read"
        for step in steps:
            pattern = step.get("pattern") or {}
            if pattern.get("String") == "":
                yield "a step looks for the empty string"
            if why := refusal(pattern["Regex"]) if "Regex" in pattern else "":
                yield f"regular expression '{one_line(pattern['Regex'], 60)}': {why}"
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if len(pipeline.model.get(name) or "") > AFFIX:
            yield f"model.{name} has over {AFFIX} characters"
    if pipeline.model.get("max_input_chars_per_word", 0) > WORD:
        yield f"model.max_input_chars_per_word is over {WORD}"
    vocab = pipeline.model["vocab"]
    names = vocab if isinstance(vocab, dict) else (name for name, _ in vocab)
    longest = max(map(len, names), default=0)
    added = max((len(token["content"]) for token in content.get("added_tokens") or []), default=0)
    if max(longest, added) > TOKEN:
        yield f"a token has {max(longest, added):,} characters, {TOKEN:,} at most are read"
    for template in _templates(content.get("post_processor")):
        if sum("Sequence" in piece for piece in template) != 1:
            yield "post_processor.single does not hold the text once"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError for a key that is there twice: another reader could take the other one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _growth(step: Mapping[str, Any]) -> int:
    """How many times longer a step may make a text, in characters."""
    kind = step["type"]
    if kind == "Replace":
        found, put = step["pattern"].get("String"), len(step["content"])
        # An expression may find single characters, and the places between them.
        return -(-put // max(len(found), 1)) or 1 if found is not None else 1 + put
    if kind == "Prepend":
        return 1 + len(step["prepend"])
    if kind == "Precompiled":
        return _longest_replacement(step.get("precompiled_charsmap") or "")
    return 1  # normal forms, cases and the like: a constant of Unicode, once


def _longest_replacement(charsmap: str) -> int:
    """Characters of the longest text that SentencePiece's table holds: a trie, then texts that end in zeros."""
    try:
        raw = base64.b64decode(charsmap, validate=True)
        (trie,) = struct.unpack_from("<I", raw) if raw else (0,)
    except (binascii.Error, struct.error):
        raise ValueError("no charsmap") from None
    texts = raw[4 + trie :].decode("utf-8", errors="replace").split("\0")
    return max(1, *map(len, texts))


def _templates(processor: Any) -> Iterator[list[Any]]:
    if processor is not None:
        if "single" in processor:
            yield processor["single"]
        for inner in processor.get("processors") or []:
            yield from _templates(inner)


def _refused(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: refused, for it could take endless time or memory: {reason}")
