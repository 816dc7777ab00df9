"""Text and tokens: what a model reads of a text, and what new tokens add to one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from pyro_ltm.errors import UserError
from pyro_ltm.model import LatentThoughtModel

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""Character that decoders write for bytes that are none."""


class Codec(Protocol):
    """The part of a tokenizer that generation uses."""

    @property
    def end_of_text(self) -> int:
        """The token that begins and ends documents."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens."""


def continuation(codec: Codec, before: Sequence[int], new: Sequence[int]) -> str:
    """The text that the tokens `new` add to that of `before`.

    Decoded alone they may read otherwise: tokenizers that put a space before each word drop the first one, and a
    character may have bytes on both sides. Such a character belongs to what is new.
    """
    shown = [token for token in before if token != codec.end_of_text]
    start, whole = codec.decode(shown), codec.decode([*shown, *new])
    if not whole.startswith(start) and not start.endswith(INCOMPLETE):
        return codec.decode(new)  # bytes of no character, which some decoders let spoil those before them
    while not whole.startswith(start):
        start = start[:-1]
    return whole[len(start) :]


def encoded_after(encode: Callable[[str], list[int]], before: str, text: str) -> tuple[list[int], list[int]]:
    """Tokens of `before` and of the `text` that follows it.

    The two are encoded as one text, unless a token would reach from one into the other: then each by itself.
    """
    given, whole = encode(before), encode(before + text)
    if whole[: len(given)] == given:
        return given, whole[len(given) :]
    return given, encode(text)


def encode_for(model: LatentThoughtModel, codec: Codec, text: str) -> list[int]:
    """End-of-text and the tokens of `text`: what a model reads. Raises UserError when it is empty or too long."""
    tokens = [codec.end_of_text, *codec.encode(text)]
    longest = model.config.max_length
    if len(tokens) < 2:
        raise UserError("the text is empty: give at least one character")
    if len(tokens) > longest:
        raise UserError(f"the text has {len(tokens) - 1} tokens; this model reads at most {longest - 1}: shorten it")
    return tokens
