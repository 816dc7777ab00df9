"""The steps of a tokenizer, from its JSON, and the properties that they prove."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import pre_tokenizers

from pyro_ltm.data.tokenizer.cutting import PARTIAL, PATTERNS, STOPS

Step = Mapping[str, Any]


class Pipeline:
    """Normalizers, pre-tokenizers, model and decoders, as lists of single steps.

    What is proved here holds for every text; what is not may still hold for a given one.

    Attributes:
        content: the contents of a tokenizer.json.
        normalizers, pre_tokenizers, decoders: the steps before the model, and from tokens back to text.
        model: makes tokens of words.
        added: tokens that are looked for in the text itself, but for special ones, which we never look for.
    """

    def __init__(self, content: Mapping[str, Any]):
        self.content = content
        self.normalizers = list(_single_steps(content.get("normalizer")))
        self.pre_tokenizers = list(_single_steps(content.get("pre_tokenizer")))
        self.decoders = list(_single_steps(content.get("decoder")))
        self.model: Step = content["model"]
        added = content.get("added_tokens") or []
        self.added = [token for token in added if not token["special"]]
        self._special = {token["content"] for token in added if token["special"]}

    @property
    def spells_bytes(self) -> bool:
        """Whether its tokens spell bytes, one character each, as GPT-2's do."""
        return any(step["type"] == "ByteLevel" for step in self.pre_tokenizers)

    @functools.cached_property
    def has_cut_points(self) -> bool:
        """Whether a text may be cut where `cutting` says: byte-level BPE with an expression that is known.

        A normal form C changes nothing across a space or a line end; added tokens do not reach across either.
        """
        splits = [step["pattern"].get("Regex") for step in self.pre_tokenizers if step["type"] == "Split"]
        own = any(step["type"] == "ByteLevel" and step.get("use_regex", True) for step in self.pre_tokenizers)
        return (
            self._is_byte_level_bpe
            and all(step["type"] == "NFC" for step in self.normalizers)
            and all(pattern in PATTERNS | PARTIAL for pattern in splits)
            and (own or any(pattern in PATTERNS for pattern in splits))
            and not any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in self.added)
            and not any(letter.isspace() or letter in STOPS for token in self.added for letter in token["content"])
        )

    @functools.cached_property
    def is_lossless(self) -> bool:
        """Whether every text comes back from its tokens: byte-level BPE with all bytes that changes nothing."""
        vocab: Mapping[str, int] = self.model.get("vocab") or {}
        return (
            self._is_byte_level_bpe
            and not self.normalizers
            and not self.added
            and [step["type"] for step in self.decoders] == ["ByteLevel"]
            and len(set(vocab.values())) == len(vocab)
            and vocab.keys() >= set(pre_tokenizers.ByteLevel.alphabet())
            and self._never_writes_special_tokens
        )

    @property
    def puts_after_text(self) -> tuple[str, ...]:
        """The special token that it puts after a text, where that is all that it puts there; else none."""
        step = self.content.get("post_processor") or {}
        pieces: list[Any] = step["single"] if step.get("type") == "TemplateProcessing" else []
        kinds = [list(piece) for piece in pieces]
        return (pieces[1]["SpecialToken"]["id"],) if kinds == [["Sequence"], ["SpecialToken"]] else ()

    @property
    def unknown_token(self) -> str | None:
        """The token for characters and words that it does not know; None where it has none."""
        if (place := self.model.get("unk_id")) is not None:  # Unigram lists its tokens in the order of their ids
            return str(self.model["vocab"][place][0])
        token: str | None = self.model.get("unk_token")
        return token

    @property
    def _is_byte_level_bpe(self) -> bool:
        """BPE of words that only a final `ByteLevel` spells; what comes before it drops nothing and merges nothing."""
        if not self.pre_tokenizers:
            return False
        *before, last = self.pre_tokenizers
        return (
            self.model.get("type") == "BPE"
            and not self.model.get("continuing_subword_prefix")
            and not self.model.get("end_of_word_suffix")
            and last["type"] == "ByteLevel"
            and not last.get("add_prefix_space", True)
            and all(
                step["type"] == "Digits"
                or (step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"])
                for step in before
            )
        )

    @property
    def _never_writes_special_tokens(self) -> bool:
        """Whether merges never end in a special token, which decoding would leave out."""
        if self.model.get("ignore_merges"):  # then any word that is in the vocabulary is a token
            return self._special.isdisjoint(self.model["vocab"])
        merged = {pair.replace(" ", "", 1) if isinstance(pair, str) else "".join(pair) for pair in self.model["merges"]}
        return self._special.isdisjoint(merged) and all(len(name) != 1 for name in self._special)


def _single_steps(step: Any) -> Iterator[Step]:
    """A step of a tokenizer, those within a `Sequence` one by one; none for None."""
    if isinstance(step, dict):
        names = ("normalizers", "pretokenizers", "processors", "decoders")
        inner = [step[name] for name in names if isinstance(step.get(name), list)]
        if not inner:
            yield step
        for one in (one for steps in inner for one in steps):
            yield from _single_steps(one)
