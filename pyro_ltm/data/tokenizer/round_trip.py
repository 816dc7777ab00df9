"""Whether texts come back from their tokens; where not, figures by the byte and the word are of no text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pyro_ltm.data.tokenizer import Tokenizer

NOT_KNOWN = "an earlier release prepared the data and did not look whether tokens give back their text: prepare again"


@dataclass
class RoundTrip:
    """Counts of texts, and of those that change on the way through a tokenizer and back.

    Attributes:
        texts: how many. changed: those that decoding their tokens does not give back, to the byte.
        tokens: of all texts. unknown: those that stand for text that the tokenizer does not know.
        last_changed: whether the last text is one of those that change, of which more may come.
    """

    texts: int = 0
    changed: int = 0
    tokens: int = 0
    unknown: int = 0
    last_changed: bool = field(default=False, repr=False)

    @classmethod
    def of(cls, tokenizer: Tokenizer, texts: Sequence[str], encoded: Sequence[Sequence[int]]) -> RoundTrip:
        """Of whole texts and their tokens."""
        found = cls()
        for text, ids in zip(texts, encoded, strict=True):
            found.add(tokenizer, text, ids)
        return found

    @classmethod
    def of_counts(cls, counts: Mapping[str, int]) -> RoundTrip:
        """Of the documents of a split, from its entry in meta.json."""
        texts, tokens = counts["documents"], counts["tokens"] - counts["documents"]
        return cls(texts, counts["changed_documents"], tokens, counts["unknown_tokens"])

    def add(self, tokenizer: Tokenizer, text: str, ids: Sequence[int], *, continues: bool = False) -> None:
        """Takes in one more text, or more of the last one."""
        unknown = sum(token == tokenizer.unknown for token in ids)
        self.count(len(ids), unknown, gives_back=tokenizer.gives_back(text, ids), continues=continues)

    def count(self, tokens: int, unknown: int, *, gives_back: bool, continues: bool = False) -> None:
        """As `add`, of a text that was looked at before."""
        if not continues:
            self.texts += 1
            self.last_changed = False
        if not self.last_changed and not gives_back:
            self.changed += 1
            self.last_changed = True
        self.tokens += tokens
        self.unknown += unknown

    @property
    def why_no_bytes(self) -> str:
        """Why there is no figure by the byte or the word, in half a sentence; empty where there may be one."""
        if not self.changed:
            return ""
        share = f" ({self.unknown / max(self.tokens, 1):.1%} of tokens are unknown)" if self.unknown else ""
        few = f"{self.changed:,} of {self.texts:,} texts come" if self.texts > 1 else "it comes"
        return f"the tokens do not determine the text: {few} back changed{share}"
