"""A thin face over a Hugging Face `tokenizers` tokenizer."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from pyro_ltm.config import suggest
from pyro_ltm.data.tokenizer.pipeline import Pipeline
from pyro_ltm.data.tokenizer.safety import clear_failure, open_tokenizer
from pyro_ltm.errors import UserError, one_line
from pyro_ltm.files import write_text
from pyro_ltm.reading import read_json

END_OF_TEXT = "<|endoftext|>"
"""The special token of the tokenizers trained here."""

_END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "[SEP]")
_BYTES = 256
MOST = 1 << 24
"""Tokens, as in the settings. Room for them is taken before the text is read; for too many the process is aborted."""
_ONE_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # how SentencePiece spells a byte of a character that it does not know


class Tokenizer:
    """Text to token ids and back.

    Encoding never adds special tokens, truncates, pads or drops merges, whatever the tokenizer's file says. The name of
    a special token inside a text, such as a literal `<|endoftext|>`, is encoded as the ordinary characters that it is,
    so text cannot forge the end of a document.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        """`backend` belongs to this object from here on."""
        backend.no_truncation()
        backend.no_padding()
        if isinstance(backend.model, models.BPE):
            backend.model.dropout = None  # which would give other tokens each time
        backend.encode_special_tokens = True  # the library's name for "a special token's name is ordinary text"
        self._backend = backend

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, at_most: bool = False) -> Tokenizer:
        """A byte-level BPE of exactly `vocab_size` tokens: `<|endoftext|>`, 256 bytes, and merges. Deterministic.

        With `at_most` it has fewer where the text has no more to merge.

        Raises:
            UserError: `vocab_size` below 257 or above `MOST`, or a text too small for so many merges.
        """
        if not _BYTES < vocab_size <= MOST:
            least = f"{_BYTES + 1} (256 bytes and {END_OF_TEXT})"
            raise UserError(f"vocab_size = {vocab_size}: must be at least {least} and at most {MOST}")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        tokenizer = cls(backend)
        if tokenizer.vocab_size < vocab_size and not at_most:
            raise UserError(
                f"vocab_size = {vocab_size}: the text is too small, it gives only {tokenizer.vocab_size} tokens; "
                "lower vocab_size or add text"
            )
        return tokenizer

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """The tokenizer in a `tokenizer.json`, or in the folder of a model that holds one.

        Where a folder's file has no end-of-text token, the `eos_token` of its tokenizer_config.json is it.

        Raises:
            UserError: the file is missing, no tokenizer, or one that could take endless time or memory.
        """
        path, folder = Path(path), Path(path) if Path(path).is_dir() else None
        path = path / "tokenizer.json" if folder else path
        try:
            loaded = cls(open_tokenizer(path))
            name = _named_end(folder) if folder and not loaded._knows_its_end else None
            known = name is not None and loaded._backend.token_to_id(name) is not None
            return loaded.ending(name) if name is not None and known else loaded
        except UserError:
            raise
        except FileNotFoundError:
            raise UserError(f"{path}: no such tokenizer; expected a tokenizer.json") from None
        except ValueError as error:
            raise UserError(f"{path}: not a readable tokenizer.json: {one_line(error, 120)}") from None

    def ending(self, name: str) -> Tokenizer:
        """The same tokenizer with the token `name` between documents. Its file says so: as what it puts after a text.

        Raises:
            UserError: it has no such token.
        """
        token = self._backend.token_to_id(name)
        if token is None:
            known = [added.content for added in self._backend.get_added_tokens_decoder().values() if added.special]
            hint = f"; its special tokens are {one_line(', '.join(known))}" if known else ""
            raise UserError(f"the tokenizer has no token '{one_line(name, 80)}'{suggest(name, known)}{hint}")
        copy = tokenizers.Tokenizer.from_str(self._backend.to_str())
        copy.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False)])
        content = json.loads(copy.to_str())
        first, second = ({"Sequence": {"id": letter, "type_id": 0}} for letter in "AB")
        end = {"SpecialToken": {"id": name, "type_id": 0}}
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [first, end],
            "pair": [first, end, second, end],
            "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]}},
        }
        return type(self)(tokenizers.Tokenizer.from_str(json.dumps(content)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `tokenizer.json` that `load` reads back; the file appears whole or not at all. Raises UserError."""
        write_text(Path(path), self.to_json())

    def to_json(self) -> str:
        """The contents of its `tokenizer.json`."""
        return str(self._backend.to_str(pretty=True))

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: made anew there, because the library's own pickles forget a setting."""
        return _of_json, (self._backend.to_str(),)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. Raises UserError where the tokenizer fails on it."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, over all cores. Raises UserError where the tokenizer fails on one."""
        with clear_failure("the tokenizer fails on this text"):
            return [one.ids for one in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """The text that `ids` stand for; special tokens are left out."""
        with clear_failure("the tokenizer fails on these tokens"):
            return str(self._backend.decode([int(token) for token in ids], skip_special_tokens=True))

    def gives_back(self, text: str, ids: Sequence[int]) -> bool:
        """Whether `ids`, the tokens of `text`, determine it to the byte."""
        return self.pipeline.is_lossless or self.decode(ids) == text

    @functools.cached_property
    def pipeline(self) -> Pipeline:
        """Its steps, and the properties that they prove."""
        return Pipeline(json.loads(self._backend.to_str()))

    @functools.cached_property
    def unknown(self) -> int | None:
        """The id that stands for text that it does not know; None where it has none."""
        name = self.pipeline.unknown_token
        return None if name is None else self._backend.token_to_id(name)

    @functools.cached_property
    def vocab_size(self) -> int:
        """V: one more than the highest id, added tokens included."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def _knows_its_end(self) -> bool:
        names = (*self.pipeline.puts_after_text, *_END_NAMES)
        return any(self._backend.token_to_id(name) is not None for name in names)

    @functools.cached_property
    def end_of_text(self) -> int:
        """The id that begins and ends documents: the one that it puts after a text, if no more than that, else by name.

        Raises UserError when the tokenizer has no such token.
        """
        for name in (*self.pipeline.puts_after_text, *_END_NAMES):
            token = self._backend.token_to_id(name)
            if token is not None:
                return int(token)
        known = ", ".join(_END_NAMES)
        raise UserError(
            f"the tokenizer has no end-of-text token: expected one of {known} (--end-of-text names another)"
        )

    @functools.cached_property
    def token_bytes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes that each token stands for, int64 [V]; 0 for special tokens and unused ids.

        Exact for byte-level BPE (GPT-2 and its kind), whose tokens spell bytes one character each, also where a token
        ends inside a character. For other tokenizers the bytes that a token adds to the text when it is decoded after
        another one: exact wherever decoding gives back the text.
        """
        added = self._backend.get_added_tokens_decoder()
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for name, token in self._backend.get_vocab(with_added_tokens=True).items():
            if token in added:
                sizes[token] = 0 if added[token].special else len(added[token].content.encode("utf-8"))
            else:
                sizes[token] = len(name) if self.pipeline.spells_bytes else self._decoded_bytes(name, token)
        sizes[self.end_of_text] = 0
        return sizes

    @functools.cached_property
    def first_token_bytes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes that each token stands for at the beginning of a text, where decoders may drop a space; [V]."""
        if self.pipeline.spells_bytes:
            return self.token_bytes
        sizes = self.token_bytes.copy()
        for name, token in self._backend.get_vocab(with_added_tokens=True).items():
            if sizes[token] and not _ONE_BYTE.fullmatch(name):
                sizes[token] = len(self.decode([token]).encode("utf-8"))
        return sizes

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the tokenizer's JSON with sorted keys, no spaces and scores of six digits.

        The library's reader of JSON may be off in a score's last digit, each time that a file is read.
        """
        content = json.dumps(_rounded(self.pipeline.content), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode("utf-8")).hexdigest()

    def _decoded_bytes(self, name: str, token: int) -> int:
        if _ONE_BYTE.fullmatch(name):
            return 1
        # Decoders drop the space at the beginning of a text, so look at the token in second place.
        first = self._first
        return max(len(self.decode([first, token]).encode("utf-8")) - len(self.decode([first]).encode("utf-8")), 0)

    @functools.cached_property
    def _first(self) -> int:
        return (self.encode("a") or [0])[-1]


def _of_json(content: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(content))


def _named_end(folder: Path) -> str | None:
    """The token at the end of texts that a model's tokenizer_config.json names; None where it names none."""
    try:
        named: Any = read_json(folder / "tokenizer_config.json", dict[str, Any]).get("eos_token")
    except FileNotFoundError:
        return None
    named = named.get("content") if isinstance(named, dict) else named
    return named if isinstance(named, str) else None


def _rounded(content: Any) -> Any:
    """`content` with the scores of a Unigram model, its only fractions, rounded."""
    if content["model"]["type"] != "Unigram":
        return content
    vocab = [[name, float(f"{score:.6g}")] for name, score in content["model"]["vocab"]]
    return {**content, "model": {**content["model"], "vocab": vocab}}
