"""What the JSON of a tokenizer proves about it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import pre_tokenizers

from pyro_ltm.data.tokenizer.cutting import PARTIAL, PATTERNS, STOPS

_INNER = ("normalizers", "pretokenizers", "processors", "decoders")


def steps(step: Any) -> Iterator[Mapping[str, Any]]:
    """A step of a tokenizer, those within a `Sequence` one by one; none for None."""
    if isinstance(step, dict):
        inner = [step[name] for name in _INNER if isinstance(step.get(name), list)]
        if not inner:
            yield step
        for one in (one for listed in inner for one in listed):
            yield from steps(one)


@dataclass(frozen=True)
class Pipeline:
    """The steps of a tokenizer, from its JSON.

    What is proved here holds for every text; what is not may still hold for a given one.
    """

    content: Mapping[str, Any]

    @functools.cached_property
    def normalizers(self) -> list[Mapping[str, Any]]:
        """What changes text first."""
        return list(steps(self.content.get("normalizer")))

    @functools.cached_property
    def pre_tokenizers(self) -> list[Mapping[str, Any]]:
        """What splits text into words."""
        return list(steps(self.content.get("pre_tokenizer")))

    @functools.cached_property
    def decoders(self) -> list[Mapping[str, Any]]:
        """What makes text of tokens."""
        return list(steps(self.content.get("decoder")))

    @functools.cached_property
    def model(self) -> Mapping[str, Any]:
        """What makes tokens of words."""
        found: Mapping[str, Any] = self.content["model"]
        return found

    @functools.cached_property
    def added(self) -> list[Mapping[str, Any]]:
        """Tokens that are looked for in the text itself, but for special ones, which we never look for."""
        return [token for token in self.content.get("added_tokens") or [] if not token["special"]]

    @property
    def spells_bytes(self) -> bool:
        """Whether its tokens spell bytes, one character each, as GPT-2's do."""
        return any(step["type"] == "ByteLevel" for step in self.pre_tokenizers)

    @functools.cached_property
    def has_cut_points(self) -> bool:
        """Whether a text may be cut at the seams of `seams`: byte-level BPE with an expression that is known.

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
        """What stands for characters and words that it does not know; None where it has nothing for them."""
        if (place := self.model.get("unk_id")) is not None:  # Unigram lists its tokens in the order of their ids
            return str(self.model["vocab"][place][0])
        token: str | None = self.model.get("unk_token")
        return token

    @functools.cached_property
    def _is_byte_level_bpe(self) -> bool:
        """BPE of words that only a final `ByteLevel` spells; what comes before it drops nothing and merges nothing."""
        kinds = [step["type"] for step in self.pre_tokenizers]
        plain = all(
            step["type"] == "Digits"
            or (step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"])
            for step in self.pre_tokenizers[:-1]
        )
        return (
            self.model.get("type") == "BPE"
            and not self.model.get("continuing_subword_prefix")
            and not self.model.get("end_of_word_suffix")
            and kinds[-1:] == ["ByteLevel"]
            and not self.pre_tokenizers[-1].get("add_prefix_space", True)
            and plain
        )

    @property
    def _never_writes_special_tokens(self) -> bool:
        """Whether merges never end in a special token, which decoding would leave out."""
        special = {token["content"] for token in self.content.get("added_tokens") or [] if token["special"]}
        if self.model.get("ignore_merges"):  # then any word that is in the vocabulary is a token
            return special.isdisjoint(self.model["vocab"])
        merged = {pair.replace(" ", "", 1) if isinstance(pair, str) else "".join(pair) for pair in self.model["merges"]}
        return special.isdisjoint(merged) and all(len(name) != 1 for name in special)
