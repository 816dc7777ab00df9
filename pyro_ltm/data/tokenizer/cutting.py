"""Where a text may be cut so that the tokens of its parts are those of the whole.

Byte-level BPE first splits text into words by a regular expression, and merges nothing across words. Under every
expression in `PATTERNS` a word ends before a single space between two characters that are no white space, after a
single line end that stands so, and before a full stop or comma of Chinese and Japanese that follows their letters: a
*cut point*. Neither side's words depend on what is beyond it. Documents for other tokenizers are encoded whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from pyro_ltm.data.documents import Document
from pyro_ltm.errors import UserError

PIECE = 1 << 14
"""Characters of a piece, about: small enough that a tokenizer spreads one document evenly over its threads."""

LONGEST = 1 << 25
"""Characters of the longest text that is encoded in one piece, having no cut point; each takes 100 bytes of memory."""

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

PATTERNS = frozenset(
    {
        GPT2,
        # GPT-4 and Llama 3, the same as tiktoken writes it now, and Qwen 2.
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES,
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+",
        _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES,
        # GPT-4o, and Mistral's, which leaves contractions and digits alone.
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES,
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES,
        # DeepSeek 3, after `PARTIAL`.
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*" + _SPACES,
    }
)
"""Expressions that split a whole text into words, as published tokenizers write them."""

PARTIAL = frozenset({r"\p{N}{1,3}", r"\p{N}", "[0-9]", "[0-9][0-9][0-9]", "[一-龥\u3040-ゟ゠-ヿ]+"})
"""Expressions that set digits or a script apart before one of `PATTERNS` splits the rest."""

NEAR = 256
"""Characters at the end of a text in which a cut point is looked for first."""

STOPS = "。，、；：！？」』）"

_CUT_POINT = re.compile(rf"(?<=\S)(?: (?=\S)|\n(?=\S))|(?<=[ぁ-ゖァ-ヺ一-龥])(?=[{STOPS}])")


def last_cut_point(text: str) -> int:
    """The last place where `text` may be cut; 0 where there is none."""
    for start in (max(len(text) - NEAR, 0), 0):  # nearly always there is one near the end
        last = 0
        for found in _CUT_POINT.finditer(text, start):
            last = found.start() + (found[0] == "\n")
        if last:
            return last
    return 0


def encodable_pieces(pieces: Iterable[tuple[str, Document]], *, cut: bool) -> Iterator[tuple[str, Document]]:
    """The same texts in pieces whose tokens, one after the other, are those of the whole document.

    However a reader cut them: with `cut`, pieces of about `PIECE` characters that end at cut points; else whole
    documents. The documents of one split, the first of each pair, keep their order.

    Raises:
        UserError: a text of over `LONGEST` characters that would have to be encoded in one piece.
    """
    current: dict[str, _Unfinished] = {}
    for split, piece in pieces:
        if not piece.continues and split in current:
            yield from ((split, done) for done in current.pop(split).rest())
        if split not in current:
            current[split] = _Unfinished(piece, cut)
        yield from ((split, done) for done in current[split].add(piece.text))
    for split, last in current.items():
        yield from ((split, done) for done in last.rest())


def whole_documents(pieces: Iterable[Document]) -> Iterator[Document]:
    """Whole documents, of pieces. Raises UserError for one of over `LONGEST` characters."""
    return (document for _, document in encodable_pieces((("", piece) for piece in pieces), cut=False))


class _Unfinished:
    """The end of a document, for as long as there may be more of it."""

    def __init__(self, first: Document, cut: bool):
        self.next, self.cut = first, cut
        self.texts: list[str] = []
        self.size, self.due = 0, PIECE

    def add(self, text: str) -> Iterator[Document]:
        """Takes in more of the document; gives the pieces that are complete."""
        self.texts.append(text)
        self.size += len(text)
        if self.cut and self.size >= self.due:
            *done, last = _cut("".join(self.texts))
            self.texts, self.size = [last], len(last)
            self.due = max(2 * self.size, PIECE)  # so that a text without a cut point is not searched for every piece
            yield from map(self._piece, done)
        self._check_length(self.size)

    def rest(self) -> Iterator[Document]:
        """All that is left."""
        text = "".join(self.texts)
        yield from map(self._piece, _cut(text) if self.cut else [text])

    def _piece(self, text: str) -> Document:
        self._check_length(len(text))
        piece = replace(self.next, text=text)
        self.next = replace(self.next, continues=True)
        return piece

    def _check_length(self, characters: int) -> None:
        if characters > LONGEST:
            why = "has no space and no line end to cut it at" if self.cut else "has to be read whole"
            size = f"{LONGEST >> 20} Mi characters"
            raise UserError(f"{self.next.origin}: a text of over {size} {why}: make documents of it, such as .jsonl")


def _cut(text: str) -> list[str]:
    """`text` in pieces of about `PIECE` characters that end at cut points; the last may be of any length."""
    pieces, start = [], 0
    while len(text) - start > 2 * PIECE:
        size = PIECE
        while not (at := last_cut_point(text[start : start + size])) and start + size < len(text):
            size *= 2
        if not at:
            break
        pieces.append(text[start : start + at])
        start += at
    return [*pieces, text[start:]]
