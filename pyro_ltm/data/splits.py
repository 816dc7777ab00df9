"""Which text is held out for validation.

Two rules. Many documents: whole documents are held out, by a seeded hash of their number. Few documents, such as one
long book: the tail of each is held out. Either is decided by a first look at the text, which stops at the twentieth
document, and gives the same split in every later pass over the same text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from pyro_ltm.data.documents import Document

NEAR = 1000
"""Characters after the place that a share asks for, within which a better one is looked for."""

MANY = 20
"""From this number of documents on, whole documents are held out."""


_BETWEEN_LINES = re.compile(r"(?<=\S)\n(?=\s?\S)")


@dataclass(frozen=True)
class SplitRule:
    """Says of each piece of text which split it belongs to.

    Attributes:
        splits: those that text may go to.
        description: the rule in one sentence.
        assign: pairs of split and piece, without empty pieces; `continues` is relative to the piece's own split.
        cuts_documents: whether the end of each document is held out, instead of whole ones.
    """

    splits: tuple[str, ...]
    description: str
    assign: Callable[[Iterable[Document]], Iterator[tuple[str, Document]]]
    cuts_documents: bool = False


def all_in(split: str) -> SplitRule:
    """Everything belongs to one split."""

    def assign(documents: Iterable[Document]) -> Iterator[tuple[str, Document]]:
        return ((split, document) for document in _with_text(documents))

    return SplitRule((split,), f"all text is in the {split} split", assign)


def by_document(fraction: float, seed: int) -> SplitRule:
    """A document is held out when the hash of `seed` and its number, as a share of 1, is below `fraction`.

    Of the first twenty at least one is held out and one is not: the lowest and the highest hash.
    """
    first = [_share(seed, number) for number in range(MANY)]
    fixed = {first.index(min(first)): True, first.index(max(first)): False}

    def assign(documents: Iterable[Document]) -> Iterator[tuple[str, Document]]:
        number, held_out = -1, False
        for document in _with_text(documents):
            if not document.continues:
                number += 1
                held_out = fixed.get(number, _share(seed, number) < fraction)
            yield ("validation" if held_out else "train"), document

    description = (
        f"a document is held out when the first 8 bytes of blake2b('seed:number'), seed {seed}, as a share "
        f"of 2^64, are below {fraction} (at least one, and not all, of the first {MANY})"
    )
    return SplitRule(("train", "validation"), description, assign)


def by_tail(fraction: float, lengths: Sequence[int]) -> SplitRule:
    """The tail of each document is held out, from a line's beginning on where the document has lines.

    Args:
        fraction: share of each document's characters.
        lengths: characters of each document.
    """

    def assign(documents: Iterable[Document]) -> Iterator[tuple[str, Document]]:
        number, start, tail, tail_begun = -1, 0, False, False
        for document in _with_text(documents):
            if not document.continues:
                number, start, tail, tail_begun = number + 1, 0, False, False
            length = lengths[number] if number < len(lengths) else 0
            target = length - round(fraction * length)
            text, end = document.text, start + len(document.text)
            cut = 0 if tail else len(text)
            if not tail and end > target:
                cut, tail = _line_start(text, target - start, last=end >= length), True
            if cut:
                yield "train", replace(document, text=text[:cut])
            if cut < len(text):
                yield "validation", replace(document, text=text[cut:], continues=tail_begun)
                tail_begun = True
            start = end

    description = f"the last {fraction:.4g} of each document's characters is held out, from the next line on"
    return SplitRule(("train", "validation"), description, assign, cuts_documents=True)


def plan_split(documents: Iterable[Document], fraction: float, seed: int) -> SplitRule:
    """The rule for this text. Reads `documents` up to the twentieth, or to the end where there are fewer."""
    if not fraction:
        return all_in("train")
    lengths: list[int] = []
    for document in _with_text(documents):
        if not document.continues:
            lengths.append(0)
            if len(lengths) == MANY:
                return by_document(fraction, seed)
        lengths[-1] += len(document.text)
    return by_tail(fraction, lengths)


def _with_text(documents: Iterable[Document]) -> Iterator[Document]:
    return (document for document in documents if document.text)


def _share(seed: int, number: int) -> float:
    digest = hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def _line_start(text: str, target: int, *, last: bool) -> int:
    """Where to cut a piece of text near `target`: after the next line end that leaves something, else before it.

    A line end where the words of GPT-2's expression end comes first, if it is near: its tokens on both sides are those
    of the whole. (Tokenizers of other kinds read both sides as texts of their own.) A piece that is not the `last` of
    its document ends where its lines do, so its end will do. Text in one line is cut at a space, and without spaces at
    `target`.
    """
    start = max(target - 1, 0)
    if found := _BETWEEN_LINES.search(text, max(start - 1, 0), start + NEAR):
        return found.end()
    after = text.find("\n", start) + 1
    if 0 < after < len(text) or (after == len(text) and not last):
        return after
    if not last:
        return len(text)
    before = text.rfind("\n", 0, target) + 1
    return before or max(text.rfind(" ", 0, target + 1), 0) or target
